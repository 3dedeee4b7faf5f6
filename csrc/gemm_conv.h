// Convolutions as one matrix product, channels innermost: for results of so few pixels that the weights, and whatever
// is done to them, take most of the time. For the CPU.
#pragma once
#include "types.h"

namespace stylegen {

struct GemmConvParams {
  const void* x;
  const void* w;  // [n, kh, kw, c]: from c to n channels, or if turned from n to c; both are multiples of 32
  void* y;
  Shape shape, out, kernel;  // of x, y and w
  int stride, padding;
  bool turned;  // the adjoint: x is the gradient by a convolution's result, y that by its input
  DType dtype;  // f32 or bf16, of all three
};

namespace cpu {
void gemm_conv(const GemmConvParams& p);
}

}  // namespace stylegen
