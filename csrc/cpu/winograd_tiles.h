// What Winograd's kernels share: the transforms, and the tiles of a picture.
#pragma once
#include "../winograd.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

using V = Vec<float>;
constexpr int kWidth = kLanes<float>;
constexpr int kColumns = 2 * kWidth;  // of a matrix product's result in registers

// The matrices' elements that stand side by side where a product sums over them: one instruction multiplies both.
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

// One axis of B^T (4 -> 4), A^T (4 -> 2) and A (2 -> 4), G (3 -> 4) and G^T (4 -> 3), as in Lavin and Gray 2016,
// equation 9.
STYLEGEN_INLINE void input_transform(const V* d, V* v) {
  v[0] = d[0] - d[2];
  v[1] = d[1] + d[2];
  v[2] = d[2] - d[1];
  v[3] = d[1] - d[3];
}
STYLEGEN_INLINE void output_transform(const V* m, V* y) {
  y[0] = m[0] + m[1] + m[2];
  y[1] = m[1] - m[2] - m[3];
}
STYLEGEN_INLINE void spread_transform(const V* d, V* v) {
  v[0] = d[0];
  v[1] = d[0] + d[1];
  v[2] = d[0] - d[1];
  v[3] = V{} - d[1];
}
STYLEGEN_INLINE void kernel_transform(const V* w, V* u) {
  const V ends = (w[0] + w[2]) * 0.5f, middle = w[1] * 0.5f;
  u[0] = w[0];
  u[1] = ends + middle;
  u[2] = ends - middle;
  u[3] = w[2];
}
STYLEGEN_INLINE void kernel_gradient(const V* u, V* w) {
  const V sum = (u[1] + u[2]) * 0.5f;
  w[0] = u[0] + sum;
  w[1] = (u[1] - u[2]) * 0.5f;
  w[2] = sum + u[3];
}

// out (b x b) = transform of in (a x a), along both axes.
template <int a, int b, class Transform>
STYLEGEN_INLINE void both_axes(const V (&in)[a][a], V (&out)[b][b], const Transform& transform) {
  V half[a][b];
  for (int i = 0; i < a; i++) transform(in[i], half[i]);
  for (int j = 0; j < b; j++) {
    V column[a], result[b];
    for (int i = 0; i < a; i++) column[i] = half[i][j];
    transform(column, result);
    for (int i = 0; i < b; i++) out[i][j] = result[i];
  }
}

// The tiles of a picture, counted through all samples.
struct Tiles {
  Shape s;
  int64_t across = s.w / 2, down = s.h / 2, count = s.n * across * down;

  struct Place {
    int64_t n, y, x;  // of the first pixel
  };
  Place place(int64_t tile) const {
    const int64_t row = tile / across;
    return {row / down, row % down * 2, tile % across * 2};
  }
};

template <class T>
STYLEGEN_INLINE T* pixel(T* picture, const Shape& s, int64_t n, int64_t y, int64_t x) {
  return picture + ((n * s.h + y) * s.w + x) * s.c;
}

// The size x size pixels around a tile: size 4 with a border of one pixel, or 2, the tile itself. Zero outside.
template <class T, int size>
struct Neighbourhood {
  const T* from[size][size] = {};

  Neighbourhood() = default;  // of a tile that is not there
  Neighbourhood(const T* picture, const Tiles& tiles, int64_t tile) {
    const Shape& s = tiles.s;
    const Tiles::Place at = tiles.place(tile);
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++) {
        const int64_t y = at.y + i - (size == 4), x = at.x + j - (size == 4);
        if (y >= 0 && y < s.h && x >= 0 && x < s.w) from[i][j] = pixel(picture, s, at.n, y, x);
      }
  }

  template <class Transform>
  STYLEGEN_INLINE void transformed(int64_t channel, V (&v)[4][4], const Transform& transform) const {
    V d[size][size];
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++) d[i][j] = from[i][j] ? widen(from[i][j] + channel) : V{};
    both_axes<size, 4>(d, v, transform);
  }
};

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
