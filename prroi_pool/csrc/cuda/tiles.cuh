// Loops of a block over its RoI: over groups of kBins x kBins bins, and within each group over tiles of the pixels that
// reach into these bins.

#pragma once

#include "axis_tables.cuh"
#include "tensors.cuh"

namespace prroi_pool {

// Channels that a warp processes at once, limited by shared memory.
template <typename Acc>
struct ChannelsOfWarp {
  static constexpr int kCount = sizeof(Acc) == 8 ? 2 : 4;
  int first;

  __device__ ChannelsOfWarp() : first((blockIdx.y * kWarps + threadIdx.y) * kCount) {}

  // The index of the warp's channel c. Indices beyond the last channel repeat it, and nothing is written for them.
  __device__ int channel(int c, int channels) const { return first + c < channels ? first + c : channels - 1; }

  template <typename T>
  __device__ void find(T* (&targets)[kCount], const FeatureMap<T>& map, int64_t image, int channels) const {
#pragma unroll
    for (int c = 0; c < kCount; ++c) {
      targets[c] = map.at(image, channel(c, channels));
    }
  }
};

template <int N>
struct Number {
  static constexpr int value = N;
};

// Calls visit(n, Number<count>) for parts [n, n + count) of [begin, end): parts of kAtOnce elements as long as they fit,
// then parts of half the size, and so on. All loads of a part can be in flight at once.
template <int kAtOnce, typename Visit>
__device__ void in_parts(int begin, int end, const Visit& visit) {
#pragma unroll 1
  for (; begin + kAtOnce <= end; begin += kAtOnce) {
    visit(begin, Number<kAtOnce>{});
  }
  if constexpr (kAtOnce > 1) {
    in_parts<kAtOnce / 2>(begin, end, visit);
  }
}

// Loads kRows rows, from `row` on, of several columns or channels. All loads are issued before the first value is used.
template <typename Value, int kRows, int kCount, typename T>
__device__ void load_rows(
    Value (&values)[kRows][kCount], const T* const (&sources)[kCount], int64_t offset, int row, int64_t row_stride) {
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      values[r][n] = *reinterpret_cast<const Value*>(sources[n] + (offset + (row + r) * row_stride));
    }
  }
}

// Calls visit(bins_y, bins_x) for each group of bins.
template <typename Acc, typename Visit>
__device__ void for_each_group(const RoIs<Acc>& rois, const Visit& visit) {
  const Range all_y{0, rois.pooled_height}, all_x{0, rois.pooled_width};
  for (int y = 0; y < all_y.count; y += kBins) {
    for (int x = 0; x < all_x.count; x += kBins) {
      visit(part(all_y, y, kBins), part(all_x, x, kBins));
    }
  }
}

// Fills the tables of each tile and calls visit(rows, columns) with its pixels. To be called by all threads of the block.
template <int kRows, int kColumns, typename T, typename Acc, typename YTable, typename XTable, typename Visit>
__device__ void for_each_tile(
    const RoI<T, Acc>& roi, const Range& bins_y, const Range& bins_x, YTable& y, XTable& x, const Visit& visit) {
  const Range all_rows = pixels_of_bins(roi.y, bins_y, roi.map->height);
  const Range all_columns = pixels_of_bins(roi.x, bins_x, roi.map->width);
  for (int row = all_rows.first; row < all_rows.end(); row += kRows) {
    const Range rows = part(all_rows, row, kRows);
    for (int column = all_columns.first; column < all_columns.end(); column += kColumns) {
      const Range columns = part(all_columns, column, kColumns);
      __syncthreads();  // all threads are done with the tables of the previous tile
      y.fill(roi.y, bins_y, rows);
      x.fill(roi.x, bins_x, columns);
      __syncthreads();
      visit(rows, columns);
    }
  }
}

}  // namespace prroi_pool
