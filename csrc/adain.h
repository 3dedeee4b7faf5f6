// StyleGAN1's layer epilogue: t = lrelu(x + strength * noise + bias), then per sample and channel
// y = (t - mean) * rstd * (scale + 1) + shift, with rstd = 1 / sqrt(biased variance + eps).
#pragma once
#include "types.h"

namespace stylegen {

struct AdainParams {
  const void* x;
  const void* noise;     // [1 or n, 1, h, w], or null together with strength
  const void* strength;  // [c]
  const void* bias;      // [c]
  const void* style;     // [n, 2 c], scales first, or null: no scale and shift
  void* y;               // forward: out, like x
  float* mean;           // [n, c], written by forward, read by backward; float64 for dtype f64
  float* rstd;           // [n, c], likewise
  Shape shape;
  bool noise_batched;  // noise has n samples
  float alpha;         // slope below zero; 1: linear
  double eps;
  DType dtype;  // of x, noise, strength, bias, style, y, g, dx and of the d* below

  // backward only
  const void* g;  // gradient of y, like x
  void* dx;       // like x
  void* dstrength;  // [c], or null
  void* dbias;      // [c]
  void* dstyle;     // [n, 2 c], or null
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
