// The inner loops of adain: what is done to a vector, and the loops over pixels in the two memory orders.
#pragma once
#include "../adain.h"
#include "vec.h"

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

constexpr int kSums = 3;  // that an op may add up

template <class A>
struct Sums {
  Vec<A> of[kSums] = {};
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
  static constexpr bool reads_g = false, writes = false;
  static constexpr int sums = 2;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Sums<A>& sums) const {
    const Vec<A> d = this->value(this->before(v)) - v.param[kMean];
    sums.of[0] = sums.of[0] + d;
    sums.of[1] = sums.of[1] + d * d;
    return d;
  }
};

template <class A>
struct Normalize : Activation<A> {
  static constexpr bool reads_g = false, writes = true;
  static constexpr int sums = 0;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Sums<A>&) const {
    return (this->value(this->before(v)) - v.param[kMean]) * v.param[kScale] + v.param[kShift];
  }
};

// The third sum tells how far off the mean is, which is rounded to acc_t.
template <class A>
struct GradientSums : Activation<A> {
  static constexpr bool reads_g = true, writes = false;
  static constexpr int sums = 3;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Sums<A>& sums) const {
    const Vec<A> d = this->value(this->before(v)) - v.param[kMean];
    sums.of[0] = sums.of[0] + v.g;
    sums.of[1] = sums.of[1] + v.g * d;
    sums.of[2] = sums.of[2] + d;
    return d;
  }
};

// With a = scale + 1 and the means over the N pixels of a unit and channel,
// dt = a rstd (g - mean(g) - xhat mean(g xhat)), where xhat = (t - mean) rstd; dx = dt times the slope.
template <class A>
struct Gradient : Activation<A> {
  static constexpr bool reads_g = true, writes = true;
  static constexpr int sums = 2;
  STYLEGEN_INLINE Vec<A> operator()(const Lane<A>& v, Sums<A>& sums) const {
    const Vec<A> u = this->before(v), t = this->value(u);
    const Vec<A> dt = v.g * v.param[kScale] - v.param[kShift] - (t - v.param[kMean]) * v.param[kTilt];
    const Vec<A> dx = select(u > Vec<A>{}, dt, dt * this->alpha);
    sums.of[0] = sums.of[0] + dx;
    sums.of[1] = sums.of[1] + dx * v.noise;
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
  A* sums;  // [kSums, channels], added to
  int64_t pixels, channels;
};

// `width` vectors of channels of `n` pixels from `pixel` on; `load`, `save` and `put` read all, write sums, and write
// pixels. While a tile is at work the next one, `ahead` pixels on, is fetched.
template <class T, int width, class Op, class Load, class Save, class Put>
STYLEGEN_INLINE void column(const Op& op, const Chunk<T>& k, int64_t c, int64_t pixel, int64_t n, int64_t ahead,
                            const Load& load, const Save& save, const Put& put) {
  using A = acc_t<T>;
  constexpr int unroll = 4 / width, lanes = kLanes<A>;
  const int64_t stride = k.channels, base = pixel * stride + c, step = k.noise ? 1 : 0;
  const T *x = k.x + base, *g = k.g + (Op::reads_g ? base : 0);
  T* y = k.y + (Op::writes ? base : 0);
  const A silence = 0, *noise = k.noise ? k.noise + pixel : &silence;
  Lane<A> v[width];
  for (int w = 0; w < width; w++)
    for (int i = 0; i < kParams; i++) v[w].param[i] = load(k.param[i] + c + w * lanes);
  Sums<A> sums[width][unroll];
  const auto one = [&](int64_t i, int j) {
    prefetch(x + (i + ahead) * stride);
    if constexpr (Op::reads_g) prefetch(g + (i + ahead) * stride);
    const Vec<A> loud = splat(noise[i * step]);
    for (int w = 0; w < width; w++) {
      const int64_t at = i * stride + w * lanes;
      v[w].x = load(x + at);
      if constexpr (Op::reads_g) v[w].g = load(g + at);
      v[w].noise = loud;
      const Vec<A> result = op(v[w], sums[w][j]);
      if constexpr (Op::writes) put(y + at, result);
    }
  };
  int64_t i = 0;
  for (; i + unroll <= n; i += unroll)
    for (int j = 0; j < unroll; j++) one(i + j, j);
  for (; i < n; i++) one(i, 0);
  for (int w = 0; w < width; w++)
    for (int m = 0; m < Op::sums; m++) {
      for (int j = 1; j < unroll; j++) sums[w][0].of[m] = sums[w][0].of[m] + sums[w][j].of[m];
      A* into = k.sums + m * k.channels + c + w * lanes;
      save(into, load(into) + sums[w][0].of[m]);
    }
}

// Pixels with the channels innermost, in tiles that stay in the L1 cache.
template <class T, bool Stream, class Op>
void channels_innermost(const Op operation, const Chunk<T> k) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>, line = static_cast<int>(sizeof(A) / sizeof(T));  // vectors as wide as one of A
  const Op op = operation;
  const int64_t whole = k.channels / lanes * lanes, rest = k.channels - whole;
  const int64_t tile = larger<int64_t>(8, 2048 / k.channels), ahead = k.channels > 2 * lanes ? tile : 0;
  const auto load = [](auto* p) { return widen(p); };
  const auto save = [](A* p, Vec<A> v) { store(p, v); };
  const auto put = [](T* p, Vec<A> v) { store<T, Stream>(p, v); };
  for (int64_t pixel = 0; pixel < k.pixels; pixel += tile) {
    const int64_t n = smaller(tile, k.pixels - pixel);
    int64_t c = 0;
    for (; c + line * lanes <= whole; c += line * lanes) column<T, line>(op, k, c, pixel, n, ahead, load, save, put);
    for (; c < whole; c += lanes) column<T, 1>(op, k, c, pixel, n, ahead, load, save, put);
    if (rest)
      column<T, 1>(
          op, k, whole, pixel, n, ahead, [&](auto* p) { return widen(p, rest); },
          [&](A* p, Vec<A> v) { store(p, v, rest); }, [&](T* p, Vec<A> v) { store(p, v, rest); });
  }
}

