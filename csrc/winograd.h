// Winograd's convolution F(2x2, 3x3), channels innermost, for the CPU (the libraries of GPUs have their own).
//
// A picture [n, h, w, c] with even h and w is cut into tiles of 2x2 pixels. Transformed, a tile is 16 numbers a
// channel: matrices [16, tiles, c].
#pragma once
#include "types.h"

namespace stylegen {

struct WinogradConvParams {
  const void* x;  // [n, h, w, c]
  const void* u;  // transformed weights [16, out, c]; if turned [16, c, out], of the kernel before it was turned round
  void* y;        // [n, h, w, out]
  Shape shape;    // of x
  int64_t out;    // a multiple of 32, like c
  bool turned;    // convolve with the flipped and transposed kernel: the gradient by x of a convolution
  DType dtype;    // f32 or bf16, of all three
};

struct WinogradWeightParams {
  const void* x;  // [n, h, w, c]
  const void* g;  // [n, h, w, out]
  float* du;      // [16, out, c]
  Shape shape;    // of x
  int64_t out;    // a multiple of 32, like c
  DType dtype;    // f32 or bf16, of x and g
};

namespace cpu {
void winograd_conv(const WinogradConvParams& p);      // the whole 3x3 convolution, zero padded
void winograd_weight(const WinogradWeightParams& p);  // the gradient by its transformed weights
bool winograd_pays(DType dtype);                      // whether these are fast on this processor
}  // namespace cpu

}  // namespace stylegen
