#include "../bias_act.h"

#include "functions.h"
#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int64_t kBlock = 1024;  // elements: what threads share out, and the shortest worthwhile table of biases

// Which tensors an order reads: `first` is x, or ref where the derivative is taken from the output.
enum class Order { value, derivative, derivative_by_ref, second };

template <class A, Act act>
struct Function {  // f, f' and f'' (without gain and clamp) of a vector
  Vec<A> alpha;

  STYLEGEN_INLINE Vec<A> value(Vec<A> x) const {
    const Vec<A> zero = {};
    if constexpr (act == Act::linear) return x;
    if constexpr (act == Act::relu) return select(x < zero, zero, x);
    if constexpr (act == Act::lrelu) return select(x > zero, x, x * alpha);
    if constexpr (act == Act::tanh) return tanh<A>(x);
    if constexpr (act == Act::sigmoid) return sigmoid<A>(x);
    if constexpr (act == Act::elu) return select(x > zero, x, expm1<A>(x));
    if constexpr (act == Act::selu) return select(x > zero, x * A(kSelu), expm1<A>(x) * A(kSelu * kSeluAlpha));
    if constexpr (act == Act::softplus) return softplus<A>(x);
    if constexpr (act == Act::swish) return x * sigmoid<A>(x);
  }

  STYLEGEN_INLINE Vec<A> first(Vec<A> x) const {
    const Vec<A> zero = {}, one = splat(A(1));
    if constexpr (act == Act::linear) return one;
    if constexpr (act == Act::relu) return select(x > zero, one, zero);
    if constexpr (act == Act::lrelu) return select(x > zero, one, alpha);
    if constexpr (act == Act::tanh) return sech_squared<A>(x);
    if constexpr (act == Act::sigmoid) return sigmoid<A>(x) * sigmoid<A>(zero - x);
    if constexpr (act == Act::elu) return select(x > zero, one, exp<A>(x));
    if constexpr (act == Act::selu) return select(x > zero, splat(A(kSelu)), exp<A>(x) * A(kSelu * kSeluAlpha));
    if constexpr (act == Act::softplus) return select(x > splat(A(kSoftplusLinear)), one, sigmoid<A>(x));
    if constexpr (act == Act::swish) {
      const Vec<A> s = sigmoid<A>(x);
      return s * (x * sigmoid<A>(zero - x) + A(1));
    }
  }

  STYLEGEN_INLINE Vec<A> second(Vec<A> x) const {
    const Vec<A> zero = {};
    if constexpr (act <= Act::lrelu) return zero;
    if constexpr (act == Act::tanh) return tanh<A>(x) * sech_squared<A>(x) * A(-2);
    if constexpr (act == Act::elu) return select(x > zero, zero, exp<A>(x));
    if constexpr (act == Act::selu) return select(x > zero, zero, exp<A>(x) * A(kSelu * kSeluAlpha));
    const Vec<A> s = sigmoid<A>(x), other = sigmoid<A>(zero - x);
    if constexpr (act == Act::sigmoid) return s * other * (other - s);
    if constexpr (act == Act::softplus) return select(x > splat(A(kSoftplusLinear)), zero, s * other);
    if constexpr (act == Act::swish) return s * other * (x * (other - s) + A(2));
  }
};

// One vector of the operator; `in` is x + b or ref.
template <class A, Act act, Order order, bool clamps>
struct Operator {
  Function<A, act> f;
  Vec<A> gain, low, high;

  STYLEGEN_INLINE Vec<A> operator()(Vec<A> in, Vec<A> g, Vec<A> gg) const {
    const Vec<A> zero = {};
    if constexpr (order == Order::value) {
      const Vec<A> y = f.value(in) * gain;
      return clamps ? select(y < low, low, select(y > high, high, y)) : y;
    } else {
      const Vec<A> slope = (order == Order::second ? f.second(in) * gg : f.first(in)) * gain;
      if constexpr (!clamps) return g * slope;
      const Vec<A> y = order == Order::derivative_by_ref ? in : f.value(in) * gain;
      return select(y < low, zero, select(y > high, zero, g * slope));  // a NaN stays one
    }
  }
};

// y[0..n) of one segment: either one bias for all (`bias` null, `constant`) or a bias for each element.
template <class T, Act act, Order order, bool clamps, bool Stream>
void segment(const Operator<acc_t<T>, act, order, clamps>& operation, const T* in, const T* g, const T* gg, T* y,
             const acc_t<T>* bias, acc_t<T> constant, int64_t n) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>;
  const auto op = operation;  // a copy stays in registers
  const Vec<A> same = splat(constant), zero = {};
  const auto part = [&](int64_t i, int64_t count) {
    const Vec<A> b = bias ? widen(bias + i, count) : same;
    store(y + i,
          op(widen(in + i, count) + b, order == Order::value ? zero : widen(g + i, count),
             order == Order::second ? widen(gg + i, count) : zero),
          count);
  };
  const auto whole = [&](int64_t i, Vec<A> b) {
    store<T, Stream>(y + i, op(widen(in + i) + b, order == Order::value ? zero : widen(g + i),
                               order == Order::second ? widen(gg + i) : zero));
  };
  int64_t i = 0;
  if (Stream) {
    i = smaller(n, until_aligned(y));
    if (i) part(0, i);
  }
  if (bias)
    for (; i + lanes <= n; i += lanes) whole(i, widen(bias + i));
  else
    for (; i + lanes <= n; i += lanes) whole(i, same);
  if (i < n) part(i, n - i);
}

