// Functions that can be suspended.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <memory>

namespace cuda_on_cpu {

// Started by setcontext. Later switches use _setjmp and _longjmp, which make no system call.
class Fiber {
 public:
  // Starts `entry`, or resumes it where it suspended itself. Returns when it suspends itself; `entry` must not return.
  void resume(void (*entry)()) {
    if (_setjmp(resumer()) != 0) {
      return;
    }
    if (started_) {
      _longjmp(resumed_, 1);
    }
    started_ = true;
    ucontext_t context;
    getcontext(&context);
    context.uc_stack.ss_sp = stack_.get();
    context.uc_stack.ss_size = kStackBytes;
    makecontext(&context, entry, 0);
    setcontext(&context);
  }

  // To be called by the fiber itself.
  void suspend() {
    if (_setjmp(resumed_) == 0) {
      _longjmp(resumer(), 1);
    }
  }

  // The next resume() starts `entry` again.
  void abandon() { started_ = false; }

  bool owns(std::uintptr_t address) const {
    return address - reinterpret_cast<std::uintptr_t>(stack_.get()) < kStackBytes;
  }

 private:
  static constexpr std::size_t kStackBytes = 64 << 10;

  static jmp_buf& resumer() {
    static jmp_buf resumer;
    return resumer;
  }

  jmp_buf resumed_;
  std::unique_ptr<char[]> stack_{new char[kStackBytes]};  // uninitialised, so that it occupies no memory until it is used
  bool started_ = false;
};

}  // namespace cuda_on_cpu
