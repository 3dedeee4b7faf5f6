// Upsample, pad, filter, downsample: see stylegen/ops/upfirdn2d.py for the definition.
#pragma once
#include "types.h"

namespace stylegen {

struct UpfirdnParams {
  const void* x;
  void* y;
  const float* fx;  // separable: [kw] taps along x; otherwise [kh, kw]. Already flipped: y is a correlation with them.
  const float* fy;  // separable: [kh] taps along y; otherwise null
  Shape in, out;    // same n, c and memory order
  int kw, kh;
  int up_x, up_y, down_x, down_y;
  int pad_x, pad_y;  // left and top, negative to crop; the right and bottom ones follow from out's size
  float edge;        // only with up = down = 1 and separable taps: along each axis, out[first] -= edge * in[first] and
                     // out[last] -= edge * in[last] (in and out of that axis' pass, before the gain)
  float gain;        // multiplies the result once
  DType dtype;
};

namespace cpu {
void upfirdn2d(const UpfirdnParams& p);
}
namespace cuda {
const char* upfirdn2d(const UpfirdnParams& p, void* stream);  // null, or what went wrong
}

}  // namespace stylegen
