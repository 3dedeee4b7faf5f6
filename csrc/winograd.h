// The transforms of Winograd's convolution F(2x2, 3x3), channels innermost, for the CPU (GPU libraries have their own).
//
// A picture [n, h, w, c] with even h and w is cut into n * h/2 * w/2 tiles; matrices i = 0..15 hold one number a tile
// and channel, at i * stride_i + tile * stride_t + channel (in elements).
#pragma once
#include "types.h"

namespace stylegen {

struct WinogradParams {
  const void* in;
  void* out;
  Shape shape;                  // of the picture; channels a multiple of 16
  int64_t first, rows;          // rows of tiles, counted through all samples; the matrices begin at the first one
  int64_t stride_i, stride_t;
  DType dtype;                  // f32 or bf16
};

namespace cpu {
void winograd_input(const WinogradParams& p);   // matrices = B^T d B of 4x4 neighbourhoods, zero padded
void winograd_output(const WinogradParams& p);  // picture = A^T m A
void winograd_spread(const WinogradParams& p);  // matrices = A d A^T of 2x2 tiles: the transpose of winograd_output
}  // namespace cpu

}  // namespace stylegen
