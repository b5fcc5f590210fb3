// Kernels for maps whose channels are not adjacent in memory. They are fastest for contiguous maps, where the pixels of a
// row are adjacent. The lanes of a warp process adjacent columns, and each lane a few channels, which share the weights and
// the loops.

#pragma once

#include "roi_gradient.cuh"
#include "tiles.cuh"

namespace prroi_pool {

// The column of a tile that a lane processes. If there are few columns, several lanes share a column and process different
// rows of bins.
struct LaneColumn {
  int column, part, parts;

  __device__ explicit LaneColumn(const Range& columns) {
    const int width = columns.count <= kWarp / 4 ? kWarp / 4 : columns.count <= kWarp / 2 ? kWarp / 2 : kWarp;
    column = threadIdx.x % width;
    part = threadIdx.x / width;
    parts = kWarp / width;
  }
};

// Block (k, chunk) pools some channels of RoI k. The lanes of a warp first sum columns of pixels along y, one column per
// lane, and then sum the results along x, up to two bins per lane.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kWarps, 3)
    forward_strided(T* output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kChannels = ChannelsOfWarp<Acc>::kCount, kBinsOfLane = kBins * kBins / kWarp, kRows = 4;
  __shared__ PixelsOfBins<Acc, Acc> y, x;
  __shared__ Acc staged[kWarps][kChannels][kBins][kWarp + 1];
  const int64_t k = blockIdx.x;
  const RoI<const T, Acc> roi = read_roi(pyramid, rois, k);
  const ChannelsOfWarp<Acc> channels;
  const int lane = threadIdx.x;
  auto& sums = staged[threadIdx.y];

  for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
    Acc totals[kBinsOfLane][kChannels] = {};
    if (roi.pools) {
      const FeatureMap<const T>& map = *roi.map;
      const T* sources[kChannels];
      channels.find(sources, map, roi.image, rois.channels);
      for_each_tile<kPixels, kWarp>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        if (channels.first >= rois.channels) {
          return;
        }
        const LaneColumn own(columns);
        const int64_t column_offset = (columns.first + own.column) * map.column_stride;
        for (int bin_y = own.part; bin_y < bins_y.count && own.column < columns.count; bin_y += own.parts) {
          const Range bin_rows = y.pixels[bin_y];
          const Acc* const y_weights = y.weights(bin_y, rows);
          Acc column_sums[kChannels] = {};
          const int64_t offset = bin_rows.first * map.row_stride + column_offset;
          in_parts<kRows>(0, bin_rows.count, [&](int row, auto number) {
            T values[number.value][kChannels];
            load_rows(values, sources, offset, row, map.row_stride);
#pragma unroll
            for (int r = 0; r < number.value; ++r) {
              const Acc weight = y_weights[row + r];
#pragma unroll
              for (int c = 0; c < kChannels; ++c) {
                column_sums[c] += weight * widen(values[r][c]);
              }
            }
          });
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            sums[c][bin_y][own.column] = column_sums[c];
          }
        }
        __syncwarp();
#pragma unroll
        for (int m = 0; m < kBinsOfLane; ++m) {
          const int bin = lane + m * kWarp, bin_y = bin / bins_x.count, bin_x = bin % bins_x.count;
          if (bin_y < bins_y.count) {
            const Range bin_columns = x.pixels[bin_x];
            const Acc* const x_weights = x.weights(bin_x, columns);
            for (int n = 0; n < bin_columns.count; ++n) {
#pragma unroll
              for (int c = 0; c < kChannels; ++c) {
                totals[m][c] += x_weights[n] * sums[c][bin_y][bin_columns.first - columns.first + n];
              }
            }
          }
        }
        __syncwarp();
      });
    }
#pragma unroll
    for (int m = 0; m < kBinsOfLane; ++m) {
      const int bin = lane + m * kWarp, bin_y = bin / bins_x.count, bin_x = bin % bins_x.count;
      for (int c = 0; c < kChannels; ++c) {
        if (bin_y < bins_y.count && channels.first + c < rois.channels) {
          output[rois.offset(k, channels.first + c, bins_y.first + bin_y, bins_x.first + bin_x)] =
              Narrow<T>::from(totals[m][c]);
        }
      }
    }
  });
}

// Block (k, chunk) computes the contribution of some channels to the gradient of RoI k, partial_grads[chunk][k] of
// [chunks, K, 5]. Each lane processes one column.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kWarps, 3) rois_backward_strided(
    Acc* partial_grads, const T* grad_output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kChannels = ChannelsOfWarp<Acc>::kCount, kRows = 2;
  __shared__ PixelsOfBins<Acc, Weight<Acc>> y;
  __shared__ BinsOfPixels<Acc, Weight<Acc>> x;
  const int64_t k = blockIdx.x;
  const RoI<const T, Acc> roi = read_roi(pyramid, rois, k);
  const ChannelsOfWarp<Acc> channels;
  RoIGradient<Acc> grad;

  if (roi.pools) {
    const FeatureMap<const T>& map = *roi.map;
    const T* sources[kChannels];
    channels.find(sources, map, roi.image, rois.channels);
    for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
      for_each_tile<kPixels, kWarp>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        RoIGradient<Acc> of_tile;  // a sum per tile; a single sum of thousands of terms would lose precision
        const LaneColumn own(columns);
        if (own.column >= columns.count || channels.first >= rois.channels) {
          return;
        }
        const Range column_bins = x.bins[own.column];
        const Weight<Acc>* const x_weights = x.weights(own.column);
        const T* grads[kChannels];
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          grads[c] = grad_output +
              rois.offset(k, channels.channel(c, rois.channels), bins_y.first, bins_x.first + column_bins.first);
        }
        const int64_t column_offset = (columns.first + own.column) * map.column_stride;
        for (int bin_y = own.part; bin_y < bins_y.count; bin_y += own.parts) {
          const Range bin_rows = y.pixels[bin_y];
          const Weight<Acc>* const y_weights = y.weights(bin_y, rows);
          // The derivative of the loss with respect to a pixel of this column, and the derivatives of this derivative with
          // respect to the RoI's two ends in x. All three still have to be multiplied by the weight in y.
          Weight<Acc> of_bins[kChannels] = {};
#pragma unroll 1
          for (int n = 0; n < column_bins.count; ++n) {
            const Weight<Acc> weight = x_weights[n];
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              of_bins[c].add(widen(grads[c][bin_y * rois.pooled_width + n]), weight);
            }
          }
          const int64_t offset = bin_rows.first * map.row_stride + column_offset;
          in_parts<kRows>(0, bin_rows.count, [&](int row, auto number) {
            T pixels[number.value][kChannels];
            load_rows(pixels, sources, offset, row, map.row_stride);
#pragma unroll
            for (int r = 0; r < number.value; ++r) {
              Weight<Acc> sums{0, 0, 0};
#pragma unroll
              for (int c = 0; c < kChannels; ++c) {
                sums.add(channels.first + c < rois.channels ? widen(pixels[r][c]) : Acc(0), of_bins[c]);
              }
              of_tile.add(sums, y_weights[row + r]);
            }
          });
        }
        grad.add(of_tile);
      });
    });
  }
  grad.sum_over_block_and_write(partial_grads + (blockIdx.y * static_cast<int64_t>(gridDim.x) + k) * 5, roi.spatial_scale);
}

}  // namespace prroi_pool
