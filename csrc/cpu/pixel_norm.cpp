#include "../pixel_norm.h"

#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int64_t kTile = 256;       // pixels: with 512 channels they fit in the L2 cache
constexpr int64_t kSmallPlane = 64;  // pixels: too few for tiles
constexpr int64_t kInL1 = 4096;      // elements

// Backward, with r = 1 / sqrt(mean(x^2) + eps): dx = r (g - x r^2 mean(g x)).
template <class T>
struct Norm {
  using A = acc_t<T>;
  const T *x, *g;
  T* y;
  A eps;
  int64_t channels;

  // y = x * a, or g * a - x * b
  STYLEGEN_INLINE Vec<A> result(Vec<A> x_, Vec<A> g_, Vec<A> a, Vec<A> b) const { return g ? g_ * a - x_ * b : x_ * a; }

  STYLEGEN_INLINE void factors(Vec<A> xx, Vec<A> gx, Vec<A>* a, Vec<A>* b) const {
    *a = A(1) / square_root<A>(xx / A(channels) + eps);
    *b = *a * *a * *a * (gx / A(channels));
  }

  // `n` <= kLanes pixels with the channels innermost: one square root serves them all.
  void pixels(int64_t at, int64_t n) const {
    constexpr int lanes = kLanes<A>;
    A xx[lanes] = {}, gx[lanes] = {};  // then the factors a and b
    const auto each = [&](int64_t first, auto body) {
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes)
        body(widen(x + first + c), g ? widen(g + first + c) : Vec<A>{}, [&](Vec<A> v) { store(y + first + c, v); });
      if (const int64_t m = channels - c)
        body(widen(x + first + c, m), g ? widen(g + first + c, m) : Vec<A>{},
             [&](Vec<A> v) { store(y + first + c, v, m); });
    };
    for (int64_t i = 0; i < n; i++) {
      Vec<A> s = {}, q = {};
      each(at + i * channels, [&](Vec<A> v, Vec<A> w, auto) { s = s + v * v, q = q + v * w; });
      xx[i] = sum<A>(s);
      if (g) gx[i] = sum<A>(q);
    }
    Vec<A> a, b;
    factors(widen(xx), widen(gx), &a, &b);
    store(xx, a), store(gx, b);
    for (int64_t i = 0; i < n; i++) {
      const Vec<A> by = splat(xx[i]), less = splat(gx[i]);
      each(at + i * channels, [&](Vec<A> v, Vec<A> w, auto put) { put(result(v, w, by, less)); });
    }
  }

  // `n` <= kLanes adjacent pixels of contiguous planes of `stride` elements.
  void narrow(int64_t at, int64_t stride, int64_t n) const {
    constexpr int unroll = 4;
    const bool whole = n == kLanes<A>;
    Vec<A> xx[unroll] = {}, gx[unroll] = {}, a, b;
    const auto load = [&](const T* p) { return whole ? widen(p) : widen(p, n); };
    const auto add = [&](int64_t c, int k) {
      const Vec<A> v = load(x + at + c * stride);
      xx[k] = xx[k] + v * v;
      if (g) gx[k] = gx[k] + v * load(g + at + c * stride);
    };
    int64_t c = 0;
    for (; c + unroll <= channels; c += unroll)
      for (int k = 0; k < unroll; k++) add(c + k, k);
    for (; c < channels; c++) add(c, 0);
    factors((xx[0] + xx[1]) + (xx[2] + xx[3]), (gx[0] + gx[1]) + (gx[2] + gx[3]), &a, &b);
    for (c = 0; c < channels; c++) {
      const int64_t to = at + c * stride;
      const Vec<A> out = result(load(x + to), g ? load(g + to) : Vec<A>{}, a, b);
      whole ? store(y + to, out) : store(y + to, out, n);
    }
  }

  // `n` <= kTile adjacent pixels of a contiguous picture with planes of `stride` elements.
  void tile(int64_t at, int64_t stride, int64_t n) const {
    constexpr int lanes = kLanes<A>;
    A xx[kTile] = {}, gx[kTile] = {};  // then the factors a and b
    const auto each = [&](const auto& body) {
      for (int64_t c = 0; c < channels; c++) {
        const T *px = x + at + c * stride, *pg = g ? g + at + c * stride : px;
        int64_t i = 0;
        for (; i + lanes <= n; i += lanes) body(at + c * stride + i, i, widen(px + i), widen(pg + i), lanes);
        if (i < n) body(at + c * stride + i, i, widen(px + i, n - i), widen(pg + i, n - i), n - i);
      }
    };
    each([&](int64_t, int64_t i, Vec<A> v, Vec<A> w, int64_t) {
      store(xx + i, widen(xx + i) + v * v);
      if (g) store(gx + i, widen(gx + i) + v * w);
    });
    for (int64_t i = 0; i < n; i += lanes) {
      Vec<A> a, b;
      factors(widen(xx + i), widen(gx + i), &a, &b);
      store(xx + i, a), store(gx + i, b);
    }
    each([&](int64_t to, int64_t i, Vec<A> v, Vec<A> w, int64_t some) {
      const Vec<A> out = result(v, w, widen(xx + i), widen(gx + i));
      some == lanes ? store(y + to, out) : store(y + to, out, some);
    });
  }
};

template <class T>
void run(const PixelNormParams& p) {
  using A = acc_t<T>;
  const Norm<T> norm = {static_cast<const T*>(p.x), static_cast<const T*>(p.g), static_cast<T*>(p.y), A(p.eps),
                        p.shape.c};
  const int64_t plane = p.shape.h * p.shape.w, grain = divide_up(16384, p.shape.c);
  if (p.shape.channels_last || plane == 1)
    return parallel(p.shape.n * plane, grain, [&](int64_t first, int64_t last) {
      const int64_t group = smaller<int64_t>(kLanes<A>, larger<int64_t>(1, kInL1 / p.shape.c));
      for (int64_t i = first; i < last; i += group) norm.pixels(i * p.shape.c, smaller(group, last - i));
    });
  if (plane <= kSmallPlane)
    return parallel(p.shape.n, divide_up(grain, plane), [&](int64_t first, int64_t last) {
      for (int64_t k = first; k < last; k++)
        for (int64_t i = 0; i < plane; i += kLanes<A>)
          norm.narrow(k * p.shape.c * plane + i, plane, smaller<int64_t>(kLanes<A>, plane - i));
    });
  const int64_t tiles = divide_up(plane, kTile);
  parallel(p.shape.n * tiles, divide_up(grain, kTile), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t pixel = i % tiles * kTile;
      norm.tile(i / tiles * p.shape.c * plane + pixel, plane, smaller(kTile, plane - pixel));
    }
  });
}

}  // namespace

void pixel_norm(const PixelNormParams& p) {
  if (p.shape.n * p.shape.c * p.shape.h * p.shape.w == 0) return;
  by_type(p.dtype, [&](auto type) { run<decltype(type)>(p); });
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
