// The 1-D weights of one RoI along one axis, in the shared memory of the block that works on it.

#pragma once

#include <type_traits>

#include "../bilinear_integral.h"

namespace prroi_pool {

// `Entry` is T where only the weights are wanted, and Weight<T> where their derivatives are, too.
template <typename Entry>
struct AxisStorage {
  // Enough for a RoI of about 480 pixels of the map in 7 bins. The weights of a larger one are computed whenever they
  // are needed.
  static constexpr int kBins = 64;
  static constexpr int kEntries = 512;
  PixelRange pixels[kBins];
  Entry entries[kEntries];
};

template <typename T, typename Entry>
class AxisTable {
 public:
  __device__ AxisTable(const Extent<T>& extent, int64_t size, AxisStorage<Entry>& storage)
      : extent_(extent), size_(size), storage_(storage) {
    // A bin reaches into ceil(width) + 2 pixels at most, and rounding may add one.
    const T stride = std::ceil(extent.bin_width) + 3;
    if (extent.num_bins <= storage.kBins && stride * static_cast<T>(extent.num_bins) <= storage.kEntries) {
      stride_ = static_cast<int>(stride);
    }
  }

  // To be called by all threads of the block, with a barrier before the table is used.
  __device__ void fill() {
    const int thread = threadIdx.y * blockDim.x + threadIdx.x, num_threads = blockDim.x * blockDim.y;
    for (int index = thread; index < extent_.num_bins * stride_; index += num_threads) {
      const int bin = index / stride_, n = index % stride_;
      PixelRange pixels = touched_pixels(extent_, bin, size_);
      pixels.count = pixels.count < stride_ ? pixels.count : stride_;
      if (n == 0) {
        storage_.pixels[bin] = pixels;
      }
      if (n < pixels.count) {
        storage_.entries[index] = entry(bin, pixels.first + n);
      }
    }
  }

  // All pixels of the map that the RoI touches.
  __device__ PixelRange pixels() const {
    return touched_pixels(extent_.low, extent_.low + extent_.bin_width * static_cast<T>(extent_.num_bins), size_);
  }

  __device__ PixelRange pixels_of(int64_t bin) const {
    return stride_ > 0 ? storage_.pixels[bin] : touched_pixels(extent_, bin, size_);
  }

  // The bins that reach a pixel, given those that reach one before it, or {}.
  __device__ BinRange bins_of(int64_t pixel, const BinRange& before) const {
    int64_t first = before.first;
    while (first < extent_.num_bins && pixels_of(first).end() <= pixel) {
      ++first;
    }
    int64_t end = before.end() > first ? before.end() : first;
    while (end < extent_.num_bins && pixels_of(end).first <= pixel) {
      ++end;
    }
    return {first, end - first};
  }

  // 0 for a pixel that the bin does not reach.
  __device__ Entry weight(int64_t bin, int64_t pixel) const {
    if (stride_ == 0) {
      return entry(bin, pixel);
    }
    const PixelRange pixels = storage_.pixels[bin];
    return pixels.first <= pixel && pixel < pixels.end() ? storage_.entries[bin * stride_ + pixel - pixels.first]
                                                         : Entry{};
  }

  // Calls visit(pixel, weight) for the pixels from `begin` to before `end` that the bin reaches.
  template <typename Visit>
  __device__ void for_pixels(int64_t bin, int64_t begin, int64_t end, const Visit& visit) const {
    const PixelRange pixels = pixels_of(bin);
    begin = begin > pixels.first ? begin : pixels.first;
    end = end < pixels.end() ? end : pixels.end();
    if (stride_ > 0) {
      const Entry* entries = &storage_.entries[bin * stride_];
#pragma unroll 4
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        visit(pixel, entries[pixel - pixels.first]);
      }
    } else {
#pragma unroll 1
      for (int64_t pixel = begin; pixel < end; ++pixel) {
        visit(pixel, entry(bin, pixel));
      }
    }
  }

  template <typename Visit>
  __device__ void for_pixels(int64_t bin, const Visit& visit) const {
    for_pixels(bin, 0, size_, visit);
  }

 private:
  __device__ Entry entry(int64_t bin, int64_t pixel) const {
    if constexpr (std::is_same_v<Entry, T>) {
      return bin_weight(extent_, bin, pixel).value;
    } else {
      return bin_weight(extent_, bin, pixel);
    }
  }

  const Extent<T> extent_;
  const int64_t size_;
  AxisStorage<Entry>& storage_;
  int stride_ = 0;  // entries of a bin; 0 when the RoI is too large for the table
};

}  // namespace prroi_pool
