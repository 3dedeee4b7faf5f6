// Winograd's convolutions with 3x3 kernels, channels innermost, for the CPU (the libraries of GPUs have their own).
//
// Of stride 1 and zero padded, F(2x2, 3x3), where height and width are even; or of stride 2 without padding, in a form
// of the same kind, from 2 h + 1 by 2 w + 1 pixels to h by w, both even; and the adjoint of either. A tile of 2x2
// pixels of the result (4x4 for the adjoint of stride 2) takes 16 or 25 products a pair of channels: matrices [tiles,
// c]. All numbers of channels are multiples of 32.
#pragma once
#include "types.h"

namespace stylegen {

struct WinogradKernelParams {
  const void* w;  // [out, 3, 3, in]
  void* u;        // 16 * out * in numbers, in the order that winograd_conv reads
  int64_t out, in;
  int stride;   // 1 or 2
  bool turned;  // for the adjoint: the gradient by x of a convolution with w
  DType dtype;  // f32 or bf16, of both
};

struct WinogradConvParams {
  const void* x;
  const void* u;  // what winograd_kernel made on this machine of the same stride, turned
  void* y;
  Shape shape, out;  // of x and y
  int stride;
  bool turned;
  DType dtype;  // f32 or bf16, of all three
};

struct WinogradWeightParams {
  const void* x;
  const void* g;
  void* dw;          // [out, 3, 3, in]
  Shape shape, out;  // of x, and of g, which has the size of the convolution's result
  int stride;
  DType dtype;  // f32 or bf16, of all three
};

namespace cpu {
void winograd_kernel(const WinogradKernelParams& p);  // transformed weights
void winograd_conv(const WinogradConvParams& p);      // the whole convolution
void winograd_weight(const WinogradWeightParams& p);  // its gradient by the weights
}  // namespace cpu

}  // namespace stylegen
