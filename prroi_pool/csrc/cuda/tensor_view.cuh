// Tensors and RoIs as the CUDA kernels see them.

#pragma once

#include "../bilinear_integral.h"

namespace prroi_pool {

constexpr int kWarp = 32;

// 64-bit offsets; any strides, in elements.
template <typename T>
struct TensorView {
  T* data;
  int64_t size[4];
  int64_t stride[4];

  PRROI_POOL_INLINE T* at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return data + a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3];
  }
};

// N adjacent elements, moved by one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <int N, typename T>
__device__ Pack<T, N> load(const T* data) {
  return *reinterpret_cast<const Pack<T, N>*>(data);
}

// N sums, one for each channel that a lane works on.
template <typename T, int N>
struct Sums {
  T value[N] = {};

  template <typename Term>
  __device__ void add(T weight, const Term* terms) {
#pragma unroll
    for (int n = 0; n < N; ++n) {
      value[n] += weight * static_cast<T>(terms[n]);
    }
  }
};

template <typename T>
struct RoI {
  bool pools;  // not without area, nor of an image that does not exist, nor with a NaN or infinite coordinate
  int64_t image;
  Extent<T> x, y;
};

// `rois` is contiguous [K, 5].
template <typename T>
__device__ RoI<T> read_roi(
    const T* rois, int64_t k, T spatial_scale, int64_t num_images, int64_t pooled_height, int64_t pooled_width) {
  const T* roi = rois + k * 5;
  const int64_t image = image_of(roi[0], num_images);
  const Extent<T> x = make_extent(roi[1], roi[3], spatial_scale, pooled_width);
  const Extent<T> y = make_extent(roi[2], roi[4], spatial_scale, pooled_height);
  return {image >= 0 && is_valid(x) && is_valid(y), image, x, y};
}

// The two values computed last of a sequence f(0), f(1), ... Neighbouring bins share two pixels, and neighbouring
// pixels two bins, so that a loop over bins and their pixels, or the other way round, computes each value once.
template <typename Value>
class LastTwo {
 public:
  // Returned by value: a reference to one of two members would keep them out of registers.
  template <typename Compute>
  __device__ Value get(int64_t index, const Compute& compute) {
    if (index == before_) {
      return value_before_;
    }
    if (index != last_) {
      before_ = last_;
      value_before_ = value_last_;
      last_ = index;
      value_last_ = compute(index);
    }
    return value_last_;
  }

 private:
  int64_t before_ = -1, last_ = -1;
  Value value_before_{}, value_last_{};
};

}  // namespace prroi_pool
