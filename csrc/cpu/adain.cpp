#include "../adain.h"

#include "parallel.h"
#include "vec.h"

// Four passes over the pixels (the statistics and the output of forward, the sums and the gradient of backward), each
// an `Op` on vectors; t is computed anew in each, which is cheaper than to store it. The loops around the ops know the
// two memory orders. A unit of work is a sample (channels innermost) or the plane of one channel, its pixels cut into
// chunks by its size alone: sums of chunks are kept in acc_t and added up in double, the same for any number of
// threads.

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// What the ops need to know of a channel, one array each.
enum Param { kStrength, kBias, kMean, kScale, kShift, kTilt, kParams };

template <class A>
struct Lane {  // a vector of pixels or of channels
  Vec<A> x, g, noise, param[kParams];
};

template <class A>
struct Activation {
  Vec<A> alpha;
  STYLEGEN_INLINE Vec<A> before(const Lane<A>& v) const {
    return v.x + (v.noise * v.param[kStrength] + v.param[kBias]);
  }
  STYLEGEN_INLINE Vec<A> value(Vec<A> u) const { return select(u > Vec<A>{}, u, u * alpha); }
};

// kMean is a pivot: any value near the mean keeps the squares small.
template <class A>
struct Moments : Activation<A> {
  static constexpr bool reads_g = false, writes = false, sums = true;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Vec<A>& s, Vec<A>& q) const {
    const Vec<A> d = this->value(this->before(v)) - v.param[kMean];
    s = s + d;
    q = q + d * d;
    return d;
  }
};

template <class A>
struct Normalize : Activation<A> {
  static constexpr bool reads_g = false, writes = true, sums = false;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Vec<A>&, Vec<A>&) const {
    return (this->value(this->before(v)) - v.param[kMean]) * v.param[kScale] + v.param[kShift];
  }
};

template <class A>
struct GradientSums : Activation<A> {
  static constexpr bool reads_g = true, writes = false, sums = true;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Vec<A>& s, Vec<A>& q) const {
    s = s + v.g;
    q = q + v.g * (this->value(this->before(v)) - v.param[kMean]);
    return s;
  }
};

// With a = scale + 1 and the means over the N pixels of a unit and channel,
// dt = a rstd (g - mean(g) - xhat mean(g xhat)), where xhat = (t - mean) rstd; dx = dt times the slope.
template <class A>
struct Gradient : Activation<A> {
  static constexpr bool reads_g = true, writes = true, sums = true;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Vec<A>& s, Vec<A>& q) const {
    const Vec<A> u = this->before(v), t = this->value(u);
    const Vec<A> dt = v.g * v.param[kScale] - v.param[kShift] - (t - v.param[kMean]) * v.param[kTilt];
    const Vec<A> dx = select(u > Vec<A>{}, dt, dt * this->alpha);
    s = s + dx;
    q = q + dx * v.noise;
    return dx;
  }
};

template <class T>
struct Chunk {
  using A = acc_t<T>;
  const T *x, *g;
  T* y;
  const A* noise;  // of the chunk's first pixel, or null
  const A* param[kParams];
  A *s, *q;  // sums, one a channel, added to
  int64_t pixels, channels;
};

// A vector of channels of `n` pixels from `pixel` on; `load`, `save` and `put` read all, write sums, and write pixels.
template <class T, class Op, class Load, class Save, class Put>
STYLEGEN_INLINE void column(const Op& op, const Chunk<T>& k, int64_t c, int64_t pixel, int64_t n, const Load& load,
                            const Save& save, const Put& put) {
  using A = acc_t<T>;
  constexpr int unroll = 4;
  const int64_t stride = k.channels, base = pixel * stride + c, step = k.noise ? 1 : 0;
  const T *x = k.x + base, *g = k.g + (Op::reads_g ? base : 0);
  T* y = k.y + (Op::writes ? base : 0);
  const A silence = 0, *noise = k.noise ? k.noise + pixel : &silence;
  Lane<A> v;
  for (int i = 0; i < kParams; i++) v.param[i] = load(k.param[i] + c);
  Vec<A> s[unroll] = {}, q[unroll] = {};
  const auto one = [&](int64_t i, int j) {
    v.x = load(x + i * stride);
    if constexpr (Op::reads_g) v.g = load(g + i * stride);
    v.noise = splat(noise[i * step]);
    const Vec<A> result = op(v, s[j], q[j]);
    if constexpr (Op::writes) put(y + i * stride, result);
  };
  int64_t i = 0;
  for (; i + unroll <= n; i += unroll)
    for (int j = 0; j < unroll; j++) one(i + j, j);
  for (; i < n; i++) one(i, 0);
  if constexpr (Op::sums) {
    save(k.s + c, load(k.s + c) + ((s[0] + s[1]) + (s[2] + s[3])));
    save(k.q + c, load(k.q + c) + ((q[0] + q[1]) + (q[2] + q[3])));
  }
}

