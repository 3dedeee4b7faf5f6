#include "common.cuh"
#include "upfirdn2d.h"

namespace stylegen::cuda {
namespace {

constexpr int kRows = 4;  // output rows (or, with channels innermost, columns) that a thread computes together

template <class T>
constexpr int kTileThreads = std::min<int>(kThreads, 1024 / kLanes<T>);  // 16-bit types have fewer vectors a tile
template <class T>
constexpr int kTileBlocks =
    (kLanes<T> == 8 ? 512 : 768) / kTileThreads<T>;  // a multiprocessor: what the registers allow
template <int up>
constexpr int kTaps = up == 2 ? 5 : 4;  // a filter of up to 4 taps, moved by one where up = 2 and the padding is odd

// How many inputs so many neighbouring outputs need.
template <int up, int down, int outputs>
constexpr int kInputs = ((outputs - 1) * down + kTaps<up> - 1) / up + 1;

// What a block of the tiled kernel works on. A "column" is a pixel's column; a tile holds `slab` channels of each pixel
// with channels innermost, and one channel otherwise.
struct Tiles {
  int width, height;  // of the output tile
  int in_width;       // input columns that it needs, with what alignment adds
  int slab, pitch;    // channels; accumulators between rows of shared memory
  int across, down, slabs;
  bool whole_in, whole_out;
};

// With channels innermost, a row of shared memory holds vectors; with width innermost a gap after every 32 columns
// keeps threads that stand a vector apart in different banks.
__host__ __device__ inline int gapped(int column) { return column + column / 32; }

// out[r] += sum over k of tap[k] * (input r * down + k of the row of inputs with up - 1 zeros between them); read(v, i)
// gives input i, `width` values side by side.
template <int up, int down, int rows, int width, class A, class Read>
__device__ __forceinline__ void correlate(A (&out)[rows][width], const A (&tap)[kTaps<up>], Read read) {
#pragma unroll
  for (int i = 0; i < kInputs<up, down, rows>; ++i) {
    A v[width];
    read(v, i);
#pragma unroll
    for (int r = 0; r < rows; ++r) {
      const int k = i * up - r * down;
      if (k >= 0 && k < kTaps<up>) {
#pragma unroll
        for (int j = 0; j < width; ++j) out[r][j] += tap[k] * v[j];
      }
    }
  }
}

template <int rows, int width, class A>
__device__ __forceinline__ void clear(A (&out)[rows][width]) {
#pragma unroll
  for (int r = 0; r < rows; ++r) fill(out[r], A(0));
}

template <class A, int width>
__device__ __forceinline__ void subtract(A (&out)[width], A factor, const A (&v)[width]) {
#pragma unroll
  for (int j = 0; j < width; ++j) out[j] -= factor * v[j];
}

template <class A, int taps>
__device__ __forceinline__ void read_taps(A (&tap)[taps], const float* f, int n, int shift) {
#pragma unroll
  for (int k = 0; k < taps; ++k) tap[k] = k >= shift && k - shift < n ? A(f[k - shift]) : A(0);
}

// One block's tile: its place in the pictures, and the two passes.
template <class T, int up, int down>
struct Tile {
  using A = acc_t<T>;
  static constexpr int lanes = kLanes<T>;
  const UpfirdnParams& p;
  const Tiles& t;
  A* rows;           // shared: [t.height][t.pitch]
  int out_x, out_y;  // of the first output
  int in_x, in_y;    // of the first input that it needs
  int column;        // of the first column in shared memory: in_x rounded down to a vector with width innermost
  int channel;       // with channels innermost: the first
  int64_t from, to;  // offsets of the picture (with width innermost: of the channel's plane)
  int64_t in_line, out_line;  // offsets between lines
  A tap[kTaps<up>];

  __device__ Tile(const UpfirdnParams& p, const Tiles& t, A* rows) : p(p), t(t), rows(rows) {
    int64_t i = blockIdx.x;
    channel = static_cast<int>(i % t.slabs) * t.slab, i /= t.slabs;
    out_x = static_cast<int>(i % t.across) * t.width, i /= t.across;
    out_y = static_cast<int>(i % t.down) * t.height, i /= t.down;
    // Where up = 2, taps are moved so that the padding is even and output 0 of a tile falls on tap 0.
    in_x = (out_x * down - p.pad_x - shift(p.pad_x)) / up;
    in_y = (out_y * down - p.pad_y - shift(p.pad_y)) / up;
    const bool nhwc = p.in.channels_last;
    column = nhwc ? in_x : in_x - (in_x % lanes + lanes) % lanes;
    in_line = p.in.w * (nhwc ? p.in.c : 1), out_line = p.out.w * (nhwc ? p.in.c : 1);
    from = i * p.in.h * in_line, to = i * p.out.h * out_line;
  }

