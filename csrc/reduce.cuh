// Reductions over the points of each channel, for tensors [outer, channels, points] in either memory order: points
// innermost or channels innermost. Every thread keeps one state a lane of its vector; lanes, threads of a warp (by
// shuffles), warps (in shared memory) and, for large pictures, blocks (through a workspace, in a second launch) are
// merged in a fixed order, so that results are reproducible. The order depends on the shape alone, not on the device.
#pragma once
#include "common.cuh"

namespace stylegen::cuda {

constexpr int kWarps = kThreads / 32;
constexpr int kMaxWidth = 8;  // vectors side by side where channels are innermost: 128 bytes

struct Plan {
  int64_t outer, channels, points;
  bool channels_inner;
  bool whole;  // vectors are aligned and full
  int width;   // threads side by side along memory, a power of 2; <= kMaxWidth, or for rows of points <= 32 or kThreads
  int splits;  // blocks that share the points of a channel
  int chunk;   // points of a split
  int64_t blocks;

  dim3 grid() const { return dim3(static_cast<unsigned>(blocks), splits); }
  __host__ __device__ int64_t partials() const { return outer * splits * channels; }
};

// `lanes` is kLanes of the dtype.
inline Plan make_plan(int64_t outer, int64_t channels, int64_t points, bool channels_inner, int lanes, bool split) {
  Plan plan{outer, channels, points, channels_inner, false, 1, 1, 0, 0};
  if (channels == 1 || points == 1) plan.channels_inner = points == 1;  // the orders are the same: take the wide one
  const int64_t vectors = ceil_div(plan.channels_inner ? channels : points, lanes);
  const int limit = plan.channels_inner ? kMaxWidth : 32;
  while (plan.width < limit && plan.width < vectors) plan.width *= 2;
  if (!plan.channels_inner && vectors > 256) plan.width = kThreads;
  plan.blocks =
      plan.channels_inner ? outer * ceil_div(vectors, plan.width) : ceil_div(outer * channels, kThreads / plan.width);
  // Enough blocks to fill a large device, each with some eight vectors a thread at least.
  const int64_t step = plan.channels_inner ? kThreads / plan.width : plan.width * lanes;
  const int64_t most = plan.width == kThreads || plan.channels_inner ? std::min<int64_t>(points / (8 * step), 256) : 1;
  if (split) plan.splits = static_cast<int>(std::max<int64_t>(std::min(most, ceil_div(1024, plan.blocks)), 1));
  plan.chunk = static_cast<int>(ceil_div(ceil_div(points, plan.splits), step) * step);
  plan.splits = static_cast<int>(ceil_div(points, plan.chunk));
  plan.whole = (plan.channels_inner ? channels : points) % lanes == 0;
  return plan;
}

// A thread's part of a plan: points first, first + step, ... below `end`, counted from the split's beginning. `inner`:
// the plan's channels_inner. A thread then has a channel a lane; otherwise its lanes are points of one channel.
template <int lanes_, bool inner_>
struct Cursor {
  static constexpr int lanes = lanes_, columns = inner_ ? lanes_ : 1;
  static constexpr bool inner = inner_;
  int64_t outer, channel;  // of lane 0
  int64_t split_begin;
  int64_t base;   // offset of point 0 of the split, lane 0's channel
  int64_t pitch;  // offset between points
  int first, end, step;
  int row, rows;  // which of the threads that share a channel, and how many they are
  bool present;   // false for threads past the last channel: they only take part in shuffles

