// The gradient of one RoI, summed over a block in a fixed order and without atomics.

#pragma once

#include "tensors.cuh"

namespace prroi_pool {

template <typename Acc>
struct RoIGradient {
  Acc x1 = 0, y1 = 0, x2 = 0, y2 = 0;

  // Adds a product of weights on the two axes. One of the factors already includes the features and the output's gradient.
  __device__ void add(const Weight<Acc>& x, const Weight<Acc>& y) {
    x1 += x.d_low * y.value;
    y1 += x.value * y.d_low;
    x2 += x.d_high * y.value;
    y2 += x.value * y.d_high;
  }

  __device__ void add(const RoIGradient& other) {
    x1 += other.x1;
    y1 += other.y1;
    x2 += other.x2;
    y2 += other.y2;
  }

  // To be called by all threads of the block. Writes to `target` 0 (for batch_index) and the gradients with respect
  // to x1, y1, x2 and y2.
  __device__ void sum_over_block_and_write(Acc* target, Acc spatial_scale) const {
    __shared__ Acc of_warps[kWarps][4];
    Acc sums[4] = {x1, y1, x2, y2};
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int offset = kWarp / 2; offset > 0; offset /= 2) {
        sums[n] += __shfl_down_sync(0xffffffff, sums[n], offset);
      }
      if (threadIdx.x == 0) {
        of_warps[threadIdx.y][n] = sums[n];
      }
    }
    __syncthreads();
    if (threadIdx.y == 0 && threadIdx.x < 5) {
      Acc total = 0;
      for (unsigned warp = 0; warp < blockDim.y && threadIdx.x > 0; ++warp) {
        total += of_warps[warp][threadIdx.x - 1];
      }
      target[threadIdx.x] = total * spatial_scale;
    }
  }
};

}  // namespace prroi_pool
