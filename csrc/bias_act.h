// y = clamp(gain * act(x + b), -clamp, clamp), and its first and second derivatives by x.
#pragma once
#include "types.h"

namespace stylegen {

enum class Act : int { linear = 0, relu, lrelu, tanh, sigmoid, elu, selu, softplus, swish };

// order 0: y = f(x + b).
// order 1: y = g * f'(x + b). With `ref` the sign and the clamp are read from ref = f(x + b) instead of x and b
// (allowed
//          for linear, relu and lrelu with gain > 0; x is then null).
// order 2: y = g * gg * f''(x + b).
// The derivative of the clamp is 1 strictly inside it and 0 elsewhere.
struct BiasActParams {
  const void* x;
  const void* b;  // [channels], acc_t, or null
  const void* ref;
  const void* g;
  const void* gg;
  void* y;
  int64_t size;      // elements; all tensors are dense with the same strides
  int64_t channels;  // element i has channel (i / inner) % channels
  int64_t inner;
  DType dtype;
  Act act;
  int order;
  float alpha, gain, clamp;  // clamp < 0: none
};

namespace cpu {
void bias_act(const BiasActParams& p);
// sums[c] = sum of v over all elements of channel c; the result does not depend on the number of threads.
// v is dense, of dtype; sums is [channels], acc_t.
void channel_sum(const void* v, void* sums, int64_t size, int64_t channels, int64_t inner, DType dtype);
}  // namespace cpu

namespace cuda {
const char* bias_act(const BiasActParams& p, void* stream);  // null, or what went wrong
const char* channel_sum(const void* v, void* sums, void* workspace, int64_t size, int64_t channels, int64_t inner,
                        DType dtype, void* stream);
int64_t channel_sum_workspace(int64_t size, int64_t channels, int64_t inner);  // bytes
}  // namespace cuda

}  // namespace stylegen
