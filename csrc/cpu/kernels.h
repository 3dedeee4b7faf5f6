// The CPU kernels are compiled once for each instruction set, into a namespace of its name; dispatch.cpp picks one.
#pragma once
#include "../adain.h"
#include "../bias_act.h"
#include "../gemm_conv.h"
#include "../pixel_norm.h"
#include "../scaled_cast.h"
#include "../upfirdn2d.h"
#include "../winograd.h"

#define STYLEGEN_DECLARE_KERNELS(isa)                                                                      \
  namespace stylegen {                                                                                     \
  namespace cpu {                                                                                          \
  namespace isa {                                                                                          \
  void bias_act(const BiasActParams& p);                                                                   \
  void channel_sum(const void* v, void* sums, int64_t size, int64_t channels, int64_t inner, DType dtype); \
  void upfirdn2d(const UpfirdnParams& p);                                                                  \
  void adain_forward(const AdainParams& p);                                                                \
  void adain_backward(const AdainParams& p);                                                               \
  void pixel_norm(const PixelNormParams& p);                                                               \
  void gemm_conv(const GemmConvParams& p);                                                                 \
  void scaled_cast(const ScaledCastParams& p);                                                             \
  void winograd_kernel(const WinogradKernelParams& p);                                                     \
  void winograd_conv(const WinogradConvParams& p);                                                         \
  void winograd_weight(const WinogradWeightParams& p);                                                     \
  }                                                                                                        \
  }                                                                                                        \
  }

STYLEGEN_DECLARE_KERNELS(baseline)
#if defined(__x86_64__) || defined(_M_X64)
STYLEGEN_DECLARE_KERNELS(avx2)
STYLEGEN_DECLARE_KERNELS(avx512)
STYLEGEN_DECLARE_KERNELS(avx512bf16)
#endif

namespace stylegen {
namespace cpu {
const char* isa();                // the instruction set in use
bool fast_products(DType dtype);  // whether gemm_conv and winograd_* are made for this processor
}  // namespace cpu
}  // namespace stylegen
