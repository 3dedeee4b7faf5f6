#include "parallel.h"
#include "winograd_tiles.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// Both factors as panels [matrix, channels / width, tiles, width]; bf16 has pairs of tiles side by side instead:
// [matrix, channels / width, tiles / 2, width, 2].
constexpr int kRows = 8;  // of the result in registers, the width of g's panels; that of x's is kColumns

// Tiles of a factor, to be transformed into panels of `width` channels.
template <class T, class Of, int width>
struct Factor {
  static constexpr int matrices = Of::size, together = kTogether<T>;
  const T* picture;
  const Shape& shape;
  const Tiles& tiles;

  static int64_t room(int64_t channels, int64_t count) { return matrices * matrices * matrix(channels, count); }
  static int64_t matrix(int64_t channels, int64_t count) {
    return channels * divide_up(count, together) * together + kGap<T>;
  }

  void to_panels(int64_t first, int64_t count, T* panels) const {
    constexpr int block = 8;  // groups at a time, so that lines of a panel are filled in turn
    const int64_t groups = divide_up(count, together);
    parallel(divide_up(groups, block), 1 + 16384 / (block * shape.c), [&](int64_t begin, int64_t end) {
      for (int64_t start = begin * block; start < smaller(end * block, groups); start += block) {
        const int64_t here = smaller<int64_t>(block, groups - start);
        Patch<T, Of::patch> patches[block * together];
        for (int64_t k = 0; k < here * together; k++)
          if (const int64_t tile = start * together + k; tile < count)
            patches[k] = {picture, shape, tiles.place(first + tile), Of::step, Of::offset};
        for (int64_t c = 0; c < shape.c; c += kWidth)
          for (int64_t k = 0; k < here; k++)
            put(patches + k * together, c, panels + (start + k) * width * together, groups * width * together,
                matrix(shape.c, count));
      }
    });
  }

 private:
  // Writes one vector of channels of a group of tiles into the matrices.
  STYLEGEN_INLINE void put(const Patch<T, Of::patch>* patches, int64_t channel, T* out, int64_t step_panel,
                           int64_t step_matrix) const {
    constexpr int piece = width < kWidth ? width : kWidth;
    V v[together][matrices][matrices];
    for (int k = 0; k < together; k++) patches[k].template transformed<Of>(channel, v[k]);
    for (int i = 0; i < matrices * matrices; i++) {
      T row[kWidth * together];
      store_together(row, v[0][i / matrices][i % matrices], v[together - 1][i / matrices][i % matrices]);
      for (int k = 0; k < kWidth; k += piece) {
        T* to = out + i * step_matrix + (channel + k) / width * step_panel + (channel + k) % width * together;
        std::memcpy(to, row + k * together, sizeof(T) * piece * together);
      }
    }
  }
};

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
// Correct where it is not fast: see fast_products.
inline void accumulate(const bfloat16* m, const bfloat16* v, float* sums, int64_t stride, int64_t groups) {
  const auto number = [](bfloat16 b) { return bit_cast<float>(int32_t(b.bits) << 16); };
  for (int r = 0; r < kRows; r++)
    for (int c = 0; c < kColumns; c++)
      for (int64_t t = 0; t < groups; t++)
        for (int k = 0; k < 2; k++)
          sums[r * stride + c] += number(m[(t * kRows + r) * 2 + k]) * number(v[(t * kColumns + c) * 2 + k]);
}
#endif

