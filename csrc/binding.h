// What binding.cpp builds on: the two devices that a kernel may run on, and what it asks of tensors.
#pragma once
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <optional>
#include <vector>

#include "adain.h"
#include "bias_act.h"
#include "cpu/kernels.h"
#include "pixel_norm.h"
#include "upfirdn2d.h"

#ifndef STYLEGEN_CUDA_ARCHS
#define STYLEGEN_CUDA_ARCHS ""  // built without CUDA
#else
#define STYLEGEN_WITH_CUDA 1
#ifdef _WIN32
#include <windows.h>
#else
#include <dlfcn.h>
#endif
#endif

namespace stylegen {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using MaybeTensor = std::optional<Tensor>;
using Sizes = std::vector<int64_t>;

// ---- where a kernel runs ----

#if STYLEGEN_WITH_CUDA
// A direct reference to this function would keep the module from loading beside a torch without CUDA.
inline void* cuda_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
#ifdef _WIN32
  static const auto get = reinterpret_cast<Function>(
      GetProcAddress(GetModuleHandleA("torch_cuda.dll"), "aoti_torch_get_current_cuda_stream"));
#else
  static const auto get = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    return reinterpret_cast<Function>(library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr);
  }();
#endif
  STD_TORCH_CHECK(get, "stylegen: this torch does not tell its CUDA stream");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(get(device, &stream));
  return stream;
}

struct Cuda {
  torch::stable::accelerator::DeviceGuard guard;
  void* stream;

  explicit Cuda(const Tensor& x) : guard(x.get_device_index()), stream(cuda_stream(x.get_device_index())) {}

  static void check(const char* error) { STD_TORCH_CHECK(!error, "stylegen: a CUDA kernel failed: ", error); }

  // Memory that a launcher asks for; kept until the binding returns, and then reused only behind the same stream.
  static Tensor workspace(const Tensor& x, int64_t bytes) {
    return torch::stable::new_empty(x, {std::max<int64_t>(bytes, 1)}, ScalarType::Byte);
  }

  void bias_act(const BiasActParams& p) const { check(cuda::bias_act(p, stream)); }
  void channel_sum(const Tensor& v, void* sums, int64_t channels, int64_t inner, DType dtype) const {
    const Tensor memory = workspace(v, cuda::channel_sum_workspace(v.numel(), channels, inner));
    check(cuda::channel_sum(v.data_ptr(), sums, memory.data_ptr(), v.numel(), channels, inner, dtype, stream));
  }
  void upfirdn2d(const UpfirdnParams& p) const { check(cuda::upfirdn2d(p, stream)); }
  void adain_forward(const AdainParams& p, const Tensor& x) const {
    check(cuda::adain_forward(p, workspace(x, cuda::adain_workspace(p)).data_ptr(), stream));
  }
  void adain_backward(const AdainParams& p, const Tensor& x) const {
    check(cuda::adain_backward(p, workspace(x, cuda::adain_workspace(p)).data_ptr(), stream));
  }
  void pixel_norm(const PixelNormParams& p) const { check(cuda::pixel_norm(p, stream)); }
};
#endif

struct Cpu {
  explicit Cpu(const Tensor&) {}
  void bias_act(const BiasActParams& p) const { cpu::bias_act(p); }
  void channel_sum(const Tensor& v, void* sums, int64_t channels, int64_t inner, DType dtype) const {
    cpu::channel_sum(v.data_ptr(), sums, v.numel(), channels, inner, dtype);
  }
  void upfirdn2d(const UpfirdnParams& p) const { cpu::upfirdn2d(p); }
  void adain_forward(const AdainParams& p, const Tensor&) const { cpu::adain_forward(p); }
  void adain_backward(const AdainParams& p, const Tensor&) const { cpu::adain_backward(p); }
  void pixel_norm(const PixelNormParams& p) const { cpu::pixel_norm(p); }
};

