// The 1-D weights of Precise RoI Pooling, shared by the CPU and the CUDA kernels; `reference.py` is the same
// in Python.
//
// A feature map is extended to the plane with the hat function K(x) = max(0, 1 - |x|). The mean over a bin
// separates into one weight per column times one weight per row. The bin is the set of points `start + t *
// width`, t in [0, 1], so pixel i of an axis weighs
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

// a * b, rounded before anything is added to it: nvcc would fuse the two, and where a RoI lies relative to a pixel would
// depend on it.
PRROI_POOL_INLINE float rounded_product(float a, float b) {
#ifdef __CUDA_ARCH__
  return __fmul_rn(a, b);
#else
  return a * b;
#endif
}

PRROI_POOL_INLINE double rounded_product(double a, double b) {
#ifdef __CUDA_ARCH__
  return __dmul_rn(a, b);
#else
  return a * b;
#endif
}

// The coordinates are subtracted before they are scaled: a compiler may fuse a product with the subtraction,
// which gives a RoI without area a width of rounding.
template <typename T>
PRROI_POOL_INLINE Extent<T> make_extent(T low, T high, T spatial_scale, int64_t num_bins) {
  return {rounded_product(low, spatial_scale), (high - low) * spatial_scale / static_cast<T>(num_bins), num_bins};
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

  PRROI_POOL_INLINE int64_t end() const { return first + count; }
};

// The pixels of an axis of `size` pixels whose hats reach into [low, high]. Clipped before the conversion to
// integers, so that a far coordinate neither overflows nor costs time.
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

// Bins first, ..., first + count - 1 of a RoI.
struct BinRange {
  int64_t first;
  int64_t count;

  PRROI_POOL_INLINE int64_t end() const { return first + count; }
};

// A pixel's weight in a bin, and the weight's derivatives by the two ends of the RoI.
template <typename T>
struct Weight {
  T value;
  T d_low;
  T d_high;

  PRROI_POOL_INLINE void add(T factor, const Weight& other) {
    value += factor * other.value;
    d_low += factor * other.d_low;
    d_high += factor * other.d_high;
  }
};

template <typename T>
PRROI_POOL_INLINE T clamp_to_unit(T t) {
  return t < 0 ? T(0) : t > 1 ? T(1) : t;
}

template <typename T>
PRROI_POOL_INLINE Weight<T> bin_weight(const Extent<T>& extent, int64_t bin, int64_t pixel) {
  const T width = extent.bin_width;
  // Differences between a pixel and the RoI come first, as they are exact nearby. A bin's start as such would
  // be rounded to an ulp of the coordinate, 8e-6 px at 100, and pixels told apart wrongly by tiny bins.
  const T offset = extent.low - static_cast<T>(pixel);
  const T position = static_cast<T>(bin);
  // The hat rises from -1 to 0 and falls from 0 to 1; these t are where the bin passes the three knots.
  const T enter = clamp_to_unit((-1 - offset) / width - position);
  const T peak = clamp_to_unit(-offset / width - position);
  const T leave = clamp_to_unit((1 - offset) / width - position);
  // The shares of the bin on the two sides, and their middles.
  const T rising = peak - enter;
  const T falling = leave - peak;
  const T t_rising = position + (enter + peak) / 2;
  const T t_falling = position + (peak + leave) / 2;

  Weight<T> weight;
  weight.value = rising * (1 + (offset + width * t_rising)) + falling * (1 - (offset + width * t_falling));
  // The RoI's point low + (bin + t) / num_bins * (high - low) moves with the two ends accordingly. K' is 1 on
  // the rising side and -1 on the falling one. The knots move too, but K is continuous there, so that adds
  // nothing.
  weight.d_high = (rising * t_rising - falling * t_falling) / static_cast<T>(extent.num_bins);
  weight.d_low = rising - falling - weight.d_high;
  return weight;
}

// The image a RoI belongs to, or -1 when its index names none.
template <typename T>
PRROI_POOL_INLINE int64_t image_of(T batch_index, int64_t num_images) {
  const bool exists = batch_index >= 0 && batch_index < static_cast<T>(num_images);
  return exists ? static_cast<int64_t>(batch_index) : -1;
}

}  // namespace prroi_pool
