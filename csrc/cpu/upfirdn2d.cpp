#include "../upfirdn2d.h"

#include "parallel.h"
#include "vec.h"

// An output row is made from the few input rows below its taps: first their weighted sum, a row of acc_t as wide as the
// input (in chunks, which stay in the L1 cache), then the taps along x. Neighbouring output rows find their input in
// the L2 cache, so that memory is read once; every output row stands alone, so that threads share nothing.
//
// Contiguous pictures are pictures of one channel here: all code sees rows of pixels of `inner` adjacent elements.

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int64_t kChunk = 2048;  // elements of the row sum before the taps along x follow

// Which input pixels and taps make output `o` along one axis:
// out[o] = sum over m < count of taps[tap + m * up] * in[first + m].
struct Span {
  int64_t first;
  int tap, count;
};

// The same along x, in elements of the row sum.
struct Reach {
  int64_t begin, end;
  int tap, count;
};

Span span(int64_t o, int up, int down, int64_t pad, int taps) {
  const int64_t start = o * down - pad;
  const int tap = static_cast<int>(((-start) % up + up) % up);
  return {(start + tap) / up, tap, tap < taps ? static_cast<int>(divide_up(taps - tap, up)) : 0};
}

// out = or += the sum of `count` <= 4 rows.
template <class T, int count, bool add>
void sum_rows(const T* const* rows, const acc_t<T>* weights, acc_t<T>* out, int64_t n) {
  using A = acc_t<T>;
  Vec<A> weight[count];
  const T* row[count];  // copies: the compiler must assume that a store changes what `rows` points to
  for (int k = 0; k < count; k++) weight[k] = splat(weights[k]), row[k] = rows[k];
  const auto total = [&](auto load, Vec<A> before) {
    Vec<A> sum = add ? before + load(row[0]) * weight[0] : load(row[0]) * weight[0];
    for (int k = 1; k < count; k++) sum = sum + load(row[k]) * weight[k];
    return sum;
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>)
    store(out + i, total([&](const T* p) { return widen(p + i); }, add ? widen(out + i) : Vec<A>{}));
  if (const int64_t rest = n - i)
    store(out + i, total([&](const T* p) { return widen(p + i, rest); }, widen(out + i, rest)), rest);
}

template <class T>
void sum_rows(int count, const T* const* rows, const acc_t<T>* weights, acc_t<T>* out, int64_t n) {
  using Kernel = void (*)(const T* const*, const acc_t<T>*, acc_t<T>*, int64_t);
  constexpr Kernel set[] = {sum_rows<T, 1, false>, sum_rows<T, 2, false>, sum_rows<T, 3, false>, sum_rows<T, 4, false>};
  constexpr Kernel add[] = {sum_rows<T, 1, true>, sum_rows<T, 2, true>, sum_rows<T, 3, true>, sum_rows<T, 4, true>};
  if (count == 0) std::memset(out, 0, static_cast<size_t>(n) * sizeof(*out));
  for (int k = 0; k < count; k += 4) (k ? add : set)[smaller(count - k, 4) - 1](rows + k, weights + k, out, n);
}

// y[i] = sum over m < count of taps[m * step] * v[i + m * stride]; `fixed` is count where the compiler knows it, or 0.
template <class T, int fixed, bool Stream>
STYLEGEN_INLINE void convolve(int count, const acc_t<T>* v, const acc_t<T>* taps, int step, int64_t stride, T* y,
                              int64_t n) {
  using A = acc_t<T>;
  Vec<A> tap[fixed ? fixed : 1];
  for (int m = 0; m < fixed; m++) tap[m] = splat(taps[m * step]);
  const auto weigh = [&](auto load) {
    if constexpr (fixed > 0) {
      Vec<A> total = load(0) * tap[0];
      for (int m = 1; m < fixed; m++) total = total + load(m * stride) * tap[m];
      return total;
    } else {
      Vec<A> total = {};
      for (int m = 0; m < count; m++) total = total + load(m * stride) * taps[m * step];
      return total;
    }
  };
  const auto part = [&](int64_t i, int64_t some) {
    store(y + i, weigh([&](int64_t offset) { return widen(v + i + offset, some); }), some);
  };
  int64_t i = 0;
  if (Stream) {
    i = smaller(n, until_aligned(y));
    if (i) part(0, i);
  }
  for (; i + kLanes<A> <= n; i += kLanes<A>)
    store<T, Stream>(y + i, weigh([&](int64_t offset) { return widen(v + i + offset); }));
  if (i < n) part(i, n - i);
}