  static __device__ int shift(int pad) { return up == 2 ? pad & 1 : 0; }

  // The pass along y: from memory into shared memory, a vector of columns or channels by kRows rows a turn.
  __device__ void vertical() {
    read_taps(tap, p.fy, p.kh, shift(p.pad_y));
    const bool nhwc = p.in.channels_last;
    const int per_pixel = nhwc ? t.slab / lanes : 1, vectors = nhwc ? t.in_width * per_pixel : t.in_width / lanes;
    for (int item = threadIdx.x; item < vectors * (t.height / kRows); item += blockDim.x) {
      const int row = item / vectors * kRows, vector = item % vectors;
      const int x = column + (nhwc ? vector / per_pixel : vector * lanes), c = channel + vector % per_pixel * lanes;
      const int64_t left = x < 0 || x >= p.in.w ? 0 : nhwc ? p.in.c - c : p.in.w - x;
      const T* line = static_cast<const T*>(p.x) + from + (nhwc ? x * p.in.c + c : x);
      const auto read = [&](int y) {
        return y >= 0 && y < p.in.h && left > 0 ? fetch(line + y * in_line, t.whole_in, left) : Vec<T>{};
      };
      Vec<T> in[kInputs<up, down, kRows>];
      const int y = in_y + row * down / up;
#pragma unroll
      for (int i = 0; i < kInputs<up, down, kRows>; ++i) in[i] = read(y + i);
      A out[kRows][lanes], v[lanes];
      clear(out);
      correlate<up, down>(out, tap, [&](A(&v)[lanes], int i) { widen(v, in[i]); });
      if (up == 1 && down == 1 && p.edge != 0) {
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          if (out_y + row + r == 0) widen(v, read(0)), subtract(out[r], A(p.edge), v);
          if (out_y + row + r == p.out.h - 1) widen(v, read(p.in.h - 1)), subtract(out[r], A(p.edge), v);
        }
      }
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        A* to = rows + (row + r) * t.pitch;
        if (nhwc) {
          store(to + vector * lanes, out[r]);
        } else {
#pragma unroll
          for (int j = 0; j < lanes; ++j) to[gapped(vector * lanes + j)] = out[r][j];
        }
      }
    }
  }

  // The pass along x, from shared memory into memory; width innermost: a vector of outputs a turn.
  __device__ void horizontal_nchw() {
    read_taps(tap, p.fx, p.kw, shift(p.pad_x));
    const int vectors = t.width / lanes;
    for (int item = threadIdx.x; item < vectors * t.height; item += blockDim.x) {
      const int row = item / vectors, x = item % vectors * lanes;
      const int64_t left = p.out.w - out_x - x;
      if (out_y + row >= p.out.h || left <= 0) continue;
      const A* in = rows + row * t.pitch;
      const int begin = x * down / up + in_x - column;
      A out[lanes][1], y[lanes];
      clear(out);
      correlate<up, down>(out, tap, [&](A(&v)[1], int i) { v[0] = in[gapped(begin + i)]; });
#pragma unroll
      for (int j = 0; j < lanes; ++j) {
        if (up == 1 && down == 1 && p.edge != 0) {
          if (out_x + x + j == 0) out[j][0] -= A(p.edge) * in[gapped(-column)];
          if (out_x + x + j == p.out.w - 1) out[j][0] -= A(p.edge) * in[gapped(static_cast<int>(p.in.w) - 1 - column)];
        }
        y[j] = out[j][0] * A(p.gain);
      }
      cuda::store(static_cast<T*>(p.y) + to + (out_y + row) * out_line + out_x + x, y, t.whole_out, left);
    }
  }

