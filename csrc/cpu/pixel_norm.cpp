#include "../pixel_norm.h"

#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int64_t kTile = 256;  // pixels: with 512 channels they fit in the L2 cache

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

  // Channels innermost.
  void pixel(int64_t at) const {
    constexpr int lanes = kLanes<A>;
    Vec<A> xx = {}, gx = {};
    const auto each = [&](auto body) {
      int64_t c = 0;
      for (; c + lanes <= channels; c += lanes)
        body(widen(x + at + c), g ? widen(g + at + c) : Vec<A>{}, [&](Vec<A> v) { store(y + at + c, v); });
      if (const int64_t n = channels - c)
        body(widen(x + at + c, n), g ? widen(g + at + c, n) : Vec<A>{}, [&](Vec<A> v) { store(y + at + c, v, n); });
    };
    each([&](Vec<A> v, Vec<A> w, auto) { xx = xx + v * v, gx = gx + v * w; });
    Vec<A> a, b;
    factors(splat(sum<A>(xx)), splat(sum<A>(gx)), &a, &b);
    each([&](Vec<A> v, Vec<A> w, auto put) { put(result(v, w, a, b)); });
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
      for (int64_t i = first; i < last; i++) norm.pixel(i * p.shape.c);
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
