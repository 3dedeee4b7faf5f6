// Vectors of acc_t, and the little else that the kernels share. GCC and clang have vector types; for other compilers a
// vector is an array, which they vectorise as they can.
//
// Everything is inside the namespace of the instruction set, and nothing here instantiates a template of the standard
// library: the linker would keep one copy of it for all sets, perhaps one that the processor cannot run.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "../types.h"
#if defined(__x86_64__) || defined(_M_X64)
#define STYLEGEN_X86 1
#include <immintrin.h>
#endif
#if defined(__GNUC__)
#define STYLEGEN_INLINE inline __attribute__((always_inline))
#define STYLEGEN_RESTRICT __restrict__
#else
#define STYLEGEN_INLINE __forceinline
#define STYLEGEN_RESTRICT __restrict
#endif
#if defined(__GNUC__) && !defined(STYLEGEN_ARRAY_LANES)
#define STYLEGEN_VECTOR_TYPES 1
#endif

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX2__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif

struct half {
  uint16_t bits;
};
struct bfloat16 {
  uint16_t bits;
};

template <class T>
struct AccOf {
  using type = float;
};
template <>
struct AccOf<double> {
  using type = double;
};
template <class T>
struct IsHalf {
  static constexpr bool value = false;
};
template <>
struct IsHalf<half> {
  static constexpr bool value = true;
};
template <class T>
using acc_t = typename AccOf<T>::type;

template <class A>
constexpr A smaller(A a, A b) {
  return b < a ? b : a;
}
template <class A>
constexpr A larger(A a, A b) {
  return a < b ? b : a;
}
constexpr int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// An uninitialised array, 64-byte aligned; small ones need no allocation.
template <class A>
class Buffer {
 public:
  explicit Buffer(int64_t count) {
    const size_t bytes = static_cast<size_t>(count) * sizeof(A);
    if (bytes <= sizeof(small_)) return;
    raw_ = std::malloc(bytes + 64);
    if (!raw_) std::abort();
    data_ = reinterpret_cast<A*>((reinterpret_cast<uintptr_t>(raw_) + 63) & ~uintptr_t(63));
  }
  ~Buffer() { std::free(raw_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  A* get() const { return data_; }
  A& operator[](int64_t i) const { return data_[i]; }

 private:
  alignas(64) char small_[128];
  void* raw_ = nullptr;
  A* data_ = reinterpret_cast<A*>(small_);
};

// ---- vectors ----

template <class A>
struct BitsOf;  // the signed integer as wide as A
template <>
struct BitsOf<float> {
  using type = int32_t;
};
template <>
struct BitsOf<double> {
  using type = int64_t;
};
template <class A>
constexpr int kLanes = kBytes / static_cast<int>(sizeof(A));  // of a vector of acc_t

#if STYLEGEN_VECTOR_TYPES
template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  typedef float type __attribute__((vector_size(kBytes)));
  typedef int32_t bits __attribute__((vector_size(kBytes)));
  typedef uint16_t shorts __attribute__((vector_size(kBytes / 2)));
};
template <>
struct VectorOf<double> {
  typedef double type __attribute__((vector_size(kBytes)));
  typedef int64_t bits __attribute__((vector_size(kBytes)));
};
template <class A>
using Vec = typename VectorOf<A>::type;
template <class A>
using Ints = typename VectorOf<A>::bits;

template <class M, class V>
STYLEGEN_INLINE V select(M mask, V a, V b) {
  return mask ? a : b;
}
#else
template <class A>
struct Array {
  A v[kLanes<A>];
};
template <class A>
using Vec = Array<A>;
template <class A>
using Ints = Array<typename BitsOf<A>::type>;
template <class A>
struct Same {
  using type = A;  // keeps a scalar argument out of the deduction of A
};
#define STYLEGEN_LANEWISE(R, op)                                                   \
  template <class A>                                                               \
  STYLEGEN_INLINE Array<R> operator op(Array<A> a, Array<A> b) {                   \
    Array<R> r;                                                                    \
    for (int i = 0; i < kLanes<A>; i++) r.v[i] = static_cast<R>(a.v[i] op b.v[i]); \
    return r;                                                                      \
  }                                                                                \
  template <class A>                                                               \
  STYLEGEN_INLINE Array<R> operator op(Array<A> a, typename Same<A>::type b) {     \
    Array<R> r;                                                                    \
    for (int i = 0; i < kLanes<A>; i++) r.v[i] = static_cast<R>(a.v[i] op b);      \
    return r;                                                                      \
  }                                                                                \
  template <class A>                                                               \
  STYLEGEN_INLINE Array<R> operator op(typename Same<A>::type a, Array<A> b) {     \
    Array<R> r;                                                                    \
    for (int i = 0; i < kLanes<A>; i++) r.v[i] = static_cast<R>(a op b.v[i]);      \
    return r;                                                                      \
  }
STYLEGEN_LANEWISE(A, +)
STYLEGEN_LANEWISE(A, -)
STYLEGEN_LANEWISE(A, *)
STYLEGEN_LANEWISE(A, /)
STYLEGEN_LANEWISE(A, &)
STYLEGEN_LANEWISE(A, |)
STYLEGEN_LANEWISE(A, <<)
STYLEGEN_LANEWISE(A, >>)
STYLEGEN_LANEWISE(typename BitsOf<A>::type, <)
STYLEGEN_LANEWISE(typename BitsOf<A>::type, >)
STYLEGEN_LANEWISE(typename BitsOf<A>::type, !=)
#undef STYLEGEN_LANEWISE
template <class A>
STYLEGEN_INLINE Array<A>& operator+=(Array<A>& a, Array<A> b) {
  return a = a + b;
}
template <class M, class A>
STYLEGEN_INLINE Array<A> select(Array<M> mask, Array<A> a, Array<A> b) {
  for (int i = 0; i < kLanes<A>; i++) a.v[i] = mask.v[i] ? a.v[i] : b.v[i];
  return a;
}
#endif

template <class To, class From>
STYLEGEN_INLINE To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "");
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

template <class A>
STYLEGEN_INLINE Vec<A> splat(A value) {
  return value - Vec<A>{};
}

template <class A>
STYLEGEN_INLINE Vec<A> square_root(Vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return bit_cast<Vec<A>>(_mm512_sqrt_ps(bit_cast<__m512>(v)));
#endif
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof v);
  for (int i = 0; i < kLanes<A>; i++) lanes[i] = std::sqrt(lanes[i]);
  std::memcpy(&v, lanes, sizeof v);
  return v;
}

template <class A>
STYLEGEN_INLINE A sum(Vec<A> v) {
#if defined(__AVX512F__)
  if constexpr (sizeof(A) == 4) return _mm512_reduce_add_ps(bit_cast<__m512>(v));
#endif
  A lanes[kLanes<A>];
  std::memcpy(lanes, &v, sizeof v);
  for (int width = kLanes<A> / 2; width > 0; width /= 2)
    for (int i = 0; i < width; i++) lanes[i] += lanes[i + width];
  return lanes[0];
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
