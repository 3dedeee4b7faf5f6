// What Winograd's kernels share: the transforms, and the tiles of a picture.
#pragma once
#include "../winograd.h"
#include "pairs.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {

// Between matrices, which would otherwise lie powers of two apart and drive each other from the caches.
template <class T>
constexpr int64_t kGap = 256 / sizeof(T);

// The three forms of the convolution, along one axis. A tile of the result, `out` numbers, is made from `patch`
// numbers, which begin `step` times the tile plus `offset`; `size` products lie between:
//   y = output(kernel(w) * input(x)), spread and kernel_gradient being the adjoints of output and kernel.
// `unique`: which of kernel's 4 numbers a product takes; `turned`: which takes its place in the gradient by x.

// Lavin and Gray 2016, equation 9.
struct Same {
  static constexpr int patch = 4, step = 2, offset = -1, size = 4, out = 2;

  static STYLEGEN_INLINE void input(const V* d, V* v) {
    v[0] = d[0] - d[2];
    v[1] = d[1] + d[2];
    v[2] = d[2] - d[1];
    v[3] = d[1] - d[3];
  }
  static STYLEGEN_INLINE void output(const V* m, V* y) {
    y[0] = m[0] + m[1] + m[2];
    y[1] = m[1] - m[2] - m[3];
  }
  static STYLEGEN_INLINE void spread(const V* d, V* v) {
    v[0] = d[0];
    v[1] = d[0] + d[1];
    v[2] = d[0] - d[1];
    v[3] = V{} - d[1];
  }
  static STYLEGEN_INLINE void kernel(const V* w, V* u) {
    const V ends = (w[0] + w[2]) * 0.5f, middle = w[1] * 0.5f;
    u[0] = w[0];
    u[1] = ends + middle;
    u[2] = ends - middle;
    u[3] = w[2];
  }
  static STYLEGEN_INLINE void kernel_gradient(const V* u, V* w) {
    const V sum = (u[1] + u[2]) * 0.5f;
    w[0] = u[0] + sum;
    w[1] = (u[1] - u[2]) * 0.5f;
    w[2] = sum + u[3];
  }
  static constexpr int unique(int i) { return i; }
  static constexpr int turned(int i) { return i % 3 == 0 ? 3 - i : i; }
};

// Of stride 2. The outer two taps meet every second number of x alone: two results from 3 products, F(2, 2); the middle
// tap meets the others, and takes 2.
struct Strided {
  static constexpr int size = 5;

  static STYLEGEN_INLINE void kernel(const V* w, V* u) {
    u[0] = w[0];
    u[1] = w[0] + w[2];
    u[2] = w[2];
    u[3] = w[1];
  }
  static STYLEGEN_INLINE void kernel_gradient(const V* u, V* w) {
    w[0] = u[0] + u[1];
    w[1] = u[3];
    w[2] = u[1] + u[2];
  }
  static constexpr int unique(int i) { return i < 3 ? i : 3; }
  static constexpr int turned(int i) { return i < 3 ? 2 - i : i; }
};

// y[j] = sum over k of w[k] x[2 j + k].
struct Halve : Strided {
  static constexpr int patch = 5, step = 4, offset = 0, out = 2;

  static STYLEGEN_INLINE void input(const V* d, V* v) {
    v[0] = d[0] - d[2];
    v[1] = d[2];
    v[2] = d[4] - d[2];
    v[3] = d[1];
    v[4] = d[3];
  }
  static STYLEGEN_INLINE void output(const V* m, V* y) {
    y[0] = m[0] + m[1] + m[3];
    y[1] = m[1] + m[2] + m[4];
  }
  static STYLEGEN_INLINE void spread(const V* d, V* v) {
    v[0] = v[3] = d[0];
    v[1] = d[0] + d[1];
    v[2] = v[4] = d[1];
  }
};

// Its adjoint, whose kernel is turned: y[2 j] = w[0] x[j] + w[2] x[j - 1], y[2 j + 1] = w[1] x[j].
struct Double : Strided {
  static constexpr int patch = 3, step = 2, offset = -1, out = 4;

  static STYLEGEN_INLINE void input(const V* d, V* v) {
    v[0] = d[0] - d[1];
    v[1] = v[3] = d[1];
    v[2] = d[2] - d[1];
    v[4] = d[2];
  }
  static STYLEGEN_INLINE void output(const V* m, V* y) {
    y[0] = m[0] + m[1];
    y[1] = m[3];
    y[2] = m[1] + m[2];
    y[3] = m[4];
  }
};

// The patches of a convolution's input and of its result, and how they become `size` numbers along each axis.
template <class Form>
struct OfX : Form {
  static STYLEGEN_INLINE void transform(const V* d, V* v) { Form::input(d, v); }
};
template <class Form>
struct OfG : Form {
  static constexpr int patch = 2, step = 2, offset = 0;
  static STYLEGEN_INLINE void transform(const V* d, V* v) { Form::spread(d, v); }
};

// out (b x b) = transform of in (a x a), along both axes. Pass a lambda: a function would not be inlined.
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

// A rectangle of tiles, counted through all samples.
struct Tiles {
  int64_t n, y, x, down, across, count = n * down * across;  // x and y of the first tile

  struct Place {
    int64_t n, y, x;
  };
  Place place(int64_t tile) const {
    const int64_t row = tile / across;
    return {row / down, y + row % down, x + tile % across};
  }
};

// Null outside the picture.
template <class T>
STYLEGEN_INLINE T* pixel(T* picture, const Shape& s, int64_t n, int64_t y, int64_t x) {
  return y >= 0 && y < s.h && x >= 0 && x < s.w ? picture + ((n * s.h + y) * s.w + x) * s.c : nullptr;
}

// size x size pixels, zero outside the picture.
template <class T, int size>
struct Patch {
  const T* from[size][size] = {};

  Patch() = default;  // all outside
  Patch(const T* picture, const Shape& s, Tiles::Place at, int step, int offset) {
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++)
        from[i][j] = pixel(picture, s, at.n, at.y * step + offset + i, at.x * step + offset + j);
  }

  // v = Of::transform of kWidth channels.
  template <class Of, int to>
  STYLEGEN_INLINE void transformed(int64_t channel, V (&v)[to][to]) const {
    V d[size][size];
    for (int i = 0; i < size; i++)
      for (int j = 0; j < size; j++) d[i][j] = from[i][j] ? widen(from[i][j] + channel) : V{};
    both_axes(d, v, [](const V* from, V* into) { Of::transform(from, into); });
  }
};

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
