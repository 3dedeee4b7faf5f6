#include "../upfirdn2d.h"

#include "parallel.h"
#include "upfirdn2d_rows.h"

// An output row is made from the few input rows below its taps: first their weighted sum, a row of acc_t as wide as the
// input (in chunks, which stay in the L1 cache), then the taps along x. Neighbouring output rows find their input in
// the L2 cache, so that memory is read once; every output row stands alone, so that threads share nothing.
//
// Contiguous pictures are pictures of one channel here: all code sees rows of pixels of `inner` adjacent elements.

namespace stylegen {
namespace cpu {
namespace STYLEGEN_ISA {
namespace {

// Which input pixels and taps make output `o` along one axis:
// out[o] = sum over m < count of taps[tap + m * up] * in[first + m].
struct Span {
  int64_t first;
  int tap, count;
};

// The same along x, in elements of the row sum.
struct Reach {
  int64_t begin, end;
  int tap, count;
};

Span span(int64_t o, int up, int down, int64_t pad, int taps) {
  const int64_t start = o * down - pad;
  const int tap = static_cast<int>(((-start) % up + up) % up);
  return {(start + tap) / up, tap, tap < taps ? static_cast<int>(divide_up(taps - tap, up)) : 0};
}

template <class T>
class Filter {
  using A = acc_t<T>;

 public:
  explicit Filter(const UpfirdnParams& params)
      : p(params),
        inner(p.in.channels_last ? p.in.c : 1),
        images(p.in.channels_last ? p.in.n : p.in.n * p.in.c),
        flat(p.up_x == 1 && p.down_x == 1),
        spans(p.out.w),
        taps(p.kw * (p.fy ? 1 : p.kh)) {
    low = span(0, p.up_x, p.down_x, p.pad_x, p.kw).first, high = low + 1;
    if (p.edge != 0) low = smaller<int64_t>(low, 0), high = p.in.w;
    for (int64_t o = 0; o < p.out.w; o++) {
      const Span at = span(o, p.up_x, p.down_x, p.pad_x, p.kw);
      high = larger(high, at.first + at.count);
      spans[o] = {(at.first - low) * inner, (at.first + at.count - low) * inner, at.tap, at.count};
    }
    for (int i = 0; i < p.kw * (p.fy ? 1 : p.kh); i++) taps[i] = p.fx[i];
  }

  // Threads share groups of kRows rows, of which one begins at the first row that has all its taps in the picture.
  int64_t groups() const { return images * groups_of_image(); }
  int64_t row_size() const { return p.out.w * inner; }

  template <bool Stream>
  void run(int64_t first, int64_t last) const {
    const int64_t width = (high - low) * inner;
    const Buffer<A> sums(width), total(2 * larger(row_size(), inner));
    const Buffer<const T*> sources(p.kh + 2);
    const Buffer<A> weights(p.kh + 2);
    const Buffer<A> block(kRows * (block_chunk() + p.kw * inner));
    std::memset(sums.get(), 0, static_cast<size_t>(width) * sizeof(A));  // the padding stays zero
    const Scratch s = {sums.get(), total.get(), sources.get(), weights.get(), block.get()};
    for (int64_t group = first; group < last; group++) {
      const int64_t image = group / groups_of_image(), begin = group % groups_of_image() * kRows - lead();
      const int64_t end = smaller(begin + kRows, p.out.h);
      const T* x = static_cast<const T*>(p.x) + image * p.in.h * p.in.w * inner;
      T* y = static_cast<T*>(p.y) + image * p.out.h * row_size();
      if (begin >= 0 && end == begin + kRows && alike(begin)) {
        if (!in_registers<Stream, 3>(x, y + begin * row_size(), begin) &&
            !in_registers<Stream, 4>(x, y + begin * row_size(), begin))
          rows_together<Stream>(x, y + begin * row_size(), begin, s);
        continue;
      }
      for (int64_t row = larger<int64_t>(begin, 0); row < end; row++)
        p.fy ? separable<Stream>(x, y + row * row_size(), row, s) : general(x, y + row * row_size(), row, s);
    }
    if (Stream) stream_fence();
  }

 private:
  struct Scratch {
    A *sums, *total;
    const T** sources;
    A* weights;
    A* block;  // [kRows, block_chunk() + kw * inner]
  };

  // Rows that the first group lacks.
  int64_t lead() const { return kRows - 1 - (larger<int64_t>(p.pad_y, p.edge != 0) + kRows - 1) % kRows; }
  int64_t groups_of_image() const { return divide_up(lead() + p.out.h, kRows); }