template <class T, bool Stream>
STYLEGEN_INLINE void convolve(int count, const acc_t<T>* v, const acc_t<T>* taps, int step, int64_t stride, T* y,
                              int64_t n) {
  switch (count) {
    case 1:
      return convolve<T, 1, Stream>(1, v, taps, step, stride, y, n);
    case 2:
      return convolve<T, 2, Stream>(2, v, taps, step, stride, y, n);
    case 3:
      return convolve<T, 3, Stream>(3, v, taps, step, stride, y, n);
    case 4:
      return convolve<T, 4, Stream>(4, v, taps, step, stride, y, n);
    default:
      return convolve<T, 0, Stream>(count, v, taps, step, stride, y, n);
  }
}

template <class T>
class Filter {
  using A = acc_t<T>;

 public:
  explicit Filter(const UpfirdnParams& params)
      : p(params),
        inner(p.in.channels_last ? p.in.c : 1),
        images(p.in.channels_last ? p.in.n : p.in.n * p.in.c),
        flat(p.up_x == 1 && p.down_x == 1),
        spans(p.out.w),
        taps(p.kw * (p.fy ? 1 : p.kh)) {
    low = span(0, p.up_x, p.down_x, p.pad_x, p.kw).first, high = low + 1;
    if (p.edge != 0) low = smaller<int64_t>(low, 0), high = p.in.w;
    for (int64_t o = 0; o < p.out.w; o++) {
      const Span at = span(o, p.up_x, p.down_x, p.pad_x, p.kw);
      high = larger(high, at.first + at.count);
      spans[o] = {(at.first - low) * inner, (at.first + at.count - low) * inner, at.tap, at.count};
    }
    for (int i = 0; i < p.kw * (p.fy ? 1 : p.kh); i++) taps[i] = p.fx[i];
  }

  int64_t rows() const { return images * p.out.h; }
  int64_t row_size() const { return p.out.w * inner; }

  template <bool Stream>
  void run(int64_t first, int64_t last) const {
    const int64_t width = (high - low) * inner;
    const Buffer<A> sums(width), total(larger(row_size(), inner));
    const Buffer<const T*> sources(p.kh + 2);
    const Buffer<A> weights(p.kh + 2);
    std::memset(sums.get(), 0, static_cast<size_t>(width) * sizeof(A));  // the padding stays zero
    for (int64_t row = first; row < last; row++) {
      const Scratch s = {sums.get(), total.get(), sources.get(), weights.get()};
      const T* x = static_cast<const T*>(p.x) + row / p.out.h * p.in.h * p.in.w * inner;
      T* y = static_cast<T*>(p.y) + row * row_size();
      if (p.fy)
        separable<Stream>(x, y, row % p.out.h, s);
      else
        general(x, y, row % p.out.h, s);
    }
    if (Stream) stream_fence();
  }

 private:
  struct Scratch {
    A *sums, *total;
    const T** sources;
    A* weights;
  };

  // The input rows below output row `oy` and their weights, gain included.
  int below(const T* x, int64_t oy, const Scratch& s) const {
    const Span rows = span(oy, p.up_y, p.down_y, p.pad_y, p.kh);
    int count = 0;
    const auto add = [&](int64_t iy, A weight) {
      if (iy < 0 || iy >= p.in.h) return;
      s.sources[count] = x + (iy * p.in.w + larger<int64_t>(low, 0)) * inner;
      s.weights[count++] = weight * A(p.gain);
    };
    for (int m = 0; m < rows.count; m++) add(rows.first + m, A(p.fy[rows.tap + m * p.up_y]));
    if (p.edge != 0 && oy == 0) add(0, -A(p.edge));
    if (p.edge != 0 && oy == p.out.h - 1) add(p.in.h - 1, -A(p.edge));
    return count;
  }

  template <bool Stream>
  void separable(const T* x, T* y, int64_t oy, const Scratch& s) const {
    const int count = below(x, oy, s);
    const int64_t begin = (larger<int64_t>(low, 0) - low) * inner;
    const int64_t end = larger(begin, (smaller(high, p.in.w) - low) * inner);
    int64_t done = 0;
    for (int64_t j = begin; done < row_size();) {
      const int64_t n = smaller(kChunk, end - j);
      sum_rows(count, s.sources, s.weights, s.sums + j, n);
      j += n;
      for (int k = 0; k < count; k++) s.sources[k] += n;
      done = emit<Stream>(s, y, done, j < end ? j : INT64_MAX);
    }
  }