  __device__ explicit Cursor(const Plan& p) {
    const int x = threadIdx.x % p.width, y = threadIdx.x / p.width;
    split_begin = static_cast<int64_t>(blockIdx.y) * p.chunk;
    if constexpr (inner) {
      const int64_t slab = static_cast<int64_t>(p.width) * lanes, slabs = (p.channels + slab - 1) / slab;
      outer = blockIdx.x / slabs;
      channel = blockIdx.x % slabs * slab + x * lanes;
      base = (outer * p.points + split_begin) * p.channels + channel;
      pitch = p.channels;
      row = first = y, rows = step = kThreads / p.width;
      present = channel < p.channels;
    } else {
      const int64_t line = static_cast<int64_t>(blockIdx.x) * (kThreads / p.width) + y;
      outer = line / p.channels;
      channel = line % p.channels;
      base = line * p.points + split_begin;
      pitch = 1;
      row = x, rows = p.width;
      first = x * lanes, step = p.width * lanes;
      present = outer < p.outer;
    }
    const int64_t left = p.points - split_begin;
    end = present ? static_cast<int>(left < p.chunk ? left : p.chunk) : 0;
  }
  // How many lanes of the vector at point `at` there are.
  __device__ int64_t count(const Plan& p, int at) const { return inner ? p.channels - channel : end - at; }
  static __device__ constexpr int column(int lane) { return inner ? lane : 0; }
};

// Calls f(at, count, x there, g there) for each of the thread's points, with `depth` of them in flight; g may be null.
template <int depth, class T, class C, class F>
__device__ __forceinline__ void each_point(const T* x, const T* g, const Plan& p, const C& c, F f) {
  for (int first = c.first; first < c.end; first += depth * c.step) {
    Vec<T> u[depth], ug[depth];
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      const int at = first + i * c.step;
      const bool there = i == 0 || at < c.end;
      u[i] = there ? fetch(x + c.base + at * c.pitch, p.whole, c.count(p, at)) : Vec<T>{};
      ug[i] = there && g ? fetch(g + c.base + at * c.pitch, p.whole, c.count(p, at)) : Vec<T>{};
    }
#pragma unroll
    for (int i = 0; i < depth; ++i) {
      const int at = first + i * c.step;
      acc_t<T> v[C::lanes], vg[C::lanes];
      widen(v, u[i]), widen(vg, ug[i]);
      if (i == 0 || at < c.end) f(at, p.whole ? C::lanes : c.count(p, at), v, vg);
    }
  }
}

// What belongs to each of the thread's channels.
template <class A, class C>
__device__ __forceinline__ void load_channels(A (&to)[C::columns], const A* from, const Plan& p, const C& c,
                                              bool whole) {
  if (!c.present)
    fill(to, A(0));
  else if constexpr (C::inner)
    load(to, from + c.channel, whole, p.channels - c.channel);
  else
    to[0] = from[c.channel];
}

// Writes each channel's value: call it in the threads of row 0.
template <class S, int n, class C>
__device__ __forceinline__ void store_channels(S* to, const S (&from)[n], const Plan& p, const C& c) {
#pragma unroll
  for (int j = 0; j < C::columns; ++j)
    if (C::inner ? c.channel + j < p.channels : c.present) to[c.channel + j] = from[j];
}

template <class A, int n>
struct Sums {
  A v[n];
  __device__ void merge(const Sums& o) {
#pragma unroll
    for (int i = 0; i < n; ++i) v[i] += o.v[i];
  }
  __device__ Sums other(int lane_mask) const {
    Sums o;
#pragma unroll
    for (int i = 0; i < n; ++i) o.v[i] = __shfl_xor_sync(0xffffffffu, v[i], lane_mask);
    return o;
  }
};

// Count, mean and sum of squared distances to the mean (Chan, Golub and LeVeque 1979): no cancellation.
template <class A>
struct Moments {
  A count, mean, m2;
  __device__ void merge(const Moments& o) {
    const A total = count + o.count;
    if (o.count == 0 || total == 0) return;
    const A share = o.count / total, d = o.mean - mean;
    m2 += o.m2 + d * d * (count * share);
    mean += d * share;
    count = total;
  }
  __device__ Moments other(int lane_mask) const {
    return {__shfl_xor_sync(0xffffffffu, count, lane_mask), __shfl_xor_sync(0xffffffffu, mean, lane_mask),
            __shfl_xor_sync(0xffffffffu, m2, lane_mask)};
  }
};

template <class S, int lanes>
__device__ __forceinline__ void clear(S (&s)[lanes]) {
#pragma unroll
  for (int j = 0; j < lanes; ++j) s[j] = S{};
}

