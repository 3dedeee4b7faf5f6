#include "parallel.h"
#include "winograd_tiles.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// Panels [16, columns / kColumns, rows, kColumns], for bf16 with pairs of rows side by side: [.., rows / 2, kColumns,
// 2]. Rows are what the convolution sums over.
template <class T>
struct Panels {
  T* u;
  int64_t rows, columns;

  T* at(int64_t i, int64_t row, int64_t column) const {
    return u + ((i * (columns / kColumns) + column / kColumns) * rows + row) * kColumns;
  }
};

// Rows at a time.
template <class T>
constexpr int kSpan = kWidth * kTogether<T>;

// G w G^T for kWidth neighbouring input channels, which are the lanes.
template <class Form, class T>
STYLEGEN_INLINE void transformed(const T* w, int64_t in, V (&u)[4][4]) {
  V taps[3][3];
  for (int i = 0; i < 9; i++) taps[i / 3][i % 3] = widen(w + i * in);
  both_axes(taps, u, [](const V* from, V* to) { Form::kernel(from, to); });
}

// Rows are input channels: kColumns output channels by kSpan input channels, transposed from a buffer.
template <class T, class Form>
void straight(const WinogradKernelParams& p, const Panels<T>& panels, int64_t column, int64_t row) {
  alignas(64) T rows[16][kColumns][kSpan<T>];
  for (int k = 0; k < kColumns; k++)
    for (int c = 0; c < kSpan<T>; c += kWidth) {
      V u[4][4];
      transformed<Form>(static_cast<const T*>(p.w) + (column + k) * 9 * p.in + row + c, p.in, u);
      for (int i = 0; i < 16; i++) store(rows[i][k] + c, u[i / 4][i % 4]);
    }
  for (int i = 0; i < 16; i++)
    for (int k = 0; k < kColumns; k += kWidth)
      transpose(rows[i][k], kSpan<T>, panels.at(i, row, column) + k * kTogether<T>, kColumns * kTogether<T>);
}

// Rows are output channels.
template <class T, class Form>
void turned(const WinogradKernelParams& p, const Panels<T>& panels, int64_t column, int64_t row) {
  constexpr int together = kTogether<T>;
  for (int r = 0; r < kSpan<T>; r += together) {
    for (int k = 0; k < kColumns; k += kWidth) {
      V u[together][4][4];
      for (int j = 0; j < together; j++)
        transformed<Form>(static_cast<const T*>(p.w) + (row + r + j) * 9 * p.in + column + k, p.in, u[j]);
      for (int i = 0; i < 16; i++) {
        const int y = Form::turned(i / 4), x = Form::turned(i % 4);
        store_together(panels.at(i, row + r, column) + k * together, u[0][y][x], u[together - 1][y][x]);
      }
    }
  }
}

template <class T, class Form>
void kernel(const WinogradKernelParams& p) {
  const Panels<T> panels = {static_cast<T*>(p.u), p.turned ? p.out : p.in, p.turned ? p.in : p.out};
  const int64_t across = panels.columns / kColumns;
  parallel(across * (panels.rows / kSpan<T>), 4, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; k++)
      (p.turned ? turned<T, Form> : straight<T, Form>)(p, panels, k % across * kColumns, k / across * kSpan<T>);
  });
}

}  // namespace

void winograd_kernel(const WinogradKernelParams& p) {
  if (p.dtype == DType::f32) return p.stride == 1 ? kernel<float, Same>(p) : kernel<float, Strided>(p);
  p.stride == 1 ? kernel<bfloat16, Same>(p) : kernel<bfloat16, Strided>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