// The result is clamped to +-limit(p); in derivatives it is the last number strictly inside the clamp (as T has rounded
// the clamp, where the output is read).
template <class T, Order order>
acc_t<T> limit(const BiasActParams& p) {
  using A = acc_t<T>;
  if (p.clamp < 0) return A(INFINITY);
  if (order == Order::value) return A(p.clamp);
  T rounded[kLanes<A>];
  store(rounded, splat(A(p.clamp)));
  A values[kLanes<A>];
  store(values, order == Order::derivative_by_ref ? widen(rounded) : splat(A(p.clamp)));
  return std::nextafter(values[0], A(0));
}

// Short runs of one channel (inner < kShortRun, above all the channels innermost) read their biases from a table of a
// period, repeated until it is whole vectors and worth a loop.
constexpr int64_t kShortRun = 64;

int64_t table_size(int64_t period, int64_t total, int lanes) {
  int64_t size = period;
  while (size * 2 <= total && size < 4 * kBlock && (size < kBlock || size % lanes)) size *= 2;
  return size;
}

template <class T, Act act, Order order, bool clamps, bool Stream>
void run(const BiasActParams& p) {
  using A = acc_t<T>;
  const A high = limit<T, order>(p);
  const Operator<A, act, order, clamps> op = {{splat(A(p.alpha))}, splat(A(p.gain)), splat(-high), splat(high)};
  const T* in = static_cast<const T*>(order == Order::derivative_by_ref ? p.ref : p.x);
  const T *g = static_cast<const T*>(p.g), *gg = static_cast<const T*>(p.gg);
  T* y = static_cast<T*>(p.y);
  const A* b = order == Order::derivative_by_ref ? nullptr : static_cast<const A*>(p.b);

  const bool use_table = b && p.inner < kShortRun;
  const int64_t period = use_table ? table_size(p.channels * p.inner, p.size, kLanes<A>) : 0;
  const Buffer<A> repeated(period > p.channels ? period : 0);
  for (int64_t i = 0; period > p.channels && i < period;)
    for (int64_t c = 0; c < p.channels; c++)
      for (int64_t e = 0; e < p.inner; e++) repeated[i++] = b[c];
  const A* table = !use_table ? nullptr : period > p.channels ? repeated.get() : b;

  const int64_t stretch = !b ? p.size : use_table ? period : p.inner;
  const int64_t grain = (act <= Act::lrelu ? 32 : 8);
  parallel(divide_up(p.size, kBlock), grain, [&](int64_t first, int64_t last) {
    const int64_t end = smaller(last * kBlock, p.size);
    int64_t i = first * kBlock, offset = i % stretch, channel = i / stretch % p.channels;
    while (i < end) {
      const int64_t n = smaller(end - i, stretch - offset);
      segment<T, act, order, clamps, Stream>(op, in + i, g ? g + i : g, gg ? gg + i : gg, y + i,
                                             table ? table + offset : nullptr, b && !table ? b[channel] : A(-0.), n);
      i += n;
      offset = 0;
      if (++channel == p.channels) channel = 0;
    }
    if (Stream) stream_fence();
  });
}

template <class T, Act act, Order order>
void run(const BiasActParams& p) {
  // Where memory is the limit, nothing is computed in vain and large outputs are streamed.
  if constexpr (act <= Act::lrelu) {
    const bool stream =
        p.size * static_cast<int64_t>(sizeof(T)) >= kStreamBytes && reinterpret_cast<uintptr_t>(p.y) % sizeof(T) == 0;
    if (p.clamp < 0) return stream ? run<T, act, order, false, true>(p) : run<T, act, order, false, false>(p);
    if (stream) return run<T, act, order, true, true>(p);
  }
  run<T, act, order, true, false>(p);
}

template <class T, Act act>
void run(const BiasActParams& p) {
  if (p.order == 0) return run<T, act, Order::value>(p);
  if constexpr (act <= Act::lrelu) {
    if (p.order == 1 && p.ref) return run<T, act, Order::derivative_by_ref>(p);
  }
  if (p.order == 1) return run<T, act, Order::derivative>(p);
  run<T, act, Order::second>(p);
}

template <class T>
void run(const BiasActParams& p) {
  switch (p.act) {
    case Act::linear:
      return run<T, Act::linear>(p);
    case Act::relu:
      return run<T, Act::relu>(p);
    case Act::lrelu:
      return run<T, Act::lrelu>(p);
    case Act::tanh:
      return run<T, Act::tanh>(p);
    case Act::sigmoid:
      return run<T, Act::sigmoid>(p);
    case Act::elu:
      return run<T, Act::elu>(p);
    case Act::selu:
      return run<T, Act::selu>(p);
    case Act::softplus:
      return run<T, Act::softplus>(p);
    case Act::swish:
      return run<T, Act::swish>(p);
  }
}

