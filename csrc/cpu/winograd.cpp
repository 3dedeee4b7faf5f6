#include "../winograd.h"

#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

using V = Vec<float>;
constexpr int kWidth = kLanes<float>;

// Columns of the 1-D transforms: B^T (4 -> 4), A^T (4 -> 2) and A (2 -> 4), as in Lavin and Gray 2016, equation 9.
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

// body(tile, n, y, x, channel) for every vector of every tile of the rows, (y, x) being the tile's first pixel.
template <class Body>
void each_tile(const WinogradParams& p, const Body& body) {
  const int64_t across = p.shape.w / 2, down = p.shape.h / 2;
  parallel(p.rows, 1 + 16384 / (across * p.shape.c), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; row++)
      for (int64_t j = 0; j < across; j++)
        for (int64_t c = 0; c < p.shape.c; c += kWidth)
          body(row * across + j, (p.first + row) / down, (p.first + row) % down * 2, j * 2, c);
  });
}

template <class T>
STYLEGEN_INLINE T* pixel(T* picture, const Shape& s, int64_t n, int64_t y, int64_t x, int64_t c) {
  return picture + ((n * s.h + y) * s.w + x) * s.c + c;
}

template <class T, int pad, int size, class Transform>
void to_matrices(const WinogradParams& p, const Transform& transform) {
  const T* picture = static_cast<const T*>(p.in);
  T* matrices = static_cast<T*>(p.out);
  const Shape s = p.shape;
  each_tile(p, [&](int64_t tile, int64_t n, int64_t y, int64_t x, int64_t c) {
    V d[size][size], v[4][4];
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++) {
        const int64_t a = y + i - pad, b = x + j - pad;
        const bool inside = pad == 0 || (a >= 0 && a < s.h && b >= 0 && b < s.w);
        d[i][j] = inside ? widen(pixel(picture, s, n, a, b, c)) : V{};
      }
    both_axes<size, 4>(d, v, transform);
    T* out = matrices + tile * p.stride_t + c;
    for (int i = 0; i < 16; i++) store(out + i * p.stride_i, v[i / 4][i % 4]);
  });
}

template <class T>
void to_picture(const WinogradParams& p) {
  const T* matrices = static_cast<const T*>(p.in);
  T* picture = static_cast<T*>(p.out);
  each_tile(p, [&](int64_t tile, int64_t n, int64_t y, int64_t x, int64_t c) {
    V m[4][4], d[2][2];
    const T* in = matrices + tile * p.stride_t + c;
    for (int i = 0; i < 16; i++) m[i / 4][i % 4] = widen(in + i * p.stride_i);
    both_axes<4, 2>(m, d, output_transform);
    for (int i = 0; i < 4; i++) store(pixel(picture, p.shape, n, y + i / 2, x + i % 2, c), d[i / 2][i % 2]);
  });
}

}  // namespace

void winograd_input(const WinogradParams& p) {
  if (p.dtype == DType::f32) return to_matrices<float, 1, 4>(p, input_transform);
  to_matrices<bfloat16, 1, 4>(p, input_transform);
}
void winograd_output(const WinogradParams& p) {
  if (p.dtype == DType::f32) return to_picture<float>(p);
  to_picture<bfloat16>(p);
}
void winograd_spread(const WinogradParams& p) {
  if (p.dtype == DType::f32) return to_matrices<float, 0, 2>(p, spread_transform);
  to_matrices<bfloat16, 0, 2>(p, spread_transform);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
