#include "../gemm_conv.h"

#include "parallel.h"
#include "products.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// The pixels of x that meet every tap of the kernel, [pixels of y, taps, channels of x]: zero beyond the picture, and
// where the adjoint has none because of the stride.
template <class T>
void to_patches(const GemmConvParams& p, T* patches) {
  const Shape &in = p.shape, &out = p.out;
  const int64_t taps = p.kernel.h * p.kernel.w;
  const auto meets = [&](int64_t at, int64_t tap) {
    if (!p.turned) return at * p.stride - p.padding + tap;
    const int64_t from = at + p.padding - tap;
    return from % p.stride ? -1 : from / p.stride;
  };
  parallel(out.n * out.h * out.w, 1 + 16384 / (taps * in.c), [&](int64_t begin, int64_t end) {
    for (int64_t pixel = begin; pixel < end; pixel++)
      for (int64_t tap = 0; tap < taps; tap++) {
        const int64_t n = pixel / (out.h * out.w), y = meets(pixel / out.w % out.h, tap / p.kernel.w);
        const int64_t x = meets(pixel % out.w, tap % p.kernel.w);
        const bool inside = y >= 0 && y < in.h && x >= 0 && x < in.w;
        T* to = patches + (pixel * taps + tap) * in.c;
        if (inside)
          std::memcpy(static_cast<void*>(to), static_cast<const T*>(p.x) + ((n * in.h + y) * in.w + x) * in.c,
                      sizeof(T) * static_cast<size_t>(in.c));
        else
          std::memset(static_cast<void*>(to), 0, sizeof(T) * static_cast<size_t>(in.c));
      }
  });
}

// The weights of kColumns channels of y from `column` on: [taps, channels of x, kColumns], for bf16 with pairs of
// channels of x side by side.
template <class T>
void to_panel(const GemmConvParams& p, int64_t column, T* panel) {
  constexpr int together = kTogether<T>;
  const T* w = static_cast<const T*>(p.w);
  const int64_t taps = p.kernel.h * p.kernel.w, depth = taps * p.kernel.c, rows = taps * p.shape.c;
  if (!p.turned) {
    for (int64_t r = 0; r < rows; r += kWidth * together)
      for (int k = 0; k < kColumns; k += kWidth)
        transpose(w + (column + k) * depth + r, depth, panel + r * kColumns + k * together, kColumns * together);
    return;
  }
  for (int64_t o = 0; o < p.shape.c; o += together)
    for (int64_t tap = 0; tap < taps; tap++)
      for (int k = 0; k < kColumns; k += kWidth) {
        const T* from = w + o * depth + tap * p.kernel.c + column + k;
        store_together(panel + (tap * p.shape.c + o) * kColumns + k * together, widen(from),
                       widen(from + (together - 1) * depth));
      }
}

template <class T>
void run(const GemmConvParams& p) {
  const int64_t depth = p.kernel.h * p.kernel.w * p.shape.c, pixels = p.out.n * p.out.h * p.out.w;
  const int64_t blocks = divide_up(pixels, kRows);
  const Buffer<T> patches(blocks * kRows * depth);
  to_patches(p, patches.get());
  std::memset(static_cast<void*>(patches.get() + pixels * depth), 0,
              sizeof(T) * static_cast<size_t>((blocks * kRows - pixels) * depth));
  parallel(p.out.c / kColumns, 1, [&](int64_t begin, int64_t end) {
    const Buffer<T> panel(depth * kColumns);
    float products[kRows * kColumns];
    for (int64_t column = begin * kColumns; column < end * kColumns; column += kColumns) {
      to_panel(p, column, panel.get());
      for (int64_t first = 0; first < pixels; first += kRows) {
        multiply(patches.get() + first * depth, panel.get(), products, depth);
        for (int64_t r = 0; r < smaller<int64_t>(kRows, pixels - first); r++)
          for (int k = 0; k < kColumns; k += kWidth)
            store(static_cast<T*>(p.y) + (first + r) * p.out.c + column + k, widen(products + r * kColumns + k));
      }
    }
  });
}

}  // namespace

void gemm_conv(const GemmConvParams& p) {
  if (p.dtype == DType::f32) return run<float>(p);
  run<bfloat16>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
