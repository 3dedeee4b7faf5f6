// Threads for the CPU kernels: torch's own, lent by the binding.
#pragma once
#include <cstdint>

namespace stylegen {
namespace cpu {

// Calls body(first, last, context) on disjoint pieces that cover [begin, end), `grain` steps or more each but for the
// last. The pieces depend on the number of threads; results must not.
void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);
int num_threads();

template <class Body>
void parallel(int64_t count, int64_t grain, const Body& body) {
  const auto call = [](int64_t first, int64_t last, void* context) {
    (*static_cast<const Body*>(context))(first, last);
  };
  if (count > 0) parallel_for(0, count, grain, call, const_cast<Body*>(&body));
}

}  // namespace cpu
}  // namespace stylegen