  // Channels innermost: kRows vectors of channels, of neighbouring pixels, a turn.
  __device__ void horizontal_nhwc() {
    read_taps(tap, p.fx, p.kw, shift(p.pad_x));
    const int per_pixel = t.slab / lanes, groups = t.width / kRows;
    for (int item = threadIdx.x; item < per_pixel * groups * t.height; item += blockDim.x) {
      const int c = item % per_pixel * lanes, x = item / per_pixel % groups * kRows, row = item / per_pixel / groups;
      const int64_t left = p.in.c - channel - c;
      if (out_y + row >= p.out.h || left <= 0) continue;
      const A* in = rows + row * t.pitch + c;
      A out[kRows][lanes], v[lanes];
      clear(out);
      const int begin = x * down / up;
      correlate<up, down>(out, tap, [&](A(&v)[lanes], int i) { load(v, in + (begin + i) * t.slab, true, lanes); });
      T* to_line = static_cast<T*>(p.y) + to + (out_y + row) * out_line + channel + c;
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const int at = out_x + x + r;
        if (at >= p.out.w) break;
        if (up == 1 && down == 1 && p.edge != 0) {
          if (at == 0) load(v, in - in_x * t.slab, true, lanes), subtract(out[r], A(p.edge), v);
          if (at == p.out.w - 1)
            load(v, in + (p.in.w - 1 - in_x) * t.slab, true, lanes), subtract(out[r], A(p.edge), v);
        }
#pragma unroll
        for (int j = 0; j < lanes; ++j) out[r][j] *= A(p.gain);
        cuda::store(to_line + at * p.in.c, out[r], t.whole_out, left);
      }
    }
  }

  static __device__ void store(A* to, const A (&v)[lanes]) {
#pragma unroll
    for (int j = 0; j < lanes; j += kLanes<A>) {
      Vec<A> u;
#pragma unroll
      for (int k = 0; k < kLanes<A>; ++k) u.v[k] = v[j + k];
      *reinterpret_cast<Vec<A>*>(to + j) = u;
    }
  }
};

template <class T, int up, int down>
__global__ void __launch_bounds__(kTileThreads<T>, kTileBlocks<T>) tiled_kernel(UpfirdnParams p, Tiles t) {
  DYN_SHARED(acc_t<T>, rows);
  Tile<T, up, down> tile(p, t, rows);
  tile.vertical();
  __syncthreads();
  if (p.in.channels_last)
    tile.horizontal_nhwc();
  else
    tile.horizontal_nchw();
}

// One output's taps along an axis: tap `tap` meets input `input`, then every up-th tap the next input, `count` of them;
// and after them up to two corrections by -edge.
struct Span {
  int tap, input, count, corrections;

  __device__ Span(int at, int up, int down, int pad, int taps, int64_t in, int64_t out, bool edge) {
    const int begin = at * down - pad, skip = begin < 0 ? -begin : (up - begin % up) % up;
    tap = skip, input = (begin + skip) / up;
    const int most = taps > tap ? (taps - tap + up - 1) / up : 0;
    count = input + most > in ? static_cast<int>(in) - input : most;
    if (count < 0) count = 0;
    corrections = edge ? (at == 0) + (at == out - 1) : 0;
  }
  __device__ int total() const { return count + corrections; }
  // Input t, of `in`; `at` is the output's place.
  __device__ int at(int t, int at, int64_t in) const {
    return t < count ? input + t : at == 0 && t == count ? 0 : static_cast<int>(in) - 1;
  }
};

// Any filter, any up and down: a thread gathers a vector of channels of one output, or one output with width innermost,
// where the inputs of neighbouring outputs are neither aligned nor side by side.
template <class T, bool nhwc>
__global__ void __launch_bounds__(kThreads)
    gather_kernel(UpfirdnParams p, int64_t items, bool whole_in, bool whole_out) {
  using A = acc_t<T>;
  constexpr int lanes = nhwc ? kLanes<T> : 1;
  const int64_t pitch = nhwc ? p.in.c : 1, vectors = nhwc ? (p.in.c + lanes - 1) / lanes : 1;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < items;
       i += int64_t(gridDim.x) * kThreads) {
    const int first = static_cast<int>(i % vectors) * lanes;               // channel of lane 0
    const int64_t pixel = i / vectors, plane = pixel / p.out.w / p.out.h;  // picture, or channel of a picture
    const int out_x = static_cast<int>(pixel % p.out.w), out_y = static_cast<int>(pixel / p.out.w % p.out.h);
    const Span xs(out_x, p.up_x, p.down_x, p.pad_x, p.kw, p.in.w, p.out.w, p.edge != 0);
    const Span ys(out_y, p.up_y, p.down_y, p.pad_y, p.kh, p.in.h, p.out.h, p.edge != 0);
    const T* x = static_cast<const T*>(p.x) + plane * p.in.h * p.in.w * pitch + first;
    T* y = static_cast<T*>(p.y) + pixel * pitch + first;
    A out[lanes];
    fill(out, A(0));
    for (int ty = 0; ty < ys.total(); ++ty) {
      const float* taps = p.fx + (p.fy ? 0 : (ys.tap + ty * p.up_y) * p.kw);
      const A weight_y = !p.fy ? A(1) : ty < ys.count ? A(p.fy[ys.tap + ty * p.up_y]) : A(-p.edge);
      const T* line = x + ys.at(ty, out_y, p.in.h) * p.in.w * pitch;
      for (int tx = 0; tx < xs.total(); ++tx) {
        const A weight = weight_y * (tx < xs.count ? A(taps[xs.tap + tx * p.up_x]) : A(-p.edge));
        const T* from = line + xs.at(tx, out_x, p.in.w) * pitch;
        if constexpr (nhwc) {
          A v[lanes];
          widen(v, fetch(from, whole_in, p.in.c - first));
#pragma unroll
          for (int j = 0; j < lanes; ++j) out[j] += weight * v[j];
        } else {
          out[0] += weight * widen(*from);
        }
      }
    }
#pragma unroll
    for (int j = 0; j < lanes; ++j) out[j] *= A(p.gain);
    if constexpr (nhwc)
      store(y, out, whole_out, p.in.c - first);
    else
      *y = narrow<T>(out[0]);
  }
}

