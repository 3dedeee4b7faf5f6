#include "parallel.h"
#include "winograd_tiles.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// ---- matrix products: kRows tiles by kColumns channels out, in registers ----

#if defined(__AVX512F__)
constexpr int kRows = 14;
#else
constexpr int kRows = 6;
#endif

// m [kRows, kColumns] = v [kRows, channels] @ u [channels, kColumns]
STYLEGEN_INLINE void multiply(const float* v, const float* u, float* m, int64_t channels) {
  V sums[kRows][2] = {};
  for (int64_t c = 0; c < channels; c++) {
    const V left = widen(u + c * kColumns), right = widen(u + c * kColumns + kWidth);
    for (int r = 0; r < kRows; r++) {
      const float factor = v[r * channels + c];
      sums[r][0] = sums[r][0] + left * factor;
      sums[r][1] = sums[r][1] + right * factor;
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) store(m + r * kColumns + i * kWidth, sums[r][i]);
}

#if defined(__AVX512F__) && defined(__GNUC__)
// The same with two products in one instruction; u holds pairs of channels side by side.
__attribute__((target("avx512bf16"))) void multiply(const bfloat16* v, const bfloat16* u, float* m, int64_t channels) {
  __m512 sums[kRows][2] = {};
  for (int64_t c = 0; c < channels; c += 2) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(u + c * kColumns);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(u + c * kColumns + 2 * kWidth);
    for (int r = 0; r < kRows; r++) {
      int32_t pair;
      std::memcpy(&pair, v + r * channels + c, sizeof pair);
      const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
      sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, factors);
      sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, factors);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) _mm512_storeu_ps(m + r * kColumns + i * kWidth, sums[r][i]);
}
#else
// Correct where it is not fast: see winograd_pays.
inline void multiply(const bfloat16* v, const bfloat16* u, float* m, int64_t channels) {
  for (int r = 0; r < kRows; r++)
    for (int k = 0; k < kColumns; k++) {
      float sum = 0;
      for (int64_t c = 0; c < channels; c++)
        sum += bit_cast<float>(int32_t(v[r * channels + c].bits) << 16) *
               bit_cast<float>(int32_t(u[(c / 2) * 2 * kColumns + 2 * k + c % 2].bits) << 16);
      m[r * kColumns + k] = sum;
    }
}
#endif

// ---- the convolution ----

template <class T>
class Conv {
 public:
  explicit Conv(const WinogradConvParams& p) : p_(p), tiles_{p.shape}, block_(block(tiles_.count, p.shape.c)) {}

  void run() {
    parallel(divide_up(tiles_.count, block_), 1, [&](int64_t begin, int64_t end) {
      Buffer<T> v(16 * block_ * p_.shape.c);
      Buffer<float> m(16 * block_ * kColumns);
      std::memset(v.get(), 0, sizeof(T) * static_cast<size_t>(16 * block_ * p_.shape.c));
      for (int64_t i = begin; i < end; i++) one_block(i * block_, v.get(), m.get());
    });
  }

 private:
  // Tiles at a time: their transform should stay in a core's second-level cache, and every core should get some.
  static int64_t block(int64_t tiles, int64_t channels) {
    const int64_t fits = (int64_t(768) << 10) / (16 * channels * static_cast<int64_t>(sizeof(T)));
    const int64_t share = divide_up(tiles, num_threads());
    return larger<int64_t>(1, smaller(divide_up(share, kRows), fits / kRows)) * kRows;
  }

  void one_block(int64_t first, T* v, float* m) const {
    const int64_t channels = p_.shape.c, count = smaller(block_, tiles_.count - first), rows = divide_up(count, kRows);
    for (int64_t t = 0; t < count; t++) {
      const Neighbourhood<T, 4> around(static_cast<const T*>(p_.x), tiles_, first + t);
      for (int64_t c = 0; c < channels; c += kWidth) {
        V d[4][4];
        around.transformed(c, d, input_transform);
        for (int64_t i = 0; i < 16; i++) store(v + (i * block_ + t) * channels + c, d[i / 4][i % 4]);
      }
    }
    for (int64_t panel = 0; panel < p_.out / kColumns; panel++) {
      for (int64_t i = 0; i < 16; i++) {
        const T* u = static_cast<const T*>(p_.u) + (i * (p_.out / kColumns) + panel) * channels * kColumns;
        for (int64_t r = 0; r < rows; r++) {
          const int64_t row = i * block_ + r * kRows;
          multiply(v + row * channels, u, m + row * kColumns, channels);
        }
      }
      for (int64_t t = 0; t < count; t++) put(tiles_.place(first + t), m + t * kColumns, panel * kColumns);
    }
  }

  void put(Tiles::Place at, const float* m, int64_t channel) const {
    Shape s = p_.shape;
    s.c = p_.out;
    for (int k = 0; k < kColumns; k += kWidth) {
      V in[4][4], d[2][2];
      for (int i = 0; i < 16; i++) in[i / 4][i % 4] = widen(m + i * block_ * kColumns + k);
      both_axes<4, 2>(in, d, output_transform);
      for (int i = 0; i < 4; i++)
        store(pixel(static_cast<T*>(p_.y), s, at.n, at.y + i / 2, at.x + i % 2) + channel + k, d[i / 2][i % 2]);
    }
  }

  const WinogradConvParams& p_;
  const Tiles tiles_;
  const int64_t block_;
};

}  // namespace

void winograd_conv(const WinogradConvParams& p) {
  if (p.dtype == DType::f32) return Conv<float>(p).run();
  Conv<bfloat16>(p).run();
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
