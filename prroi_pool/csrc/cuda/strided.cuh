// The kernels for maps of any other layout; best for the contiguous one, where the pixels of a row are adjacent in
// memory. The lanes of a warp work on adjacent columns of one channel at a time, so that nothing has to be copied first.

#pragma once

#include "axis_table.cuh"
#include "roi_gradient.cuh"
#include "tensor_view.cuh"

namespace prroi_pool {

// Channels that a block works on: the cost of the tables is shared among them.
constexpr int kBlockChannels = 64;
constexpr int kStridedWarps = 8;
// Rows of bins that a warp sums up before its lanes turn from columns to bins.
constexpr int kStagedRows = 8;

// Channels first, ..., end - 1 of block `chunk`.
struct BlockChannels {
  int64_t first, end;

  __device__ BlockChannels(int64_t chunk, int64_t channels)
      : first(chunk * kBlockChannels), end(first + kBlockChannels < channels ? first + kBlockChannels : channels) {}
};

// Block (k, chunk) pools kBlockChannels channels of RoI k, its warps one at a time, in as many rows of bins as have 32
// bins. The lanes first sum columns of pixels along y, one a lane, and then these sums along x, one bin a lane.
template <typename T, typename Acc>
__global__ void forward_strided(
    TensorView<T> output, TensorView<const T> features, const Acc* rois, Acc spatial_scale) {
  __shared__ AxisStorage<Acc> x_storage, y_storage;
  __shared__ Acc staged[kStridedWarps][kStagedRows][kWarp];
  const int64_t k = blockIdx.x, pooled_height = output.size[2], pooled_width = output.size[3];
  const RoI<Acc> roi = read_roi(rois, k, spatial_scale, features.size[0], pooled_height, pooled_width);
  AxisTable<Acc, Acc> x(roi.x, features.size[3], x_storage), y(roi.y, features.size[2], y_storage);
  if (roi.pools) {
    x.fill();
    y.fill();
  }
  __syncthreads();
  auto& sums = staged[threadIdx.y];
  const PixelRange columns = roi.pools ? x.pixels() : PixelRange{};
  const int64_t bins_at_once = pooled_width < kWarp ? pooled_width : kWarp;
  const int64_t rows_at_once = kWarp / bins_at_once < kStagedRows ? kWarp / bins_at_once : kStagedRows;
  const BlockChannels channels(blockIdx.y, output.size[1]);
  for (int64_t channel = channels.first + threadIdx.y; channel < channels.end; channel += kStridedWarps) {
    for (int64_t first_y = 0; first_y < pooled_height; first_y += rows_at_once) {
      const int64_t end_y = first_y + rows_at_once < pooled_height ? first_y + rows_at_once : pooled_height;
      for (int64_t first_x = 0; first_x < pooled_width; first_x += bins_at_once) {
        // This lane's bin.
        const int64_t bin_y = first_y + threadIdx.x / bins_at_once, bin_x = first_x + threadIdx.x % bins_at_once;
        const bool has_bin = bin_y < end_y && bin_x < pooled_width;
        Acc total = 0;
        for (int64_t first = columns.first; first < columns.end(); first += kWarp) {
          const int64_t i = first + threadIdx.x;  // this lane's column
          __syncwarp();
          for (int64_t row = first_y; row < end_y && i < columns.end(); ++row) {
            Acc sum = 0;
            y.for_pixels(row, [&](int64_t j, Acc weight) {
              sum += weight * static_cast<Acc>(*features.at(roi.image, channel, j, i));
            });
            sums[row - first_y][threadIdx.x] = sum;
          }
          __syncwarp();
          if (has_bin) {
            // By rounding, the last bin may reach a pixel beyond the RoI's, which no lane has summed.
            const int64_t end = first + kWarp < columns.end() ? first + kWarp : columns.end();
            x.for_pixels(bin_x, first, end, [&](int64_t column, Acc weight) {
              total += weight * sums[bin_y - first_y][column - first];
            });
          }
        }
        if (has_bin) {
          *output.at(k, channel, bin_y, bin_x) = static_cast<T>(total);
        }
      }
    }
  }
}

// Block (k, chunk) adds to the gradient of kBlockChannels channels below RoI k, a lane to one column: one atomic for a
// pixel, a channel and a RoI.
template <typename T, typename Acc>
__global__ void features_backward_strided(
    TensorView<Acc> grad_features, TensorView<const T> grad_output, const Acc* rois, Acc spatial_scale) {
  __shared__ AxisStorage<Acc> x_storage, y_storage;
  const int64_t k = blockIdx.x;
  const RoI<Acc> roi =
      read_roi(rois, k, spatial_scale, grad_features.size[0], grad_output.size[2], grad_output.size[3]);
  if (!roi.pools) {
    return;
  }
  AxisTable<Acc, Acc> x(roi.x, grad_features.size[3], x_storage), y(roi.y, grad_features.size[2], y_storage);
  x.fill();
  y.fill();
  __syncthreads();
  const PixelRange rows = y.pixels(), columns = x.pixels();
  const BlockChannels channels(blockIdx.y, grad_output.size[1]);
  for (int64_t i = columns.first + threadIdx.x; i < columns.end(); i += kWarp) {
    const BinRange x_bins = x.bins_of(i, {});
    for (int64_t channel = channels.first + threadIdx.y; channel < channels.end; channel += kStridedWarps) {
      LastTwo<Acc> bins;
      const auto sum_bins = [&](int64_t bin_y) {
        Acc sum = 0;
        for (int64_t bin_x = x_bins.first; bin_x < x_bins.end(); ++bin_x) {
          sum += x.weight(bin_x, i) * static_cast<Acc>(*grad_output.at(k, channel, bin_y, bin_x));
        }
        return sum;
      };
      BinRange y_bins{};
      for (int64_t j = rows.first; j < rows.end(); ++j) {
        y_bins = y.bins_of(j, y_bins);
        Acc grad = 0;
        for (int64_t bin_y = y_bins.first; bin_y < y_bins.end(); ++bin_y) {
          grad += y.weight(bin_y, j) * bins.get(bin_y, sum_bins);
        }
        atomicAdd(grad_features.at(roi.image, channel, j, i), grad);
      }
    }
  }
}

// Block k computes the gradient of RoI k, its warps the channels in turn, a lane one column.
template <typename T, typename Acc>
__global__ void __launch_bounds__(kWarp * kMaxWarps) rois_backward_strided(
    Acc* grad_rois,
    TensorView<const T> grad_output,
    TensorView<const T> features,
    const Acc* rois,
    Acc spatial_scale) {
  __shared__ AxisStorage<Weight<Acc>> x_storage, y_storage;
  const int64_t k = blockIdx.x, pooled_height = grad_output.size[2], pooled_width = grad_output.size[3];
  const RoI<Acc> roi = read_roi(rois, k, spatial_scale, features.size[0], pooled_height, pooled_width);
  if (!roi.pools) {
    return;
  }
  AxisTable<Acc, Weight<Acc>> x(roi.x, features.size[3], x_storage), y(roi.y, features.size[2], y_storage);
  x.fill();
  y.fill();
  __syncthreads();

  RoIGradient<Acc> grad;
  const PixelRange columns = x.pixels();
  for (int64_t i = columns.first + threadIdx.x; i < columns.end(); i += kWarp) {
    const BinRange x_bins = x.bins_of(i, {});
    for (int64_t channel = threadIdx.y; channel < features.size[1]; channel += blockDim.y) {
      for (int64_t bin_y = 0; bin_y < pooled_height; ++bin_y) {
        Weight<Acc> bins{0, 0, 0}, pixels{0, 0, 0};
        for (int64_t bin_x = x_bins.first; bin_x < x_bins.end(); ++bin_x) {
          bins.add(static_cast<Acc>(*grad_output.at(k, channel, bin_y, bin_x)), x.weight(bin_x, i));
        }
        y.for_pixels(bin_y, [&](int64_t j, const Weight<Acc>& weight) {
          pixels.add(static_cast<Acc>(*features.at(roi.image, channel, j, i)), weight);
        });
        grad.add(bins, pixels);
      }
    }
  }
  grad.sum_over_block_and_write(grad_rois + k * 5 + 1, spatial_scale);
}

}  // namespace prroi_pool
