// Checks, allocation and registration. With binding.h the only code that knows torch, on its stable ABI, so that one
// build serves every torch from the version in TORCH_TARGET_VERSION on; with Python's limited API. The operators'
// schemas, shapes and gradients are in stylegen/ops.
#include "binding.h"

#include <Python.h>
#include <torch/csrc/stable/library.h>

#include <array>
#include <tuple>

#include "cpu/parallel.h"

namespace stylegen {

namespace cpu {

void parallel_for(int64_t begin, int64_t end, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  TORCH_ERROR_CODE_CHECK(torch_parallel_for(begin, end, grain, body, context));
}

int num_threads() { return static_cast<int>(torch::stable::get_num_threads()); }

}  // namespace cpu

namespace {

template <class Device>
Tensor bias_act(Tensor x, MaybeTensor b, int64_t dim, int64_t act, int64_t order, MaybeTensor ref, MaybeTensor g,
                MaybeTensor gg, double alpha, double gain, double clamp) {
  STD_TORCH_CHECK(dim >= 0 && dim < x.dim() && act >= 0 && act <= static_cast<int>(Act::swish) && order >= 0 &&
                      order <= 2 && g.has_value() == (order >= 1) && gg.has_value() == (order == 2),
                  "stylegen: bias_act's arguments do not fit together");
  const bool channels_last = dim == 1 && channels_innermost(x);
  const DType dtype = dtype_of(x);
  const auto source = ref ? MaybeTensor() : picture(x, x, channels_last, "x");
  const auto bias = small(b, x, {x.size(dim)}, "b");
  const auto output = picture(ref, x, channels_last, "ref"), first = picture(g, x, channels_last, "g");
  const auto second = picture(gg, x, channels_last, "gg");
  Tensor y = allocate(x, sizes_of(x), channels_last);
  if (x.numel() == 0) return y;
  const Device device(x);
  device.bias_act({pointer(source), pointer(bias), pointer(output), pointer(first), pointer(second), y.data_ptr(),
                   x.numel(), x.size(dim), inner_of(x, dim, channels_last), dtype, static_cast<Act>(act),
                   static_cast<int>(order), static_cast<float>(alpha), static_cast<float>(gain),
                   static_cast<float>(clamp)});
  return channels_last || !channels_innermost(x) ? y : dense(y, true);
}

template <class Device>
Tensor channel_sum(Tensor v, int64_t dim) {
  STD_TORCH_CHECK(dim >= 0 && dim < v.dim(), "stylegen: channel_sum has no dimension ", dim);
  Tensor sums = allocate_small(v, {v.size(dim)});
  if (v.numel() == 0) return sums;
  const bool channels_last = dim == 1 && channels_innermost(v);
  const Tensor source = dense(v, channels_last);
  const Device device(v);
  device.channel_sum(source, sums.data_ptr(), v.size(dim), inner_of(v, dim, channels_last), dtype_of(v));
  return sums;
}

// The taps as the kernels want them: where x is, and flipped unless the caller asked for a correlation.
Tensor correlation_taps(const Tensor& f, const Tensor& x, bool flip_filter) {
  check_beside(f, x, "f");
  STD_TORCH_CHECK(f.scalar_type() == ScalarType::Float && (f.dim() == 1 || f.dim() == 2) && f.numel() > 0,
                  "stylegen: a filter is float32, [k] or [kh, kw]");
  const Tensor taps = dense(f, false);
  if (flip_filter) return taps;
  if (!x.is_cpu()) {
    Sizes dims(f.dim());
    for (size_t i = 0; i < dims.size(); i++) dims[i] = static_cast<int64_t>(i);
    std::array<StableIValue, 2> stack{torch::stable::detail::from(taps), torch::stable::detail::from(dims)};
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::flip", "", stack.data(), TORCH_ABI_VERSION));
    return torch::stable::detail::to<Tensor>(stack[0]);
  }
  Tensor flipped = torch::stable::new_empty(f, sizes_of(f));
  const auto* from = static_cast<const float*>(taps.data_ptr());
  std::reverse_copy(from, from + f.numel(), static_cast<float*>(flipped.data_ptr()));
  return flipped;
}

template <class Device>
Tensor upfirdn2d(Tensor x, Tensor f, Sizes up, Sizes down, Sizes padding, bool flip_filter, double gain, double edge) {
  STD_TORCH_CHECK(x.dim() == 4 && up.size() == 2 && down.size() == 2 && padding.size() == 4 && up[0] > 0 && up[1] > 0 &&
                      down[0] > 0 && down[1] > 0,
                  "stylegen: upfirdn2d takes [N, C, H, W], pairs (x, y) and a padding (left, right, top, bottom)");
  const bool separable = f.dim() == 1, channels_last = channels_innermost(x);
  STD_TORCH_CHECK(edge == 0 || (separable && up[0] * up[1] * down[0] * down[1] == 1),
                  "stylegen: edge needs up = down = 1 and a filter of one dimension");
  const Tensor taps = correlation_taps(f, x, flip_filter);
  const int64_t kw = f.size(f.dim() - 1), kh = f.size(0);
  const int64_t width = x.size(3) * up[0] + padding[0] + padding[1] - kw;
  const int64_t height = x.size(2) * up[1] + padding[2] + padding[3] - kh;
  STD_TORCH_CHECK(width >= 0 && height >= 0, "stylegen: upfirdn2d leaves nothing of the picture");
  const Sizes size{x.size(0), x.size(1), height / down[1] + 1, width / down[0] + 1};
  if (x.numel() == 0) return torch::stable::new_zeros(x, size);
  const Tensor source = dense(x, channels_last);
  Tensor y = allocate(x, size, channels_last);
  UpfirdnParams p{};
  p.x = source.data_ptr();
  p.y = y.data_ptr();
  p.fx = static_cast<const float*>(taps.data_ptr());
  p.fy = separable ? p.fx : nullptr;
  p.in = shape_of(x, channels_last);
  p.out = {size[0], size[1], size[2], size[3], channels_last};
  p.kw = static_cast<int>(kw);
  p.kh = static_cast<int>(kh);
  p.up_x = static_cast<int>(up[0]);
  p.up_y = static_cast<int>(up[1]);
  p.down_x = static_cast<int>(down[0]);
  p.down_y = static_cast<int>(down[1]);
  p.pad_x = static_cast<int>(padding[0]);
  p.pad_y = static_cast<int>(padding[2]);
  p.edge = static_cast<float>(edge);
  p.gain = static_cast<float>(gain);
  p.dtype = dtype_of(x);
  const Device device(x);
  device.upfirdn2d(p);
  return y;
}

// The inputs that both directions of the epilogue share, made dense; they live as long as the kernel runs.
struct AdainInputs {
  bool channels_last;
  Tensor x;
  MaybeTensor noise, strength, bias, style;

