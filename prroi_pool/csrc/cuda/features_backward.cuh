// The gradient of the features. A block owns one tile of a map, processes the RoIs that reach the tile in order, and writes
// every pixel once. The kernel needs no atomics, its result is deterministic, and the maps need not be zeroed first.

#pragma once

#include "tiles.cuh"

namespace prroi_pool {

// Number of RoIs that a block tests at a time for overlap with its tile.
constexpr int kCandidates = kWarp * kWarps;

template <typename T>
struct Tile {
  int level;
  int64_t image;
  const FeatureMap<T>* map;
  Range rows, columns;
};

// Tile number `index` of all maps and images.
template <int kRows, int kColumns, typename T, typename Acc>
__device__ Tile<T> tile_at(const Pyramid<T, Acc>& pyramid, int64_t index) {
  int level = 0;
  int64_t of_map = 0, across = 0, down = 0;
  for (;; ++level) {
    const FeatureMap<T>& map = pyramid.maps[level];
    across = (map.width + kColumns - 1) / kColumns;
    down = (map.height + kRows - 1) / kRows;
    of_map = map.images * down * across;
    if (index < of_map || level + 1 == pyramid.num_levels) {
      break;
    }
    index -= of_map;
  }
  const FeatureMap<T>* const map = &pyramid.maps[level];
  const int64_t image = index / (down * across), in_image = index % (down * across);
  const Range all_rows{0, static_cast<int>(map->height)}, all_columns{0, static_cast<int>(map->width)};
  const int row = static_cast<int>(in_image / across) * kRows, column = static_cast<int>(in_image % across) * kColumns;
  return {level, image, map, part(all_rows, row, kRows), part(all_columns, column, kColumns)};
}

// The weights of the pixels of a tile in the bins of one RoI; 0 if the pixel does not reach into the bin.
template <typename Acc, int kRows, int kColumns>
struct TileWeights {
  Range bins_y, bins_x;  // bins of the RoI that reach the tile; bins_x is empty if there are none
  Range bins_of_row[kRows];  // counted from the first of bins_y
  Acc y[kBins][kRows];
  alignas(4 * sizeof(Acc)) Acc x[kBins][kColumns];
  unsigned reached[kBins];  // bit q: whether the bin reaches any of the columns 4 q to 4 q + 3

  // To be called by a whole warp.
  template <typename T>
  __device__ void fill(
      const RoI<T, Acc>& roi, const Range& group_y, const Range& group_x, const Range& rows, const Range& columns) {
    const int lane = threadIdx.x;
    const Range of_rows = reaching_bins(roi.y, group_y, rows), of_columns = reaching_bins(roi.x, group_x, columns);
    const bool reaches = of_rows.count > 0 && of_columns.count > 0;
    if (lane == 0) {
      bins_y = of_rows;
      bins_x = {of_columns.first, reaches ? of_columns.count : 0};
    }
    if (!reaches) {
      return;
    }
    for (int index = lane; index < of_rows.count * kRows; index += kWarp) {
      const int bin = index / kRows, row = index % kRows;
      y[bin][row] = row < rows.count ? bin_weight(roi.y, of_rows.first + bin, rows.first + row).value : Acc(0);
    }
    for (int index = lane; index < of_columns.count * kColumns; index += kWarp) {
      const int bin = index / kColumns, column = index % kColumns;
      x[bin][column] =
          column < columns.count ? bin_weight(roi.x, of_columns.first + bin, columns.first + column).value : Acc(0);
    }
    __syncwarp();
    if (lane < kRows) {
      int first = 0, end = of_rows.count;
      while (first < end && y[first][lane] == 0) {
        ++first;
      }
      while (end > first && y[end - 1][lane] == 0) {
        --end;
      }
      bins_of_row[lane] = {first, end - first};
    }
    if (lane < of_columns.count) {
      unsigned bits = 0;
      for (int column = 0; column < kColumns; ++column) {
        bits |= (x[lane][column] != 0 ? 1u : 0u) << column / 4;
      }
      reached[lane] = bits;
    }
  }
};

// Calls visit(k, weights) for each RoI and each group of its bins that reaches the tile. To be called by all threads of the
// block.
template <typename Acc, int kRows, int kColumns>
struct Gatherer {
  // All threads read this array, possibly with vector loads. The alignment keeps values that are written later out of the
  // same load.
  alignas(16) int of_warps[kWarps];
  int chosen[kCandidates];
  int num_chosen;
  TileWeights<Acc, kRows, kColumns> weights[kWarps];