// Pixels of one channel.
template <class T, bool Stream, class Op>
void one_channel(const Op& op, const Chunk<T>& k) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>, unroll = 4;
  Lane<A> v;
  for (int i = 0; i < kParams; i++) v.param[i] = splat(k.param[i][0]);
  Sums<A> sums[unroll];
  const auto part = [&](int64_t i, int64_t n) {
    v.x = widen(k.x + i, n);
    if (Op::reads_g) v.g = widen(k.g + i, n);
    v.noise = k.noise ? widen(k.noise + i, n) : Vec<A>{};
    Sums<A> some;
    const Vec<A> result = op(v, some);
    if constexpr (Op::writes) store(k.y + i, result, n);
    for (int m = 0; m < Op::sums; m++) {
      A lane[lanes];
      store(lane, some.of[m]);
      for (int64_t j = 0; j < n; j++) k.sums[m] += lane[j];
    }
  };
  const auto whole = [&](int64_t i, int j) {
    v.x = widen(k.x + i);
    if (Op::reads_g) v.g = widen(k.g + i);
    v.noise = k.noise ? widen(k.noise + i) : Vec<A>{};
    const Vec<A> result = op(v, sums[j]);
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
  for (int m = 0; m < Op::sums; m++)
    k.sums[m] += sum<A>((sums[0].of[m] + sums[1].of[m]) + (sums[2].of[m] + sums[3].of[m]));
}

constexpr int kSmallVectors = 16;  // of a plane that stays in registers or nearly

// All of a small plane at once: its t, the mean of that, and the mean square of the distance from it.
template <class T>
STYLEGEN_INLINE void small_plane(const Activation<acc_t<T>>& f, const Chunk<T>& k, Vec<acc_t<T>>* t, double* mean,
                                 double* variance) {
  using A = acc_t<T>;
  constexpr int lanes = kLanes<A>;
  const int64_t count = divide_up(k.pixels, lanes), rest = k.pixels - (count - 1) * lanes;
  A inside[lanes];
  for (int j = 0; j < lanes; j++) inside[j] = j < rest ? A(1) : A(0);
  const auto load = [&](auto* p, int64_t i) {
    return i + 1 < count || rest == lanes ? widen(p + i * lanes) : widen(p + i * lanes, rest);
  };
  Lane<A> v;
  v.param[kStrength] = splat(k.param[kStrength][0]), v.param[kBias] = splat(k.param[kBias][0]);
  Vec<A> total = {}, s = {}, q = {};
  for (int64_t i = 0; i < count; i++) {
    v.x = load(k.x, i);
    v.noise = k.noise ? load(k.noise, i) : Vec<A>{};
    t[i] = f.value(f.before(v));
    if (i + 1 == count) t[i] = t[i] * widen(inside);
    total = total + t[i];
  }
  const A near = sum<A>(total) / static_cast<A>(k.pixels);
  for (int64_t i = 0; i < count; i++) {
    const Vec<A> d = i + 1 < count ? t[i] - near : (t[i] - near) * widen(inside);
    s = s + d;
    q = q + d * d;
  }
  const double off = static_cast<double>(sum<A>(s)) / static_cast<double>(k.pixels);
  *mean = near + off;
  *variance = larger(0.0, static_cast<double>(sum<A>(q)) / static_cast<double>(k.pixels) - off * off);
}

}  // namespace
}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
