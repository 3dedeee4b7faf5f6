// How the four dtypes are loaded into vectors of acc_t and stored.
#pragma once
#include "lanes.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

// ---- fp16 and bf16, by integer arithmetic on V = vectors or numbers ----

STYLEGEN_INLINE int32_t select(bool mask, int32_t a, int32_t b) { return mask ? a : b; }

template <class F, class I>
STYLEGEN_INLINE F half_to_float(I h) {
  const I bits = (h & 0x7fff) << 13;
  // 2^112 mends the exponent's bias, denormals included; infinity and NaN keep a full exponent instead.
  const I finite = bit_cast<I>(bit_cast<F>(bits) * 5.192296858534828e33f);
  return bit_cast<F>(select(bits > 0x0f7fffff, bits | 0x7f800000, finite) | ((h & 0x8000) << 16));
}

template <class F, class I>
STYLEGEN_INLINE I float_to_half(F f) {
  const I bits = bit_cast<I>(f), size = bits & 0x7fffffff;
  const I normal = (size + ((size >> 13) & 1) + (0xfff - (112 << 23))) >> 13;
  // Below 2^-14, adding 0.5 rounds to the spacing of the denormals, and leaves them in the low bits.
  const I tiny = bit_cast<I>(bit_cast<F>(size) + 0.5f) - 0x3f000000;
  const I special = select(size > 0x7f800000, (bits & 0) + 0x7e00, (bits & 0) + 0x7c00);
  return select(size < 0x38800000, tiny, select(size > 0x477fffff, special, normal)) | ((bits >> 16) & 0x8000);
}

template <class F, class I>
STYLEGEN_INLINE I float_to_bfloat16(F f) {
  const I bits = bit_cast<I>(f);
  return select(f != f, (bits & 0) + 0x7fc0, (bits + (((bits >> 16) & 1) + 0x7fff)) >> 16);
}

// ---- loads and stores of kLanes<acc_t<T>> elements ----

template <class T>
STYLEGEN_INLINE Vec<acc_t<T>> widen(const T* p) {
  using V = Vec<acc_t<T>>;
  [[maybe_unused]] constexpr int lanes = kLanes<acc_t<T>>;
  V v;
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    std::memcpy(&v, p, sizeof v);
  } else {
#if defined(__AVX512F__)
    __m256i raw;
    std::memcpy(&raw, p, sizeof raw);
    if constexpr (IsHalf<T>::value) return bit_cast<V>(_mm512_cvtph_ps(raw));
    return bit_cast<V>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(raw), 16));
#elif defined(__AVX2__)
    __m128i raw;
    std::memcpy(&raw, p, sizeof raw);
    if constexpr (IsHalf<T>::value) return bit_cast<V>(_mm256_cvtph_ps(raw));
    return bit_cast<V>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(raw), 16));
#elif STYLEGEN_VECTOR_TYPES
    typename VectorOf<float>::shorts raw;
    std::memcpy(&raw, p, sizeof raw);
    const auto bits = __builtin_convertvector(raw, Ints<float>);
    if constexpr (IsHalf<T>::value) return half_to_float<V, Ints<float>>(bits);
    return bit_cast<V>(bits << 16);
#else
    for (int i = 0; i < lanes; i++) {
      const int32_t bits = p[i].bits;
      v.v[i] = IsHalf<T>::value ? half_to_float<float, int32_t>(bits) : bit_cast<float>(bits << 16);
    }
#endif
  }
  return v;
}

#if !STYLEGEN_VECTOR_TYPES
struct Shorts {
  uint16_t v[kLanes<float>];
};
#endif

