#include "../adain.h"

#include "adain_passes.h"
#include "parallel.h"

// Four passes over the pixels (the statistics and the output of forward, the sums and the gradient of backward), each
// an `Op` on vectors; t is computed anew in each, which is cheaper than to store it. The loops around the ops know the
// two memory orders. A unit of work is a sample (channels innermost) or the plane of one channel, its pixels cut into
// chunks by its size alone: sums of chunks are kept in acc_t and added up in double, the same for any number of
// threads.

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

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
        chunk(last ? smaller<int64_t>(2048, larger<int64_t>(64, 32768 / channels)) : 4096),
        chunks(divide_up(pixels, chunk)),
        zeros(p.shape.c),
        scale(units * channels),
        shift(units * channels),
        tilt(units * channels),
        partial(units * chunks * kSums * channels),
        stream(units * pixels * channels * static_cast<int64_t>(sizeof(T)) >= kStreamBytes) {
    for (int64_t c = 0; c < p.shape.c; c++) zeros[c] = 0;
    const void* out = p.g ? p.dx : p.y;
    stream = stream && reinterpret_cast<uintptr_t>(out) % (last ? kStored<T> : sizeof(T)) == 0 &&
             channels * static_cast<int64_t>(sizeof(T)) % (last ? kStored<T> : 1) == 0;
  }

  void forward() {
    const Moments<A> moments = {{splat(A(p.alpha))}};
    const Normalize<A> normalize = {{splat(A(p.alpha))}};
    if (!last && pixels <= kSmallVectors * kLanes<A>)
      return parallel(units, divide_up(16384, pixels), [&](int64_t first, int64_t end) {
        for (int64_t u = first; u < end; u++) small_unit(normalize, u);
      });
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
  double* sums_of(int64_t unit, int64_t k) const { return partial.get() + (unit * chunks + k) * kSums * channels; }

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

  Chunk<T> chunk_of(int64_t unit, int64_t k, const A* mean, A* sums) const {
    const int64_t begin = k * chunk, offset = (unit * pixels + begin) * channels;
    const int64_t sample = last ? unit : unit / p.shape.c, at = unit * channels, c = last ? 0 : unit % p.shape.c;
    const A* noise = static_cast<const A*>(p.noise);
    const A* strength = p.strength ? static_cast<const A*>(p.strength) : zeros.get();
    return {static_cast<const T*>(p.x) + offset,
            static_cast<const T*>(p.g) + (p.g ? offset : 0),
            static_cast<T*>(p.g ? p.dx : p.y) + offset,
            noise ? noise + (p.noise_batched ? sample * pixels : 0) + begin : nullptr,
            {strength + c, static_cast<const A*>(p.bias) + c, mean + at, scale.get() + at, shift.get() + at,
             tilt.get() + at},
            sums,
            smaller(chunk, pixels - begin),
            channels};
  }

  // Runs `op` over one chunk (or its first `limit` pixels) with `mean` [units * channels]; the sums go to `sums`
  // [kSums, channels].
  template <class Op>
  void sweep(const Op& op, int64_t unit, int64_t k, const A* mean, double* sums, int64_t limit = INT64_MAX) const {
    const Buffer<A> acc(kSums * channels);
    Chunk<T> work = chunk_of(unit, k, mean, acc.get());
    work.pixels = smaller(limit, work.pixels);
    for (int64_t i = 0; i < kSums * channels; i++) acc[i] = 0;
    if (Op::writes && stream)
      last ? channels_innermost<T, true>(op, work) : one_channel<T, true>(op, work);
    else
      last ? channels_innermost<T, false>(op, work) : one_channel<T, false>(op, work);
    for (int64_t i = 0; sums && i < kSums * channels; i++) sums[i] = acc[i];
  }

  void small_unit(const Activation<A>& f, int64_t unit) const {
    const Chunk<T> k = chunk_of(unit, 0, static_cast<const A*>(p.mean), nullptr);
    Vec<A> t[kSmallVectors];
    double mean, variance;
    small_plane(f, k, t, &mean, &variance);
    settle(unit, 0, mean, variance);
    for (int64_t i = 0; i < pixels; i += kLanes<A>) {
      const Vec<A> y = (t[i / kLanes<A>] - k.param[kMean][0]) * k.param[kScale][0] + k.param[kShift][0];
      i + kLanes<A> <= pixels ? store(k.y + i, y) : store(k.y + i, y, pixels - i);
    }
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
    for (int64_t c = 0; c < channels; c++) settle(unit, c, mean[c], squares[c] / static_cast<double>(pixels));
  }

  // y = (t - mean) * scale + shift, where shift makes up for the rounding of the mean.
  void settle(int64_t unit, int64_t c, double mean, double variance) const {
    const int64_t at = unit * channels + c;
    const A* style = style_of(unit);
    const double rstd = 1 / std::sqrt(larger(0.0, variance) + p.eps), a = style ? double(style[c]) + 1 : 1;
    const A rounded = static_cast<A>(mean);
    static_cast<A*>(p.mean)[at] = rounded;
    static_cast<A*>(p.rstd)[at] = static_cast<A>(rstd);
    scale[at] = static_cast<A>(rstd * a);
    shift[at] = static_cast<A>((style ? double(style[p.shape.c + c]) : 0) - (mean - rounded) * rstd * a);
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
      double sum_g = 0, sum_gx = 0, off = 0;
      for (int64_t k = 0; k < chunks; k++) {
        const double* sums = sums_of(unit, k) + c;
        sum_g += sums[0], sum_gx += sums[channels], off += sums[2 * channels] / static_cast<double>(pixels);
      }
      sum_gx = (sum_gx - sum_g * off) * rstd;
      if (dstyle) dstyle[c] = static_cast<A>(sum_gx), dstyle[p.shape.c + c] = static_cast<A>(sum_g);
      scale[at] = static_cast<A>(a * rstd);
      const double slope = a * rstd * sum_gx / pixels * rstd;
      tilt[at] = static_cast<A>(slope);
      shift[at] = static_cast<A>(a * rstd * sum_g / pixels - slope * off);
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
  Buffer<double> partial;               // [units, chunks, kSums, channels]
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
