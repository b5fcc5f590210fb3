// As much of CUDA as prroi_pool's kernels use, on the CPU, so that they can be tested without a GPU: their indices,
// barriers and sums, not their speed, nor races between threads.
//
// The blocks of a grid run one after the other. A block's threads are fibers, each of which runs until it meets a
// barrier. Where a part of the threads meets a barrier that the others never reach, a GPU may hang; here the program says
// so and stops.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <deque>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
// Static, as blocks run one after the other.
#define __shared__ static
#define __launch_bounds__(threads)

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline dim3 threadIdx, blockIdx, blockDim, gridDim;

namespace cuda_on_cpu {

constexpr int kWarp = 32;
constexpr std::size_t kStackBytes = 64 << 10;

enum class State { kReady, kAtWarpBarrier, kAtBlockBarrier, kDone };

// Started by makecontext; from then on switched by _setjmp and _longjmp, which make no system call.
struct Fiber {
  ucontext_t context;
  jmp_buf resume;
  std::vector<char> stack = std::vector<char>(kStackBytes);
  bool started = false;
  State state = State::kDone;
};

inline std::deque<Fiber> fibers;  // its elements keep their places
inline jmp_buf scheduler;
inline int current;
inline std::function<void()> kernel;
inline std::vector<double> exchanged;  // one for each thread

inline void wait_at(State barrier) {
  fibers[current].state = barrier;
  if (_setjmp(fibers[current].resume) == 0) {
    _longjmp(scheduler, 1);
  }
}

// Lives on from block to block.
inline void run_fiber() {
  while (true) {
    kernel();
    wait_at(State::kDone);
  }
}

inline void resume(Fiber& fiber) {
  if (_setjmp(scheduler) != 0) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.resume, 1);
  }
  fiber.started = true;
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.data();
  fiber.context.uc_stack.ss_size = fiber.stack.size();
  makecontext(&fiber.context, run_fiber, 0);
  setcontext(&fiber.context);
}

// Whether all of these fibers that are not done wait at the barrier; if so they may go on.
inline bool release(int begin, int end, State barrier) {
  bool waits = false;
  for (int n = begin; n < end; ++n) {
    if (fibers[n].state != barrier && fibers[n].state != State::kDone) {
      return false;
    }
    waits = waits || fibers[n].state == barrier;
  }
  for (int n = begin; n < end && waits; ++n) {
    fibers[n].state = fibers[n].state == barrier ? State::kReady : fibers[n].state;
  }
  return waits;
}

inline void run_block() {
  const int num_threads = blockDim.x * blockDim.y;
  for (int n = 0; n < num_threads; ++n) {
    fibers[n].state = State::kReady;
  }
  while (true) {
    bool ran = false;
    for (current = 0; current < num_threads; ++current) {
      if (fibers[current].state == State::kReady) {
        threadIdx = dim3(current % blockDim.x, current / blockDim.x);
        resume(fibers[current]);
        ran = true;
      }
    }
    for (int warp = 0; warp < num_threads; warp += kWarp) {
      ran = release(warp, warp + kWarp, State::kAtWarpBarrier) || ran;
    }
    ran = release(0, num_threads, State::kAtBlockBarrier) || ran;
    if (!ran) {
      break;
    }
  }
  for (int n = 0; n < num_threads; ++n) {
    if (fibers[n].state != State::kDone) {
      std::fprintf(stderr, "thread %d of block (%u, %u) waits for ever at a barrier\n", n, blockIdx.x, blockIdx.y);
      std::abort();
    }
  }
}

}  // namespace cuda_on_cpu

inline void __syncthreads() {
  cuda_on_cpu::wait_at(cuda_on_cpu::State::kAtBlockBarrier);
}

inline void __syncwarp() {
  cuda_on_cpu::wait_at(cuda_on_cpu::State::kAtWarpBarrier);
}

template <typename T>
T __shfl_down_sync(unsigned, T value, int offset) {
  using namespace cuda_on_cpu;
  exchanged[current] = value;
  __syncwarp();
  const int source = current % kWarp + offset < kWarp ? current + offset : current;
  const T result = static_cast<T>(exchanged[source]);
  __syncwarp();
  return result;
}

template <typename T>
void atomicAdd(T* target, T value) {
  *target += value;
}

using cudaStream_t = void*;
using cudaError_t = int;

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  cudaStream_t stream;
};

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), const Arguments&... arguments) {
  gridDim = config->gridDim;
  blockDim = config->blockDim;
  const int num_threads = blockDim.x * blockDim.y;
  if (num_threads > 1024 || num_threads % cuda_on_cpu::kWarp != 0 || gridDim.y > 65535) {
    return 1;
  }
  while (static_cast<int>(cuda_on_cpu::fibers.size()) < num_threads) {
    cuda_on_cpu::fibers.emplace_back();
  }
  cuda_on_cpu::exchanged.resize(num_threads);
  cuda_on_cpu::kernel = [&] { kernel(arguments...); };
  for (blockIdx.y = 0; blockIdx.y < gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < gridDim.x; ++blockIdx.x) {
      cuda_on_cpu::run_block();
    }
  }
  return 0;
}