  AdainInputs(const Tensor& pictures, const MaybeTensor& n, const MaybeTensor& s, const Tensor& b,
              const MaybeTensor& st)
      : channels_last(channels_innermost(pictures)), x(dense(pictures, channels_last)) {
    STD_TORCH_CHECK(x.dim() == 4 && n.has_value() == s.has_value(),
                    "stylegen: adain_epilogue takes [N, C, H, W], and noise together with its strength");
    const int64_t samples = n && n->dim() == 4 ? n->size(0) : 1;
    STD_TORCH_CHECK(samples == 1 || samples == x.size(0), "stylegen: noise is [N or 1, 1, H, W]");
    noise = small(n, x, {samples, 1, x.size(2), x.size(3)}, "noise");
    strength = small(s, x, {x.size(1)}, "strength");
    bias = small(b, x, {x.size(1)}, "bias");
    style = small(st, x, {x.size(0), 2 * x.size(1)}, "style");
  }

  AdainParams params(double alpha, double eps) const {
    AdainParams p{};
    p.x = x.data_ptr();
    p.noise = pointer(noise);
    p.strength = pointer(strength);
    p.bias = pointer(bias);
    p.style = pointer(style);
    p.shape = shape_of(x, channels_last);
    p.noise_batched = noise && noise->size(0) > 1;
    p.alpha = static_cast<float>(alpha);
    p.eps = eps;
    p.dtype = dtype_of(x);
    return p;
  }
};

template <class Device>
std::tuple<Tensor, Tensor, Tensor> adain_epilogue(Tensor x, MaybeTensor noise, MaybeTensor strength, Tensor bias,
                                                  MaybeTensor style, double alpha, double eps) {
  const AdainInputs in(x, noise, strength, bias, style);
  const Sizes statistics{x.size(0), x.size(1)};
  Tensor y = allocate(x, sizes_of(x), in.channels_last);
  Tensor mean = allocate_small(x, statistics), rstd = allocate_small(x, statistics);
  if (x.numel() == 0) return {y, mean, rstd};
  AdainParams p = in.params(alpha, eps);
  p.y = y.data_ptr();
  p.mean = mean.data_ptr();
  p.rstd = rstd.data_ptr();
  const Device device(x);
  device.adain_forward(p, x);
  return {y, mean, rstd};
}

template <class Device>
std::tuple<Tensor, Tensor, Tensor, Tensor> adain_epilogue_backward(Tensor g, Tensor x, MaybeTensor noise,
                                                                   MaybeTensor strength, Tensor bias, MaybeTensor style,
                                                                   Tensor mean, Tensor rstd, double alpha, double eps) {
  const AdainInputs in(x, noise, strength, bias, style);
  const int64_t n = x.size(0), c = x.size(1);
  const auto outer = picture(g, x, in.channels_last, "g");
  const auto means = small(mean, x, {n, c}, "mean"), rstds = small(rstd, x, {n, c}, "rstd");
  Tensor dx = allocate(x, sizes_of(x), in.channels_last), dbias = allocate_small(x, {c});
  Tensor dstrength = allocate_small(x, {noise ? c : 0});
  Tensor dstyle = allocate_small(x, style ? Sizes{n, 2 * c} : Sizes{0});
  if (x.numel() == 0) return {dx, dstrength, dbias, dstyle};
  AdainParams p = in.params(alpha, eps);
  p.g = pointer(outer);
  p.mean = pointer(means);
  p.rstd = pointer(rstds);
  p.dx = dx.data_ptr();
  p.dstrength = noise ? dstrength.data_ptr() : nullptr;
  p.dbias = dbias.data_ptr();
  p.dstyle = style ? dstyle.data_ptr() : nullptr;
  const Device device(x);
  device.adain_backward(p, x);
  return {dx, dstrength, dbias, dstyle};
}

template <class Device>
Tensor normalise(const Tensor& x, const MaybeTensor& g, double eps) {
  STD_TORCH_CHECK(x.dim() == 2 || x.dim() == 4, "stylegen: pixel_norm takes [N, C] or [N, C, H, W]");
  const bool channels_last = channels_innermost(x);
  const Tensor source = dense(x, channels_last);
  const auto outer = picture(g, x, channels_last, "g");
  Tensor y = allocate(x, sizes_of(x), channels_last);
  if (x.numel() == 0) return y;
  const Device device(x);
  device.pixel_norm({source.data_ptr(), pointer(outer), y.data_ptr(), shape_of(x, channels_last), eps, dtype_of(x)});
  return y;
}

template <class Device>
Tensor pixel_norm(Tensor x, double eps) {
  return normalise<Device>(x, std::nullopt, eps);
}

template <class Device>
Tensor pixel_norm_backward(Tensor g, Tensor x, double eps) {
  return normalise<Device>(x, g, eps);
}

// ---- on the CPU alone ----

Tensor scaled_cast(Tensor x, double scale, ScalarType dtype) {
  const Tensor source = dense(x, false);
  Tensor y = torch::stable::new_empty(x, sizes_of(x), dtype);
  const ScaledCastParams p = {source.data_ptr(), y.data_ptr(), x.numel(),
                              dtype_of(x),       dtype_of(y),  static_cast<float>(scale)};
  STD_TORCH_CHECK((p.from == DType::f32) != (p.to == DType::f32) && p.from != DType::f64 && p.to != DType::f64,
                  "stylegen: scaled_cast is between float32 and float16 or bfloat16");
  cpu::scaled_cast(p);
  return y;
}

// `size`: height and width of the result.
Tensor gemm_conv2d(Tensor x, Tensor w, Sizes size, int64_t stride, int64_t padding, bool turned) {
  const Shape in = shape_of(x, true), kernel = shape_of(w, true);
  STD_TORCH_CHECK(is_dense(x, true) && is_dense(w, true) && in.c == (turned ? kernel.n : kernel.c) &&
                      size.size() == 2 && kernel.n % 32 == 0 && kernel.c % 32 == 0 &&
                      x.scalar_type() == w.scalar_type(),
                  "stylegen: gemm_conv2d takes channels_last pictures and weights of one dtype");
  const Shape out = {in.n, turned ? kernel.c : kernel.n, size[0], size[1], true};
  Tensor y = allocate(x, {out.n, out.c, out.h, out.w}, true);
  cpu::gemm_conv({x.data_ptr(), w.data_ptr(), y.data_ptr(), in, out, kernel, static_cast<int>(stride),
                  static_cast<int>(padding), turned, dtype_of(x)});
  return y;
}

Shape winograd_shape(const Tensor& picture) {
  const Shape shape = shape_of(picture, true);
  STD_TORCH_CHECK(channels_innermost(picture) && shape.c % 32 == 0, "stylegen: winograd takes channels_last pictures");
  return shape;
}

// That of a convolution's result.
Shape winograd_result(const Shape& x, int64_t channels, int64_t stride, bool turned) {
  Shape y = x;
  y.c = channels;
  if (stride == 2) y.h = turned ? 2 * x.h + 1 : x.h / 2, y.w = turned ? 2 * x.w + 1 : x.w / 2;
  const Shape &small = stride == 2 && turned ? x : y, &large = stride == 2 && !turned ? x : y;
  STD_TORCH_CHECK(small.h % 2 == 0 && small.w % 2 == 0 && (stride == 1 || (large.h % 2 == 1 && large.w % 2 == 1)),
                  "stylegen: winograd takes pictures of even size, or of 2 h + 1 by 2 w + 1 pixels for stride 2");
  return y;
}

Tensor winograd_kernel(Tensor w, int64_t stride, bool turned) {
  const Shape shape = shape_of(w, true);  // n: out, c: in
  STD_TORCH_CHECK(channels_innermost(w) && shape.n % 32 == 0 && shape.c % 32 == 0 && shape.h == 3 && shape.w == 3,
                  "stylegen: winograd takes channels_last weights [out, in, 3, 3]");
  Tensor u = torch::stable::new_empty(w, {16, turned ? shape.c : shape.n, turned ? shape.n : shape.c});
  cpu::winograd_kernel({w.data_ptr(), u.data_ptr(), shape.n, shape.c, static_cast<int>(stride), turned, dtype_of(w)});
  return u;
}

Tensor winograd_conv2d(Tensor x, Tensor u, int64_t stride, bool turned) {
  const Shape shape = winograd_shape(x);
  STD_TORCH_CHECK(u.is_contiguous() && u.dim() == 3 && u.size(0) == 16 && u.size(1) % 32 == 0 && u.size(2) == shape.c &&
                      u.scalar_type() == x.scalar_type(),
                  "stylegen: winograd takes weights [16, out, in] of the picture's channels and dtype");
  const Shape out = winograd_result(shape, u.size(1), stride, turned);
  Tensor y = allocate(x, {out.n, out.c, out.h, out.w}, true);
  cpu::winograd_conv(
      {x.data_ptr(), u.data_ptr(), y.data_ptr(), shape, out, static_cast<int>(stride), turned, dtype_of(x)});
  return y;
}

Tensor winograd_weight(Tensor x, Tensor g, int64_t stride) {
  const Shape shape = winograd_shape(x), outer = winograd_shape(g);
  const Shape expected = winograd_result(shape, outer.c, stride, false);
  STD_TORCH_CHECK(
      outer.n == expected.n && outer.h == expected.h && outer.w == expected.w && g.scalar_type() == x.scalar_type(),
      "stylegen: winograd takes a gradient of the result's size and the picture's dtype");
  Tensor dw = allocate(x, {outer.c, shape.c, 3, 3}, true);
  cpu::winograd_weight(
      {x.data_ptr(), g.data_ptr(), dw.data_ptr(), shape, outer, static_cast<int>(stride), dtype_of(x)});
  return dw;
}

template <class Device>
void register_kernels(torch::stable::detail::StableLibrary& library) {
  library.impl("bias_act", TORCH_BOX(&bias_act<Device>));
  library.impl("channel_sum", TORCH_BOX(&channel_sum<Device>));
  library.impl("upfirdn2d", TORCH_BOX(&upfirdn2d<Device>));
  library.impl("adain_epilogue", TORCH_BOX(&adain_epilogue<Device>));
  library.impl("adain_epilogue_backward", TORCH_BOX(&adain_epilogue_backward<Device>));
  library.impl("pixel_norm", TORCH_BOX(&pixel_norm<Device>));
  library.impl("pixel_norm_backward", TORCH_BOX(&pixel_norm_backward<Device>));
}

}  // namespace
}  // namespace stylegen

