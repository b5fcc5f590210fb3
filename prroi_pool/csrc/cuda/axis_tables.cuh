// The 1-D weights of one RoI along one axis, in the shared memory of the block that works on it.
//
// A block works on a tile at a time: up to kBins bins and kPixels pixels of each axis. So the tables have a fixed size,
// whatever the RoI's and the number of its bins.

#pragma once

#include "../bilinear_integral.h"

namespace prroi_pool {

constexpr int kBins = 8;
constexpr int kPixels = 128;

struct Range {
  int first, count;

  PRROI_POOL_INLINE int end() const { return first + count; }
};

PRROI_POOL_INLINE Range part(const Range& range, int first, int count) {
  return {first, range.end() - first < count ? range.end() - first : count};
}

// The pixels of an axis of `size` pixels that these bins reach.
template <typename T>
__device__ Range pixels_of_bins(const Extent<T>& extent, const Range& bins, int64_t size) {
  const PixelRange pixels = touched_pixels(extent, bins.first, bins.end(), size);
  return {static_cast<int>(pixels.first), static_cast<int>(pixels.count)};
}

// Those of some bins that reach any of some pixels.
template <typename T>
__device__ Range reaching_bins(const Extent<T>& extent, const Range& bins, const Range& pixels) {
  const T begin = static_cast<T>(bins.first), end = static_cast<T>(bins.end());
  const T before = floor((static_cast<T>(pixels.first) - 1 - extent.low) * extent.inverse_bin_width);
  const T after = ceil((static_cast<T>(pixels.end()) - extent.low) * extent.inverse_bin_width);
  int first = static_cast<int>(before < begin ? begin : before < end ? before : end);
  int last = static_cast<int>(after < begin ? begin : after < end ? after : end);  // exclusive
  // This was an estimate: far from 0, its numbers are rounded. The weights know where the bins' edges are.
  while (first > bins.first && edge(extent, first).relative_to(pixels.first) > -1) {
    --first;
  }
  while (last < bins.end() && edge(extent, last).relative_to(pixels.end() - 1) < 1) {
    ++last;
  }
  return {first, last > first ? last - first : 0};
}

__device__ inline int thread_of_block() {
  return threadIdx.y * blockDim.x + threadIdx.x;
}

__device__ inline int threads_of_block() {
  return blockDim.x * blockDim.y;
}

// What a weight is stored as: T where only its value is wanted, Weight<T> where its derivatives are, too.
template <typename T>
__device__ void store(T& entry, const Weight<T>& weight) {
  entry = weight.value;
}

template <typename T>
__device__ void store(Weight<T>& entry, const Weight<T>& weight) {
  entry = weight;
}

// For each bin of a tile the pixels it reaches and their weights.
template <typename T, typename Entry>
struct PixelsOfBins {
  // Neighbouring bins share three pixels at most: the one they meet on, the next, and one by rounding. So a bin's entries can
  // begin kGap entries further on than its pixels.
  static constexpr int kGap = 4;
  static constexpr int kEntries = kPixels + kGap * kBins;
  Range pixels[kBins];
  Entry entries[kEntries];

  // To be called by all threads of the block, with barriers before and after.
  __device__ void fill(const Extent<T>& extent, const Range& bins, const Range& tile) {
    // A bin reaches into ceil(width) + 2 pixels at most, and rounding may add one.
    const T widest = ceil(extent.bin_width) + 3;
    const int stride = widest < static_cast<T>(tile.count) ? static_cast<int>(widest) : tile.count;
    for (int index = thread_of_block(); index < bins.count * stride; index += threads_of_block()) {
      const int bin = index / stride, n = index % stride;
      const PixelRange reached = touched_pixels(extent, bins.first + bin, tile.end());
      const int first = reached.first > tile.first ? static_cast<int>(reached.first) : tile.first;
      const int count = reached.end() > first ? static_cast<int>(reached.end()) - first : 0;
      if (n == 0) {
        pixels[bin] = {first, count < stride ? count : stride};
      }
      if (n < count) {
        store(entries[first - tile.first + kGap * bin + n], bin_weight(extent, bins.first + bin, first + n));
      }
    }
  }

  // Of the first of a bin's pixels; those of the others follow.
  __device__ const Entry* weights(int bin, const Range& tile) const {
    return &entries[pixels[bin].first - tile.first + kGap * bin];
  }
};

// For each pixel of a tile the bins that reach it, counted from the tile's first, and their weights.
template <typename T, typename Entry>
struct BinsOfPixels {
  static constexpr int kEntries = 4 * kPixels;
  // Up to kBins bins of less than a pixel meet on one of few pixels, at most four larger ones on one of many.
  int stride;
  Range bins[kPixels];
  Entry entries[kEntries];

  // To be called by all threads of the block, with barriers before and after.
  __device__ void fill(const Extent<T>& extent, const Range& of_tile, const Range& tile) {
    const int most = extent.bin_width >= 1 ? 4 : kBins;
    for (int index = thread_of_block(); index < tile.count * most; index += threads_of_block()) {
      const int pixel = index / most, n = index % most;
      const Range reached = reaching_bins(extent, of_tile, {tile.first + pixel, 1});
      if (n == 0) {
        bins[pixel] = {reached.first - of_tile.first, reached.count < most ? reached.count : most};
      }
      if (n < reached.count) {
        store(entries[index], bin_weight(extent, reached.first + n, tile.first + pixel));
      }
    }
    if (thread_of_block() == 0) {
      stride = most;
    }
  }

  // Of the first of the bins that reach a pixel of the tile; those of the others follow.
  __device__ const Entry* weights(int pixel) const { return &entries[pixel * stride]; }
};

}  // namespace prroi_pool
