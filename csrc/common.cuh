// What the kernels share: the three macros that let a .cu file compile with nvcc and, with CUDA_EMU, as plain C++
// against an emulation of the execution model; vectors of 16 bytes; conversion; dispatch; launch check.
#pragma once
#ifdef CUDA_EMU
#include "cuda_emu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#define SHARED_ARRAY(T, name, n) __shared__ T name[n]
#define DYN_SHARED(T, name)                                    \
  extern __shared__ __align__(16) unsigned char dyn_shared_[]; \
  T* name = reinterpret_cast<T*>(dyn_shared_)
#define CUDA_LAUNCH(kernel, grid, block, shared, stream, ...) (kernel)<<<grid, block, shared, stream>>>(__VA_ARGS__)
#endif

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "types.h"

namespace stylegen::cuda {

constexpr int kThreads = 256;          // a block, unless the problem is smaller
constexpr int64_t kMaxBlocks = 65536;  // of a grid-stride loop: enough to fill any device, few enough to reuse a thread

template <class T>
struct Acc {
  using type = float;
};
template <>
struct Acc<double> {
  using type = double;
};
template <class T>
using acc_t = typename Acc<T>::type;

template <class T>
constexpr int kLanes = 16 / sizeof(T);  // elements of a 128-bit access

// No half arithmetic: values are converted as they are read, and rounded once as they are written.
template <class T>
__device__ __forceinline__ acc_t<T> widen(T v) {
  return v;
}
template <>
__device__ __forceinline__ float widen(__half v) {
  return __half2float(v);
}
template <>
__device__ __forceinline__ float widen(__nv_bfloat16 v) {
  return __bfloat162float(v);
}

template <class T>
__device__ __forceinline__ T narrow(acc_t<T> v) {
  return v;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float v) {
  return __float2bfloat16_rn(v);
}

template <class T, int n = kLanes<T>>
struct alignas(sizeof(T) * n) Vec {
  T v[n];
};

// kLanes<T> elements at `from`: in one access if `whole`, which promises alignment and that all are there, else one by
// one, with zeros from `count` on. Fetch all that a turn needs before the first use, so that the loads overlap.
template <class T>
__device__ __forceinline__ Vec<T> fetch(const T* from, bool whole, int64_t count) {
  if (whole) return *reinterpret_cast<const Vec<T>*>(from);
  Vec<T> u;
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) u.v[j] = j < count ? from[j] : T(0.f);
  return u;
}

template <class T>
__device__ __forceinline__ void widen(acc_t<T> (&to)[kLanes<T>], const Vec<T>& from) {
#pragma unroll
  for (int j = 0; j < kLanes<T>; ++j) to[j] = widen(from.v[j]);
}

// n accumulators, a multiple of kLanes<A>.
template <class A, int n>
__device__ __forceinline__ void load(A (&to)[n], const A* from, bool whole, int64_t count) {
  static_assert(n % kLanes<A> == 0, "full vectors");
#pragma unroll
  for (int i = 0; i < n; i += kLanes<A>) {
    const Vec<A> u = fetch(from + i, whole, count - i);
#pragma unroll
    for (int j = 0; j < kLanes<A>; ++j) to[i + j] = u.v[j];
  }
}

template <class T, int n>
__device__ __forceinline__ void store(T* to, const acc_t<T> (&from)[n], bool whole, int64_t count) {
  static_assert(n == kLanes<T>, "one access");
  if (whole) {
    Vec<T> u;
#pragma unroll
    for (int j = 0; j < n; ++j) u.v[j] = narrow<T>(from[j]);
#ifdef CUDA_EMU
    *reinterpret_cast<Vec<T>*>(to) = u;
#else  // the compiler merges a plain assignment with the branch below, and then writes element by element
    const uint4 w = reinterpret_cast<const uint4&>(u);
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(w.x), "r"(w.y), "r"(w.z), "r"(w.w));
#endif
  } else {
#pragma unroll
    for (int j = 0; j < n; ++j)
      if (j < count) to[j] = narrow<T>(from[j]);
  }
}

template <class A, int n>
__device__ __forceinline__ void fill(A (&to)[n], A value) {
#pragma unroll
  for (int j = 0; j < n; ++j) to[j] = value;
}

inline bool aligned(const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; }  // null is

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline int blocks_for(int64_t threads) {
  return static_cast<int>(std::min(std::max<int64_t>(ceil_div(threads, kThreads), 1), kMaxBlocks));
}

// Calls f with a null pointer of the element type that `dtype` names.
template <class F>
auto dispatch(DType dtype, F f) {
  switch (dtype) {
    case DType::f64:
      return f(static_cast<double*>(nullptr));
    case DType::f32:
      return f(static_cast<float*>(nullptr));
    case DType::f16:
      return f(static_cast<__half*>(nullptr));
    default:
      return f(static_cast<__nv_bfloat16*>(nullptr));
  }
}

#ifdef CUDA_EMU
using Stream = void*;
inline const char* launch_error() { return nullptr; }  // the emulation throws
#else
using Stream = cudaStream_t;
inline const char* launch_error() {
  const cudaError_t status = cudaGetLastError();
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}
#endif

}  // namespace stylegen::cuda