STABLE_TORCH_LIBRARY_IMPL(stylegen, CPU, library) {
  using namespace stylegen;
  register_kernels<Cpu>(library);
  library.impl("scaled_cast", TORCH_BOX(&scaled_cast));
  library.impl("gemm_conv2d", TORCH_BOX(&gemm_conv2d));
  library.impl("winograd_kernel", TORCH_BOX(&winograd_kernel));
  library.impl("winograd_conv2d", TORCH_BOX(&winograd_conv2d));
  library.impl("winograd_weight", TORCH_BOX(&winograd_weight));
}
#if STYLEGEN_WITH_CUDA
STABLE_TORCH_LIBRARY_IMPL(stylegen, CUDA, library) { stylegen::register_kernels<stylegen::Cuda>(library); }
#endif

// Importing stylegen._native registers the kernels above; what it holds is for `stylegen doctor`.
PyMODINIT_FUNC PyInit__native() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "stylegen._native", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  PyObject* module = PyModule_Create(&definition);
  if (!module) return nullptr;
#if defined(_MSC_VER)
  const char* compiler = "MSVC";
#elif defined(__clang__)
  const char* compiler = __VERSION__;  // names itself
#else
  const char* compiler = "GCC " __VERSION__;
#endif
  PyModule_AddStringConstant(module, "compiler", compiler);
  PyModule_AddIntConstant(module, "interface", 2);  // as in stylegen/ops/native.py: what the operators take
  PyModule_AddStringConstant(module, "isa", stylegen::cpu::isa());
  PyModule_AddIntConstant(module, "fast_products_f32", stylegen::cpu::fast_products(stylegen::DType::f32));
  PyModule_AddIntConstant(module, "fast_products_bf16", stylegen::cpu::fast_products(stylegen::DType::bf16));
  PyModule_AddStringConstant(module, "cuda_archs", STYLEGEN_CUDA_ARCHS);
  return module;
}
