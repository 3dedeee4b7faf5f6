// One C entry point to all CUDA launchers, run by the emulator, for ctypes; and a main that replays recorded calls from
// a file, for the sanitizers, which do not get on with a Python that has torch in it.
#include <cstdio>
#include <fstream>
#include <iostream>

#include "adain.h"
#include "bias_act.h"
#include "cuda_emu.h"
#include "pixel_norm.h"
#include "upfirdn2d.h"

namespace {

using namespace stylegen;

enum Op : int { kBiasAct, kChannelSum, kUpfirdn2d, kAdainForward, kAdainBackward, kPixelNorm };

constexpr size_t kGuard = 64;

// Ends where it must not be written past, and starts as NaNs.
struct Workspace {
  explicit Workspace(int64_t bytes) : size(bytes), data(static_cast<unsigned char*>(std::malloc(bytes + guard()))) {
    std::memset(data, 0xff, size + guard());
  }
  ~Workspace() { std::free(data); }
  const char* check(const char* error) const {
    for (size_t i = 0; i < guard(); ++i)
      if (data[size + i] != 0xff) return "a write past the workspace";
    return error;
  }
  static size_t guard() {
#if defined(__SANITIZE_ADDRESS__)
    return 0;
#else
    return kGuard;
#endif
  }
  size_t size;
  unsigned char* data;
};

Shape shape(const int64_t* ints, int64_t h, int64_t w) { return {ints[0], ints[1], h, w, ints[4] != 0}; }

// The orders of `ints`, `reals` and `buffers` are those of tests/emu/__init__.py.
const char* dispatch(int op, const int64_t* ints, const double* reals, void* const* buffers) {
  auto* const* b = buffers;
  if (op == kBiasAct)
    return cuda::bias_act({b[0], b[1], b[2], b[3], b[4], b[5], ints[0], ints[1], ints[2], DType(ints[3]), Act(ints[4]),
                           int(ints[5]), float(reals[0]), float(reals[1]), float(reals[2])},
                          nullptr);
  if (op == kChannelSum) {
    const Workspace work(cuda::channel_sum_workspace(ints[0], ints[1], ints[2]));
    return work.check(cuda::channel_sum(b[0], b[1], work.data, ints[0], ints[1], ints[2], DType(ints[3]), nullptr));
  }
  if (op == kPixelNorm)
    return cuda::pixel_norm({b[0], b[1], b[2], shape(ints, ints[2], ints[3]), reals[0], DType(ints[5])}, nullptr);
  if (op == kUpfirdn2d) {
    auto at = [&](int i) { return int(ints[i]); };
    return cuda::upfirdn2d({b[0], b[1], static_cast<const float*>(b[2]), static_cast<const float*>(b[3]),
                            shape(ints, ints[2], ints[3]), shape(ints, ints[6], ints[7]), at(8), at(9), at(10), at(11),
                            at(12), at(13), at(14), at(15), float(reals[0]), float(reals[1]), DType(ints[5])},
                           nullptr);
  }
  const AdainParams p{b[0],
                      b[1],
                      b[2],
                      b[3],
                      b[4],
                      b[5],
                      b[6],
                      b[7],
                      shape(ints, ints[2], ints[3]),
                      ints[6] != 0,
                      float(reals[0]),
                      reals[1],
                      DType(ints[5]),
                      b[8],
                      b[9],
                      b[10],
                      b[11],
                      b[12]};
  const Workspace work(cuda::adain_workspace(p));
  return work.check((op == kAdainForward ? cuda::adain_forward : cuda::adain_backward)(p, work.data, nullptr));
}

}  // namespace

// Null, or what went wrong.
extern "C" const char* emu_call(int op, int schedule, int seed, const int64_t* ints, const double* reals,
                                void* const* buffers) {
  static std::string error;
  emu::config = {emu::Schedule(schedule), unsigned(seed)};
  try {
    return dispatch(op, ints, reals, buffers);
  } catch (const std::exception& e) {
    error = e.what();
  }
  return error.c_str();
}

template <class T>
static T read(std::istream& in) {
  T value;
  in.read(reinterpret_cast<char*>(&value), sizeof(T));
  return value;
}

template <class T>
static std::vector<T> read_list(std::istream& in) {
  std::vector<T> list(read<int64_t>(in));
  in.read(reinterpret_cast<char*>(list.data()), list.size() * sizeof(T));
  return list;
}

// A file of calls: op, schedule and seed (int32), then lists with their length (int64) before them: ints, reals, and as
// many buffers as their count says: how far from a 16-byte boundary it starts (-1: null), then its bytes.
int main(int, char** arguments) {
  std::ifstream in(arguments[1], std::ios::binary);
  int failures = 0;
  for (int call = 0; in.peek() != EOF; ++call) {
    const int op = read<int32_t>(in), schedule = read<int32_t>(in), seed = read<int32_t>(in);
    const auto ints = read_list<int64_t>(in);
    const auto reals = read_list<double>(in);
    std::vector<char*> owned;
    std::vector<void*> buffers(read<int64_t>(in));
    for (void*& buffer : buffers) {
      const int64_t offset = read<int64_t>(in);
      if (offset < 0) continue;
      const auto bytes = read_list<char>(in);
      owned.push_back(static_cast<char*>(std::malloc(bytes.size() + offset)));  // ends where the tensor ends
      buffer = owned.back() + offset;
      std::copy(bytes.begin(), bytes.end(), owned.back() + offset);
    }
    std::cerr << "call " << call << " op " << op << std::endl;
    if (const char* error = emu_call(op, schedule, seed, ints.data(), reals.data(), buffers.data())) {
      std::cerr << "failed: " << error << std::endl;
      ++failures;
    }
    for (char* buffer : owned) std::free(buffer);
  }
  return failures != 0;
}
