// Winograd's convolution F(2x2, 3x3), channels innermost, for the CPU (the libraries of GPUs have their own).
//
// A picture [n, h, w, c] with even h and w is cut into tiles of 2x2 pixels. Transformed, a tile is 16 numbers a
// channel: matrices [16, tiles, c]. All numbers of channels are multiples of 32.
#pragma once
#include "types.h"

namespace stylegen {

struct WinogradKernelParams {
  const void* w;  // [out, 3, 3, in]
  void* u;        // 16 * out * in numbers, in the order that winograd_conv reads
  int64_t out, in;
  bool turned;  // flipped and transposed: for the gradient by x of a convolution with w
  DType dtype;  // f32 or bf16, of both
};

struct WinogradConvParams {
  const void* x;  // [n, h, w, c]
  const void* u;  // what winograd_kernel made on this machine
  void* y;        // [n, h, w, out]
  Shape shape;    // of x
  int64_t out;
  DType dtype;  // f32 or bf16, of all three
};

struct WinogradWeightParams {
  const void* x;  // [n, h, w, c]
  const void* g;  // [n, h, w, out]
  void* dw;       // [out, 3, 3, c]
  Shape shape;    // of x
  int64_t out;
  DType dtype;  // f32 or bf16, of all three
};

namespace cpu {
void winograd_kernel(const WinogradKernelParams& p);  // transformed weights
void winograd_conv(const WinogradConvParams& p);      // the whole 3x3 convolution, zero padded
void winograd_weight(const WinogradWeightParams& p);  // its gradient by the weights
bool winograd_pays(DType dtype);                      // whether these are fast on this processor
}  // namespace cpu

}  // namespace stylegen
