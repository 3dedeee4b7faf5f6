// The CUDA execution model on the CPU, for tests: a .cu file is included as C++, and its kernels run with one fiber per
// CUDA thread, blocks one after another. A warp's lanes run in turn, each up to its next barrier or shuffle; in which
// order lanes, warps and blocks go is the schedule's, so that code which is right only by luck of timing is wrong under
// one of them. What differs from a device: everything is slow, nothing overlaps, and there is no cp.async, TMA, mma
// nor arithmetic in half precision. Errors, such as a barrier that not all threads reach, are exceptions.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "fiber.h"

#undef __global__
#undef __device__
#undef __host__
#undef __constant__
#undef __forceinline__
#undef __launch_bounds__
#undef __grid_constant__
#undef __syncthreads
#define __global__
#define __device__
#define __host__
#define __constant__
#define __grid_constant__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace emu {

enum class Schedule : int { forward, reverse, random };

struct Config {
  Schedule schedule = Schedule::forward;
  unsigned seed = 0;
};
inline Config config;

constexpr unsigned kMaxThreads = 1024;
constexpr size_t kStack = 32 << 10;
constexpr size_t kShared = 48 << 10;  // bytes that a block may have without being asked for

struct Thread {
  enum State { ready, at_barrier, at_warp, done } state;
  Context context;
  dim3 index;
  unsigned number, mask;  // mask: of the warp barrier that it waits at
  const char* where;      // file:line of the barrier
};

struct Warp {
  uint64_t slot[32];
  char token[2];
  int parity = 0;
};

struct Array {
  const void* key;
  size_t size;
  char* data;
};

struct Block {
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<Array> shared;
  char* dynamic = nullptr;
  char token[2], finished;
  int parity = 0;
  Thread* current = nullptr;
  Context scheduler;
  std::function<void()> body;
  dim3 index, grid, size;
  std::string error;

  void run();
  bool run_warp(unsigned warp, unsigned salt);
  bool release_warp(unsigned warp);
  bool release_block(bool moved);
  void give_up(const std::string& why);
};
inline Block* block = nullptr;
struct Abort {};  // unwinds a thread after an error

inline size_t padded(size_t size) { return (size + 127) / 128 * 128; }

// Shared memory starts as NaNs; its end is where AddressSanitizer says.
inline Array shared_array(const void* key, size_t size) {
  char* data = static_cast<char*>(std::aligned_alloc(128, padded(size)));
  std::memset(data, 0xff, size);
#if defined(__SANITIZE_ADDRESS__)
  ASAN_POISON_MEMORY_REGION(data + size, padded(size) - size);
#endif
  return {key, size, data};
}

inline void free_shared(const Array& array) {
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(array.data, padded(array.size));
#endif
  std::free(array.data);
}

[[noreturn]] inline void fail(const std::string& why) {
  if (block->error.empty()) block->error = why;
  throw Abort{};
}

inline char* shared(const void* key, size_t size) {
  Ignore ignore;
  size_t total = size;
  for (const Array& array : block->shared) {
    if (array.key == key) return array.data;
    total += array.size;
  }
  if (total > kShared) fail("more than 48 KB of shared memory");
  block->shared.push_back(shared_array(key, size));
  return block->shared.back().data;
}

inline void enter() {
  entered(block->scheduler);
  try {
    block->body();
  } catch (const Abort&) {
  } catch (const std::exception& e) {
    block->error = e.what();
  }
  release(&block->finished);
  {
    Ignore ignore;
    block->current->state = Thread::done;
  }
  switch_context(block->current->context, block->scheduler, true);
  std::abort();
}

inline void wait(Thread::State state, const char* where) {
  Thread& thread = *block->current;
  thread.state = state;
  thread.where = where;
  switch_context(thread.context, block->scheduler);
  if (!block->error.empty()) throw Abort{};
}

inline void sync_block(const char* where) {
  Ignore ignore;
  char* token = &block->token[block->parity];
  release(token);
  wait(Thread::at_barrier, where);
  acquire(token);
}

inline unsigned lane() { return block->current->number % 32; }

inline void sync_warp(unsigned mask, const char* where) {
  Ignore ignore;
  Warp& warp = block->warps[block->current->number / 32];
  if (!(mask >> lane() & 1)) fail(std::string("the calling lane is not in its own mask at ") + where);
  block->current->mask = mask;
  char* token = &warp.token[warp.parity];
  release(token);
  wait(Thread::at_warp, where);
  acquire(token);
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* where) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  Ignore ignore;
  Warp& warp = block->warps[block->current->number / 32];
  const unsigned number = block->current->number;
  if (!(mask >> source & 1) || number / 32 * 32 + source >= block->threads.size())
    fail(std::string("a shuffle reads a lane outside the mask or the block at ") + where);
  std::memcpy(&warp.slot[lane()], &value, sizeof(T));
  sync_warp(mask, where);
  std::memcpy(&value, &warp.slot[source], sizeof(T));
  sync_warp(mask, where);  // nobody publishes anew before all have read
  return value;
}

