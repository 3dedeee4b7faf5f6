#include "../pixel_norm.h"

#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

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

  // `n` <= kLanes adjacent pixels of a contiguous picture with planes of `stride` elements.
  template <class Load, class Store>
  void columns(int64_t at, int64_t stride, const Load& load, const Store& put) const {
    Vec<A> xx = {}, gx = {}, a, b;
    for (int64_t c = 0; c < channels; c++) {
      const Vec<A> v = load(x + at + c * stride);
      xx = xx + v * v;
      if (g) gx = gx + v * load(g + at + c * stride);
    }
    factors(xx, gx, &a, &b);
    for (int64_t c = 0; c < channels; c++) {
      const int64_t i = at + c * stride;
      put(y + i, result(load(x + i), g ? load(g + i) : Vec<A>{}, a, b));
    }
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
  constexpr int lanes = kLanes<A>;
  const int64_t blocks = divide_up(plane, lanes);
  parallel(p.shape.n * blocks, divide_up(grain, lanes), [&](int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) {
      const int64_t pixel = i % blocks * lanes, at = i / blocks * p.shape.c * plane + pixel, n = plane - pixel;
      if (n >= lanes)
        norm.columns(at, plane, [](const T* q) { return widen(q); }, [](T* q, Vec<A> v) { store(q, v); });
      else
        norm.columns(at, plane, [=](const T* q) { return widen(q, n); }, [=](T* q, Vec<A> v) { store(q, v, n); });
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