// Pixels with the channels innermost, in tiles that stay in the L1 cache.
template <class T, bool Stream, class Op>
void channels_innermost(const Op operation, const Chunk<T> k) {
  using A = acc_t<T>;
  const Op op = operation;
  const int64_t whole = k.channels / kLanes<A> * kLanes<A>, rest = k.channels - whole;
  const int64_t tile = larger<int64_t>(8, 2048 / k.channels);
  for (int64_t pixel = 0; pixel < k.pixels; pixel += tile) {
    const int64_t n = smaller(tile, k.pixels - pixel);
    for (int64_t c = 0; c < whole; c += kLanes<A>)
      column(
          op, k, c, pixel, n, [](auto* p) { return widen(p); }, [](A* p, Vec<A> v) { store(p, v); },
          [](T* p, Vec<A> v) { store<T, Stream>(p, v); });
    if (rest)
      column(
          op, k, whole, pixel, n, [&](auto* p) { return widen(p, rest); }, [&](A* p, Vec<A> v) { store(p, v, rest); },
          [&](T* p, Vec<A> v) { store(p, v, rest); });
  }
}

// Pixels of one channel.
template <class T, bool Stream, class Op>
void one_channel(const Op& op, const Chunk<T>& k) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>, unroll = 4;
  Lane<A> v;
  for (int i = 0; i < kParams; i++) v.param[i] = splat(k.param[i][0]);
  Vec<A> s[unroll] = {}, q[unroll] = {};
  const auto part = [&](int64_t i, int64_t n) {
    v.x = widen(k.x + i, n);
    if (Op::reads_g) v.g = widen(k.g + i, n);
    v.noise = k.noise ? widen(k.noise + i, n) : Vec<A>{};
    Vec<A> s1 = {}, q1 = {};
    const Vec<A> result = op(v, s1, q1);
    if constexpr (Op::writes) store(k.y + i, result, n);
    if constexpr (Op::sums) {
      A lane[2][lanes];
      store(lane[0], s1), store(lane[1], q1);
      for (int64_t j = 0; j < n; j++) k.s[0] += lane[0][j], k.q[0] += lane[1][j];
    }
  };
  const auto whole = [&](int64_t i, int j) {
    v.x = widen(k.x + i);
    if (Op::reads_g) v.g = widen(k.g + i);
    v.noise = k.noise ? widen(k.noise + i) : Vec<A>{};
    const Vec<A> result = op(v, s[j], q[j]);
    if constexpr (Op::writes) store<T, Stream>(k.y + i, result);
  };
  int64_t i = 0;
  if (Stream && Op::writes) {
    i = smaller(k.pixels, until_aligned(k.y));
    if (i) part(0, i);
  }
  for (; i + unroll * lanes <= k.pixels; i += unroll * lanes)
    for (int j = 0; j < unroll; j++) whole(i + j * lanes, j);
  for (; i + lanes <= k.pixels; i += lanes) whole(i, 0);
  if (i < k.pixels) part(i, k.pixels - i);
  if constexpr (Op::sums) {
    k.s[0] += sum<A>((s[0] + s[1]) + (s[2] + s[3]));
    k.q[0] += sum<A>((q[0] + q[1]) + (q[2] + q[3]));
  }
}

template <class T>
class Epilogue {
  using A = acc_t<T>;

 public:
  explicit Epilogue(const AdainParams& params)
      : p(params),
        last(p.shape.channels_last),
        channels(last ? p.shape.c : 1),
        units(last ? p.shape.n : p.shape.n * p.shape.c),
        pixels(p.shape.h * p.shape.w),
        chunk(last ? smaller<int64_t>(2048, larger<int64_t>(64, 32768 / channels)) : 16384),
        chunks(divide_up(pixels, chunk)),
        zeros(p.shape.c),
        scale(units * channels),
        shift(units * channels),
        tilt(units * channels),
        partial(units * chunks * 2 * channels),
        stream((sizeof(T) > 2 || channels <= kLanes<A>) &&
               units * pixels * channels * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
    for (int64_t c = 0; c < p.shape.c; c++) zeros[c] = 0;
    const void* out = p.g ? p.dx : p.y;
    stream = stream && reinterpret_cast<uintptr_t>(out) % (last ? kStored<T> : sizeof(T)) == 0 &&
             channels * static_cast<int64_t>(sizeof(T)) % (last ? kStored<T> : 1) == 0;
  }

  void forward() {
    const Moments<A> moments = {{splat(A(p.alpha))}};
    const Normalize<A> normalize = {{splat(A(p.alpha))}};
    schedule([&](int64_t u, int64_t k) { chunk_moments(moments, u, k); }, [&](int64_t u) { statistics(u); },
             [&](int64_t u, int64_t k) { sweep(normalize, u, k, static_cast<const A*>(p.mean), nullptr); });
  }