  // Whether kRows rows from `oy` on have the same taps: none of them beyond the picture or corrected at its edge.
  bool alike(int64_t oy) const {
    const int64_t top = oy - p.pad_y, right = p.out.w - p.in.w + p.kw - 1 - p.pad_x;
    const bool edge_in_reach = p.pad_x >= 0 && p.pad_x < p.kw && right >= 0 && right < p.kw;
    return flat && p.fy && p.up_y == 1 && p.down_y == 1 && (p.kh == 3 || p.kh == 4) && top >= 0 &&
           top + p.kh + kRows - 1 <= p.in.h && (p.edge == 0 || (edge_in_reach && oy > 0 && oy + kRows < p.out.h));
  }

  // Rows that are alike, where pixels have whole vectors of channels; whether it was so.
  template <bool Stream, int size>
  bool in_registers(const T* x, T* y, int64_t oy) const {
    using Kernel = InRegisters<T, size>;
    const bool aligned = reinterpret_cast<uintptr_t>(y) % kStored<T> == 0;
    if (p.kw != size || p.kh != size || inner % Kernel::span != 0 || (Stream && !aligned)) return false;
    A down[size], first[size], along[size], last[size];
    for (int k = 0; k < size; k++) down[k] = A(p.fy[k]) * A(p.gain), first[k] = along[k] = last[k] = taps[k];
    if (p.edge != 0) {
      first[p.pad_x] -= A(p.edge);
      (p.out.w > 1 ? last : first)[p.in.w - p.out.w + p.pad_x] -= A(p.edge);
    }
    const Kernel kernel = {down, first, along, last, inner, p.in.w, p.out.w, p.pad_x};
    for (int r = 0; r < kRows; r += Kernel::rows)
      kernel.template run<Stream>(x + (oy + r - p.pad_y) * p.in.w * inner, y + r * row_size());
    return true;
  }

  int64_t block_chunk() const { return larger<int64_t>(kPixels, kBlock / inner) * inner; }

  template <bool Stream>
  void rows_together(const T* x, T* y, int64_t oy, const Scratch& s) const {
    const int64_t chunk = block_chunk(), halo = (p.kw - 1) * inner, pitch = chunk + p.kw * inner;
    const int64_t shift = -(spans[0].begin + low * inner);  // where the picture's row begins in the first block
    const T* top = x + (oy - p.pad_y) * p.in.w * inner;
    for (int k = 0; k < p.kh; k++) s.weights[k] = A(p.fy[k]) * A(p.gain);
    for (int64_t e = 0; e < row_size(); e += chunk) {
      const int64_t n = smaller(chunk, row_size() - e), old = e ? halo : 0;  // the halo of the block before is kept
      const int64_t from = e + old - shift, to = e + n + halo - shift;       // elements of the input row
      const int64_t begin = smaller(larger<int64_t>(from, 0), to), end = larger(begin, smaller(to, p.in.w * inner));
      for (int r = 0; r < kRows; r++) {
        A* row = s.block + r * pitch;
        if (e) std::memmove(row, row + chunk, static_cast<size_t>(halo) * sizeof(A));
        std::memset(row + old, 0, static_cast<size_t>(begin - from) * sizeof(A));
        std::memset(row + old + end - from, 0, static_cast<size_t>(to - end) * sizeof(A));
      }
      A* into = s.block + old + begin - from;
      const auto sum = p.kh == 3 ? sum_block<T, 3> : sum_block<T, 4>;
      sum(top + begin, p.in.w * inner, s.weights, into, pitch, end - begin);
      for (int r = 0; r < kRows; r++) {
        Scratch one = s;
        one.sums = s.block + r * pitch - e - spans[0].begin;
        flat_part<Stream>(one, y + r * row_size(), e, e + n, top + (p.kh - 1 + r) * p.in.w * inner + to);
      }
    }
  }

  // The input rows below output row `oy` and their weights, gain included.
  int below(const T* x, int64_t oy, const Scratch& s) const {
    const Span rows = span(oy, p.up_y, p.down_y, p.pad_y, p.kh);
    int count = 0;
    const auto add = [&](int64_t iy, A weight) {
      if (iy < 0 || iy >= p.in.h) return;
      s.sources[count] = x + (iy * p.in.w + larger<int64_t>(low, 0)) * inner;
      s.weights[count++] = weight * A(p.gain);
    };
    for (int m = 0; m < rows.count; m++) add(rows.first + m, A(p.fy[rows.tap + m * p.up_y]));
    if (p.edge != 0 && oy == 0) add(0, -A(p.edge));
    if (p.edge != 0 && oy == p.out.h - 1) add(p.in.h - 1, -A(p.edge));
    return count;
  }

