#include "parallel.h"
#include "products.h"
#include "winograd_tiles.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

template <class T, class Form>
class Conv {
 public:
  explicit Conv(const WinogradConvParams& p) : p_(p) {}

  void run() const {
    constexpr bool doubles = Form::out == 4;
    const Shape& small = doubles ? p_.shape : p_.out;  // of which a tile takes 2x2 pixels
    const int64_t n = small.n, down = small.h / 2, across = small.w / 2;
    rectangle({n, 0, 0, down, across}, all, all);
    if constexpr (doubles) {  // a last row and column of one pixel, of which all but the first product are zero
      rectangle({n, down, 0, 1, across}, 1, all);
      rectangle({n, 0, across, down, 1}, all, 1);
      rectangle({n, down, across, 1, 1}, 1, 1);
    }
  }

 private:
  static constexpr int all = Form::size, kMatrices = all * all;

  // `used_y`, `used_x`: the products along each axis that are not zero.
  void rectangle(const Tiles& tiles, int used_y, int used_x) const {
    const int64_t block = block_size(tiles.count), channels = p_.shape.c;
    parallel(divide_up(tiles.count, block), 1, [&](int64_t begin, int64_t end) {
      const int64_t step = block * channels + kGap<T>;
      const Buffer<T> v(kMatrices * step);
      const Buffer<float> m(kMatrices * block * kColumns);
      std::memset(static_cast<void*>(v.get()), 0, sizeof(T) * static_cast<size_t>(kMatrices * step));
      std::memset(m.get(), 0, sizeof(float) * static_cast<size_t>(kMatrices * block * kColumns));
      for (int64_t k = begin; k < end; k++) {
        const int64_t first = k * block, count = smaller(block, tiles.count - first);
        for (int64_t t = 0; t < count; t++) transform(tiles.place(first + t), v.get() + t * channels, step);
        for (int64_t column = 0; column < p_.out.c; column += kColumns) {
          for (int i = 0; i < kMatrices; i++)
            if (i / all < used_y && i % all < used_x)
              products(i, column, v.get() + i * step, m.get() + i * block * kColumns, count);
          for (int64_t t = 0; t < count; t++)
            put(tiles.place(first + t), m.get() + t * kColumns, block * kColumns, column);
        }
      }
    });
  }

  // Tiles at a time: their transform should stay in a core's second-level cache, and every core should get some.
  int64_t block_size(int64_t tiles) const {
    const int64_t bytes = kMatrices * (p_.shape.c * static_cast<int64_t>(sizeof(T)) + kColumns * 4);
    const int64_t fits = (int64_t(768) << 10) / bytes;
    const int64_t share = divide_up(tiles, num_threads());
    return larger<int64_t>(1, smaller(divide_up(share, kRows), fits / kRows)) * kRows;
  }

  void transform(Tiles::Place at, T* v, int64_t step) const {
    const Patch<T, Form::patch> patch(static_cast<const T*>(p_.x), p_.shape, at, Form::step, Form::offset);
    for (int64_t c = 0; c < p_.shape.c; c += kWidth) {
      V d[all][all];
      patch.template transformed<OfX<Form>>(c, d);
      for (int i = 0; i < kMatrices; i++) store(v + i * step + c, d[i / all][i % all]);
    }
  }

  void products(int i, int64_t column, const T* v, float* m, int64_t count) const {
    const int64_t channels = p_.shape.c, unique = Form::unique(i / all) * 4 + Form::unique(i % all);
    const T* u = static_cast<const T*>(p_.u) + (unique * p_.out.c + column) * channels;
    for (int64_t row = 0; row < count; row += kRows) multiply(v + row * channels, u, m + row * kColumns, channels);
  }

  void put(Tiles::Place at, const float* m, int64_t step, int64_t column) const {
    constexpr int out = Form::out;
    for (int k = 0; k < kColumns; k += kWidth) {
      V in[all][all], y[out][out];
      for (int i = 0; i < kMatrices; i++) in[i / all][i % all] = widen(m + i * step + k);
      both_axes(in, y, [](const V* from, V* to) { Form::output(from, to); });
      for (int i = 0; i < out * out; i++)
        if (T* to = pixel(static_cast<T*>(p_.y), p_.out, at.n, at.y * out + i / out, at.x * out + i % out))
          store(to + column + k, y[i / out][i % out]);
    }
  }

  const WinogradConvParams& p_;
};

template <class T>
void conv(const WinogradConvParams& p) {
  if (p.stride == 1) return Conv<T, Same>(p).run();
  p.turned ? Conv<T, Double>(p).run() : Conv<T, Halve>(p).run();
}

}  // namespace

void winograd_conv(const WinogradConvParams& p) {
  if (p.dtype == DType::f32) return conv<float>(p);
  conv<bfloat16>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
