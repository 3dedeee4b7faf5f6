#include "parallel.h"
#include "winograd_tiles.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// Both factors as panels [16, channels / width, tiles, width]; bf16 has pairs of tiles side by side instead:
// [16, channels / width, tiles / 2, width, 2].
// The 16 matrices lie a little apart from powers of two, or their lines would drive each other from the caches.
constexpr int kRows = 8;  // of the result in registers, the width of g's panels; that of x's is kColumns
template <class T>
constexpr int64_t kGap = 256 / sizeof(T);

// Writes one vector of channels of a group of tiles into the 16 matrices.
template <class T, int size, int width, class Transform>
STYLEGEN_INLINE void put(const Neighbourhood<T, size>* around, int64_t channel, T* out, int64_t step_i,
                         int64_t step_panel, const Transform& transform) {
  constexpr int together = kTogether<T>, piece = width < kWidth ? width : kWidth;
  V v[together][4][4];
  for (int k = 0; k < together; k++) around[k].transformed(channel, v[k], transform);
  for (int64_t i = 0; i < 16; i++) {
    T row[kWidth * together];
    store_together(row, v[0][i / 4][i % 4], v[together - 1][i / 4][i % 4]);
    for (int k = 0; k < kWidth; k += piece) {
      T* to = out + i * step_i + (channel + k) / width * step_panel + (channel + k) % width * together;
      std::memcpy(to, row + k * together, sizeof(T) * piece * together);
    }
  }
}

template <class T, int size, int width, class Transform>
void to_panels(const T* picture, const Tiles& tiles, int64_t first, int64_t count, T* panels,
               const Transform& transform) {
  constexpr int together = kTogether<T>, block = 8;  // groups at a time, so that lines of a panel are filled in turn
  const int64_t groups = divide_up(count, together), channels = tiles.s.c;
  const int64_t step_panel = groups * width * together, step_i = channels / width * step_panel + kGap<T>;
  parallel(divide_up(groups, block), 1 + 16384 / (block * channels), [&](int64_t begin, int64_t end) {
    for (int64_t start = begin * block; start < smaller(end * block, groups); start += block) {
      const int64_t here = smaller<int64_t>(block, groups - start);
      Neighbourhood<T, size> around[block * together];
      for (int64_t k = 0; k < here * together; k++)
        if (start * together + k < count) around[k] = {picture, tiles, first + start * together + k};
      for (int64_t c = 0; c < channels; c += kWidth)
        for (int64_t k = 0; k < here; k++)
          put<T, size, width>(around + k * together, c, panels + (start + k) * width * together, step_i, step_panel,
                              transform);
    }
  });
}

// sums [kRows, kColumns], rows `stride` apart, += m^T [kRows, groups] @ v [groups, kColumns]
STYLEGEN_INLINE void accumulate(const float* m, const float* v, float* sums, int64_t stride, int64_t groups) {
  V s[kRows][2];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) s[r][i] = widen(sums + r * stride + i * kWidth);
  for (int64_t t = 0; t < groups; t++) {
    const V left = widen(v + t * kColumns), right = widen(v + t * kColumns + kWidth);
    for (int r = 0; r < kRows; r++) {
      const float factor = m[t * kRows + r];
      s[r][0] = s[r][0] + left * factor;
      s[r][1] = s[r][1] + right * factor;
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) store(sums + r * stride + i * kWidth, s[r][i]);
}

