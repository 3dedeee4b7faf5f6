// Picks the kernels of the best instruction set that the processor has; the environment variable STYLEGEN_ISA lowers
// it.
#include <cstdlib>
#include <cstring>

#include "kernels.h"
#if defined(_MSC_VER) && defined(_M_X64)
#include <intrin.h>
#elif defined(__x86_64__) && defined(__GNUC__)
#include <cpuid.h>
#endif

namespace stylegen {
namespace cpu {
namespace {

const char* const kNames[] = {"baseline", "avx2", "avx512", "avx512bf16"};

int best() {
#if defined(_MSC_VER) && defined(_M_X64)
  int leaf1[4], leaf7[4];
  __cpuid(leaf1, 0);
  if (leaf1[0] < 7) return 0;
  __cpuid(leaf1, 1);
  __cpuidex(leaf7, 7, 0);
  const int fma_osxsave_f16c = 1 << 12 | 1 << 27 | 1 << 29, f_dq_bw_vl = 1 << 16 | 1 << 17 | 1 << 30 | 1 << 31;
  if ((leaf1[2] & fma_osxsave_f16c) != fma_osxsave_f16c || !(leaf7[1] & 1 << 5)) return 0;
  const auto saved = _xgetbv(0);  // the registers that the system keeps across switches
  if ((saved & 0x6) != 0x6) return 0;
  return (leaf7[1] & f_dq_bw_vl) == f_dq_bw_vl && (saved & 0xe6) == 0xe6 ? 2 : 1;
#elif defined(__x86_64__)
  // Every processor with AVX2 and FMA has F16C, which older compilers cannot ask for.
  if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) return 0;
  if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
      !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl"))
    return 1;
  return __builtin_cpu_supports("avx512bf16") ? 3 : 2;
#else
  return 0;
#endif
}

#if defined(__x86_64__) && defined(__GNUC__)
bool has_amx_bf16() {
  unsigned a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1);
}
#endif

int choose() {
  const int level = best();
  if (const char* wish = std::getenv("STYLEGEN_ISA"))
    for (int i = 0; i < level; i++)
      if (std::strcmp(wish, kNames[i]) == 0) return i;
  return level;
}

int level() {
  static const int value = choose();
  return value;
}

}  // namespace

// Measured on processors with AVX-512; those with AMX multiply bf16 far faster than these kernels do.
bool fast_products(DType dtype) {
#if defined(__x86_64__) && defined(__GNUC__)
  if (level() < 2) return false;
  return dtype == DType::f32 || (__builtin_cpu_supports("avx512bf16") && !has_amx_bf16());
#else
  (void)dtype;
  return false;
#endif
}

const char* isa() { return kNames[level()]; }

#if defined(_MSC_VER)  // whose flags know no more than AVX-512
#define STYLEGEN_BEST avx512
#else
#define STYLEGEN_BEST avx512bf16
#endif
#if defined(__x86_64__) || defined(_M_X64)
#define STYLEGEN_DISPATCH(call)   \
  switch (level()) {              \
    case 3:                       \
      return STYLEGEN_BEST::call; \
    case 2:                       \
      return avx512::call;        \
    case 1:                       \
      return avx2::call;          \
    default:                      \
      return baseline::call;      \
  }
#else
#define STYLEGEN_DISPATCH(call) return baseline::call;
#endif

void bias_act(const BiasActParams& p) { STYLEGEN_DISPATCH(bias_act(p)) }
void channel_sum(const void* v, void* sums, int64_t size, int64_t channels, int64_t inner, DType dtype) {
  STYLEGEN_DISPATCH(channel_sum(v, sums, size, channels, inner, dtype))
}
void upfirdn2d(const UpfirdnParams& p) { STYLEGEN_DISPATCH(upfirdn2d(p)) }
void adain_forward(const AdainParams& p) { STYLEGEN_DISPATCH(adain_forward(p)) }
void adain_backward(const AdainParams& p) { STYLEGEN_DISPATCH(adain_backward(p)) }
void pixel_norm(const PixelNormParams& p) { STYLEGEN_DISPATCH(pixel_norm(p)) }
void gemm_conv(const GemmConvParams& p) { STYLEGEN_DISPATCH(gemm_conv(p)) }
void scaled_cast(const ScaledCastParams& p) { STYLEGEN_DISPATCH(scaled_cast(p)) }
void winograd_kernel(const WinogradKernelParams& p) { STYLEGEN_DISPATCH(winograd_kernel(p)) }
void winograd_conv(const WinogradConvParams& p) { STYLEGEN_DISPATCH(winograd_conv(p)) }
void winograd_weight(const WinogradWeightParams& p) { STYLEGEN_DISPATCH(winograd_weight(p)) }

}  // namespace cpu
}  // namespace stylegen
