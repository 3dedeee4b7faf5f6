// The inner loops of upfirdn2d: sums of rows, and taps along a row.
#pragma once
#include "vec.h"

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

constexpr int kRows = 4;          // output rows that are made together where they are alike
constexpr int64_t kBlock = 1024;  // the same where rows are made together,
constexpr int64_t kPixels = 16;   // and at least so many pixels, as those below the taps are copied to the next block
constexpr int64_t kChunk = 2048;  // elements of the row sum before the taps along x follow

// out = or += the sum of `count` <= 4 rows.
template <class T, int count, bool add>
void sum_rows(const T* const* rows, const acc_t<T>* weights, acc_t<T>* out, int64_t n) {
  using A = acc_t<T>;
  Vec<A> weight[count];
  const T* row[count];  // copies: the compiler must assume that a store changes what `rows` points to
  for (int k = 0; k < count; k++) weight[k] = splat(weights[k]), row[k] = rows[k];
  const auto total = [&](auto load, Vec<A> before) {
    Vec<A> sum = add ? before + load(row[0]) * weight[0] : load(row[0]) * weight[0];
    for (int k = 1; k < count; k++) sum = sum + load(row[k]) * weight[k];
    return sum;
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>)
    store(out + i, total([&](const T* p) { return widen(p + i); }, add ? widen(out + i) : Vec<A>{}));
  if (const int64_t rest = n - i)
    store(out + i, total([&](const T* p) { return widen(p + i, rest); }, widen(out + i, rest)), rest);
}

template <class T>
void sum_rows(int count, const T* const* rows, const acc_t<T>* weights, acc_t<T>* out, int64_t n) {
  using Kernel = void (*)(const T* const*, const acc_t<T>*, acc_t<T>*, int64_t);
  constexpr Kernel set[] = {sum_rows<T, 1, false>, sum_rows<T, 2, false>, sum_rows<T, 3, false>, sum_rows<T, 4, false>};
  constexpr Kernel add[] = {sum_rows<T, 1, true>, sum_rows<T, 2, true>, sum_rows<T, 3, true>, sum_rows<T, 4, true>};
  if (count == 0) std::memset(out, 0, static_cast<size_t>(n) * sizeof(*out));
  for (int k = 0; k < count; k += 4) (k ? add : set)[smaller(count - k, 4) - 1](rows + k, weights + k, out, n);
}

// Four rows at once, row r being the sum of taps[k] * row r + k of `x`: what four outputs share is loaded once.
template <class T, int taps>
void sum_block(const T* x, int64_t pitch, const acc_t<T>* weights, acc_t<T>* out, int64_t out_pitch, int64_t n) {
  using A = acc_t<T>;
  Vec<A> weight[taps];
  for (int k = 0; k < taps; k++) weight[k] = splat(weights[k]);
  const auto each = [&](auto load, auto put) {
    Vec<A> row[taps + kRows - 1];
    for (int k = 0; k < taps + kRows - 1; k++) row[k] = load(x + k * pitch);
    for (int r = 0; r < kRows; r++) {
      Vec<A> sum = row[r] * weight[0];
      for (int k = 1; k < taps; k++) sum = sum + row[r + k] * weight[k];
      put(out + r * out_pitch, sum);
    }
  };
  int64_t i = 0;
  for (; i + kLanes<A> <= n; i += kLanes<A>)
    each([&](const T* p) { return widen(p + i); }, [&](A* p, Vec<A> v) { store(p + i, v); });
  if (const int64_t rest = n - i)
    each([&](const T* p) { return widen(p + i, rest); }, [&](A* p, Vec<A> v) { store(p + i, v, rest); });
}

// A filter of taps x taps that works on pixels of `inner` elements in registers: two output rows and `group` vectors of
// channels at a time, along the row, so that neither sums of rows nor anything else is stored on the way.
template <class T, int taps>
struct InRegisters {
  using A = acc_t<T>;
  static constexpr int rows = 2, group = taps == 3 ? 4 : 2, span = group * kLanes<A>;
  using Sums = Vec<A>[rows][group];

  const A *down, *first, *along, *last;  // taps down a column, and along a row for its first, inner and last pixel
  int64_t inner, in_w, out_w, pad_x;

