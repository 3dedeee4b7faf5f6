#include "adain.h"
#include "reduce.cuh"

namespace stylegen::cuda {
namespace {

// A picture that one block covers is done in one launch, which meets it again in the caches; a larger one in two: every
// block leaves the statistics of its part in the workspace, then merges those of all parts.
enum class Stage { whole, statistics, apply };

struct Launch {
  Plan plan;
  Stage stage;
  bool whole_channels, whole_noise;  // vectors of what belongs to channels, and of the noise
};

// What turns x into t = lrelu(x + strength * noise + bias), for a thread's channels.
template <class A, class C>
struct Activation {
  A bias[C::columns], strength[C::columns];
  A noise[C::inner ? 1 : C::lanes];  // at the current point, or points
  A alpha;
  const A* from;  // the noise at the split's first point, or null

  __device__ Activation(const AdainParams& p, const Launch& l, const C& c) : alpha(p.alpha) {
    load_channels(bias, static_cast<const A*>(p.bias), l.plan, c, l.whole_channels);
    fill(strength, A(0)), fill(noise, A(0));
    from = static_cast<const A*>(p.noise);
    if (!from) return;
    load_channels(strength, static_cast<const A*>(p.strength), l.plan, c, l.whole_channels);
    from += (p.noise_batched ? c.outer * l.plan.points : 0) + c.split_begin;
  }
  __device__ void move(const Launch& l, int at, int64_t count) {
    if (!from) return;
    if constexpr (C::inner)
      noise[0] = from[at];
    else
      load(noise, from + at, l.whole_noise, count);
  }
  __device__ A noise_of(int j) const { return noise[C::inner ? 0 : j]; }
  __device__ A input(A x, int j) const { return x + strength[C::column(j)] * noise_of(j) + bias[C::column(j)]; }
  __device__ A operator()(A x, int j) const {
    const A u = input(x, j);
    return u > 0 ? u : alpha * u;
  }
};

// Welford's running mean and squares, a lane each; all lanes of a full vector share their count.
template <class T, class A, class C>
__device__ __forceinline__ void statistics(Moments<A> (&m)[C::lanes], const T* x, Activation<A, C>& t, const Launch& l,
                                           const C& c) {
  constexpr int lanes = C::lanes;
  clear(m);
  A n = 0;
  int64_t last = lanes;
  each_point<2>(x, static_cast<const T*>(nullptr), l.plan, c, [&](int at, int64_t count, const auto& v, const auto&) {
    t.move(l, at, count);
    n += 1, last = count;
    const A share = 1 / n;
#pragma unroll
    for (int j = 0; j < lanes; ++j) {
      const A value = t(v[j], j), d = value - m[j].mean;
      if (j < count) m[j].mean += d * share, m[j].m2 += d * (value - m[j].mean);
    }
  });
#pragma unroll
  for (int j = 0; j < lanes; ++j) m[j].count = j < last ? n : n - 1;
}

template <class T, bool inner>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(AdainParams p, Launch l, Moments<acc_t<T>>* partials) {
  using A = acc_t<T>;
  using S = Moments<A>;
  constexpr int lanes = kLanes<T>;
  SHARED_ARRAY(S, scratch, kScratch<lanes>);
  using C = Cursor<lanes, inner>;
  const C c(l.plan);
  const T* x = static_cast<const T*>(p.x);
  Activation<A, C> t(p, l, c);
  S m[lanes];
  if (l.stage == Stage::apply)
    merge_partials(m, partials, l.plan, c);
  else
    statistics(m, x, t, l, c);
  block_reduce<C>(m, l.plan, scratch);
  if (l.stage == Stage::statistics) return store_partial(partials, m, l.plan, c);
  constexpr int columns = C::columns;
  A mean[columns], scale[columns], shift[columns];
#pragma unroll
  for (int j = 0; j < columns; ++j) {
    mean[j] = m[j].mean;
    scale[j] = 1 / sqrt(m[j].m2 / A(l.plan.points) + A(p.eps));
  }
  if (blockIdx.y == 0 && c.row == 0) {
    store_channels(static_cast<A*>(p.mean) + c.outer * l.plan.channels, mean, l.plan, c);
    store_channels(static_cast<A*>(p.rstd) + c.outer * l.plan.channels, scale, l.plan, c);
  }
  fill(shift, A(0));
  if (p.style) {
    A factor[columns];
    const A* style = static_cast<const A*>(p.style) + c.outer * 2 * l.plan.channels;
    load_channels(factor, style, l.plan, c, l.whole_channels);
    load_channels(shift, style + l.plan.channels, l.plan, c, l.whole_channels);
#pragma unroll
    for (int j = 0; j < columns; ++j) scale[j] *= factor[j] + 1;
  }
  each_point<2>(x, static_cast<const T*>(nullptr), l.plan, c, [&](int at, int64_t count, auto& v, const auto&) {
    t.move(l, at, count);
#pragma unroll
    for (int j = 0; j < lanes; ++j) {
      const int k = C::column(j);
      v[j] = (t(v[j], j) - mean[k]) * scale[k] + shift[k];
    }
    store(static_cast<T*>(p.y) + c.base + at * c.pitch, v, l.plan.whole, count);
  });
}

// With h = (t - mean) rstd and y = h (scale + 1) + shift:
//   dshift = sum g,  dscale = sum g h,  dt = rstd (scale + 1) (g - mean g - h mean(g h)),
//   dx = dt * slope of the activation,  dbias = sum dx,  dstrength = sum dx * noise.
// sums[2][split, outer, channel]: the parts of the last two.
template <class T, bool inner>
__global__ void __launch_bounds__(kThreads, 2)
    backward_kernel(AdainParams p, Launch l, Sums<acc_t<T>, 2>* partials, acc_t<T>* sums) {
  using A = acc_t<T>;
  using S = Sums<A, 2>;
  constexpr int lanes = kLanes<T>;
  SHARED_ARRAY(S, scratch, kScratch<lanes>);
  using C = Cursor<lanes, inner>;
  const C c(l.plan);
  const T *x = static_cast<const T*>(p.x), *g = static_cast<const T*>(p.g);
  Activation<A, C> t(p, l, c);
  const int64_t row = c.outer * l.plan.channels;
  constexpr int columns = C::columns;
  A mean[columns], rstd[columns];
  load_channels(mean, static_cast<const A*>(p.mean) + row, l.plan, c, l.whole_channels);
  load_channels(rstd, static_cast<const A*>(p.rstd) + row, l.plan, c, l.whole_channels);
  S s[lanes];  // of g, and of g (t - mean)
  if (l.stage == Stage::apply) {
    merge_partials(s, partials, l.plan, c);
  } else {
    clear(s);
    each_point<1>(x, g, l.plan, c, [&](int at, int64_t count, const auto& v, const auto& vg) {
      t.move(l, at, count);
#pragma unroll
      for (int j = 0; j < lanes; ++j) s[j].v[0] += vg[j], s[j].v[1] += vg[j] * (t(v[j], j) - mean[C::column(j)]);
    });
  }
  block_reduce<C>(s, l.plan, scratch);
  if (l.stage == Stage::statistics) return store_partial(partials, s, l.plan, c);
  if (p.dstyle && blockIdx.y == 0 && c.row == 0) {
    A* dstyle = static_cast<A*>(p.dstyle) + 2 * row;
    A dscale[columns], dshift[columns];
#pragma unroll
    for (int j = 0; j < columns; ++j) dscale[j] = s[j].v[1] * rstd[j], dshift[j] = s[j].v[0];
    store_channels(dstyle, dscale, l.plan, c);
    store_channels(dstyle + l.plan.channels, dshift, l.plan, c);
  }
  A factor[columns], mean_g[columns], slope[columns];  // dt = factor * (g - mean_g - (t - mean) * slope)
  fill(factor, A(0));
  if (p.style) load_channels(factor, static_cast<const A*>(p.style) + 2 * row, l.plan, c, l.whole_channels);
#pragma unroll
  for (int j = 0; j < columns; ++j) {
    factor[j] = (factor[j] + 1) * rstd[j];
    mean_g[j] = s[j].v[0] / A(l.plan.points);
    slope[j] = s[j].v[1] / A(l.plan.points) * rstd[j] * rstd[j];
  }
  clear(s);  // now of dx, and of dx * noise
  each_point<1>(x, g, l.plan, c, [&](int at, int64_t count, auto& v, const auto& vg) {
    t.move(l, at, count);
#pragma unroll
    for (int j = 0; j < lanes; ++j) {
      const int k = C::column(j);
      const A u = t.input(v[j], j), dt = factor[k] * (vg[j] - mean_g[k] - (t(v[j], j) - mean[k]) * slope[k]);
      v[j] = u > 0 ? dt : t.alpha * dt;
      if (j < count) s[j].v[0] += v[j], s[j].v[1] += v[j] * t.noise_of(j);
    }
    store(static_cast<T*>(p.dx) + c.base + at * c.pitch, v, l.plan.whole, count);
  });
  block_reduce<C>(s, l.plan, scratch);
  if (c.row != 0) return;
  A* to = sums + (blockIdx.y * l.plan.outer + c.outer) * l.plan.channels;
  A dbias[columns], dstrength[columns];
#pragma unroll
  for (int j = 0; j < columns; ++j) dbias[j] = s[j].v[0], dstrength[j] = s[j].v[1];
  store_channels(to, dbias, l.plan, c);
  store_channels(to + l.plan.partials(), dstrength, l.plan, c);
}

Plan plan_of(const AdainParams& p) {
  const Shape& s = p.shape;
  return dispatch(p.dtype, [&](auto* type) {
    return make_plan(s.n, s.c, s.h * s.w, s.channels_last, kLanes<std::remove_pointer_t<decltype(type)>>, true);
  });
}

Launch launch_of(const AdainParams& p, int lanes) {
  Launch l{plan_of(p), Stage::whole, false, false};
  const bool pictures = aligned(p.x) && aligned(p.y) && aligned(p.g) && aligned(p.dx);
  l.plan.whole = l.plan.whole && pictures;
  l.whole_channels = l.plan.channels % lanes == 0 && aligned(p.strength) && aligned(p.bias) && aligned(p.style) &&
                     aligned(p.mean) && aligned(p.rstd);
  l.whole_noise = l.plan.points % lanes == 0 && aligned(p.noise);
  return l;
}

bool empty(const Shape& s) { return s.n * s.c * s.h * s.w == 0; }

}  // namespace

// Forward needs a Moments (3 numbers) a partial; backward a Sums of 2, and 2 more numbers.
int64_t adain_workspace(const AdainParams& p) {
  return empty(p.shape) ? 0 : plan_of(p).partials() * 4 * (p.dtype == DType::f64 ? 8 : 4);
}

const char* adain_forward(const AdainParams& p, void* workspace, void* stream) {
  if (empty(p.shape)) return nullptr;
  return dispatch(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    Launch l = launch_of(p, kLanes<T>);
    const auto launch = [&](Stage stage) {
      l.stage = stage;
      const auto kernel = l.plan.channels_inner ? forward_kernel<T, true> : forward_kernel<T, false>;
      CUDA_LAUNCH(kernel, l.plan.grid(), kThreads, 0, static_cast<Stream>(stream), p, l,
                  static_cast<Moments<acc_t<T>>*>(workspace));
    };
    if (l.plan.splits > 1) launch(Stage::statistics);
    launch(l.plan.splits > 1 ? Stage::apply : Stage::whole);
    return launch_error();
  });
}

const char* adain_backward(const AdainParams& p, void* workspace, void* stream) {
  if (empty(p.shape)) return nullptr;
  return dispatch(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    Launch l = launch_of(p, kLanes<T>);
    const int64_t partials = l.plan.partials();
    A* sums = static_cast<A*>(workspace) + 2 * partials;
    const auto launch = [&](Stage stage) {
      l.stage = stage;
      const auto kernel = l.plan.channels_inner ? backward_kernel<T, true> : backward_kernel<T, false>;
      CUDA_LAUNCH(kernel, l.plan.grid(), kThreads, 0, static_cast<Stream>(stream), p, l,
                  static_cast<Sums<A, 2>*>(workspace), sums);
    };
    if (l.plan.splits > 1) launch(Stage::statistics);
    launch(l.plan.splits > 1 ? Stage::apply : Stage::whole);
    const int64_t rows = l.plan.outer * l.plan.splits;
    launch_sum(sums, static_cast<A*>(p.dbias), rows, l.plan.channels, stream);
    if (p.dstrength) launch_sum(sums + partials, static_cast<A*>(p.dstrength), rows, l.plan.channels, stream);
    return launch_error();
  });
}

}  // namespace stylegen::cuda