  // The outputs from `done` on that need sums before `limit` only; returns where it stopped.
  template <bool Stream>
  int64_t emit(const Scratch& s, T* y, int64_t done, int64_t limit) const {
    const int64_t total = row_size();
    if (!flat) {
      int64_t o = done / inner;
      for (; o < p.out.w && spans[o].end <= limit; o++) {
        const Reach at = spans[o];
        if (inner < kLanes<A>)
          pixel(s.sums, at, s.total + o * inner);
        else
          convolve<T, Stream>(at.count, s.sums + at.begin, taps.get() + at.tap, p.up_x, inner, y + o * inner, inner);
      }
      if (o == p.out.w && inner < kLanes<A>) copy(s.total, y, total);
      return o * inner;
    }
    const int64_t reach = spans[0].begin + (p.kw - 1) * inner;
    const int64_t stop = limit == INT64_MAX ? total : larger(done, smaller(total, (limit - reach) / 64 * 64));
    const int64_t margin = p.edge != 0 ? inner : 0;
    const int64_t from = larger(done, margin), to = smaller(stop, total - margin);
    if (from < to) convolve<T, Stream>(p.kw, s.sums + spans[0].begin + from, taps.get(), 1, inner, y + from, to - from);
    if (margin && stop == total) {
      edge_pixel(s, y, 0);
      edge_pixel(s, y, p.out.w - 1);
    }
    return stop;
  }

  void edge_pixel(const Scratch& s, T* y, int64_t o) const {
    const A* pixels = s.sums - low * inner;
    pixel(s.sums, spans[o], s.total);
    for (int64_t c = 0; o == 0 && c < inner; c++) s.total[c] -= A(p.edge) * pixels[c];
    for (int64_t c = 0; o == p.out.w - 1 && c < inner; c++) s.total[c] -= A(p.edge) * pixels[(p.in.w - 1) * inner + c];
    copy(s.total, y + o * inner, inner);
  }

  void pixel(const A* sums, Reach at, A* out) const {
    const A* v = sums + at.begin;
    for (int64_t c = 0; c < inner; c++) {
      A total = 0;
      for (int m = 0; m < at.count; m++) total += taps[at.tap + m * p.up_x] * v[m * inner + c];
      out[c] = total;
    }
  }

  static void copy(const A* from, T* y, int64_t n) {
    const A one = 1;
    convolve<T, 1, false>(1, from, &one, 1, 0, y, n);
  }

  // Not separable: a row of taps at a time.
  void general(const T* x, T* y, int64_t oy, const Scratch& s) const {
    const Span rows = span(oy, p.up_y, p.down_y, p.pad_y, p.kh);
    const int64_t begin = larger<int64_t>(low, 0), n = (smaller(high, p.in.w) - begin) * inner;
    for (int64_t i = 0; i < row_size(); i++) s.total[i] = 0;
    for (int m = 0; m < rows.count; m++) {
      const int64_t iy = rows.first + m;
      if (iy < 0 || iy >= p.in.h || n <= 0) continue;
      const T* source = x + (iy * p.in.w + begin) * inner;
      const A gain = A(p.gain);
      sum_rows(1, &source, &gain, s.sums + (begin - low) * inner, n);
      const A* row_taps = taps.get() + (rows.tap + m * p.up_y) * p.kw;
      for (int64_t o = 0; o < p.out.w; o++) {
        const A* v = s.sums + spans[o].begin;
        for (int k = 0; k < spans[o].count; k++)
          for (int64_t c = 0; c < inner; c++)
            s.total[o * inner + c] += row_taps[spans[o].tap + k * p.up_x] * v[k * inner + c];
      }
    }
    copy(s.total, y, row_size());
  }

  const UpfirdnParams& p;
  int64_t inner, images;
  bool flat;
  Buffer<Reach> spans;  // of each output column
  Buffer<A> taps;
  int64_t low, high;  // the input columns that the outputs need, padding included
};

template <class T>
void run(const UpfirdnParams& p) {
  const Filter<T> filter(p);
  const bool stream = filter.rows() * filter.row_size() * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                      reinterpret_cast<uintptr_t>(p.y) % sizeof(T) == 0;
  parallel(filter.rows(), divide_up(32768, filter.row_size()), [&](int64_t first, int64_t last) {
    if (stream)
      filter.template run<true>(first, last);
    else
      filter.template run<false>(first, last);
  });
}

}  // namespace

void upfirdn2d(const UpfirdnParams& p) {
  if (p.out.n * p.out.c * p.out.h * p.out.w == 0) return;
  by_type(p.dtype, [&](auto type) { run<decltype(type)>(p); });
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
