#include "bias_act.h"
#include "reduce.cuh"

namespace stylegen::cuda {
namespace {

// Where element i stands: its channel and its place among the `inner` elements of that channel. One division a thread:
// a grid-stride loop moves by the same step each time.
template <class Index>
struct Position {
  Index place, channel;

  __device__ Position(Index i, Index channels, Index inner) : place(i % inner), channel(i / inner % channels) {}

  __device__ void advance(const Position& step, Index channels, Index inner) {
    place += step.place;
    channel += step.channel;
    if (place >= inner) place -= inner, ++channel;
    if (channel >= channels) channel -= channels;
  }
};

template <class A, int n, class Index>
__device__ __forceinline__ void load_bias(A (&b)[n], const BiasActParams& p, Position<Index> at, bool whole) {
  const A* bias = static_cast<const A*>(p.b);
  if (!bias) {
    fill(b, A(0));
  } else if (at.place + n <= Index(p.inner)) {
    fill(b, bias[at.channel]);
  } else if (whole) {  // channels innermost, and as many as vectors fit
    load(b, bias + at.channel, true, n);
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j) {
      b[j] = bias[at.channel];
      if (++at.place == Index(p.inner)) {
        at.place = 0;
        if (++at.channel == Index(p.channels)) at.channel = 0;
      }
    }
  }
}

template <class A>
struct Element {
  A x, g, gg;  // x is x + b, or ref
};

// linear, relu and lrelu.
template <class A>
__device__ __forceinline__ A straight(const BiasActParams& p, const Element<A>& e) {
  const A below = p.act == Act::linear ? A(1) : p.act == Act::relu ? A(0) : A(p.alpha);
  const A clamp = p.clamp;
  // A slope of zero is zero whatever it multiplies, infinity too; NaN stays NaN.
  const A t = e.x > 0 ? e.x : p.act == Act::relu && e.x < 0 ? A(0) : e.x * (p.act == Act::relu ? A(1) : below);
  const A y = t * A(p.gain);
  if (p.order == 0) return clamp < 0 ? y : y > clamp ? clamp : y < -clamp ? -clamp : y;
  if (p.order == 2) return 0;
  const A seen = p.ref ? e.x : y;
  const A slope = e.x > 0 ? A(1) : below;
  const bool inside = clamp < 0 || (seen < clamp && seen > -clamp);
  return inside && slope != 0 ? e.g * (slope * A(p.gain)) : A(0);
}

// The others: the function and both derivatives.
template <class A>
__device__ A curved(const BiasActParams& p, const Element<A>& e) {
  const A v = e.x, z = exp(v < 0 ? v : -v), rest = z / (1 + z), most = 1 / (1 + z);
  const A s = v < 0 ? rest : most, q = v < 0 ? most : rest;  // sigmoid(v) and sigmoid(-v), both to full precision
  A f, d1, d2;
  if (p.act == Act::tanh) {
    f = tanh(v), d1 = 1 - f * f, d2 = -2 * f * d1;
  } else if (p.act == Act::sigmoid) {
    f = s, d1 = s * q, d2 = d1 * (q - s);
  } else if (p.act == Act::softplus) {
    f = v > 20 ? v : (v > 0 ? v : A(0)) + log1p(z), d1 = s, d2 = s * q;
  } else if (p.act == Act::swish) {
    f = v * s, d1 = s * (1 + v * q), d2 = s * q * (2 + v * (q - s));
  } else {  // elu and selu (Klambauer et al. 2017)
    const A scale = p.act == Act::selu ? A(1.0507009873554804934193349852946) : A(1);
    const A alpha = p.act == Act::selu ? A(1.6732632423543772848170429916717) : A(1);
    f = scale * (v < 0 ? alpha * expm1(v) : v);
    d1 = scale * (v > 0 ? A(1) : alpha * z), d2 = v > 0 ? A(0) : scale * alpha * z;
  }
  const A gain = p.gain, clamp = p.clamp, y = f * gain;
  if (p.order == 0) return clamp < 0 ? y : y > clamp ? clamp : y < -clamp ? -clamp : y;
  const bool inside = clamp < 0 || (y < clamp && y > -clamp);
  return inside ? e.g * gain * (p.order == 1 ? d1 : e.gg * d2) : A(0);
}

// Takes the first out and appends `last`: a loop over a vector that is not unrolled, yet stays in registers.
template <class A, int n>
__device__ __forceinline__ A shift(A (&v)[n], A last) {
  const A first = v[0];
#pragma unroll
  for (int j = 1; j < n; ++j) v[j - 1] = v[j];
  v[n - 1] = last;
  return first;
}

template <class T, bool is_curved, class Index>
__global__ void __launch_bounds__(kThreads, is_curved ? 3 : 4)
    bias_act_kernel(BiasActParams p, bool whole, bool whole_bias) {
  using A = acc_t<T>;
  constexpr int n = kLanes<T>;
  const T* x = static_cast<const T*>(p.ref ? p.ref : p.x);
  const T *g = static_cast<const T*>(p.g), *gg = static_cast<const T*>(p.gg);
  const Index size = p.size, channels = p.channels, inner = p.inner, stride = Index(gridDim.x) * (kThreads * n);
  Index i = (Index(blockIdx.x) * kThreads + threadIdx.x) * n;
  const Position<Index> step(stride, channels, inner);
  for (Position<Index> at(i, channels, inner); i < size; i += stride, at.advance(step, channels, inner)) {
    const Index left = size - i;
    const bool all = whole && left >= n;
    const Vec<T> vx = fetch(x + i, all, left);
    Vec<T> vg{}, vgg{};
    if (p.order > 0) vg = fetch(g + i, all, left);
    if (is_curved && p.order > 1) vgg = fetch(gg + i, all, left);
    A b[n], v[n], ag[n], agg[n];
    load_bias(b, p, at, whole_bias);
    widen(v, vx), widen(ag, vg), widen(agg, vgg);
#pragma unroll
    for (int j = 0; j < n; ++j) v[j] += b[j];
    if constexpr (is_curved) {
#pragma unroll 1
      for (int j = 0; j < n; ++j) shift(v, curved(p, Element<A>{v[0], shift(ag, A(0)), shift(agg, A(0))}));
    } else {
#pragma unroll
      for (int j = 0; j < n; ++j) v[j] = straight(p, Element<A>{v[j], ag[j], A(0)});
    }
    store(static_cast<T*>(p.y) + i, v, all, left);
  }
}

}  // namespace

