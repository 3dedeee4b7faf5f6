// StyleGAN1's layer epilogue: t = lrelu(x + strength * noise + bias), then per sample and channel
// y = (t - mean) * rstd * (scale + 1) + shift, with rstd = 1 / sqrt(biased variance + eps).
#pragma once
#include "types.h"

namespace stylegen {

struct AdainParams {
  const void* x;
  const void* noise;     // [1 or n, 1, h, w], acc_t, or null together with strength
  const void* strength;  // [c], acc_t
  const void* bias;      // [c], acc_t
  const void* style;     // [n, 2 c], acc_t, scales first, or null: no scale and shift
  void* y;               // forward: out, like x
  void* mean;            // [n, c], acc_t, written by forward, read by backward
  void* rstd;            // [n, c], acc_t, likewise
  Shape shape;
  bool noise_batched;  // noise has n samples
  float alpha;         // slope below zero; 1: linear
  double eps;
  DType dtype;  // of x, y, g and dx

  // backward only
  const void* g;    // gradient of y, like x
  void* dx;         // like x
  void* dstrength;  // [c], acc_t, or null
  void* dbias;      // [c], acc_t
  void* dstyle;     // [n, 2 c], acc_t, or null
};

namespace cpu {
void adain_forward(const AdainParams& p);
void adain_backward(const AdainParams& p);
}  // namespace cpu
namespace cuda {
const char* adain_forward(const AdainParams& p, void* workspace, void* stream);  // null, or what went wrong
const char* adain_backward(const AdainParams& p, void* workspace, void* stream);
int64_t adain_workspace(const AdainParams& p);  // bytes, enough for either
}  // namespace cuda

}  // namespace stylegen
