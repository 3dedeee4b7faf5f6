// Winograd's convolution F(2x2, 3x3), channels innermost, for the CPU (the libraries of GPUs have their own).
//
// A picture [n, h, w, c] with even h and w is cut into tiles of 2x2 pixels. Transformed, a tile is 16 numbers a
// channel: matrices [16, tiles, c].
#pragma once
#include "types.h"

namespace stylegen {

struct WinogradParams {
  const void* in;
  void* out;
  Shape shape;          // of the picture; channels a multiple of 32
  int64_t first, rows;  // rows of tiles, counted through all samples
  DType dtype;          // f32 or bf16
};

struct WinogradConvParams {
  const void* x;  // [n, h, w, c]
  const void* u;  // transformed weights [16, out, c]; if turned [16, c, out], of the kernel before it was turned round
  void* y;        // [n, h, w, out]
  Shape shape;    // of x
  int64_t out;    // a multiple of 32, like c
  bool turned;    // convolve with the flipped and transposed kernel: the gradient by x of a convolution
  DType dtype;    // f32 or bf16, of all three
};

namespace cpu {
void winograd_conv(const WinogradConvParams& p);  // the whole 3x3 convolution, zero padded
void winograd_input(const WinogradParams& p);     // matrices = B^T d B of the 4x4 neighbourhoods of the rows' tiles
void winograd_spread(const WinogradParams& p);    // matrices = A d A^T of the rows' tiles
bool winograd_pays(DType dtype);                  // whether winograd_conv is fast on this processor
}  // namespace cpu

}  // namespace stylegen