// ---- tensors ----

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Double:
      return DType::f64;
    case ScalarType::Float:
      return DType::f32;
    case ScalarType::Half:
      return DType::f16;
    case ScalarType::BFloat16:
      return DType::bf16;
    default:
      STD_TORCH_CHECK(false, "stylegen: pictures are float64, float32, float16 or bfloat16");
  }
}

inline ScalarType acc_of(const Tensor& x) { return dtype_of(x) == DType::f64 ? ScalarType::Double : ScalarType::Float; }

// The rule of stylegen/ops/native.py's memory_format().
inline bool channels_innermost(const Tensor& x) { return x.dim() == 4 && !x.is_contiguous() && x.stride(1) == 1; }

inline MemoryFormat format(bool channels_last) {
  return channels_last ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline bool is_dense(const Tensor& x, bool channels_last) {
  if (!channels_last) return x.is_contiguous();
  int64_t expected = 1;
  for (const int dim : {1, 3, 2, 0}) {
    if (x.size(dim) != 1 && x.stride(dim) != expected) return false;
    expected *= x.size(dim);
  }
  return true;
}

inline Tensor dense(const Tensor& x, bool channels_last) {
  return is_dense(x, channels_last) ? x : torch::stable::contiguous(x, format(channels_last));
}

inline Tensor allocate(const Tensor& x, const Sizes& sizes, bool channels_last) {
  return torch::stable::empty(sizes, x.scalar_type(), std::nullopt, x.device(), std::nullopt, format(channels_last));
}

inline Sizes sizes_of(const Tensor& x) { return Sizes(x.sizes().begin(), x.sizes().end()); }

// A small result beside the pictures x: of acc_t; zero if no kernel will write it, because there are no pictures.
inline Tensor allocate_small(const Tensor& x, const Sizes& sizes) {
  return x.numel() == 0 ? torch::stable::new_zeros(x, sizes, acc_of(x)) : torch::stable::new_empty(x, sizes, acc_of(x));
}

inline void check_beside(const Tensor& t, const Tensor& x, const char* name) {
  STD_TORCH_CHECK(t.device() == x.device(), "stylegen: ", name, " is on another device than the pictures");
}

// A tensor like the pictures x, in their memory order.
inline MaybeTensor picture(const MaybeTensor& t, const Tensor& x, bool channels_last, const char* name) {
  if (!t) return t;
  check_beside(*t, x, name);
  STD_TORCH_CHECK(t->scalar_type() == x.scalar_type(), "stylegen: ", name, " has another dtype than the pictures");
  STD_TORCH_CHECK(sizes_of(*t) == sizes_of(x), "stylegen: ", name, " has another shape than the pictures");
  return dense(*t, channels_last);
}

// A small tensor beside the pictures x: of acc_t, dense, of the given size.
inline MaybeTensor small(const MaybeTensor& t, const Tensor& x, const Sizes& sizes, const char* name) {
  if (!t) return t;
  check_beside(*t, x, name);
  STD_TORCH_CHECK(t->scalar_type() == acc_of(x), "stylegen: ", name, " is kept in the precision of sums");
  STD_TORCH_CHECK(sizes_of(*t) == sizes, "stylegen: ", name, " has a shape that does not fit the pictures");
  return dense(*t, false);
}

inline void* pointer(const MaybeTensor& t) { return t ? t->data_ptr() : nullptr; }

inline Shape shape_of(const Tensor& x, bool channels_last) {
  return x.dim() == 2 ? Shape{x.size(0), x.size(1), 1, 1, false}
                      : Shape{x.size(0), x.size(1), x.size(2), x.size(3), channels_last};
}

// How far apart in memory neighbouring channels are, in elements.
inline int64_t inner_of(const Tensor& x, int64_t dim, bool channels_last) {
  int64_t inner = 1;
  if (!channels_last)
    for (int64_t i = dim + 1; i < x.dim(); i++) inner *= x.size(i);
  return inner;
}

}  // namespace stylegen
