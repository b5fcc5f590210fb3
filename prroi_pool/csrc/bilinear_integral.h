// The 1-D weights of Precise RoI Pooling, shared by the CPU and the CUDA kernels. `reference.py` defines the same weights
// in Python.
//
// The hat function K(x) = max(0, 1 - |x|) extends a feature map to the plane. The mean over a bin separates into one weight
// per column times one weight per row. A bin consists of the points `start + t * width`, t in [0, 1], so pixel i of an axis
// has the weight
//
//     ∫₀¹ K(start - i + t * width) dt.
//
// This form neither divides by an area nor subtracts antiderivatives, so no digits cancel in a small bin. Large bins are
// measured in pixels, so that no digits cancel in the derivatives either.

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
  T bin_width_rest;  // bin_width minus the nearest whole number, more precise than an ulp of bin_width
  T inverse_bin_width;
  T inverse_size;  // of the RoI: 1 / (bin_width * num_bins)
  int64_t num_bins;
};

// a * b, rounded. Otherwise NVRTC may fuse the product with a later addition, which would change the position of a RoI
// relative to a pixel.
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

// Subtracts the coordinates before scaling them. In the opposite order, a compiler might fuse a product with the
// subtraction, and rounding would give a RoI without area a non-zero width.
template <typename T>
PRROI_POOL_INLINE Extent<T> make_extent(T low, T high, T spatial_scale, int64_t num_bins) {
  const T bins = static_cast<T>(num_bins);
  const T difference = high - low;
  const T size = difference * spatial_scale;
  const T bin_width = size / bins;
  // The rounding error of the difference (Knuth's two-sum), up to 1.5e-5 px for ends at 0.1 and 500.
  const T subtracted = high - difference;
  const T lost = (high - (difference + subtracted)) + (subtracted - low);
  const T bin_width_rest = ((size - std::rint(bin_width) * bins) + lost * spatial_scale) / bins;
  return {rounded_product(low, spatial_scale), bin_width, bin_width_rest, 1 / bin_width, 1 / size, num_bins};
}

// False for a RoI without area, for a reversed RoI, and if a coordinate is not finite before or after scaling.
template <typename T>
PRROI_POOL_INLINE bool is_valid(const Extent<T>& extent) {
  const T most = std::numeric_limits<T>::max();
  const bool is_finite = extent.low >= -most && extent.low <= most && extent.bin_width_rest - extent.bin_width_rest == 0;
  return is_finite && extent.bin_width > 0 && extent.bin_width <= most;
}

// Pixels first, ..., first + count - 1 of an axis.
struct PixelRange {
  int64_t first;
  int64_t count;

  PRROI_POOL_INLINE int64_t end() const { return first + count; }
};

// Pixels first, ..., last, both whole numbers, clipped to an axis of `size` pixels. Clipping precedes the conversion to
// integers, so that a distant coordinate neither overflows nor costs time.
template <typename T>
PRROI_POOL_INLINE PixelRange clipped_pixels(T first, T last, int64_t size) {
  first = first > 0 ? first : T(0);
  last = last < static_cast<T>(size - 1) ? last : static_cast<T>(size - 1);
  if (!(first <= last)) {
    return {0, 0};
  }
  // Converting a size above 2^24 to float may round it up.
  const int64_t first_pixel = static_cast<int64_t>(first), last_pixel = static_cast<int64_t>(last);
  const int64_t end = last_pixel < size - 1 ? last_pixel + 1 : size;
  return {first_pixel, end > first_pixel ? end - first_pixel : 0};
}

// The pixels of an axis of `size` pixels whose hats reach into [low, high].
template <typename T>
PRROI_POOL_INLINE PixelRange touched_pixels(T low, T high, int64_t size) {
  return clipped_pixels(std::floor(low), std::ceil(high), size);
}

// The start of a bin, which is the end of the previous bin, as a whole number plus a remainder of a few pixels. Their sum
// would be rounded to an ulp of the coordinate, 3e-5 px at 500, and so would the derivatives of the pixels at the edge.
template <typename T>
struct Edge {
  T whole;
  T rest;

  PRROI_POOL_INLINE T relative_to(int64_t pixel) const { return (whole - static_cast<T>(pixel)) + rest; }
};

template <typename T>
PRROI_POOL_INLINE Edge<T> edge(const Extent<T>& extent, int64_t bin) {
  const T position = static_cast<T>(bin), whole_low = std::rint(extent.low);
  return {
      whole_low + std::rint(extent.bin_width) * position,
      (extent.low - whole_low) + extent.bin_width_rest * position};
}

// The pixels whose hats reach into bins first, ..., end - 1.
template <typename T>
PRROI_POOL_INLINE PixelRange touched_pixels(const Extent<T>& extent, int64_t first, int64_t end, int64_t size) {
  const Edge<T> low = edge(extent, first), high = edge(extent, end);
  return clipped_pixels(low.whole + std::floor(low.rest), high.whole + std::ceil(high.rest), size);
}