  template <bool Stream>
  void separable(const T* x, T* y, int64_t oy, const Scratch& s) const {
    const int count = below(x, oy, s);
    const int64_t begin = (larger<int64_t>(low, 0) - low) * inner;
    const int64_t end = larger(begin, (smaller(high, p.in.w) - low) * inner);
    int64_t done = 0;
    for (int64_t j = begin; done < row_size();) {
      const int64_t n = smaller(kChunk, end - j);
      sum_rows(count, s.sources, s.weights, s.sums + j, n);
      j += n;
      for (int k = 0; k < count; k++) s.sources[k] += n;
      done = emit<Stream>(s, y, done, j < end ? j : INT64_MAX);
    }
  }

  // The outputs from `done` on that need sums before `limit` only; returns where it stopped.
  template <bool Stream>
  int64_t emit(const Scratch& s, T* y, int64_t done, int64_t limit) const {
    const int64_t total = row_size();
    if (!flat) {
      if (inner == 1) return limit == INT64_MAX ? one_channel(s, y) : 0;
      int64_t o = done / inner;
      for (; o < p.out.w && spans[o].end <= limit; o++) {
        const Reach at = spans[o];
        if (inner < kLanes<A>)
          pixel(s.sums, at, s.total + o * inner);
        else
          convolve<T, Stream>(at.count, s.sums + at.begin, taps.get() + at.tap, p.up_x, inner, y + o * inner, inner);
      }
      if (o == p.out.w && inner < kLanes<A>) copy(s.total, y, total);
      return o * inner;
    }
    const int64_t reach = spans[0].begin + (p.kw - 1) * inner;
    const int64_t stop = limit == INT64_MAX ? total : larger(done, smaller(total, (limit - reach) / 64 * 64));
    flat_part<Stream>(s, y, done, stop);
    return stop;
  }

  // Outputs [done, stop) of a row without up- or downsampling along x.
  template <bool Stream>
  void flat_part(const Scratch& s, T* y, int64_t done, int64_t stop, const T* ahead = nullptr) const {
    const int64_t total = row_size(), margin = p.edge != 0 ? inner : 0;
    const int64_t from = larger(done, margin), to = smaller(stop, total - margin);
    if (from < to)
      convolve<T, Stream>(p.kw, s.sums + spans[0].begin + from, taps.get(), 1, inner, y + from, to - from, ahead);
    if (margin && done == 0 && stop > 0) edge_pixel(s, y, 0);
    if (margin && stop == total && (p.out.w > 1 || done > 0)) edge_pixel(s, y, p.out.w - 1);
  }

  // A row of one channel. Every `phases`-th output has the same taps, and its inputs are `step` apart.
  int64_t one_channel(const Scratch& s, T* y) const {
    int phases = p.up_x, step = p.down_x;
    for (int k = 2; k <= phases; k++)
      while (phases % k == 0 && step % k == 0) phases /= k, step /= k;
    A* of_phase = s.total + p.out.w;
    for (int64_t o = 0; o < smaller<int64_t>(phases, p.out.w); o++) {
      const int64_t n = divide_up(p.out.w - o, phases);
      std::memset(of_phase, 0, static_cast<size_t>(n) * sizeof(A));
      for (int m = 0; m < spans[o].count; m++) {
        const A* v = s.sums + spans[o].begin + m;
        const A tap = taps[spans[o].tap + m * p.up_x];
        step == 1   ? add_scaled(of_phase, v, tap, 1, n)
        : step == 2 ? add_scaled(of_phase, v, tap, 2, n)
                    : add_scaled(of_phase, v, tap, step, n);
      }
      for (int64_t t = 0; t < n; t++) s.total[o + t * phases] = of_phase[t];
    }
    copy(s.total, y, p.out.w);
    return p.out.w;
  }

  STYLEGEN_INLINE static void add_scaled(A* STYLEGEN_RESTRICT to, const A* STYLEGEN_RESTRICT v, A tap, int step,
                                         int64_t n) {
    for (int64_t t = 0; t < n; t++) to[t] += tap * v[t * step];
  }

  void edge_pixel(const Scratch& s, T* y, int64_t o) const {
    const A* pixels = s.sums - low * inner;
    pixel(s.sums, spans[o], s.total);
    for (int64_t c = 0; o == 0 && c < inner; c++) s.total[c] -= A(p.edge) * pixels[c];
    for (int64_t c = 0; o == p.out.w - 1 && c < inner; c++) s.total[c] -= A(p.edge) * pixels[(p.in.w - 1) * inner + c];
    copy(s.total, y + o * inner, inner);
  }

