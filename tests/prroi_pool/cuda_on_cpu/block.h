// The threads of a block: fibers that run in random order, and the points at which they wait for each other.

#pragma once

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <random>
#include <vector>

#include "cuda_on_cpu.h"
#include "fiber.h"
#include "ordering.h"

namespace cuda_on_cpu {

enum class State { kReady, kAtBlockBarrier, kAtWarpCall, kDone };
enum class WarpCall { kSync, kShuffle, kBallot };

struct Thread {
  Fiber fiber;
  uint3 index;
  State state;
  // Where the thread waits, the value that it passes to its warp there, and the result that it receives.
  Site site;
  WarpCall call;
  uint32_t lanes;
  uint64_t value, result;
  unsigned source;
};

class Block {
 public:
  uint3 size{}, grid{}, index{};
  Ordering ordering;
  std::minstd_rand random;
  char error[1024] = "";

  Thread& thread() { return threads_[current_]; }
  int current() const { return current_; }

  void begin_launch(uint3 grid_size, uint3 block_size, void (*entry)()) {
    grid = grid_size;
    size = block_size;
    entry_ = entry;
    num_threads_ = static_cast<int>(size.x * size.y * size.z);
    while (static_cast<int>(threads_.size()) < num_threads_) {
      threads_.emplace_back();
    }
    warps_.resize((num_threads_ + kWarpSize - 1) / kWarpSize);
    ordering.begin_launch(num_threads_);
    error[0] = '\0';
  }

  // Returns false and sets `error` if a GPU could give a different result or fail.
  bool run(uint3 block_index) {
    begin(block_index);
    while (!ready_.empty() && error[0] == '\0') {
      position_ = random() % ready_.size();
      current_ = ready_[position_];
      accesses_left_ = 1 + random() % (2 * mean_accesses_);
      threads_[current_].fiber.resume(entry_);
    }
    if (error[0] == '\0' && num_done_ < num_threads_) {
      report_deadlock();
    }
    if (error[0] == '\0') {
      return true;
    }
    for (Thread& thread : threads_) {
      thread.fiber.abandon();
    }
    return false;
  }

  // The following functions are called by the threads.

  // Called at each memory access. Occasionally lets other threads run.
  void pause() {
    if (--accesses_left_ == 0) {
      thread().fiber.suspend();
    }
  }

  // Ends the launch.
  [[noreturn]] __attribute__((format(printf, 2, 3))) void fail(const char* format, ...) {
    const uint3 thread_index = thread().index;
    const int length = std::snprintf(
        error, sizeof(error), "thread (%u, %u, %u) of block (%u, %u, %u) ", thread_index.x, thread_index.y,
        thread_index.z, index.x, index.y, index.z);
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(error + length, sizeof(error) - length, format, arguments);
    va_end(arguments);
    thread().fiber.suspend();
    __builtin_unreachable();
  }

  void finish() {
    ++num_done_;
    Warp& warp = warps_[current_ / kWarpSize];
    warp.present &= ~lane_bit();
    wait(State::kDone);
    for (uint32_t waiting = warp.waiting; waiting != 0; waiting &= waiting - 1) {
      complete_if_all_wait(current_ / kWarpSize * kWarpSize + __builtin_ctz(waiting));
    }
    thread().fiber.suspend();
  }

  void sync(Site site) {
    thread().site = site;
    wait(State::kAtBlockBarrier);
    if (++num_at_barrier_ == num_threads_) {
      release_block();
    }
    thread().fiber.suspend();
  }

  uint64_t call_warp(WarpCall call, uint32_t lanes, Site site, uint64_t value = 0, unsigned source = 0) {
    if ((lanes & lane_bit()) == 0) {
      fail("calls %s:%d with the mask %#x, which does not contain its lane", site.file, site.line, lanes);
    }
    Thread& caller = thread();
    caller.site = site;
    caller.call = call;
    caller.lanes = lanes;
    caller.value = value;
    caller.source = source;
    warps_[current_ / kWarpSize].waiting |= lane_bit();
    wait(State::kAtWarpCall);
    complete_if_all_wait(current_);
    caller.fiber.suspend();
    return caller.result;
  }

 private:
  struct Warp {
    uint32_t present;  // lanes that are not done
    uint32_t waiting;  // lanes that wait at a warp call
  };

  uint32_t lane_bit() const { return 1u << current_ % kWarpSize; }