// The source lane of each kind of shuffle; one outside the group of `width` lanes means the lane itself.
inline unsigned within(int source, int width) {
  const int own = lane();
  return source >= 0 && (own & -width) == (source & -width) ? source : own;
}
inline unsigned source_idx(int value, int width) { return (lane() & -width) | (value & (width - 1)); }
inline unsigned source_down(int value, int width) { return within(int(lane()) + value, width); }
inline unsigned source_up(int value, int width) { return within(int(lane()) - value, width); }
inline unsigned source_xor(int value, int width) { return within(int(lane()) ^ value, width); }

inline std::vector<unsigned> scheduled(unsigned count, unsigned salt) {
  std::vector<unsigned> order(count);
  for (unsigned i = 0; i < count; ++i) order[i] = config.schedule == Schedule::reverse ? count - 1 - i : i;
  if (config.schedule == Schedule::random) {
    std::mt19937 generator(config.seed * 7919u + salt);
    std::shuffle(order.begin(), order.end(), generator);
  }
  return order;
}

// On an error every thread is woken, to unwind.
inline void Block::give_up(const std::string& why) {
  if (error.empty()) error = why;
  for (Thread& thread : threads)
    if (thread.state != Thread::done) thread.state = Thread::ready;
}

// Lets the lanes go that wait at a warp barrier which every lane of its mask has reached.
inline bool Block::release_warp(unsigned warp) {
  const unsigned begin = warp * 32, count = std::min<size_t>(32, threads.size() - begin);
  const unsigned exist = count == 32 ? ~0u : (1u << count) - 1;
  Thread* lanes = &threads[begin];
  bool any = false;
  for (unsigned i = 0; i < count; ++i) {
    if (lanes[i].state != Thread::at_warp) continue;
    const unsigned mask = lanes[i].mask & exist;
    bool complete = true;
    for (unsigned k = 0; k < count; ++k)
      if (mask >> k & 1)
        complete &= lanes[k].state == Thread::at_warp && (lanes[k].mask & exist) == mask &&
                    !std::strcmp(lanes[k].where, lanes[i].where);
    if (!complete) continue;
    for (unsigned k = 0; k < count; ++k)
      if (mask >> k & 1) lanes[k].state = Thread::ready;
    warps[warp].parity ^= 1;
    any = true;
  }
  return any;
}

inline bool Block::run_warp(unsigned warp, unsigned salt) {
  const unsigned begin = warp * 32, count = std::min<size_t>(32, threads.size() - begin);
  for (unsigned i : scheduled(count, salt)) {
    Thread& thread = threads[begin + i];
    if (thread.state != Thread::ready) continue;
    current = &thread;
    switch_context(scheduler, thread.context);
  }
  return error.empty() && release_warp(warp);
}

// Lets all threads go if all wait at the same barrier; `moved`: some warp is still under way. False: all have ended.
inline bool Block::release_block(bool moved) {
  size_t done = 0, waiting = 0;
  const Thread* stuck = nullptr;
  bool same = true;
  for (const Thread& thread : threads) {
    done += thread.state == Thread::done;
    waiting += thread.state == Thread::at_barrier;
    if (thread.state == Thread::done) continue;
    if (!stuck) stuck = &thread;
    same &= thread.state == stuck->state && !std::strcmp(thread.where, stuck->where);
  }
  if (done == threads.size()) return false;
  if (!error.empty()) {
    give_up(error);
  } else if (waiting == threads.size() && same) {
    parity ^= 1;
    for (Thread& thread : threads) thread.state = Thread::ready;
  } else if (!moved) {
    give_up(std::string(done ? "some threads ended" : "threads wait elsewhere") + " while others wait at " +
            stuck->where);
  }
  return true;
}