template <int lanes>
constexpr int kScratch = kWarps * kMaxWidth * lanes;  // states of shared memory that block_reduce needs

// Merges the states of all threads that share a channel, and gives the result to each of them: to every lane with
// channels innermost, to lane 0 otherwise.
template <class C, class S, int lanes>
__device__ void block_reduce(S (&s)[lanes], const Plan& p, S* scratch) {
  const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
  if constexpr (C::inner) {
    for (int mask = p.width; mask < 32; mask *= 2) {
#pragma unroll
      for (int j = 0; j < lanes; ++j) s[j].merge(s[j].other(mask));
    }
  } else {
#pragma unroll
    for (int j = 1; j < lanes; ++j) s[0].merge(s[j]);
    for (int mask = 1; mask < p.width && mask < 32; mask *= 2) s[0].merge(s[0].other(mask));
    if (p.width < kThreads) return;  // no other warp has a part
  }
  const int columns = C::inner ? p.width * lanes : 1, mine = C::inner ? thread % p.width * lanes : 0;
  __syncthreads();  // scratch may still be in use from an earlier call
  if (lane < (C::inner ? p.width : 1)) {
#pragma unroll
    for (int j = 0; j < C::columns; ++j) scratch[warp * columns + lane * lanes + j] = s[j];
  }
  __syncthreads();
  if (thread < columns) {
    S total = scratch[thread];
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) total.merge(scratch[w * columns + thread]);
    scratch[thread] = total;
  }
  __syncthreads();
#pragma unroll
  for (int j = 0; j < C::columns; ++j) s[j] = scratch[mine + j];
}

// The workspace of a plan with splits holds a state for each split, outer index and channel.
template <class S, int lanes, class C>
__device__ __forceinline__ void store_partial(S* partials, const S (&s)[lanes], const Plan& p, const C& c) {
  if (c.row == 0) store_channels(partials + (blockIdx.y * p.outer + c.outer) * p.channels, s, p, c);
}

template <class S, int lanes, class C>
__device__ __forceinline__ void merge_partials(S (&s)[lanes], const S* partials, const Plan& p, const C& c) {
  clear(s);
  if (!c.present) return;
  for (int64_t k = c.row; k < p.splits; k += c.rows) {
    const S* from = partials + (k * p.outer + c.outer) * p.channels + c.channel;
#pragma unroll
    for (int j = 0; j < C::columns; ++j)
      if (!C::inner || c.channel + j < p.channels) s[j].merge(from[j]);
  }
}

namespace {  // kernels are each file's own

// sums[split, outer, channel] of v.
template <class T, bool inner>
__global__ void __launch_bounds__(kThreads) sum_kernel(const T* v, acc_t<T>* sums, Plan p) {
  using S = Sums<acc_t<T>, 1>;
  constexpr int n = kLanes<T>;
  SHARED_ARRAY(S, scratch, kScratch<n>);
  const Cursor<n, inner> c(p);
  S s[n];
  clear(s);
  each_point<2>(v, static_cast<const T*>(nullptr), p, c, [&](int, int64_t, const auto& x, const auto&) {
#pragma unroll
    for (int j = 0; j < n; ++j) s[j].v[0] += x[j];
  });
  block_reduce<decltype(c)>(s, p, scratch);
  store_partial(reinterpret_cast<S*>(sums), s, p, c);
}

}  // namespace

// sums[channel] = sum over r of partials[r, channel].
template <class A>
void launch_sum(const A* partials, A* sums, int64_t rows, int64_t channels, void* stream) {
  Plan plan = make_plan(1, channels, rows, true, kLanes<A>, false);
  plan.whole = plan.whole && aligned(partials);
  const auto kernel = plan.channels_inner ? sum_kernel<A, true> : sum_kernel<A, false>;
  CUDA_LAUNCH(kernel, plan.grid(), kThreads, 0, static_cast<Stream>(stream), partials, sums, plan);
}

}  // namespace stylegen::cuda
