// Small correct and faulty kernels for test_emulator.py. Each is launched with one tensor to write and one to read.

#pragma once

namespace emulated {

// Correct kernels.

__global__ void reverse_in_dynamic_shared_memory(float* output, const float* input) {
  extern __shared__ float4 buffer[];
  float* values = reinterpret_cast<float*>(buffer);
  values[threadIdx.x] = __ldg(input + threadIdx.x);
  __syncthreads();
  output[threadIdx.x] = values[blockDim.x - 1 - threadIdx.x];
}

__global__ void add_atomically(float* output, const float* input) {
  for (int n = 0; n < 4; ++n) {
    atomicAdd(output + n, input[n]);
  }
  atomicAdd(reinterpret_cast<float4*>(output + 4), make_float4(input[4], input[5], input[6], input[7]));
}

template <int kWidth>
__device__ float sum_of_segment(float value, unsigned lanes) {
  for (int offset = kWidth / 2; offset > 0; offset /= 2) {
    value += __shfl_xor_sync(lanes, value, offset, kWidth);
  }
  return value;
}

// Sums each half of a warp separately. The halves take different branches.
__global__ void sum_halves_of_warps(float* output, const float* input) {
  const float value = input[threadIdx.x];
  if (threadIdx.x % 32 < 16) {
    output[threadIdx.x] = sum_of_segment<16>(value, 0xffff);
  } else {
    output[threadIdx.x] = sum_of_segment<16>(value, 0xffff0000);
  }
}

__global__ void vote_and_shuffle(float* output, const float* input) {
  const unsigned odd = __ballot_sync(0xffffffff, threadIdx.x % 2 == 1);
  const bool any = __any_sync(0xffffffff, threadIdx.x == 40), all = __all_sync(0xffffffff, threadIdx.x >= 32);
  const float first = __shfl_sync(0xffffffff, input[threadIdx.x], 0);
  const float next = __shfl_down_sync(0xffffffff, input[threadIdx.x], 1);
  const float previous = __shfl_up_sync(0xffffffff, input[threadIdx.x], 1);
  output[threadIdx.x] = (odd == 0xaaaaaaaa) + 2 * any + 4 * all + 10 * first + 100 * next + 10000 * previous;
}

__global__ void exchange_in_warp(float* output, const float* input) {
  __shared__ float values[64];
  for (int n = 0; n < 3; ++n) {
    values[threadIdx.x] = input[threadIdx.x] + n;
    __syncwarp();
    output[threadIdx.x] = values[threadIdx.x ^ 1];
    __syncwarp();
  }
}

// Faulty kernels.

__global__ void miss_block_barrier(float* output, const float* input) {
  __shared__ float values[64];
  values[threadIdx.x] = input[threadIdx.x];
  __syncwarp();
  output[threadIdx.x] = values[63 - threadIdx.x];
}

__global__ void miss_warp_barrier(float* output, const float* input) {
  __shared__ float values[64];
  values[threadIdx.x] = input[threadIdx.x];
  __syncwarp();
  output[threadIdx.x] = values[threadIdx.x ^ 1];
  values[threadIdx.x] = 0;
}

__global__ void synchronize_half_of_warp(float* output, const float* input) {
  __shared__ float values[64];
  values[threadIdx.x] = input[threadIdx.x];
  __syncwarp(threadIdx.x % 32 < 16 ? 0xffff : 0xffff0000);
  output[threadIdx.x] = values[threadIdx.x ^ 16];
}

__global__ void add_plainly(float* output, const float* input) {
  if (threadIdx.x == 0) {
    *output += *input;
  }
}

__global__ void read_what_others_add_to(float* output, const float* input) {
  if (threadIdx.x == 0) {
    atomicAdd(output, *input);
    output[1 + blockIdx.x] = *output;
  }
}

__global__ void read_shared_memory_of_earlier_block(float* output, const float* input) {
  __shared__ float value[2];
  if (threadIdx.x == 0) {
    value[blockIdx.x] = *input;
    output[blockIdx.x] = value[0] + value[1];
  }
}

__global__ void read_beyond_tensor(float* output, const float* input) {
  output[threadIdx.x] = input[threadIdx.x + 1];
}

__global__ void write_beyond_tensor(float* output, const float*) {
  output[threadIdx.x + 1] = 0;
}

__global__ void write_to_input(float*, const float* input) {
  const_cast<float*>(input)[threadIdx.x] = 0;
}

__global__ void read_beyond_dynamic_shared_memory(float* output, const float*) {
  extern __shared__ float4 buffer[];
  float* values = reinterpret_cast<float*>(buffer);
  values[threadIdx.x + 1] = 0;
  output[threadIdx.x] = values[threadIdx.x + 1];
}

__global__ void read_misaligned_vector(float* output, const float* input) {
  *reinterpret_cast<float4*>(output) = *reinterpret_cast<const float4*>(input + 1 + threadIdx.x % 2);
}

__global__ void add_to_misaligned_vector(float* output, const float*) {
  atomicAdd(reinterpret_cast<float4*>(output + 1), float4{});
}

__global__ void shuffle_with_mask_of_others(float* output, const float* input) {
  output[threadIdx.x] = __shfl_down_sync(0xffff, input[threadIdx.x], 1);
}

__global__ void shuffle_from_absent_lane(float* output, const float* input) {
  if (threadIdx.x % 32 < 16) {
    output[threadIdx.x] = __shfl_sync(0xffff, input[threadIdx.x], 16);
  }
}

__global__ void shuffle_without_some_lanes(float* output, const float* input) {
  if (threadIdx.x % 32 < 16) {
    output[threadIdx.x] = __shfl_sync(0xffffffff, input[threadIdx.x], 0);
  } else {
    __syncthreads();
  }
}

__global__ void synchronize_at_two_places(float* output, const float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    output[threadIdx.x] = 0;
    __syncthreads();
  }
}

__global__ void synchronize_without_some_threads(float*, const float*) {
  if (threadIdx.x < 40) {
    return;
  }
  __syncthreads();
}

__global__ void use_too_much_shared_memory(float* output, const float*) {
  __shared__ float values[48 << 8], more;
  values[threadIdx.x] = 0;
  more = 0;
  output[threadIdx.x] = more;
}

}  // namespace emulated