  template <typename T, typename Visit>
  __device__ void visit_rois(
      const Pyramid<T, Acc>& pyramid, const RoIs<Acc>& rois, const Tile<T>& tile, const Visit& visit) {
    const int warp = threadIdx.y, lane = threadIdx.x;
    for (int first = 0; first < rois.count; first += kCandidates) {
      choose(pyramid, rois, tile, first);
      for (int begin = 0; begin < num_chosen; begin += kWarps) {
        const int count = num_chosen - begin < kWarps ? num_chosen - begin : kWarps;
        for_each_group(rois, [&](const Range& group_y, const Range& group_x) {
          __syncthreads();  // all threads are done with the previous weights
          if (warp < count) {
            const RoI<T, Acc> roi = read_roi(pyramid, rois, chosen[begin + warp]);
            weights[warp].fill(roi, group_y, group_x, tile.rows, tile.columns);
          }
          __syncthreads();
          for (int n = 0; n < count; ++n) {
            if (weights[n].bins_x.count > 0) {
              visit(chosen[begin + n], weights[n]);
            }
          }
        });
      }
    }
  }

 private:
  // Lists which of the kCandidates RoIs from `first` on reach the tile, in order.
  template <typename T>
  __device__ void choose(const Pyramid<T, Acc>& pyramid, const RoIs<Acc>& rois, const Tile<T>& tile, int first) {
    const int warp = threadIdx.y, lane = threadIdx.x, k = first + warp * kWarp + lane;
    bool reaches = false;
    if (k < rois.count) {
      const RoI<T, Acc> roi = read_roi(pyramid, rois, k);
      if (roi.pools && roi.map == tile.map && roi.image == tile.image) {
        reaches = reaching_bins(roi.y, {0, rois.pooled_height}, tile.rows).count > 0 &&
            reaching_bins(roi.x, {0, rois.pooled_width}, tile.columns).count > 0;
      }
    }
    const unsigned of_warp = __ballot_sync(0xffffffff, reaches);
    if (lane == 0) {
      of_warps[warp] = __popc(of_warp);
    }
    __syncthreads();
    int place = __popc(of_warp & ((1u << lane) - 1)), total = 0;
    for (int n = 0; n < kWarps; ++n) {
      place += n < warp ? of_warps[n] : 0;
      total += of_warps[n];
    }
    if (reaches) {
      chosen[place] = k;
    }
    if (warp == 0 && lane == 0) {
      num_chosen = total;
    }
    __syncthreads();
  }
};

// Writes a row of a tile for N channels. The channels of a pixel, or the pixels of a channel, are written together if they
// are adjacent in memory.
template <typename T, typename Acc, int N, int kColumns>
__device__ void write_row(
    T* target, const FeatureMap<T>& map, int num_columns, const Pack<Acc, N> (&sums)[kColumns]) {
  const auto is_aligned = [&](int count, int64_t stride_a, int64_t stride_b, int64_t stride_c) {
    return (stride_a | stride_b | stride_c) % count == 0 && reinterpret_cast<uint64_t>(map.data) % (count * sizeof(T)) == 0;
  };
  if (map.channel_stride == 1 && is_aligned(N, map.image_stride, map.row_stride, map.column_stride)) {
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      Pack<T, N> pixel;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        pixel.value[n] = Narrow<T>::from(sums[column].value[n]);
      }
      if (column < num_columns) {
        *reinterpret_cast<Pack<T, N>*>(target + column * map.column_stride) = pixel;
      }
    }
    return;
  }
  constexpr int kAtOnce = 4;
  const bool whole = num_columns == kColumns && map.column_stride == 1 &&
      is_aligned(kAtOnce, map.image_stride, map.channel_stride, map.row_stride);
#pragma unroll
  for (int n = 0; n < N; ++n) {
#pragma unroll
    for (int first = 0; first < kColumns; first += kAtOnce) {
      Pack<T, kAtOnce> pixels;
#pragma unroll
      for (int m = 0; m < kAtOnce; ++m) {
        pixels.value[m] = Narrow<T>::from(sums[first + m].value[n]);
        if (!whole && first + m < num_columns) {
          target[n * map.channel_stride + (first + m) * map.column_stride] = pixels.value[m];
        }
      }
      if (whole) {
        *reinterpret_cast<Pack<T, kAtOnce>*>(target + n * map.channel_stride + first) = pixels;
      }
    }
  }
}

// Block (k, chunk) transposes the gradient of RoI k's output from [C, bins] to [bins, C], for kTransposed channels and
// kTransposed bins at a time, so that the lanes of a warp can read adjacent channels.
constexpr int kTransposed = 32;

