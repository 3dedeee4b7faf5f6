// Matrix products of kRows by kColumns, in registers.
#pragma once
#include "pairs.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

namespace {

#if defined(__AVX512F__)
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

// m [kRows, kColumns] = v [kRows, channels] @ u [channels, kColumns]
STYLEGEN_INLINE void multiply(const float* v, const float* u, float* m, int64_t channels) {
  V sums[kRows][2] = {};
  for (int64_t c = 0; c < channels; c++) {
    const V left = widen(u + c * kColumns), right = widen(u + c * kColumns + kWidth);
    for (int r = 0; r < kRows; r++) {
      const float factor = v[r * channels + c];
      sums[r][0] = sums[r][0] + left * factor;
      sums[r][1] = sums[r][1] + right * factor;
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) store(m + r * kColumns + i * kWidth, sums[r][i]);
}

#if defined(__AVX512F__) && defined(__GNUC__)
// The same with two products in one instruction; u holds pairs of channels side by side.
__attribute__((target("avx512bf16"))) void multiply(const bfloat16* v, const bfloat16* u, float* m, int64_t channels) {
  __m512 sums[kRows][2] = {};
  for (int64_t c = 0; c < channels; c += 2) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(u + c * kColumns);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(u + c * kColumns + 2 * kWidth);
    for (int r = 0; r < kRows; r++) {
      int32_t pair;
      std::memcpy(&pair, v + r * channels + c, sizeof pair);
      const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, factors);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, factors);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) _mm512_storeu_ps(m + r * kColumns + i * kWidth, sums[r][i]);
}
#else
// Correct where it is not fast: see fast_products.
inline void multiply(const bfloat16* v, const bfloat16* u, float* m, int64_t channels) {
  for (int r = 0; r < kRows; r++)
    for (int k = 0; k < kColumns; k++) {
      float sum = 0;
      for (int64_t c = 0; c < channels; c++)
        sum += bit_cast<float>(int32_t(v[r * channels + c].bits) << 16) *
               bit_cast<float>(int32_t(u[(c / 2) * 2 * kColumns + 2 * k + c % 2].bits) << 16);
      m[r * kColumns + k] = sum;
    }
}
#endif

}  // namespace
}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
