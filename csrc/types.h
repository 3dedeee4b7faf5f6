// What every operator's parameter struct uses. No torch, no CUDA header.
#pragma once
#include <cstdint>

namespace stylegen {

enum class DType : int { f64 = 0, f32 = 1, f16 = 2, bf16 = 3 };

// `acc_t` below: double for f64, float for f32, f16 and bf16. Sums and statistics are kept in it, and everything small
// (biases, styles, noise, statistics, and their gradients) comes and goes in it, whatever the dtype of the pictures.

// A picture batch [n, c, h, w] in memory, dense in one of two orders: channels innermost (channels_last) or width
// innermost (contiguous).
struct Shape {
  int64_t n, c, h, w;
  bool channels_last;
};

}  // namespace stylegen
