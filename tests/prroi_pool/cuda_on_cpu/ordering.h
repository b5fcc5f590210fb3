// Determines which memory accesses happen before which others, independent of the schedule.

#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

namespace cuda_on_cpu {

constexpr int kWarpSize = 32;

// The accesses of one kind to one cell of memory, as far as a later access could race with them.
struct Accesses {
  uint32_t first_phase = 0, last_phase = 0;  // in the launch, or in the block for shared memory
  // In the last phase: the warp, and its lanes whose accesses have the latest clock.
  uint32_t lanes = 0, clock = 0;
  uint32_t where = 0;  // address of the last access in the program
  uint8_t warp = 0;
  bool by_several_warps = false;
};

enum class Scope { kBlock, kGrid };

// The order that barriers impose on accesses. A phase is the time between two barriers of a whole block. All phases of a
// process are numbered consecutively, so that records of earlier launches need no reset. Within a phase only __syncwarp
// orders accesses: each lane has a clock and knows the clock at which it last met each other lane of its warp. A shuffle
// does not order accesses, because CUDA's documentation guarantees no memory ordering for it.
class Ordering {
 public:
  void begin_launch(int num_threads) {
    warps_.resize((num_threads + kWarpSize - 1) / kWarpSize);
    launch_ = phase_ + 1;
  }

  void begin_block() {
    begin_phase();
    block_ = phase_;
  }

  void sync_block() { begin_phase(); }

  void sync_warp(int warp, uint32_t lanes) {
    Met& met = warps_[warp].met;
    std::array<uint32_t, kWarpSize> latest{};
    for (int lane = 0; lane < kWarpSize; ++lane) {
      for (int other = 0; other < kWarpSize && (lanes >> lane & 1); ++other) {
        latest[other] = std::max(latest[other], met[lane][other]);
      }
    }
    for (int lane = 0; lane < kWarpSize; ++lane) {
      if (lanes >> lane & 1) {
        met[lane] = latest;
        ++met[lane][lane];
      }
    }
    warps_[warp].synced = true;
  }

  uint32_t first_phase(Scope scope) const { return scope == Scope::kBlock ? block_ : launch_; }

  // Whether all these accesses happen before the current access of this thread.
  bool precede(const Accesses& accesses, int thread, Scope scope) const {
    if (accesses.last_phase < first_phase(scope)) {
      return true;
    }
    if (accesses.first_phase < block_) {  // by another block; no barrier orders two blocks
      return false;
    }
    if (accesses.last_phase < phase_) {
      return true;
    }
    if (accesses.by_several_warps || accesses.warp != thread / kWarpSize) {
      return false;
    }
    const int own = thread % kWarpSize;
    const auto& met = warps_[accesses.warp].met[own];
    for (uint32_t lanes = accesses.lanes & ~(1u << own); lanes != 0; lanes &= lanes - 1) {
      if (met[__builtin_ctz(lanes)] < accesses.clock) {
        return false;
      }
    }
    return true;
  }

  void add(Accesses& accesses, int thread, Scope scope, uint32_t where) const {
    const int warp = thread / kWarpSize, lane = thread % kWarpSize;
    const uint32_t clock = warps_[warp].met[lane][lane];
    if (accesses.last_phase < first_phase(scope)) {
      accesses.first_phase = phase_;
    }
    if (accesses.last_phase != phase_) {
      accesses = {accesses.first_phase, phase_, 1u << lane, clock, where, static_cast<uint8_t>(warp), false};
      return;
    }
    accesses.by_several_warps = accesses.by_several_warps || accesses.warp != warp;
    // If whole warps synchronise, as they nearly always do, accesses with an earlier clock happened before this one.
    if (clock > accesses.clock) {
      accesses.lanes = 0;
      accesses.clock = clock;
    }
    if (clock == accesses.clock) {
      accesses.lanes |= 1u << lane;
    }
    accesses.where = where;
  }

 private:
  // [lane][other lane]. A lane's own clock is at [lane][lane].
  using Met = std::array<std::array<uint32_t, kWarpSize>, kWarpSize>;

  struct Warp {
    Met met{};
    bool synced = true;
  };

  void begin_phase() {
    ++phase_;
    for (Warp& warp : warps_) {
      if (warp.synced) {
        warp.met = {};
        for (int lane = 0; lane < kWarpSize; ++lane) {
          warp.met[lane][lane] = 1;
        }
        warp.synced = false;
      }
    }
  }

  std::vector<Warp> warps_;
  uint32_t phase_ = 0, block_ = 0, launch_ = 0;
};

}  // namespace cuda_on_cpu