// du [16, out, in] += the products of tiles [first, last), `piece` of them at a time.
template <class T, class Form>
void add_tiles(const WinogradWeightParams& p, const Tiles& tiles, int64_t first, int64_t last, int64_t piece,
               float* du) {
  constexpr int size = Form::size;
  const int64_t in = p.shape.c, out = p.out.c, across = in / kColumns;
  using FactorX = Factor<T, OfX<Form>, kColumns>;
  using FactorG = Factor<T, OfG<Form>, kRows>;
  const FactorX x{static_cast<const T*>(p.x), p.shape, tiles};
  const FactorG g{static_cast<const T*>(p.g), p.out, tiles};
  const Buffer<T> v(FactorX::room(in, piece)), m(FactorG::room(out, piece));
  for (; first < last; first += piece) {
    const int64_t count = smaller(piece, last - first), groups = divide_up(count, kTogether<T>);
    const int64_t rows = groups * kTogether<T>;
    x.to_panels(first, count, v.get());
    g.to_panels(first, count, m.get());
    parallel(16 * across, 1, [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin; panel < end; panel++) {
        const int64_t unique = panel / across, c = panel % across * kColumns;
        for (int i = 0; i < size * size; i++) {
          if (Form::unique(i / size) * 4 + Form::unique(i % size) != unique) continue;
          const T* from_x = v.get() + i * FactorX::matrix(in, count) + c * rows;
          const T* from_g = m.get() + i * FactorG::matrix(out, count);
          for (int64_t k = 0; k < out; k += kRows)
            accumulate(from_g + k * rows, from_x, du + (unique * out + k) * in + c, in, groups);
        }
      }
    });
  }
}

// dw [out, 3, 3, in] of the sum of `parts` du [16, out, in].
template <class T, class Form>
void to_weights(const float* du, int64_t parts, T* dw, int64_t out, int64_t in) {
  parallel(out, 1 + 1024 / in, [&](int64_t begin, int64_t end) {
    for (int64_t o = begin; o < end; o++)
      for (int64_t c = 0; c < in; c += kWidth) {
        V u[4][4], w[3][3];
        for (int i = 0; i < 16; i++) {
          const float* from = du + (i * out + o) * in + c;
          u[i / 4][i % 4] = widen(from);
          for (int64_t k = 1; k < parts; k++) u[i / 4][i % 4] += widen(from + k * 16 * out * in);
        }
        both_axes(u, w, [](const V* from, V* to) { Form::kernel_gradient(from, to); });
        for (int i = 0; i < 9; i++) store(dw + (o * 9 + i) * in + c, w[i / 3][i % 3]);
      }
  });
}

// Where du is small and there are many tiles, every thread has its own and works from its own cache; otherwise all
// share one, and panels that take a quarter of a common last-level cache.
template <class T, class Form>
void weight(const WinogradWeightParams& p) {
  const Tiles tiles{p.out.n, 0, 0, p.out.h / 2, p.out.w / 2};
  const int64_t in = p.shape.c, out = p.out.c, du_size = 16 * in * out;
  const bool apart = du_size <= int64_t(1) << 18 && tiles.count >= 512;
  // As many whatever the threads, because sums depend on it; a part should be worth its own du.
  const int64_t parts = apart ? smaller<int64_t>(16, tiles.count / 256) : 1;
  const int64_t budget = (apart ? int64_t(256) << 10 : int64_t(8) << 20) / static_cast<int64_t>(sizeof(T));
  const int64_t share = divide_up(tiles.count, 8 * parts) * 8;  // in eights, panels begin with cache lines
  const int64_t fits = budget / (Form::size * Form::size * larger(in, out)) / 8 * 8;
  const int64_t piece = larger<int64_t>(8, smaller(fits, share));
  const Buffer<float> du(parts * du_size);
  std::memset(du.get(), 0, sizeof(float) * static_cast<size_t>(parts * du_size));
  const auto part = [&](int64_t k) {
    add_tiles<T, Form>(p, tiles, k * share, smaller(tiles.count, (k + 1) * share), piece, du.get() + k * du_size);
  };
  if (apart)
    parallel(parts, 1, [&](int64_t begin, int64_t end) {
      for (int64_t k = begin; k < end; k++) part(k);
    });
  else
    part(0);
  to_weights<T, Form>(du.get(), parts, static_cast<T*>(p.dw), out, in);
}

}  // namespace

void winograd_weight(const WinogradWeightParams& p) {
  if (p.dtype == DType::f32) return p.stride == 1 ? weight<float, Same>(p) : weight<float, Halve>(p);
  p.stride == 1 ? weight<bfloat16, Same>(p) : weight<bfloat16, Halve>(p);
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