  void begin(uint3 block_index) {
    index = block_index;
    ready_.clear();
    for (int n = 0; n < num_threads_; ++n) {
      const unsigned row = n / size.x;
      threads_[n].index = {n % size.x, row % size.y, row / size.y};
      threads_[n].state = State::kReady;
      ready_.push_back(n);
    }
    for (std::size_t n = 0; n < warps_.size(); ++n) {
      const int lanes = num_threads_ - static_cast<int>(n) * kWarpSize;
      warps_[n] = {lanes >= kWarpSize ? 0xffffffff : (1u << lanes) - 1, 0};
    }
    num_done_ = num_at_barrier_ = 0;
    // Some races show only if threads alternate, others only if one thread runs far ahead.
    const uint32_t choices[] = {2, 16, 128, 1 << 20};
    mean_accesses_ = choices[random() % 4];
    ordering.begin_block();
  }

  void wait(State state) {
    thread().state = state;
    ready_[position_] = ready_.back();
    ready_.pop_back();
  }

  void release(int n) {
    threads_[n].state = State::kReady;
    ready_.push_back(n);
  }

  void release_block() {
    for (int n = 0; n < num_threads_; ++n) {
      const Site &site = threads_[n].site, &first = threads_[0].site;
      if (!(site == first)) {
        fail(
            "is the last to reach __syncthreads, but the threads call it at different places: %s:%d and %s:%d",
            first.file, first.line, site.file, site.line);
      }
    }
    num_at_barrier_ = 0;
    ordering.sync_block();
    for (int n = 0; n < num_threads_; ++n) {
      release(n);
    }
  }

  // Releases the lanes that wait together with thread n, if all of them have arrived.
  void complete_if_all_wait(int n) {
    Thread& first = threads_[n];
    const int begin = n / kWarpSize * kWarpSize;
    Warp& warp = warps_[n / kWarpSize];
    const uint32_t lanes = first.lanes & warp.present;
    if ((lanes & ~warp.waiting) != 0 || (warp.waiting >> n % kWarpSize & 1) == 0) {
      return;
    }
    for (uint32_t others = lanes; others != 0; others &= others - 1) {
      const Thread& other = threads_[begin + __builtin_ctz(others)];
      if (other.lanes != first.lanes || other.call != first.call || !(other.site == first.site)) {
        return;
      }
    }
    exchange(begin, lanes, first.call);
    warp.waiting &= ~lanes;
    for (uint32_t others = lanes; others != 0; others &= others - 1) {
      release(begin + __builtin_ctz(others));
    }
  }

  void exchange(int begin, uint32_t lanes, WarpCall call) {
    if (call == WarpCall::kSync) {
      ordering.sync_warp(begin / kWarpSize, lanes);
      return;
    }
    uint32_t ballot = 0;
    for (uint32_t others = lanes; others != 0; others &= others - 1) {
      const int lane = __builtin_ctz(others);
      ballot |= static_cast<uint32_t>(threads_[begin + lane].value != 0) << lane;
    }
    for (uint32_t others = lanes; others != 0; others &= others - 1) {
      Thread& thread = threads_[begin + __builtin_ctz(others)];
      if (call == WarpCall::kShuffle && (lanes >> thread.source & 1) == 0) {
        fail(
            "ends a shuffle at %s:%d in which a lane reads from lane %u, which does not take part", thread.site.file,
            thread.site.line, thread.source);
      }
      thread.result = call == WarpCall::kShuffle ? threads_[begin + thread.source].value : ballot;
    }
  }

  void report_deadlock() {
    int length = std::snprintf(
        error, sizeof(error), "block (%u, %u, %u) deadlocks after %d of its %d threads have ended", index.x, index.y,
        index.z, num_done_, num_threads_);
    Site last{};
    for (int n = 0; n < num_threads_; ++n) {
      const Thread& thread = threads_[n];
      if (thread.state == State::kDone || thread.site == last || length > static_cast<int>(sizeof(error)) / 2) {
        continue;
      }
      last = thread.site;
      length += std::snprintf(
          error + length, sizeof(error) - length, "; thread (%u, %u, %u) %s %s:%d", thread.index.x, thread.index.y,
          thread.index.z,
          thread.state == State::kAtBlockBarrier ? "waits for its block at" : "waits for lanes of its warp at",
          last.file, last.line);
    }
  }

  std::deque<Thread> threads_;  // a deque, so that growing does not move the elements
  std::vector<Warp> warps_;
  std::vector<int> ready_;
  void (*entry_)() = nullptr;
  int num_threads_ = 0, num_done_ = 0, num_at_barrier_ = 0;
  int current_ = 0;
  std::size_t position_ = 0;  // position of the current thread in ready_
  uint32_t mean_accesses_ = 1, accesses_left_ = 1;  // between pauses
};

}  // namespace cuda_on_cpu
