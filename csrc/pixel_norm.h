// y = x / sqrt(mean over channels of x^2 + eps), and its gradient.
#pragma once
#include "types.h"

namespace stylegen {

struct PixelNormParams {
  const void* x;
  const void* g;  // null: forward; otherwise y is the gradient by x
  void* y;
  Shape shape;
  double eps;
  DType dtype;
};

namespace cpu {
void pixel_norm(const PixelNormParams& p);
}
namespace cuda {
const char* pixel_norm(const PixelNormParams& p, void* stream);  // null, or what went wrong
}

}  // namespace stylegen
