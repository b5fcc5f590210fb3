// Launches kernels. Defines the functions that g++ calls in kernels compiled with -fsanitize=thread,undefined, because the
// sanitizers' own runtimes do not know the threads of a GPU.

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <numeric>
#include <vector>

#include "block.h"
#include "kernel_table.h"
#include "memory.h"

// All `extern __shared__` arrays of a library are renamed to this array.
extern "C" {
alignas(16) thread_local char cuda_on_cpu_dynamic_shared_memory[cuda_on_cpu::kMaxDynamicShared];
}

namespace cuda_on_cpu {
namespace {

Block block;
Memory memory(block);
const Kernel* kernel;
void** kernel_arguments;
const char* library;

// Never returns; continues with the next block.
void run_thread() {
  while (true) {
    kernel->call(kernel_arguments);
    block.finish();
  }
}

void on_access(const void* pointer, std::size_t bytes, AccessKind kind, const void* caller) {
  const auto address = reinterpret_cast<std::uintptr_t>(pointer);
  if (block.thread().fiber.owns(address)) {
    return;
  }
  block.pause();
  memory.check(address, bytes, kind, static_cast<const char*>(caller) - library);
}

void on_vector_access(const void* pointer, std::size_t bytes, AccessKind kind, const void* caller) {
  if (reinterpret_cast<std::uintptr_t>(pointer) % bytes != 0) {
    block.fail(
        "accesses %zu bytes at an address that is not a multiple of this size at @%x", bytes,
        static_cast<unsigned>(static_cast<const char*>(caller) - library));
  }
  on_access(pointer, bytes, kind, caller);
}

int refuse(const char* reason) {
  std::snprintf(block.error, sizeof(block.error), "%s", reason);
  return 1;  // cudaErrorInvalidValue
}

}  // namespace

uint3 thread_index() {
  return block.thread().index;
}

uint3 block_index() {
  return block.index;
}

uint3 block_size() {
  return block.size;
}

uint3 grid_size() {
  return block.grid;
}

void sync_block(Site site) {
  block.sync(site);
}

void sync_warp(unsigned lanes, Site site) {
  block.call_warp(WarpCall::kSync, lanes, site);
}

uint64_t shuffle(unsigned lanes, uint64_t value, unsigned source, Site site) {
  return block.call_warp(WarpCall::kShuffle, lanes, site, value, source);
}

unsigned ballot(unsigned lanes, bool predicate, Site site) {
  return block.call_warp(WarpCall::kBallot, lanes, site, predicate);
}

void before_atomic(const void* address, std::size_t bytes, const void* caller) {
  on_vector_access(address, bytes, kAtomic, caller);
}

// The interface of the library, documented in emulator.py.

extern "C" void set_shared_variables(const SharedVariable* variables, std::size_t count, std::size_t dynamic_offset) {
  Dl_info info;
  dladdr(reinterpret_cast<const void*>(&set_shared_variables), &info);
  library = static_cast<const char*>(info.dli_fbase);
  memory.set_shared(variables, count, dynamic_offset);
}

extern "C" void set_seed(unsigned seed) {
  block.random.seed(seed);
}

extern "C" void set_ranges(const Range* ranges, std::size_t count) {
  memory.set_ranges(ranges, count);
}

extern "C" const char* launch_error() {
  return block.error;
}

extern "C" int launch(
    const char* name,
    unsigned grid_x,
    unsigned grid_y,
    unsigned grid_z,
    unsigned block_x,
    unsigned block_y,
    unsigned block_z,
    unsigned shared_bytes,
    void** arguments) {
  Kernel* const end = kernels + num_kernels;
  kernel = std::find_if(kernels, end, [&](const Kernel& known) { return std::strcmp(known.name, name) == 0; });
  if (kernel == end) {
    return refuse("the library has no kernel with this name");
  }
  if (grid_x == 0 || grid_y == 0 || grid_z == 0 || grid_x > 0x7fffffff || grid_y > 65535 || grid_z > 65535) {
    return refuse("the grid is empty or too large");
  }
  const uint64_t num_threads = uint64_t{block_x} * block_y * block_z;
  if (num_threads == 0 || num_threads > 1024 || block_x > 1024 || block_y > 1024 || block_z > 64) {
    return refuse("the block is empty or too large");
  }
  if (shared_bytes > kernel->max_dynamic_shared_bytes) {
    return refuse("the kernel was not allowed this much dynamic shared memory");
  }
  kernel_arguments = arguments;
  block.begin_launch({grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, run_thread);
  memory.begin_launch(
      cuda_on_cpu_dynamic_shared_memory, shared_bytes, std::max(48u << 10, kernel->max_dynamic_shared_bytes));
  std::vector<uint64_t> order(uint64_t{grid_x} * grid_y * grid_z);
  std::iota(order.begin(), order.end(), 0);
  std::shuffle(order.begin(), order.end(), block.random);
  for (const uint64_t n : order) {
    const auto x = static_cast<unsigned>(n % grid_x), y = static_cast<unsigned>(n / grid_x % grid_y);
    if (!block.run({x, y, static_cast<unsigned>(n / grid_x / grid_y)})) {
      return 719;  // cudaErrorLaunchFailure
    }
  }
  return 0;
}

extern "C" int allow_dynamic_shared(const char* name, unsigned bytes) {
  for (std::size_t n = 0; n < num_kernels; ++n) {
    if (std::strcmp(kernels[n].name, name) == 0 && bytes <= kMaxDynamicShared) {
      kernels[n].max_dynamic_shared_bytes = bytes;
      return 0;
    }
  }
  return refuse("the kernel does not exist, or the dynamic shared memory is larger than any GPU has");
}

// Functions that g++ calls in the kernels.

extern "C" void __tsan_init() {}
extern "C" void __tsan_func_entry(void*) {}
extern "C" void __tsan_func_exit() {}

#define HOOK(BYTES)                                                              \
  extern "C" void __tsan_read##BYTES(void* address) {                            \
    on_vector_access(address, BYTES, kRead, __builtin_return_address(0));        \
  }                                                                              \
  extern "C" void __tsan_write##BYTES(void* address) {                           \
    on_vector_access(address, BYTES, kWrite, __builtin_return_address(0));       \
  }

HOOK(1)
HOOK(2)
HOOK(4)
HOOK(8)
HOOK(16)

// Accesses to structs.

extern "C" void __tsan_read_range(void* address, std::size_t bytes) {
  on_access(address, bytes, kRead, __builtin_return_address(0));
}

extern "C" void __tsan_write_range(void* address, std::size_t bytes) {
  on_access(address, bytes, kWrite, __builtin_return_address(0));
}

// The argument of each handler begins with the source location.
#define UNDEFINED(NAME)                                                                                     \
  extern "C" void __ubsan_handle_##NAME##_abort(const Site* site) {                                         \
    block.fail("has undefined behaviour, " #NAME ", at %s:%d", site->file, site->line);                     \
  }

UNDEFINED(type_mismatch_v1)  // a null pointer, or one that is not aligned
UNDEFINED(out_of_bounds)
UNDEFINED(pointer_overflow)
UNDEFINED(add_overflow)
UNDEFINED(sub_overflow)
UNDEFINED(mul_overflow)
UNDEFINED(negate_overflow)
UNDEFINED(divrem_overflow)
UNDEFINED(shift_out_of_bounds)
UNDEFINED(load_invalid_value)

}  // namespace cuda_on_cpu