// ---- channel_sum ----

constexpr int64_t kChunk = 65536;  // elements summed in acc_t; sums of chunks are added up in double

// acc[0..n) += a + b + c + d
template <class T>
void add_rows(const T* a, const T* b, const T* c, const T* d, acc_t<T>* acc, int64_t n) {
  constexpr int lanes = kLanes<acc_t<T>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes)
    store(acc + i, widen(acc + i) + ((widen(a + i) + widen(b + i)) + (widen(c + i) + widen(d + i))));
  if (const int64_t m = n - i)
    store(acc + i, widen(acc + i, m) + ((widen(a + i, m) + widen(b + i, m)) + (widen(c + i, m) + widen(d + i, m))), m);
}

template <class T>
void add_row(const T* a, acc_t<T>* acc, int64_t n) {
  constexpr int lanes = kLanes<acc_t<T>>;
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) store(acc + i, widen(acc + i) + widen(a + i));
  if (i < n) store(acc + i, widen(acc + i, n - i) + widen(a + i, n - i), n - i);
}

template <class T>
double sum_run(const T* v, int64_t n) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>;
  Vec<A> total[4] = {};
  int64_t i = 0;
  for (; i + 4 * lanes <= n; i += 4 * lanes)
    for (int k = 0; k < 4; k++) total[k] = total[k] + widen(v + i + k * lanes);
  for (; i + lanes <= n; i += lanes) total[0] = total[0] + widen(v + i);
  if (i < n) total[1] = total[1] + widen(v + i, n - i);
  return sum<A>((total[0] + total[1]) + (total[2] + total[3]));
}

// Channels innermost, or nearly: chunks of whole rows of `width` elements, a multiple of channels * inner.
template <class T>
void sum_rows(const T* v, double* sums, int64_t size, int64_t channels, int64_t inner) {
  using A = acc_t<T>;
  const int64_t width = table_size(channels * inner, size, kLanes<A>), rows = divide_up(size, width);
  const int64_t chunk = larger<int64_t>(16, kChunk / width), chunks = divide_up(rows, chunk);
  const Buffer<double> partial(chunks * channels);
  parallel(chunks, 1, [&](int64_t first, int64_t last) {
    const Buffer<A> acc(width);
    for (int64_t k = first; k < last; k++) {
      std::memset(acc.get(), 0, static_cast<size_t>(width) * sizeof(A));
      const int64_t end = smaller(size, (k + 1) * chunk * width);
      int64_t i = k * chunk * width;
      for (; i + 4 * width <= end; i += 4 * width)
        add_rows(v + i, v + i + width, v + i + 2 * width, v + i + 3 * width, acc.get(), width);
      for (; i < end; i += width) add_row(v + i, acc.get(), smaller(width, end - i));
      double* out = partial.get() + k * channels;
      for (int64_t c = 0; c < channels; c++) out[c] = 0;
      for (int64_t j = 0; j < width; j += channels * inner)
        for (int64_t c = 0; c < channels; c++)
          for (int64_t e = 0; e < inner; e++) out[c] += acc[j + c * inner + e];
    }
  });
  for (int64_t k = 0; k < chunks; k++)
    for (int64_t c = 0; c < channels; c++) sums[c] += partial[k * channels + c];
}

// Long runs of one channel, each in pieces.
template <class T>
void sum_runs(const T* v, double* sums, int64_t size, int64_t channels, int64_t inner) {
  const int64_t pieces = divide_up(inner, kChunk), tasks = size / inner * pieces;
  const Buffer<double> partial(tasks);
  parallel(tasks, larger<int64_t>(1, kChunk / smaller(inner, kChunk)), [&](int64_t first, int64_t last) {
    for (int64_t k = first; k < last; k++) {
      const int64_t begin = k % pieces * kChunk;
      partial[k] = sum_run(v + k / pieces * inner + begin, smaller(kChunk, inner - begin));
    }
  });
  for (int64_t k = 0; k < tasks; k++) sums[k / pieces % channels] += partial[k];
}

}  // namespace

void channel_sum(const void* v, void* sums, int64_t size, int64_t channels, int64_t inner, DType dtype) {
  by_type(dtype, [&](auto type) {
    using T = decltype(type);
    const Buffer<double> totals(channels);
    for (int64_t c = 0; c < channels; c++) totals[c] = 0;
    if (size > 0)
      (inner < kShortRun ? sum_rows<T> : sum_runs<T>)(static_cast<const T*>(v), totals.get(), size, channels, inner);
    for (int64_t c = 0; c < channels; c++) static_cast<acc_t<T>*>(sums)[c] = static_cast<acc_t<T>>(totals[c]);
  });
}

void bias_act(const BiasActParams& p) {
  if (p.size == 0) return;
  by_type(p.dtype, [&](auto type) { run<decltype(type)>(p); });
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
