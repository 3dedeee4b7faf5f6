// Fibers: contexts that one OS thread switches between, by a dozen instructions on x86-64 and by ucontext elsewhere and
// under the sanitizers, which are told of each switch.
#pragma once
#include <ucontext.h>

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#define EMU_UNSEEN __attribute__((no_sanitize_thread, noinline))
#else
#define EMU_UNSEEN
#endif

namespace emu {

// ThreadSanitizer must see the kernel's accesses and not the emulator's own bookkeeping.
struct Ignore {
#if defined(__SANITIZE_THREAD__)
  Ignore() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Ignore() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Ignore() {}
#endif
};

// What happens before release(a) happens before what follows acquire(a).
inline void release([[maybe_unused]] void* token) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(token);
#endif
}
inline void acquire([[maybe_unused]] void* token) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(token);
#endif
}

#if defined(__x86_64__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define EMU_ASSEMBLY
extern "C" void emu_swap(void** from, void* to);
asm(R"(.pushsection .text
.weak emu_swap
.hidden emu_swap
.type emu_swap,@function
emu_swap:
 pushq %rbp; pushq %rbx; pushq %r12; pushq %r13; pushq %r14; pushq %r15
 movq %rsp,(%rdi); movq %rsi,%rsp
 popq %r15; popq %r14; popq %r13; popq %r12; popq %rbx; popq %rbp
 ret
.popsection)");
#endif

struct Context {
  const void* stack = nullptr;  // for the thread's own context: known once entered() has run
  size_t size = 0;
#ifdef EMU_ASSEMBLY
  void* pointer = nullptr;
#else
  ucontext_t saved;
  void* fake = nullptr;
  void* tsan = nullptr;
#endif
};

// `last`: `from` will not run again.
EMU_UNSEEN inline void switch_context(Context& from, Context& to, [[maybe_unused]] bool last = false) {
#ifdef EMU_ASSEMBLY
  emu_swap(&from.pointer, to.pointer);
#else
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(to.tsan, __tsan_switch_to_fiber_no_sync);
#elif defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &from.fake, to.stack, to.size);
#endif
  swapcontext(&from.saved, &to.saved);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(from.fake, nullptr, nullptr);
#endif
#endif
}

// The first thing that a fiber's entry function does; `back` is the context that started it.
inline void entered([[maybe_unused]] Context& back) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &back.stack, &back.size);
#endif
}

// A fiber that will begin at `entry` on `stack`; it ends in a switch_context(..., last = true), never by returning.
inline void make_fiber(Context& fiber, char* stack, size_t size, void (*entry)()) {
  fiber.stack = stack;
  fiber.size = size;
#ifdef EMU_ASSEMBLY
  void** top = reinterpret_cast<void**>(stack + size) - 2;  // keeps the 16-byte alignment that the ABI has at entry
  *--top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  fiber.pointer = top - 6;
#else
#if defined(__SANITIZE_ADDRESS__)
  ASAN_UNPOISON_MEMORY_REGION(stack, size);  // the stack's previous user did not unwind
#elif defined(__SANITIZE_THREAD__)
  fiber.tsan = __tsan_create_fiber(0);
#endif
  getcontext(&fiber.saved);
  fiber.saved.uc_stack.ss_sp = stack;
  fiber.saved.uc_stack.ss_size = size;
  fiber.saved.uc_link = nullptr;
  makecontext(&fiber.saved, entry, 0);
#endif
}

inline void this_context([[maybe_unused]] Context& own) {
#if defined(__SANITIZE_THREAD__)
  own.tsan = __tsan_get_current_fiber();
#endif
}

inline void destroy_fiber([[maybe_unused]] Context& fiber) {
#if defined(__SANITIZE_THREAD__)
  __tsan_destroy_fiber(fiber.tsan);
#endif
}

}  // namespace emu