  // x: the first input row below the taps. y must be aligned to kStored<T> if they are streamed.
  template <bool Stream>
  void run(const T* x, T* y) const {
    const int64_t ahead = larger<int64_t>(1, 4096 / (inner * static_cast<int64_t>(sizeof(T)))) * inner;
    for (int64_t c = 0; c < inner; c += span) {
      Sums window[taps];
      for (int m = 1; m < taps; m++) sum(x + c, m - 1 - pad_x, ahead, window[m]);
      for (int64_t o = 0; o < out_w; o++) {
        for (int m = 1; m < taps; m++)
          for (int r = 0; r < rows; r++)
            for (int v = 0; v < group; v++) window[m - 1][r][v] = window[m][r][v];
        sum(x + c, o - pad_x + taps - 1, ahead, window[taps - 1]);
        const A* weights = o == 0 ? first : o == out_w - 1 ? last : along;
        for (int r = 0; r < rows; r++)
          for (int v = 0; v < group; v++) {
            Vec<A> total = window[0][r][v] * weights[0];
            for (int m = 1; m < taps; m++) total = total + window[m][r][v] * weights[m];
            store<T, Stream>(y + (r * out_w + o) * inner + c + v * kLanes<A>, total);
          }
      }
    }
  }

 private:
  // The weighted sums of the pixels of column `column`; what lies `ahead` in the lowest rows is fetched meanwhile.
  STYLEGEN_INLINE void sum(const T* x, int64_t column, int64_t ahead, Sums& sums) const {
    const bool outside = column < 0 || column >= in_w;
    for (int v = 0; v < group; v++) {
      Vec<A> pixel[taps + rows - 1];
      for (int k = 0; k < taps + rows - 1; k++) {
        const T* from = x + (k * in_w + column) * inner + v * kLanes<A>;
        pixel[k] = outside ? Vec<A>{} : widen(from);
        if (k >= taps - 1 && !outside) prefetch(from + ahead);
      }
      for (int r = 0; r < rows; r++) {
        sums[r][v] = pixel[r] * down[0];
        for (int k = 1; k < taps; k++) sums[r][v] = sums[r][v] + pixel[r + k] * down[k];
      }
    }
  }
};

// y[i] = sum over m < count of taps[m * step] * v[i + m * stride]; `fixed` is count where the compiler knows it, or 0.
// Meanwhile `ahead` (or null) is fetched: what the next sums will be made of.
template <class T, int fixed, bool Stream>
STYLEGEN_INLINE void convolve(int count, const acc_t<T>* v, const acc_t<T>* taps, int step, int64_t stride, T* y,
                              int64_t n, const T* ahead) {
  using A = acc_t<T>;
  Vec<A> tap[fixed ? fixed : 1];
  for (int m = 0; m < fixed; m++) tap[m] = splat(taps[m * step]);
  const auto weigh = [&](auto load) {
    if constexpr (fixed > 0) {
      Vec<A> total = load(0) * tap[0];
      for (int m = 1; m < fixed; m++) total = total + load(m * stride) * tap[m];
      return total;
    } else {
      Vec<A> total = {};
      for (int m = 0; m < count; m++) total = total + load(m * stride) * taps[m * step];
      return total;
    }
  };
  const auto part = [&](int64_t i, int64_t some) {
    store(y + i, weigh([&](int64_t offset) { return widen(v + i + offset, some); }), some);
  };
  int64_t i = 0;
  if (Stream) {
    i = smaller(n, until_aligned(y));
    if (i) part(0, i);
  }
  for (; i + kLanes<A> <= n; i += kLanes<A>) {
    if (ahead) prefetch(ahead + i);
    store<T, Stream>(y + i, weigh([&](int64_t offset) { return widen(v + i + offset); }));
  }
  if (i < n) part(i, n - i);
}

template <class T, bool Stream>
STYLEGEN_INLINE void convolve(int count, const acc_t<T>* v, const acc_t<T>* taps, int step, int64_t stride, T* y,
                              int64_t n, const T* ahead = nullptr) {
  switch (count) {
    case 1:
      return convolve<T, 1, Stream>(1, v, taps, step, stride, y, n, ahead);
    case 2:
      return convolve<T, 2, Stream>(2, v, taps, step, stride, y, n, ahead);
    case 3:
      return convolve<T, 3, Stream>(3, v, taps, step, stride, y, n, ahead);
    case 4:
      return convolve<T, 4, Stream>(4, v, taps, step, stride, y, n, ahead);
    default:
      return convolve<T, 0, Stream>(count, v, taps, step, stride, y, n, ahead);
  }
}

}  // namespace
}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