const char* bias_act(const BiasActParams& p, void* stream) {
  if (p.size == 0) return nullptr;
  return dispatch(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const bool whole = aligned(p.x) && aligned(p.ref) && aligned(p.g) && aligned(p.gg) && aligned(p.y);
    const bool whole_bias = aligned(p.b) && p.inner == 1 && p.channels % kLanes<T> == 0;
    const int blocks = blocks_for(ceil_div(p.size, kLanes<T>));
    const bool small = p.size + int64_t(blocks) * kThreads * kLanes<T> <= INT32_MAX && p.inner <= INT32_MAX;
    const bool is_straight = p.act <= Act::lrelu;
    const auto kernel = small ? (is_straight ? bias_act_kernel<T, false, int> : bias_act_kernel<T, true, int>)
                              : (is_straight ? bias_act_kernel<T, false, int64_t> : bias_act_kernel<T, true, int64_t>);
    BiasActParams q = p;
    if (p.ref) q.b = nullptr;  // ref has it already
    CUDA_LAUNCH(kernel, blocks, kThreads, 0, static_cast<Stream>(stream), q, whole, whole_bias);
    return launch_error();
  });
}

namespace {

Plan sum_plan(int64_t size, int64_t channels, int64_t inner, int lanes) {
  const int64_t outer = size / channels / inner;
  return inner == 1 ? make_plan(1, channels, outer, true, lanes, true)
                    : make_plan(outer, channels, inner, false, lanes, true);
}

}  // namespace

int64_t channel_sum_workspace(int64_t size, int64_t channels, int64_t inner) {
  if (size == 0) return 0;
  int64_t bytes = 0;  // of the dtype that needs most
  for (int lanes : {kLanes<double>, kLanes<float>, kLanes<__half>})
    bytes = std::max<int64_t>(bytes, sum_plan(size, channels, inner, lanes).partials() * (lanes == 2 ? 8 : 4));
  return bytes;
}

const char* channel_sum(const void* v, void* sums, void* workspace, int64_t size, int64_t channels, int64_t inner,
                        DType dtype, void* stream) {
  if (size == 0) return nullptr;
  return dispatch(dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    using A = acc_t<T>;
    Plan plan = sum_plan(size, channels, inner, kLanes<T>);
    plan.whole = plan.whole && aligned(v);
    const int64_t rows = plan.outer * plan.splits;
    A* first = static_cast<A*>(rows == 1 ? sums : workspace);
    const auto kernel = plan.channels_inner ? sum_kernel<T, true> : sum_kernel<T, false>;
    CUDA_LAUNCH(kernel, plan.grid(), kThreads, 0, static_cast<Stream>(stream), static_cast<const T*>(v), first, plan);
    if (rows > 1) launch_sum(first, static_cast<A*>(sums), rows, channels, stream);
    return launch_error();
  });
}

}  // namespace stylegen::cuda