inline void Block::run() {
#if defined(__SANITIZE_THREAD__)  // to which fibers of two blocks that use the same stack would race
  const std::unique_ptr<char[]> stacks(new char[threads.size() * kStack]);
#else
  static const std::unique_ptr<char[]> stacks(new char[kMaxThreads * kStack]);
#endif
  for (unsigned i = 0; i < threads.size(); ++i) {
    Thread& thread = threads[i];
    thread.state = Thread::ready;
    thread.number = i;
    thread.index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
    make_fiber(thread.context, stacks.get() + i * kStack, kStack, enter);
  }
  bool alive = true;
  for (unsigned round = 0; alive; ++round) {
    bool moved = false;
    for (unsigned warp : scheduled(warps.size(), round)) {
      bool again = run_warp(warp, round + warp);
      moved |= again;
      // At random, warps advance in turns; otherwise each runs ahead as far as it can, to the block's barrier.
      while (again && config.schedule != Schedule::random) again = run_warp(warp, round + warp);
    }
    alive = release_block(moved);
  }
  for (Thread& thread : threads) destroy_fiber(thread.context);
  for (const Array& array : shared) free_shared(array);
  shared.clear();
}

inline void launch(dim3 grid, dim3 size, size_t dynamic, std::function<void()> body) {
  const uint64_t threads = uint64_t(size.x) * size.y * size.z, blocks = uint64_t(grid.x) * grid.y * grid.z;
  if (threads == 0 || threads > kMaxThreads || size.z > 64 || blocks == 0 || grid.x > 0x7fffffffu || grid.y > 65535 ||
      grid.z > 65535 || dynamic > kShared)
    throw std::runtime_error("a launch that the device would refuse");
  std::unique_ptr<Ignore> ignore(new Ignore);
  Block state;
  state.threads.resize(threads);
  state.warps.resize((threads + 31) / 32);
  state.body = std::move(body);
  state.grid = grid;
  state.size = size;
  this_context(state.scheduler);
  block = &state;
  for (unsigned i : scheduled(blocks, 0)) {
    state.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
    const Array array = shared_array(nullptr, dynamic);
    state.dynamic = array.data;
    state.run();
    free_shared(array);
    if (!state.error.empty()) break;
  }
  acquire(&state.finished);
  block = nullptr;
  ignore.reset();
  if (!state.error.empty()) throw std::runtime_error(state.error);
}

template <class... P, class... A>
void launch_kernel(void (*kernel)(P...), dim3 grid, dim3 size, size_t dynamic, A... arguments) {
  launch(grid, size, dynamic, [kernel, list = std::tuple<P...>(arguments...)] { std::apply(kernel, list); });
}

template <class F>
constexpr F first_or(F fallback) {
  return fallback;
}
template <class F, class... Rest>
constexpr F first_or(F, F given, Rest...) {
  return given;
}

}  // namespace emu

#define EMU_TEXT_(x) #x
#define EMU_TEXT(x) EMU_TEXT_(x)
#define EMU_HERE __FILE__ ":" EMU_TEXT(__LINE__)
#define EMU_SHUFFLE(kind, mask, value, argument, ...) \
  emu::shuffle(mask, value, emu::source_##kind(argument, emu::first_or(32, ##__VA_ARGS__)), EMU_HERE)

#define threadIdx (emu::block->current->index)
#define blockIdx (emu::block->index)
#define blockDim (emu::block->size)
#define gridDim (emu::block->grid)
#define __syncthreads() emu::sync_block(EMU_HERE)
#define __syncwarp(...) emu::sync_warp(emu::first_or(0xffffffffu, ##__VA_ARGS__), EMU_HERE)
#define __shfl_sync(...) EMU_SHUFFLE(idx, __VA_ARGS__)
#define __shfl_down_sync(...) EMU_SHUFFLE(down, __VA_ARGS__)
#define __shfl_up_sync(...) EMU_SHUFFLE(up, __VA_ARGS__)
#define __shfl_xor_sync(...) EMU_SHUFFLE(xor, __VA_ARGS__)

// What a kernel writes instead of __shared__ and <<<>>>, which are not C++.
#define SHARED_ARRAY(T, name, n) \
  static char name##_key;        \
  T(&name)[n] = *reinterpret_cast<T(*)[n]>(emu::shared(&name##_key, sizeof(T) * (n)))
#define DYN_SHARED(T, name) T* name = reinterpret_cast<T*>(emu::block->dynamic)
#define CUDA_LAUNCH(kernel, grid, block, shared, stream, ...) \
  ((void)(stream), emu::launch_kernel(kernel, grid, block, shared, __VA_ARGS__))

template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  return a < b ? b : a;
}
template <class T>
T __ldg(const T* p) {
  return *p;
}
inline double emu_rsqrt(double x) { return 1 / std::sqrt(x); }
inline float emu_rsqrt(float x) { return 1 / std::sqrt(x); }
#define rsqrt emu_rsqrt
#define rsqrtf emu_rsqrt
#define __expf(x) std::exp(float(x))
#define __fdividef(a, b) (float(a) / float(b))