  void pixel(const A* sums, Reach at, A* out) const {
    const A* v = sums + at.begin;
    for (int64_t c = 0; c < inner; c++) {
      A total = 0;
      for (int m = 0; m < at.count; m++) total += taps[at.tap + m * p.up_x] * v[m * inner + c];
      out[c] = total;
    }
  }

  static void copy(const A* from, T* y, int64_t n) {
    const A one = 1;
    convolve<T, 1, false>(1, from, &one, 1, 0, y, n, nullptr);
  }

  // Not separable: a row of taps at a time.
  void general(const T* x, T* y, int64_t oy, const Scratch& s) const {
    const Span rows = span(oy, p.up_y, p.down_y, p.pad_y, p.kh);
    const int64_t begin = larger<int64_t>(low, 0), n = (smaller(high, p.in.w) - begin) * inner;
    for (int64_t i = 0; i < row_size(); i++) s.total[i] = 0;
    for (int m = 0; m < rows.count; m++) {
      const int64_t iy = rows.first + m;
      if (iy < 0 || iy >= p.in.h || n <= 0) continue;
      const T* source = x + (iy * p.in.w + begin) * inner;
      const A gain = A(p.gain);
      sum_rows(1, &source, &gain, s.sums + (begin - low) * inner, n);
      const A* row_taps = taps.get() + (rows.tap + m * p.up_y) * p.kw;
      for (int64_t o = 0; o < p.out.w; o++) {
        const A* v = s.sums + spans[o].begin;
        for (int k = 0; k < spans[o].count; k++)
          for (int64_t c = 0; c < inner; c++)
            s.total[o * inner + c] += row_taps[spans[o].tap + k * p.up_x] * v[k * inner + c];
      }
    }
    copy(s.total, y, row_size());
  }

  const UpfirdnParams& p;
  int64_t inner, images;
  bool flat;
  Buffer<Reach> spans;  // of each output column
  Buffer<A> taps;
  int64_t low, high;  // the input columns that the outputs need, padding included
};

// Small contiguous planes have rows too short for vectors: kPlanes of them are filtered side by side, as channels.
constexpr int64_t kPlanes = 16, kSmallPlane = 4096;

template <class T>
void small_planes(const UpfirdnParams& p) {
  const int64_t planes = p.in.n * p.in.c, in = p.in.h * p.in.w, out = p.out.h * p.out.w;
  parallel(divide_up(planes, kPlanes), divide_up(32768, kPlanes * larger(in, out)), [&](int64_t first, int64_t last) {
    const Buffer<T> x(in * kPlanes), y(out * kPlanes);
    std::memset(static_cast<void*>(x.get()), 0, static_cast<size_t>(in * kPlanes) * sizeof(T));
    UpfirdnParams q = p;
    q.x = x.get(), q.y = y.get();
    q.in = {1, kPlanes, p.in.h, p.in.w, true}, q.out = {1, kPlanes, p.out.h, p.out.w, true};
    const Filter<T> filter(q);
    for (int64_t k = first; k < last; k++) {
      const int64_t some = smaller(kPlanes, planes - k * kPlanes);
      const T* from = static_cast<const T*>(p.x) + k * kPlanes * in;
      T* to = static_cast<T*>(p.y) + k * kPlanes * out;
      for (int64_t j = 0; j < some; j++)
        for (int64_t i = 0; i < in; i++) x[i * kPlanes + j] = from[j * in + i];
      filter.template run<false>(0, filter.groups());
      for (int64_t j = 0; j < some; j++)
        for (int64_t i = 0; i < out; i++) to[j * out + i] = y[i * kPlanes + j];
    }
  });
}

template <class T>
void run(const UpfirdnParams& p) {
  if (!p.in.channels_last && p.in.n * p.in.c >= kPlanes / 2 && p.in.h * p.in.w <= kSmallPlane &&
      p.out.h * p.out.w <= 4 * kSmallPlane)
    return small_planes<T>(p);
  const Filter<T> filter(p);
  const bool stream = p.out.n * p.out.c * p.out.h * p.out.w * static_cast<int64_t>(sizeof(T)) >= kStreamBytes &&
                      reinterpret_cast<uintptr_t>(p.y) % sizeof(T) == 0;
  parallel(filter.groups(), divide_up(32768, kRows * filter.row_size()), [&](int64_t first, int64_t last) {
    if (stream)
      filter.template run<true>(first, last);
    else
      filter.template run<false>(first, last);
  });
}

}  // namespace

void upfirdn2d(const UpfirdnParams& p) {
  if (p.out.n * p.out.c * p.out.h * p.out.w == 0) return;
  by_type(p.dtype, [&](auto type) { run<decltype(type)>(p); });
}

}  // namespace STYLEGEN_ISA
}  // namespace cpu
}  // namespace stylegen