#if defined(__AVX512F__) && defined(__GNUC__)
__attribute__((target("avx512bf16"))) void accumulate(const bfloat16* m, const bfloat16* v, float* sums, int64_t stride,
                                                      int64_t groups) {
  __m512 s[kRows][2];
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) s[r][i] = _mm512_loadu_ps(sums + r * stride + i * kWidth);
  for (int64_t t = 0; t < groups; t++) {
    const __m512bh left = (__m512bh)_mm512_loadu_si512(v + t * 2 * kColumns);
    const __m512bh right = (__m512bh)_mm512_loadu_si512(v + t * 2 * kColumns + kColumns);
    for (int r = 0; r < kRows; r++) {
      int32_t pair;
      std::memcpy(&pair, m + (t * kRows + r) * 2, sizeof pair);
      const __m512bh factors = (__m512bh)_mm512_set1_epi32(pair);
      s[r][0] = _mm512_dpbf16_ps(s[r][0], left, factors);
      s[r][1] = _mm512_dpbf16_ps(s[r][1], right, factors);
    }
  }
  for (int r = 0; r < kRows; r++)
    for (int i = 0; i < 2; i++) _mm512_storeu_ps(sums + r * stride + i * kWidth, s[r][i]);
}
#else
// Correct where it is not fast: see winograd_pays.
inline void accumulate(const bfloat16* m, const bfloat16* v, float* sums, int64_t stride, int64_t groups) {
  const auto number = [](bfloat16 b) { return bit_cast<float>(int32_t(b.bits) << 16); };
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kColumns; c++)
      for (int64_t t = 0; t < groups; t++)
        for (int k = 0; k < 2; k++)
          sums[r * stride + c] += number(m[(t * kRows + r) * 2 + k]) * number(v[(t * kColumns + c) * 2 + k]);
}
#endif

// dw [out, 3, 3, in] of du [16, out, in].
template <class T>
void to_weights(const float* du, T* dw, int64_t out, int64_t in) {
  parallel(out, 1 + 1024 / in, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++)
      for (int64_t c = 0; c < in; c += kWidth) {
        V u[4][4], w[3][3];
        for (int i = 0; i < 16; i++) u[i / 4][i % 4] = widen(du + (i * out + o) * in + c);
        both_axes<4, 3>(u, w, kernel_gradient);
        for (int i = 0; i < 9; i++) store(dw + (o * 9 + i) * in + c, w[i / 3][i % 3]);
      }
  });
}

template <class T>
void weight(const WinogradWeightParams& p) {
  Shape g_shape = p.shape;
  g_shape.c = p.out;
  const Tiles x_tiles{p.shape}, g_tiles{g_shape};
  const int64_t in = p.shape.c, out = p.out;
  // As many tiles at a time as let a factor take a quarter of a common last-level cache.
  const int64_t fits = (int64_t(8) << 20) / (16 * larger(in, out) * static_cast<int64_t>(sizeof(T)));
  const int64_t piece = larger<int64_t>(2, smaller(fits, x_tiles.count) / 2 * 2);
  const Buffer<T> v(16 * (in * piece + kGap<T>)), m(16 * (out * piece + kGap<T>));
  const Buffer<float> du(16 * in * out);
  std::memset(du.get(), 0, sizeof(float) * static_cast<size_t>(16 * in * out));
  for (int64_t first = 0; first < x_tiles.count; first += piece) {
    const int64_t count = smaller(piece, x_tiles.count - first), groups = divide_up(count, kTogether<T>);
    to_panels<T, 4, kColumns>(static_cast<const T*>(p.x), x_tiles, first, count, v.get(), input_transform);
    to_panels<T, 2, kRows>(static_cast<const T*>(p.g), g_tiles, first, count, m.get(), spread_transform);
    const int64_t across = in / kColumns, step = groups * kTogether<T>;
    parallel(16 * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; panel++) {
        const int64_t i = panel / across, c = panel % across * kColumns;
        const T* from_x = v.get() + panel * kColumns * step + i * kGap<T>;
        const T* from_g = m.get() + i * (out * step + kGap<T>);
        for (int64_t k = 0; k < out; k += kRows)
          accumulate(from_g + k * step, from_x, du.get() + (i * out + k) * in + c, in, groups);
      }
    });
  }
  to_weights(du.get(), static_cast<T*>(p.dw), out, in);
}

}  // namespace

void winograd_weight(const WinogradWeightParams& p) {
  if (p.dtype == DType::f32) return weight<float>(p);
  weight<bfloat16>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
