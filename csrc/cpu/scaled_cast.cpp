#include "../scaled_cast.h"

#include "parallel.h"
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int64_t kBlock = 1024;

template <class From, class To>
void run(const ScaledCastParams& p) {
  const From* x = static_cast<const From*>(p.x);
  To* y = static_cast<To*>(p.y);
  parallel(divide_up(p.size, kBlock), 32, [&](int64_t first, int64_t last) {
    const int64_t end = smaller(last * kBlock, p.size);
    int64_t i = first * kBlock;
    for (; i + kLanes<float> <= end; i += kLanes<float>) store(y + i, widen(x + i) * p.scale);
    if (i < end) store(y + i, widen(x + i, end - i) * p.scale, end - i);
  });
}

}  // namespace

void scaled_cast(const ScaledCastParams& p) {
  if (p.to == DType::f16) return run<float, half>(p);
  if (p.to == DType::bf16) return run<float, bfloat16>(p);
  p.from == DType::f16 ? run<half, float>(p) : run<bfloat16, float>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