template <typename T>
PRROI_POOL_INLINE PixelRange touched_pixels(const Extent<T>& extent, int64_t bin, int64_t size) {
  return touched_pixels(extent, bin, bin + 1, size);
}

// Bins first, ..., first + count - 1 of a RoI.
struct BinRange {
  int64_t first;
  int64_t count;

  PRROI_POOL_INLINE int64_t end() const { return first + count; }
};

// The weight of a pixel in a bin, and the derivatives of the weight with respect to the two ends of the RoI.
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
PRROI_POOL_INLINE T clamp(T t, T low, T high) {
  return t < low ? low : t > high ? high : t;
}

// For bins below one pixel. Measures in fractions of the bin.
template <typename T>
PRROI_POOL_INLINE Weight<T> narrow_bin_weight(const Extent<T>& extent, int64_t bin, int64_t pixel) {
  const T width = extent.bin_width;
  // Subtract the pixel from the RoI's start first, which is exact for nearby values. The start of a bin alone would be
  // rounded to an ulp of the coordinate, 8e-6 px at 100, too coarse for tiny bins.
  const T offset = extent.low - static_cast<T>(pixel);
  const T position = static_cast<T>(bin);
  // The hat rises from -1 to 0 and falls from 0 to 1. These are the t at which the bin passes the three knots.
  const T enter = clamp<T>((-1 - offset) / width - position, 0, 1);
  const T peak = clamp<T>(-offset / width - position, 0, 1);
  const T leave = clamp<T>((1 - offset) / width - position, 0, 1);
  // The fractions of the bin on the two sides, and the middles of these fractions.
  const T rising = peak - enter;
  const T falling = leave - peak;
  const T t_rising = position + (enter + peak) / 2;
  const T t_falling = position + (peak + leave) / 2;

  Weight<T> weight;
  weight.value = rising * (1 + (offset + width * t_rising)) + falling * (1 - (offset + width * t_falling));
  // The point low + (bin + t) / num_bins * (high - low) depends linearly on the two ends of the RoI. K' is 1 on the rising
  // side and -1 on the falling side. The knots move as well, but K is continuous there, so they contribute nothing.
  weight.d_high = (rising * t_rising - falling * t_falling) / static_cast<T>(extent.num_bins);
  weight.d_low = rising - falling - weight.d_high;
  return weight;
}

// For bins of one pixel or more. Measures in pixels. For a pixel well inside the bin, each side of the hat covers exactly
// 1 px, so the two cancel without rounding. Fractions of the bin would leave an error at every pixel.
template <typename T>
PRROI_POOL_INLINE Weight<T> wide_bin_weight(const Extent<T>& extent, int64_t bin, int64_t pixel) {
  const T start = edge(extent, bin).relative_to(pixel), end = edge(extent, bin + 1).relative_to(pixel);
  // Start and end of the bin on the rising side of the hat, and on the falling side.
  const T rising_start = clamp<T>(start, -1, 0), rising_end = clamp<T>(end, -1, 0);
  const T falling_start = clamp<T>(start, 0, 1), falling_end = clamp<T>(end, 0, 1);
  const T area = (rising_end - rising_start) * (1 + (rising_start + rising_end) / 2) +
      (falling_end - falling_start) * (1 - (falling_start + falling_end) / 2);
  const T hat_at_start = 1 + rising_start - falling_start, hat_at_end = 1 + rising_end - falling_end;

  Weight<T> weight;
  weight.value = area * extent.inverse_bin_width;
  // Derived from the integrals of K' and of t K' over the bin, the latter by parts. The first describes a shift of the
  // bin, the second a change of its width.
  const T bins_before = static_cast<T>(bin), bins_behind = static_cast<T>(extent.num_bins - 1 - bin);
  const T change = hat_at_end - hat_at_start;
  weight.d_low = (bins_behind * change + (weight.value - hat_at_start)) * extent.inverse_size;
  weight.d_high = (bins_before * change + (hat_at_end - weight.value)) * extent.inverse_size;
  return weight;
}

template <typename T>
PRROI_POOL_INLINE Weight<T> bin_weight(const Extent<T>& extent, int64_t bin, int64_t pixel) {
  return extent.bin_width < 1 ? narrow_bin_weight(extent, bin, pixel) : wide_bin_weight(extent, bin, pixel);
}

// The index of a RoI's image, or -1 if there is no such image.
template <typename T>
PRROI_POOL_INLINE int64_t image_of(T batch_index, int64_t num_images) {
  const bool exists = batch_index >= 0 && batch_index < static_cast<T>(num_images) && std::floor(batch_index) == batch_index;
  return exists ? static_cast<int64_t>(batch_index) : -1;
}

}  // namespace prroi_pool
