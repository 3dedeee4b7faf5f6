#include "pixel_norm.h"
#include "reduce.cuh"

namespace stylegen::cuda {
namespace {

// A plan's channels are the pixels here, and its points the channels, over which the mean goes.
template <class T, bool inner>
__global__ void __launch_bounds__(kThreads) pixel_norm_kernel(PixelNormParams p, Plan plan) {
  using A = acc_t<T>;
  using S = Sums<A, 2>;  // of x^2, and of g x
  constexpr int lanes = kLanes<T>;
  SHARED_ARRAY(S, scratch, kScratch<lanes>);
  const Cursor<lanes, inner> c(plan);
  const T *x = static_cast<const T*>(p.x), *g = static_cast<const T*>(p.g);
  S s[lanes];
  clear(s);
  each_point<2>(x, g, plan, c, [&](int, int64_t, const auto& v, const auto& vg) {
#pragma unroll
    for (int j = 0; j < lanes; ++j) s[j].v[0] += v[j] * v[j], s[j].v[1] += vg[j] * v[j];
  });
  block_reduce<decltype(c)>(s, plan, scratch);
  A factor[c.columns], share[c.columns];
#pragma unroll
  for (int j = 0; j < c.columns; ++j) {
    factor[j] = 1 / sqrt(s[j].v[0] / A(plan.points) + A(p.eps));
    share[j] = s[j].v[1] / A(plan.points) * factor[j] * factor[j];
  }
  each_point<2>(x, g, plan, c, [&](int at, int64_t count, auto& v, const auto& vg) {
#pragma unroll
    for (int j = 0; j < lanes; ++j) v[j] = factor[c.column(j)] * (g ? vg[j] - v[j] * share[c.column(j)] : v[j]);
    store(static_cast<T*>(p.y) + c.base + at * c.pitch, v, plan.whole, count);
  });
}

}  // namespace

const char* pixel_norm(const PixelNormParams& p, void* stream) {
  const int64_t pixels = p.shape.h * p.shape.w;
  if (p.shape.n * p.shape.c * pixels == 0) return nullptr;
  return dispatch(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Plan plan = make_plan(p.shape.n, pixels, p.shape.c, !p.shape.channels_last, kLanes<T>, false);
    plan.whole = plan.whole && aligned(p.x) && aligned(p.g) && aligned(p.y);
    const auto kernel = plan.channels_inner ? pixel_norm_kernel<T, true> : pixel_norm_kernel<T, false>;
    CUDA_LAUNCH(kernel, plan.grid(), kThreads, 0, static_cast<Stream>(stream), p, plan);
    return launch_error();
  });
}

}  // namespace stylegen::cuda
