// The kernels for maps of any other layout; best for the contiguous one, where the pixels of a row are adjacent in memory.
// The lanes of a warp work on adjacent columns, and each on a few channels, which share the weights and the loops.

#pragma once

#include "roi_gradient.cuh"
#include "tiles.cuh"

namespace prroi_pool {

constexpr int kStridedWarps = 8;

// Channels that a warp works on at once; what they need in shared memory has to fit there.
template <typename Acc>
struct ChannelsOfWarp {
  static constexpr int kCount = sizeof(Acc) == 8 ? 2 : 4;
  int first;

  __device__ ChannelsOfWarp() : first((blockIdx.y * kStridedWarps + threadIdx.y) * kCount) {}

  // A warp's channel; beyond the last one that one again, for which nothing is written.
  __device__ int channel(int c, int channels) const { return first + c < channels ? first + c : channels - 1; }
};

// Block (k, chunk) pools some channels of RoI k. The lanes of a warp first sum columns of pixels along y, one a lane, and
// then these sums along x, one or two bins a lane.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kStridedWarps)
    forward_strided(T* output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kChannels = ChannelsOfWarp<Acc>::kCount, kBinsOfLane = kBins * kBins / kWarp;
  __shared__ PixelsOfBins<Acc, Acc> y, x;
  __shared__ Acc staged[kStridedWarps][kChannels][kBins][kWarp + 1];
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
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        sources[c] = map.at(roi.image, channels.channel(c, rois.channels));
      }
      for_each_tile<kPixels, kWarp>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        if (channels.first >= rois.channels) {
          return;
        }
        const int64_t column_offset = (columns.first + lane) * map.column_stride;
        for (int bin_y = 0; bin_y < bins_y.count && lane < columns.count; ++bin_y) {
          const Range bin_rows = y.pixels[bin_y];
          const Acc* const y_weights = y.weights(bin_y, rows);
          Acc column_sums[kChannels] = {};
          int64_t offset = bin_rows.first * map.row_stride + column_offset;
#pragma unroll 4
          for (int row = 0; row < bin_rows.count; ++row) {
            const Acc weight = y_weights[row];
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              column_sums[c] += weight * widen(sources[c][offset]);
            }
            offset += map.row_stride;
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            sums[c][bin_y][lane] = column_sums[c];
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

// Block (k, chunk) adds to the gradient of some channels below RoI k. A lane first sums the bins that its column reaches
// along x, and then, pixel by pixel, these sums along y: one atomic for a pixel, a channel and a RoI.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kStridedWarps)
    features_backward_strided(const T* grad_output, const __grid_constant__ Pyramid<Acc, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kChannels = ChannelsOfWarp<Acc>::kCount;
  __shared__ BinsOfPixels<Acc, Acc> y, x;
  __shared__ Acc staged[kStridedWarps][kBins][kChannels][kWarp];
  const int64_t k = blockIdx.x;
  const RoI<Acc, Acc> roi = read_roi(pyramid, rois, k);
  if (!roi.pools) {
    return;
  }
  const ChannelsOfWarp<Acc> channels;
  const int lane = threadIdx.x;
  const FeatureMap<Acc>& map = *roi.map;
  auto& sums = staged[threadIdx.y];  // a lane's own

  for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
    for_each_tile<kPixels, kWarp>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
      if (lane >= columns.count || channels.first >= rois.channels) {
        return;
      }
      const Range column_bins = x.bins[lane];
      const Acc* const x_weights = x.weights(lane);
      for (int bin_y = 0; bin_y < bins_y.count; ++bin_y) {
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          const T* const grads = grad_output +
              rois.offset(k, channels.channel(c, rois.channels), bins_y.first + bin_y, bins_x.first + column_bins.first);
          Acc sum = 0;
          for (int n = 0; n < column_bins.count; ++n) {
            sum += x_weights[n] * widen(grads[n]);
          }
          sums[bin_y][c][lane] = sum;
        }
      }
      Acc* targets[kChannels];
#pragma unroll
      for (int c = 0; c < kChannels; ++c) {
        targets[c] = map.at(roi.image, channels.channel(c, rois.channels)) + rows.first * map.row_stride +
            (columns.first + lane) * map.column_stride;
      }
      for (int row = 0; row < rows.count; ++row) {
        const Range row_bins = y.bins[row];
        const Acc* const y_weights = y.weights(row);
        Acc grads[kChannels] = {};
        for (int n = 0; n < row_bins.count; ++n) {
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            grads[c] += y_weights[n] * sums[row_bins.first + n][c][lane];
          }
        }
#pragma unroll
        for (int c = 0; c < kChannels; ++c) {
          if (channels.first + c < rois.channels) {
            atomicAdd(targets[c], grads[c]);
          }
          targets[c] += map.row_stride;
        }
      }
    });
  });
}

// Block (k, chunk) computes what some channels add to the gradient of RoI k: partial_grads[chunk][k] of [chunks, K, 5]. A
// lane takes a column.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kStridedWarps) rois_backward_strided(
    Acc* partial_grads, const T* grad_output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kChannels = ChannelsOfWarp<Acc>::kCount;
  __shared__ PixelsOfBins<Acc, Weight<Acc>> y;
  __shared__ BinsOfPixels<Acc, Weight<Acc>> x;
  const int64_t k = blockIdx.x;
  const RoI<const T, Acc> roi = read_roi(pyramid, rois, k);
  const ChannelsOfWarp<Acc> channels;
  const int lane = threadIdx.x;
  RoIGradient<Acc> grad;

  if (roi.pools) {
    const FeatureMap<const T>& map = *roi.map;
    const T* sources[kChannels];
#pragma unroll
    for (int c = 0; c < kChannels; ++c) {
      sources[c] = map.at(roi.image, channels.channel(c, rois.channels));
    }
    for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
      for_each_tile<kPixels, kWarp>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        if (lane >= columns.count || channels.first >= rois.channels) {
          return;
        }
        const Range column_bins = x.bins[lane];
        const Weight<Acc>* const x_weights = x.weights(lane);
        const int64_t column_offset = (columns.first + lane) * map.column_stride;
        for (int bin_y = 0; bin_y < bins_y.count; ++bin_y) {
          const Range bin_rows = y.pixels[bin_y];
          const Weight<Acc>* const y_weights = y.weights(bin_y, rows);
          Weight<Acc> pixels[kChannels] = {};
          int64_t offset = bin_rows.first * map.row_stride + column_offset;
#pragma unroll 2
          for (int row = 0; row < bin_rows.count; ++row) {
            const Weight<Acc> weight = y_weights[row];
#pragma unroll
            for (int c = 0; c < kChannels; ++c) {
              pixels[c].add(widen(sources[c][offset]), weight);
            }
            offset += map.row_stride;
          }
#pragma unroll
          for (int c = 0; c < kChannels; ++c) {
            if (channels.first + c < rois.channels) {
              const T* const grads = grad_output +
                  rois.offset(k, channels.first + c, bins_y.first + bin_y, bins_x.first + column_bins.first);
              Weight<Acc> bins{0, 0, 0};
              for (int n = 0; n < column_bins.count; ++n) {
                bins.add(widen(grads[n]), x_weights[n]);
              }
              grad.add(bins, pixels[c]);
            }
          }
        }
      });
    });
  }
  grad.sum_over_block_and_write(partial_grads + (blockIdx.y * static_cast<int64_t>(gridDim.x) + k) * 5, roi.spatial_scale);
}

}  // namespace prroi_pool