// The bytes of a vector as they go to memory.
template <class T>
STYLEGEN_INLINE auto narrow(Vec<acc_t<T>> v) {
  if constexpr (sizeof(T) == sizeof(acc_t<T>)) {
    return v;
  } else {
#if defined(__AVX512F__)
    if constexpr (IsHalf<T>::value)
      return _mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
    else
#if defined(__AVX512BF16__)
      return bit_cast<__m256i>(_mm512_cvtneps_pbh(bit_cast<__m512>(v)));  // denormals become 0
#else
      return _mm512_cvtepi32_epi16(bit_cast<__m512i>(float_to_bfloat16<Vec<float>, Ints<float>>(v)));
#endif
#elif defined(__AVX2__)
    if constexpr (IsHalf<T>::value) {
      return _mm256_cvtps_ph(bit_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
    } else {
      const auto bits = bit_cast<__m256i>(float_to_bfloat16<Vec<float>, Ints<float>>(v));
      return _mm_packs_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    }
#elif STYLEGEN_VECTOR_TYPES
    using Shorts = typename VectorOf<float>::shorts;
    if constexpr (IsHalf<T>::value)
      return __builtin_convertvector((float_to_half<Vec<float>, Ints<float>>(v)), Shorts);
    else
      return __builtin_convertvector((float_to_bfloat16<Vec<float>, Ints<float>>(v)), Shorts);
#else
    Shorts raw;
    for (int i = 0; i < kLanes<float>; i++) {
      const float f = v.v[i];
      raw.v[i] = static_cast<uint16_t>(IsHalf<T>::value ? float_to_half<float, int32_t>(f)
                                                        : float_to_bfloat16<float, int32_t>(f));
    }
    return raw;
#endif
  }
}

template <class T>
constexpr int kStored = kLanes<acc_t<T>> * static_cast<int>(sizeof(T));  // bytes of a vector in memory

// Streaming stores leave the caches alone: for outputs that would not stay there anyway, they save reading the lines
// that are about to be overwritten. `p` must be a multiple of kStored<T>; end with stream_fence().
template <class T, bool Stream = false>
STYLEGEN_INLINE void store(T* p, Vec<acc_t<T>> v) {
  const auto raw = narrow<T>(v);
#if STYLEGEN_X86
  if constexpr (Stream) {
#if defined(__AVX512F__)
    if constexpr (sizeof raw == 64) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), bit_cast<__m512i>(raw));
#endif
#if defined(__AVX2__)
    if constexpr (sizeof raw == 32) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), bit_cast<__m256i>(raw));
#endif
    if constexpr (sizeof raw == 16) return _mm_stream_si128(reinterpret_cast<__m128i*>(p), bit_cast<__m128i>(raw));
    if constexpr (sizeof raw == 8) return _mm_stream_si64(reinterpret_cast<long long*>(p), bit_cast<long long>(raw));
  }
#endif
  std::memcpy(p, &raw, sizeof raw);
}

// Elements before the first that a whole vector may be streamed to.
template <class T>
STYLEGEN_INLINE int64_t until_aligned(const T* p) {
  return (-reinterpret_cast<intptr_t>(p) & (kStored<T> - 1)) / static_cast<int64_t>(sizeof(T));
}

STYLEGEN_INLINE void prefetch(const void* p) {
#if STYLEGEN_X86
  _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
#elif defined(__GNUC__)
  __builtin_prefetch(p);
#endif
}

STYLEGEN_INLINE void stream_fence() {
#if STYLEGEN_X86
  _mm_sfence();
#endif
}

// The same for the first `count` < kLanes elements; the other lanes are 0.
template <class T>
STYLEGEN_INLINE Vec<acc_t<T>> widen(const T* p, int64_t count) {
  T padded[kLanes<acc_t<T>>] = {};
  std::memcpy(padded, p, static_cast<size_t>(count) * sizeof(T));
  return widen<T>(padded);
}
template <class T>
STYLEGEN_INLINE void store(T* p, Vec<acc_t<T>> v, int64_t count) {
  const auto raw = narrow<T>(v);
  std::memcpy(p, &raw, static_cast<size_t>(count) * sizeof(T));
}

// Outputs from this size on are streamed.
constexpr int64_t kStreamBytes = int64_t(16) << 20;

// body(T{}) with the C++ type of `dtype`.
template <class Body>
STYLEGEN_INLINE void by_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f64:
      return body(double{});
    case DType::f32:
      return body(float{});
    case DType::f16:
      return body(half{});
    case DType::bf16:
      return body(bfloat16{});
  }
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
