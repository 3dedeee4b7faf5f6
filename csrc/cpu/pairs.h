// How factors of matrix products lie in memory: floats one by one, bf16 in pairs.
#pragma once
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

using V = Vec<float>;
constexpr int kWidth = kLanes<float>;
constexpr int kColumns = 2 * kWidth;  // of a matrix product's result in registers

// Elements that stand side by side where a product sums over them: one instruction multiplies both.
template <class T>
constexpr int kTogether = sizeof(T) == 2 ? 2 : 1;

// Stores `first`, and for bf16 `second`, the elements of the two by turns.
template <class T>
STYLEGEN_INLINE void store_together(T* p, V first, V second) {
  if constexpr (kTogether<T> == 1) {
    store(p, first);
  } else {
#if defined(__AVX512BF16__)
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    const auto both = bit_cast<__m512i>(_mm512_cvtne2ps_pbh(bit_cast<__m512>(second), bit_cast<__m512>(first)));
    _mm512_storeu_si512(p, _mm512_permutexvar_epi16(order, both));
#else
    using I = Ints<float>;
    const I both = (float_to_bfloat16<V, I>(first) & 0xffff) | (float_to_bfloat16<V, I>(second) << 16);
    std::memcpy(p, &both, sizeof both);
#endif
  }
}

// A square of kWidth rows, `pitch` elements apart, of kWidth numbers or pairs: row i of it becomes column i of `to`,
// whose rows are `to_pitch` elements apart.
template <class T>
STYLEGEN_INLINE void transpose(const T* from, int64_t pitch, T* to, int64_t to_pitch) {
  constexpr int together = kTogether<T>;
#if defined(__AVX512F__)
  __m512i rows[kWidth];
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) rows[i] = _mm512_loadu_si512(from + i * pitch);
  const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
#pragma GCC unroll 4
  for (int size = 8; size > 0; size /= 2) {  // swaps the off-diagonal quarters of every square of 2 size rows
    const __mmask16 odd = _mm512_test_epi32_mask(lane, _mm512_set1_epi32(size));
    const __m512i shift = _mm512_set1_epi32(size), other = _mm512_set1_epi32(16);
    const __m512i upper = _mm512_mask_add_epi32(lane, odd, _mm512_sub_epi32(lane, shift), other);
    const __m512i lower = _mm512_mask_add_epi32(_mm512_add_epi32(lane, shift), odd, lane, other);
#pragma GCC unroll 16
    for (int i = 0; i < kWidth; i++) {
      if (i & size) continue;
      const __m512i first = rows[i], second = rows[i + size];
      rows[i] = _mm512_permutex2var_epi32(first, upper, second);
      rows[i + size] = _mm512_permutex2var_epi32(first, lower, second);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kWidth; i++) _mm512_storeu_si512(to + i * to_pitch, rows[i]);
#else
  for (int i = 0; i < kWidth; i++)
    for (int k = 0; k < kWidth; k++)
      std::memcpy(to + k * to_pitch + i * together, from + i * pitch + k * together, sizeof(T) * together);
#endif
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
