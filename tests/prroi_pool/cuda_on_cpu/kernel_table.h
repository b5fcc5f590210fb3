// The kernels of a library by name.

#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "cuda_on_cpu.h"

namespace cuda_on_cpu {

struct Kernel {
  const char* name;
  void (*call)(void** arguments);
  unsigned max_dynamic_shared_bytes = 48 << 10;  // allow_dynamic_shared may raise it
};

// Defined in the file that Emulator in emulator.py generates.
extern Kernel kernels[];
extern const std::size_t num_kernels;

template <auto kernel>
struct Invoke;

// `arguments` as in cuLaunchKernel: pointers to the kernel's arguments.
template <typename... Parameters, void (*kernel)(Parameters...)>
struct Invoke<kernel> {
  CUDA_ON_CPU_UNHOOKED static void call(void** arguments) { call(arguments, std::index_sequence_for<Parameters...>()); }

 private:
  template <std::size_t... N>
  CUDA_ON_CPU_UNHOOKED static void call(void** arguments, std::index_sequence<N...>) {
    kernel(*static_cast<std::remove_reference_t<Parameters>*>(arguments[N])...);
  }
};

}  // namespace cuda_on_cpu
