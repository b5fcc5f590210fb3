// The 1-D weights of Precise RoI Pooling, shared by the CPU and the CUDA kernels; `reference.py` is the same in Python.
//
// A feature map is extended to the plane with the hat function K(x) = max(0, 1 - |x|). The mean over a bin separates
// into one weight per column times one weight per row. The bin is the set of points `start + t * width`, t in [0, 1],
// so pixel i of an axis weighs
//
//     ∫₀¹ K(start - i + t * width) dt.
//
// Neither an area divides nor are antiderivatives subtracted, so nothing cancels when a bin is small.

#pragma once

#include <cmath>
#include <cstdint>
#include <limits>

#ifdef __CUDACC__
#define PRROI_POOL_INLINE __host__ __device__ inline
#else
#define PRROI_POOL_INLINE inline
#endif

namespace prroi_pool {

// The extent of a RoI along one axis, in pixels of the feature map.
template <typename T>
struct Extent {
  T low;
  T bin_width;
  int64_t num_bins;
};

template <typename T>
PRROI_POOL_INLINE Extent<T> make_extent(T low, T high, int64_t num_bins) {
  return {low, (high - low) / static_cast<T>(num_bins), num_bins};
}

// False for a RoI without area, a reversed one, and one with a NaN or infinite coordinate.
template <typename T>
PRROI_POOL_INLINE bool is_valid(const Extent<T>& extent) {
  return extent.bin_width > 0 && extent.bin_width <= std::numeric_limits<T>::max();
}

// Pixels first, ..., first + count - 1 of an axis.
struct PixelRange {
  int64_t first;
  int64_t count;
};

// The pixels of an axis of `size` pixels whose hats reach into [low, high]. Clipped before the conversion to integers,
// so that a far coordinate neither overflows nor costs time.
template <typename T>
PRROI_POOL_INLINE PixelRange touched_pixels(T low, T high, int64_t size) {
  const T first = std::floor(low) > 0 ? std::floor(low) : T(0);
  const T last = std::ceil(high) < static_cast<T>(size - 1) ? std::ceil(high) : static_cast<T>(size - 1);
  if (!(first <= last)) {
    return {0, 0};
  }
  return {static_cast<int64_t>(first), static_cast<int64_t>(last) - static_cast<int64_t>(first) + 1};
}

template <typename T>
PRROI_POOL_INLINE PixelRange touched_pixels(const Extent<T>& extent, int64_t bin, int64_t size) {
  const T start = extent.low + static_cast<T>(bin) * extent.bin_width;
  return touched_pixels(start, start + extent.bin_width, size);
}

// A pixel's weight in a bin, and the weight's derivatives by the two ends of the RoI.
template <typename T>
struct Weight {
  T value;
  T d_low;
  T d_high;
};

template <typename T>
PRROI_POOL_INLINE T clamp_to_unit(T t) {
  return t < 0 ? T(0) : t > 1 ? T(1) : t;
}

template <typename T>
PRROI_POOL_INLINE Weight<T> bin_weight(const Extent<T>& extent, int64_t bin, int64_t pixel) {
  const T width = extent.bin_width;
  const T start = extent.low + static_cast<T>(bin) * width - static_cast<T>(pixel);
  // The hat rises from -1 to 0 and falls from 0 to 1; these t are where the bin passes the three knots.
  const T enter = clamp_to_unit((-1 - start) / width);
  const T peak = clamp_to_unit(-start / width);
  const T leave = clamp_to_unit((1 - start) / width);
  const T rising = peak - enter;
  const T falling = leave - peak;
  const T t_rising = (enter + peak) / 2;
  const T t_falling = (peak + leave) / 2;

  Weight<T> weight;
  weight.value = rising * (1 + (start + width * t_rising)) + falling * (1 - (start + width * t_falling));
  // Point t of the bin is low + (bin + t) / num_bins * (high - low), and moves with the ends accordingly. K' is 1 on
  // the rising side and -1 on the falling one. The knots move too, but K is continuous, so that adds nothing.
  const T position = static_cast<T>(bin);
  weight.d_high =
      (rising * (position + t_rising) - falling * (position + t_falling)) / static_cast<T>(extent.num_bins);
  weight.d_low = rising - falling - weight.d_high;
  return weight;
}

// The image a RoI belongs to, or -1 when its index names none.
template <typename T>
PRROI_POOL_INLINE int64_t image_of(T batch_index, int64_t num_images) {
  return batch_index >= 0 && batch_index < static_cast<T>(num_images) ? static_cast<int64_t>(batch_index) : -1;
}

}  // namespace prroi_pool