template <typename T>
__global__ void __launch_bounds__(kWarp * kWarps)
    channels_to_the_end(T* target, const T* source, int channels, int num_bins) {
  __shared__ T values[kTransposed][kTransposed + 1];
  const int64_t k = blockIdx.x;
  const int first = blockIdx.y * kTransposed, lane = threadIdx.x;
  for (int bins = 0; bins < num_bins; bins += kTransposed) {
    __syncthreads();
#pragma unroll
    for (int channel = threadIdx.y; channel < kTransposed; channel += kWarps) {
      if (first + channel < channels && bins + lane < num_bins) {
        values[channel][lane] = source[(k * channels + first + channel) * num_bins + bins + lane];
      }
    }
    __syncthreads();
#pragma unroll
    for (int bin = threadIdx.y; bin < kTransposed; bin += kWarps) {
      if (first + lane < channels && bins + bin < num_bins) {
        target[(k * num_bins + bins + bin) * channels + first + lane] = values[lane][bin];
      }
    }
  }
}

// Block (tile, chunk) computes the gradient of 8 x 8 pixels and 32 N channels, for any memory layout of the maps. A warp
// processes one row, and a lane N channels. `grads`, the gradient of the output, is contiguous
// [K, pooled_height, pooled_width, C].
template <typename T, typename Acc, int N>
__global__ void __launch_bounds__(kWarp * kWarps, 3)
    features_backward(const T* grads, const __grid_constant__ Pyramid<T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kRows = kWarps, kColumns = 8, kQuads = kColumns / 4;
  __shared__ Gatherer<Acc, kRows, kColumns> gatherer;
  // Start with the coarsest maps, because the most RoIs reach their tiles.
  const Tile<T> tile = tile_at<kRows, kColumns>(pyramid, gridDim.x - 1 - blockIdx.x);
  const int row = threadIdx.y, channel = (blockIdx.y * kWarp + threadIdx.x) * N;
  const bool has_channels = channel < rois.channels;
  Pack<Acc, N> sums[kColumns] = {};

  gatherer.visit_rois(pyramid, rois, tile, [&](int64_t k, const TileWeights<Acc, kRows, kColumns>& weights) {
    if (!has_channels) {
      return;
    }
    const Range row_bins = weights.bins_of_row[row];
    const int64_t bin_stride = rois.channels, row_stride = bin_stride * rois.pooled_width;
    const T* const source = grads + channel +
        (k * rois.pooled_height + weights.bins_y.first + row_bins.first) * row_stride + weights.bins_x.first * bin_stride;
    in_parts<2>(0, row_bins.count > 0 ? weights.bins_x.count : 0, [&](int first, auto number) {
      constexpr int kBinsX = decltype(number)::value;
      Pack<Acc, N> of_row[kBinsX] = {};
      in_parts<2>(0, row_bins.count, [&](int b, auto number_y) {
        constexpr int kBinsY = decltype(number_y)::value;
        Pack<T, N> loaded[kBinsY][kBinsX];
#pragma unroll
        for (int r = 0; r < kBinsY; ++r) {
#pragma unroll
          for (int m = 0; m < kBinsX; ++m) {
            loaded[r][m] = load<N>(source + (b + r) * row_stride + (first + m) * bin_stride);
          }
        }
#pragma unroll
        for (int r = 0; r < kBinsY; ++r) {
          const Acc weight = weights.y[row_bins.first + b + r][row];
#pragma unroll
          for (int m = 0; m < kBinsX; ++m) {
            add_weighted(of_row[m], weight, loaded[r][m]);
          }
        }
      });
#pragma unroll
      for (int m = 0; m < kBinsX; ++m) {
        const unsigned reached = weights.reached[first + m];
#pragma unroll
        for (int q = 0; q < kQuads; ++q) {
          if (reached >> q & 1) {
            const Pack<Acc, 4> of_columns = load<4>(&weights.x[first + m][4 * q]);
#pragma unroll
            for (int c = 0; c < 4; ++c) {
              add_weighted(sums[4 * q + c], of_columns.value[c], of_row[m]);
            }
          }
        }
      }
    });
  });
  if (has_channels && row < tile.rows.count) {
    const FeatureMap<T>& map = *tile.map;
    T* const target = map.at(tile.image, channel) + (tile.rows.first + row) * map.row_stride +
        tile.columns.first * map.column_stride;
    write_row<T, Acc, N, kColumns>(target, map, tile.columns.count, sums);
  }
}

}  // namespace prroi_pool
