// The part of CUDA C++ that prroi_pool's kernels use, for g++. The kernels are compiled with a hook at each memory access.
// runtime.cpp defines the hooks and the barriers, and is compiled without hooks.

#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#define __global__ __attribute__((noinline))
#define __device__
#define __host__
// Blocks run one after the other, so one instance serves all of them. The keyword must make a local variable static and be
// valid after `extern`. The library has no thread-local variables other than its shared memory.
#define __shared__ thread_local
#define __launch_bounds__(...)
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
// For functions whose memory accesses are not those of a kernel.
#define CUDA_ON_CPU_UNHOOKED __attribute__((noinline, no_sanitize_thread))

struct uint3 {
  unsigned x, y, z;
};

struct dim3 : uint3 {
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : uint3{x, y, z} {}
};

struct alignas(8) float2 {
  float x, y;
};

struct alignas(16) float4 {
  float x, y, z, w;
};

inline float2 make_float2(float x, float y) {
  return {x, y};
}

inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

namespace cuda_on_cpu {

// Source location of a call to a barrier. The address of the call would not identify it, because a compiler may duplicate
// calls.
struct Site {
  const char* file = "";
  int line = 0;

  bool operator==(const Site& other) const {
    return line == other.line && (file == other.file || std::strcmp(file, other.file) == 0);
  }

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) { return {file, line}; }
};

// Returned by value and constant for a thread, so that they are not memory accesses of the kernel.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) uint3 block_size();
__attribute__((const)) uint3 grid_size();

void sync_block(Site site);
void sync_warp(unsigned lanes, Site site);
// Returns the value that lane `source` passes to the same call.
uint64_t shuffle(unsigned lanes, uint64_t value, unsigned source, Site site);
// Returns the lanes that pass true.
unsigned ballot(unsigned lanes, bool predicate, Site site);
// To be called before an atomic read-modify-write operation that `caller` requests.
void before_atomic(const void* address, std::size_t bytes, const void* caller);

constexpr unsigned kWarp = 32;

inline unsigned lane() {
  const uint3 index = thread_index(), size = block_size();
  return (index.x + size.x * (index.y + size.y * index.z)) % kWarp;
}

template <typename T>
T shuffle_value(unsigned lanes, T value, unsigned source, Site site) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = shuffle(lanes, bits, source, site);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

}  // namespace cuda_on_cpu

#define threadIdx (cuda_on_cpu::thread_index())
#define blockIdx (cuda_on_cpu::block_index())
#define blockDim (cuda_on_cpu::block_size())
#define gridDim (cuda_on_cpu::grid_size())

inline void __syncthreads(cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::sync_block(site);
}

inline void __syncwarp(unsigned lanes = 0xffffffff, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  cuda_on_cpu::sync_warp(lanes, site);
}

// Lanes shuffle within segments of `width`. A lane that would read beyond its segment reads its own value.

template <typename T>
T __shfl_sync(
    unsigned lanes, T value, int source, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane(), segment = lane / width * width;
  return cuda_on_cpu::shuffle_value(lanes, value, segment + static_cast<unsigned>(source) % width, site);
}

template <typename T>
T __shfl_down_sync(
    unsigned lanes, T value, unsigned offset, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle_value(lanes, value, lane % width + offset < width ? lane + offset : lane, site);
}

template <typename T>
T __shfl_up_sync(
    unsigned lanes, T value, unsigned offset, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane();
  return cuda_on_cpu::shuffle_value(lanes, value, lane % width >= offset ? lane - offset : lane, site);
}

template <typename T>
T __shfl_xor_sync(
    unsigned lanes, T value, int mask, int width = 32, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  const unsigned lane = cuda_on_cpu::lane(), source = lane ^ mask;
  // As in CUDA, a lane may read from earlier segments.
  return cuda_on_cpu::shuffle_value(lanes, value, source / width <= lane / width ? source : lane, site);
}

inline unsigned __ballot_sync(
    unsigned lanes, bool predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::ballot(lanes, predicate, site);
}

inline bool __any_sync(unsigned lanes, bool predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::ballot(lanes, predicate, site) != 0;
}

inline bool __all_sync(unsigned lanes, bool predicate, cuda_on_cpu::Site site = cuda_on_cpu::Site::here()) {
  return cuda_on_cpu::ballot(lanes, !predicate, site) == 0;
}

template <typename T>
CUDA_ON_CPU_UNHOOKED T atomicAdd(T* target, std::common_type_t<T> value) {
  cuda_on_cpu::before_atomic(target, sizeof(T), __builtin_return_address(0));
  const T before = *target;
  *target = before + value;
  return before;
}

inline float2 operator+(const float2& a, const float2& b) {
  return {a.x + b.x, a.y + b.y};
}

inline float4 operator+(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

inline int __popc(unsigned bits) {
  return __builtin_popcount(bits);
}

inline float __fmul_rn(float a, float b) {
  return a * b;
}

inline double __dmul_rn(double a, double b) {
  return a * b;
}
