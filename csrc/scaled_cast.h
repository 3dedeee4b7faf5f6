// y = x * scale, between float32 and a 16-bit dtype: weights on their way to the kernels, and gradients on theirs back.
// For the CPU; on GPUs it is too little to matter.
#pragma once
#include "types.h"

namespace stylegen {

struct ScaledCastParams {
  const void* x;
  void* y;
  int64_t size;
  DType from, to;  // one of them f32, the other f16 or bf16
  float scale;
};

namespace cpu {
void scaled_cast(const ScaledCastParams& p);
}

}  // namespace stylegen