// Short separable filters, the same along both axes but for their taps and padding. An edge's correction reads the row
// that the tile holds, so the padding must not reach past the filter.
bool tiled(const UpfirdnParams& p) {
  const bool scale = p.up_x == p.up_y && p.down_x == p.down_y && p.up_x * p.down_x <= 2;
  const int64_t right = p.out.w + p.kw - 1 - p.in.w - p.pad_x;
  const bool near = p.pad_x >= 0 && p.pad_x < p.kw && right >= 0 && right < p.kw;
  return p.fy && p.kw <= 4 && p.kh <= 4 && scale && (p.edge == 0 || near);
}

template <class T, int up, int down>
const char* launch_tiled(const UpfirdnParams& p, Stream stream) {
  constexpr int lanes = kLanes<T>;
  const bool nhwc = p.in.channels_last;
  const int unit = nhwc ? kRows : lanes;  // the tile's width is a multiple of it
  const auto fit = [](int most, int64_t size, int unit) {
    return static_cast<int>(std::min<int64_t>(most, ceil_div(size, unit) * unit));
  };
  Tiles t{};
  t.width = fit(nhwc ? 16 * up / down : 128 / down, p.out.w, unit);
  t.height = fit(nhwc ? 8 : 32, p.out.h, kRows);
  t.in_width = ((t.width - 1) * down + kTaps<up> - 1) / up + 1;
  if (!nhwc) t.in_width = static_cast<int>(ceil_div(t.in_width + lanes - 1, lanes)) * lanes;
  t.slab = nhwc ? fit(128 / std::max<int>(sizeof(acc_t<T>), 4), p.in.c, lanes) : 1;
  t.pitch = nhwc ? t.in_width * t.slab : gapped(t.in_width) + 1;
  t.across = static_cast<int>(ceil_div(p.out.w, t.width));
  t.down = static_cast<int>(ceil_div(p.out.h, t.height));
  t.slabs = nhwc ? static_cast<int>(ceil_div(p.in.c, t.slab)) : 1;
  t.whole_in = (nhwc ? p.in.c : p.in.w) % lanes == 0 && aligned(p.x);
  t.whole_out = (nhwc ? p.in.c : p.out.w) % lanes == 0 && aligned(p.y);
  const int items = t.in_width * t.slab / lanes * t.height / kRows;
  const int threads = std::min(kTileThreads<T>, static_cast<int>(ceil_div(items, 32)) * 32);
  const int64_t blocks = p.in.n * (nhwc ? 1 : p.in.c) * t.down * t.across * t.slabs;
  const auto kernel = tiled_kernel<T, up, down>;
  CUDA_LAUNCH(kernel, static_cast<unsigned>(blocks), threads, sizeof(acc_t<T>) * t.height * t.pitch, stream, p, t);
  return launch_error();
}

}  // namespace

const char* upfirdn2d(const UpfirdnParams& p, void* stream) {
  const int64_t size = p.out.n * p.out.c * p.out.h * p.out.w;
  if (size == 0) return nullptr;
  return dispatch(p.dtype, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Stream s = static_cast<Stream>(stream);
    if (tiled(p) && p.up_x == 2) return launch_tiled<T, 2, 1>(p, s);
    if (tiled(p) && p.down_x == 2) return launch_tiled<T, 1, 2>(p, s);
    if (tiled(p)) return launch_tiled<T, 1, 1>(p, s);
    const bool nhwc = p.in.channels_last, whole = p.in.c % kLanes<T> == 0;
    const int64_t items = nhwc ? size / p.in.c * ceil_div(p.in.c, kLanes<T>) : size;
    const auto kernel = nhwc ? gather_kernel<T, true> : gather_kernel<T, false>;
    CUDA_LAUNCH(kernel, blocks_for(items), kThreads, 0, s, p, items, whole && aligned(p.x), whole && aligned(p.y));
    return launch_error();
  });
}

}  // namespace stylegen::cuda