  void backward() {
    const GradientSums<A> sums = {{splat(A(p.alpha))}};
    const Gradient<A> gradient = {{splat(A(p.alpha))}};
    const A* mean = static_cast<const A*>(p.mean);
    schedule([&](int64_t u, int64_t k) { sweep(sums, u, k, mean, sums_of(u, k)); },
             [&](int64_t u) { gradient_terms(u); },
             [&](int64_t u, int64_t k) { sweep(gradient, u, k, mean, sums_of(u, k)); });
    bias_and_strength();
  }

 private:
  double* sums_of(int64_t unit, int64_t k) const { return partial.get() + (unit * chunks + k) * 2 * channels; }

  // All first(unit, chunk), then between(unit), then all second(unit, chunk), for so many units at a time that the
  // second pass finds the pixels in a cache.
  template <class First, class Between, class Second>
  void schedule(const First& first, const Between& between, const Second& second) const {
    const int64_t size = pixels * channels, bytes = size * static_cast<int64_t>(sizeof(T)) * (p.g ? 3 : 2);
    if (chunks == 1 || (units >= 2 * num_threads() && bytes <= int64_t(1) << 20))
      return parallel(units, divide_up(16384, size), [&](int64_t begin, int64_t end) {
        for (int64_t u = begin; u < end; u++) {
          for (int64_t k = 0; k < chunks; k++) first(u, k);
          between(u);
          for (int64_t k = 0; k < chunks; k++) second(u, k);
        }
        if (stream) stream_fence();
      });
    const int64_t group = larger<int64_t>(1, (int64_t(8) << 20) / bytes);
    for (int64_t u = 0; u < units; u += group) {
      const int64_t some = smaller(group, units - u);
      const auto all = [&](const auto& pass) {
        parallel(some * chunks, 1, [&](int64_t begin, int64_t end) {
          for (int64_t i = begin; i < end; i++) pass(u + i / chunks, i % chunks);
          if (stream) stream_fence();
        });
      };
      all(first);
      parallel(some, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) between(u + i);
      });
      all(second);
    }
  }

  // Runs `op` over one chunk (or its first `limit` pixels) with `mean` [units * channels]; the sums go to `sums` [2,
  // channels].
  template <class Op>
  void sweep(const Op& op, int64_t unit, int64_t k, const A* mean, double* sums, int64_t limit = INT64_MAX) const {
    const int64_t begin = k * chunk, offset = (unit * pixels + begin) * channels;
    const int64_t sample = last ? unit : unit / p.shape.c, at = unit * channels, c = last ? 0 : unit % p.shape.c;
    const A* noise = static_cast<const A*>(p.noise);
    const A* strength = p.strength ? static_cast<const A*>(p.strength) : zeros.get();
    const Buffer<A> acc(2 * channels);
    Chunk<T> work = {static_cast<const T*>(p.x) + offset,
                     static_cast<const T*>(p.g) + (p.g ? offset : 0),
                     static_cast<T*>(p.g ? p.dx : p.y) + offset,
                     noise ? noise + (p.noise_batched ? sample * pixels : 0) + begin : nullptr,
                     {strength + c, static_cast<const A*>(p.bias) + c, mean + at, scale.get() + at, shift.get() + at,
                      tilt.get() + at},
                     acc.get(),
                     acc.get() + channels,
                     smaller(limit, smaller(chunk, pixels - begin)),
                     channels};
    for (int64_t i = 0; i < 2 * channels; i++) acc[i] = 0;
    if (Op::writes && stream)
      last ? channels_innermost<T, true>(op, work) : one_channel<T, true>(op, work);
    else
      last ? channels_innermost<T, false>(op, work) : one_channel<T, false>(op, work);
    for (int64_t i = 0; sums && i < 2 * channels; i++) sums[i] = acc[i];
  }

  // Mean and sum of squares about it of one chunk. The pivot is the mean of the first pixels, so that no single outlier
  // can drown the squares of the others.
  void chunk_moments(const Moments<A>& op, int64_t unit, int64_t k) const {
    double* sums = sums_of(unit, k);
    const Buffer<A> pivot(channels);
    const int64_t n = smaller(chunk, pixels - k * chunk), few = smaller<int64_t>(n, 16), at = unit * channels;
    for (int64_t c = 0; c < channels; c++) pivot[c] = 0;
    sweep(op, unit, k, pivot.get() - at, sums, few);
    for (int64_t c = 0; c < channels; c++) pivot[c] = static_cast<A>(sums[c] / few);
    sweep(op, unit, k, pivot.get() - at, sums);
    for (int64_t c = 0; c < channels; c++) {
      sums[channels + c] -= sums[c] * sums[c] / n;
      sums[c] = pivot[c] + sums[c] / n;
    }
  }

  // Joins the chunks' moments (Chan, Golub and LeVeque 1983, equation 2.1 for any number of parts).
  void statistics(int64_t unit) const {
    const Buffer<double> mean(channels), squares(channels);
    for (int64_t c = 0; c < channels; c++) mean[c] = squares[c] = 0;
    const auto each = [&](auto body) {
      for (int64_t k = 0; k < chunks; k++) {
        const double n = static_cast<double>(smaller(chunk, pixels - k * chunk)), *sums = sums_of(unit, k);
        for (int64_t c = 0; c < channels; c++) body(n, c, sums[c], sums[channels + c]);
      }
    };
    each([&](double n, int64_t c, double m, double) { mean[c] += m * n / pixels; });
    each([&](double n, int64_t c, double m, double q) { squares[c] += q + n * (m - mean[c]) * (m - mean[c]); });
    const A* style = style_of(unit);
    for (int64_t c = 0; c < channels; c++) {
      const int64_t at = unit * channels + c;
      const double rstd = 1 / std::sqrt(larger(0.0, squares[c] / pixels) + p.eps);
      static_cast<A*>(p.mean)[at] = static_cast<A>(mean[c]);
      static_cast<A*>(p.rstd)[at] = static_cast<A>(rstd);
      scale[at] = static_cast<A>(rstd * (style ? double(style[c]) + 1 : 1));
      shift[at] = style ? style[p.shape.c + c] : A(0);
    }
  }

  const A* style_of(int64_t unit) const {
    const int64_t n = last ? unit : unit / p.shape.c, c = last ? 0 : unit % p.shape.c;
    return p.style ? static_cast<const A*>(p.style) + n * 2 * p.shape.c + c : nullptr;
  }

  void gradient_terms(int64_t unit) const {
    const A* style = style_of(unit);
    A* dstyle = style && p.dstyle ? static_cast<A*>(p.dstyle) + (style - static_cast<const A*>(p.style)) : nullptr;
    for (int64_t c = 0; c < channels; c++) {
      const int64_t at = unit * channels + c;
      const double rstd = static_cast<const A*>(p.rstd)[at], a = style ? double(style[c]) + 1 : 1;
      double sum_g = 0, sum_gx = 0;
      for (int64_t k = 0; k < chunks; k++) sum_g += sums_of(unit, k)[c], sum_gx += sums_of(unit, k)[channels + c];
      sum_gx *= rstd;
      if (dstyle) dstyle[c] = static_cast<A>(sum_gx), dstyle[p.shape.c + c] = static_cast<A>(sum_g);
      scale[at] = static_cast<A>(a * rstd);
      shift[at] = static_cast<A>(a * rstd * sum_g / pixels);
      tilt[at] = static_cast<A>(a * rstd * sum_gx / pixels * rstd);
    }
  }

  void bias_and_strength() const {
    const int64_t all = p.shape.c;
    const Buffer<double> totals(2 * all);
    for (int64_t i = 0; i < 2 * all; i++) totals[i] = 0;
    for (int64_t u = 0; u < units; u++)
      for (int64_t k = 0; k < chunks; k++) {
        double* into = totals.get() + (last ? 0 : u % all);
        for (int64_t c = 0; c < channels; c++)
          into[c] += sums_of(u, k)[c], into[all + c] += sums_of(u, k)[channels + c];
      }
    for (int64_t c = 0; c < all; c++) {
      static_cast<A*>(p.dbias)[c] = static_cast<A>(totals[c]);
      if (p.dstrength) static_cast<A*>(p.dstrength)[c] = static_cast<A>(totals[all + c]);
    }
  }

  const AdainParams& p;
  bool last;
  int64_t channels, units, pixels, chunk, chunks;
  Buffer<A> zeros, scale, shift, tilt;  // the latter three [units * channels]
  Buffer<double> partial;               // [units, chunks, 2, channels]
  bool stream;
};

}  // namespace

void adain_forward(const AdainParams& p) {
  if (p.shape.n * p.shape.c * p.shape.h * p.shape.w == 0) return;
  by_type(p.dtype, [&](auto type) { Epilogue<decltype(type)>(p).forward(); });
}

void adain_backward(const AdainParams& p) {
  if (p.shape.n * p.shape.c * p.shape.h * p.shape.w == 0) {
    const size_t c = static_cast<size_t>(p.shape.c), size = p.dtype == DType::f64 ? sizeof(double) : sizeof(float);
    std::memset(p.dbias, 0, c * size);
    if (p.dstrength) std::memset(p.dstrength, 0, c * size);
    if (p.dstyle) std::memset(p.dstyle, 0, static_cast<size_t>(p.shape.n) * 2 * c * size);
    return;
  }
  by_type(p.dtype, [&](auto type) { Epilogue<decltype(type)>(p).backward(); });
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
