// Tables of the 1-D weights of one RoI along one axis, in the shared memory of the block that processes the RoI.
//
// A block processes one tile at a time: up to kBins bins and kPixels pixels per axis. The size of the tables is therefore
// independent of the RoI's size and number of bins.

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

// The pixels on an axis of `size` pixels whose hats reach into these bins.
template <typename T>
__device__ Range pixels_of_bins(const Extent<T>& extent, const Range& bins, int64_t size) {
  const PixelRange pixels = touched_pixels(extent, bins.first, bins.end(), size);
  return {static_cast<int>(pixels.first), static_cast<int>(pixels.count)};
}

// The subset of `bins` that any of `pixels` reaches into.
template <typename T>
__device__ Range reaching_bins(const Extent<T>& extent, const Range& bins, const Range& pixels) {
  const T begin = static_cast<T>(bins.first), end = static_cast<T>(bins.end());
  const T before = floor((static_cast<T>(pixels.first) - 1 - extent.low) * extent.inverse_bin_width);
  const T after = ceil((static_cast<T>(pixels.end()) - extent.low) * extent.inverse_bin_width);
  int first = static_cast<int>(before < begin ? begin : before < end ? before : end);
  int last = static_cast<int>(after < begin ? begin : after < end ? after : end);  // exclusive
  // So far this is an estimate, because coordinates far from 0 are rounded. Correct it with the precise edges of the bins.
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

// Stores a weight in a table: only its value in a T, or also its derivatives in a Weight<T>.
template <typename T>
__device__ void store(T& entry, const Weight<T>& weight) {
  entry = weight.value;
}

template <typename T>
__device__ void store(Weight<T>& entry, const Weight<T>& weight) {
  entry = weight;
}

// For each bin of a tile: the pixels that reach into it, and their weights.
template <typename T, typename Entry>
struct PixelsOfBins {
  // Neighbouring bins share at most three pixels: two around their common edge, and one more by rounding. Bin number b can
  // therefore store the entry of a pixel kGap * b places after the pixel's position in the tile without overlap.
  static constexpr int kGap = 4;
  static constexpr int kEntries = kPixels + kGap * kBins;
  Range pixels[kBins];
  Entry entries[kEntries];

  // To be called by all threads of the block, with barriers before and after.
  __device__ void fill(const Extent<T>& extent, const Range& bins, const Range& tile) {
    // At most ceil(width) + 2 pixels reach into a bin, and rounding may add one.
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

  // The entry of the bin's first pixel. The entries of its other pixels follow.
  __device__ const Entry* weights(int bin, const Range& tile) const {
    return &entries[pixels[bin].first - tile.first + kGap * bin];
  }
};

// For each pixel of a tile: the bins that it reaches into, counted from the tile's first bin, and its weights in them.
template <typename T, typename Entry>
struct BinsOfPixels {
  static constexpr int kEntries = 4 * kPixels;
  // Entries per pixel: kBins for bins below one pixel, when a RoI has few pixels; four for larger bins.
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

  // The entry of the first bin that a pixel of the tile reaches into. The entries of its other bins follow.
  __device__ const Entry* weights(int pixel) const { return &entries[pixel * stride]; }
};

}  // namespace prroi_pool
