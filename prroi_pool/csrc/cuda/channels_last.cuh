// The kernels for maps whose channels are adjacent in memory. The lanes of a warp work on adjacent channels: they read
// and write adjacent memory, use the same weights and take the same way through the loops.

#pragma once

#include "axis_table.cuh"
#include "roi_gradient.cuh"
#include "tensor_view.cuh"

namespace prroi_pool {

// Block (k, chunk) pools 32 N channels of RoI k, its warps the rows of bins in turn. A warp goes through the columns of
// the map from left to right, sums each along y, and adds that sum to the bins that the column reaches.
template <typename T, typename Acc, int N>
__global__ void forward_channels_last(
    TensorView<T> output, TensorView<const T> features, const Acc* rois, Acc spatial_scale) {
  __shared__ AxisStorage<Acc> x_storage, y_storage;
  const int64_t k = blockIdx.x, pooled_height = output.size[2], pooled_width = output.size[3];
  const RoI<Acc> roi = read_roi(rois, k, spatial_scale, features.size[0], pooled_height, pooled_width);
  AxisTable<Acc, Acc> x(roi.x, features.size[3], x_storage), y(roi.y, features.size[2], y_storage);
  if (roi.pools) {
    x.fill();
    y.fill();
  }
  __syncthreads();
  const int64_t channel = (static_cast<int64_t>(blockIdx.y) * kWarp + threadIdx.x) * N;
  if (channel >= output.size[1]) {
    return;
  }
  for (int64_t bin_y = threadIdx.y; bin_y < pooled_height; bin_y += blockDim.y) {
    LastTwo<Sums<Acc, N>> columns;
    const auto sum_column = [&](int64_t i) {
      Sums<Acc, N> sum;
      y.for_pixels(bin_y, [&](int64_t j, Acc weight) {
        sum.add(weight, load<N>(features.at(roi.image, channel, j, i)).value);
      });
      return sum;
    };
    for (int64_t bin_x = 0; bin_x < pooled_width; ++bin_x) {
      Sums<Acc, N> total;
      if (roi.pools) {
        x.for_pixels(bin_x, [&](int64_t i, Acc weight) { total.add(weight, columns.get(i, sum_column).value); });
      }
      Pack<T, N> pack;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        pack.value[n] = static_cast<T>(total.value[n]);
      }
      *reinterpret_cast<Pack<T, N>*>(output.at(k, channel, bin_y, bin_x)) = pack;
    }
  }
}

// Block (k, chunk) adds to the gradient of 32 N channels below RoI k, its warps to the rows of the map in turn: one
// atomic for a pixel, a channel and a RoI. A lane's N channels lie 32 apart, so that each atomic instruction of a warp
// meets adjacent addresses.
template <typename T, typename Acc, int N>
__global__ void features_backward_channels_last(
    TensorView<Acc> grad_features, TensorView<const T> grad_output, const Acc* rois, Acc spatial_scale) {
  __shared__ AxisStorage<Acc> x_storage, y_storage;
  const int64_t k = blockIdx.x, channels = grad_output.size[1];
  const RoI<Acc> roi =
      read_roi(rois, k, spatial_scale, grad_features.size[0], grad_output.size[2], grad_output.size[3]);
  if (!roi.pools) {
    return;
  }
  AxisTable<Acc, Acc> x(roi.x, grad_features.size[3], x_storage), y(roi.y, grad_features.size[2], y_storage);
  x.fill();
  y.fill();
  __syncthreads();
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kWarp * N + threadIdx.x;
  const PixelRange rows = y.pixels(), columns = x.pixels();
  BinRange y_bins{};
  for (int64_t j = rows.first + threadIdx.y; j < rows.end(); j += blockDim.y) {
    y_bins = y.bins_of(j, y_bins);
    LastTwo<Sums<Acc, N>> bins;
    const auto sum_bins = [&](int64_t bin_x) {
      Sums<Acc, N> sum;
      for (int64_t bin_y = y_bins.first; bin_y < y_bins.end(); ++bin_y) {
        T grads[N];
#pragma unroll
        for (int n = 0; n < N; ++n) {
          const int64_t c = channel + n * kWarp;
          grads[n] = c < channels ? *grad_output.at(k, c, bin_y, bin_x) : T(0);
        }
        sum.add(y.weight(bin_y, j), grads);
      }
      return sum;
    };
    BinRange x_bins{};
    for (int64_t i = columns.first; i < columns.end(); ++i) {
      x_bins = x.bins_of(i, x_bins);
      Sums<Acc, N> grad;
      for (int64_t bin_x = x_bins.first; bin_x < x_bins.end(); ++bin_x) {
        grad.add(x.weight(bin_x, i), bins.get(bin_x, sum_bins).value);
      }
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const int64_t c = channel + n * kWarp;
        if (c < channels) {
          atomicAdd(grad_features.at(roi.image, c, j, i), grad.value[n]);
        }
      }
    }
  }
}

// A column's sums along y, with the weights and with their derivatives by the two ends of the RoI.
template <typename Acc, int N>
struct ColumnSums {
  Sums<Acc, N> value, d_low, d_high;
};

// Block k computes the gradient of RoI k, its warps the rows of bins of 32 N channels each in turn.
template <typename T, typename Acc, int N>
__global__ void __launch_bounds__(kWarp * kMaxWarps) rois_backward_channels_last(
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
  const int64_t num_chunks = (features.size[1] + kWarp * N - 1) / (kWarp * N);
  for (int64_t task = threadIdx.y; task < num_chunks * pooled_height; task += blockDim.y) {
    const int64_t bin_y = task % pooled_height;
    const int64_t channel = (task / pooled_height * kWarp + threadIdx.x) * N;
    if (channel >= features.size[1]) {
      continue;
    }
    LastTwo<ColumnSums<Acc, N>> columns;
    const auto sum_column = [&](int64_t i) {
      ColumnSums<Acc, N> sums;
      y.for_pixels(bin_y, [&](int64_t j, const Weight<Acc>& weight) {
        const Pack<T, N> pixel = load<N>(features.at(roi.image, channel, j, i));
        sums.value.add(weight.value, pixel.value);
        sums.d_low.add(weight.d_low, pixel.value);
        sums.d_high.add(weight.d_high, pixel.value);
      });
      return sums;
    };
    for (int64_t bin_x = 0; bin_x < pooled_width; ++bin_x) {
      const Pack<T, N> grads = load<N>(grad_output.at(k, channel, bin_y, bin_x));
      x.for_pixels(bin_x, [&](int64_t i, const Weight<Acc>& weight) {
        const ColumnSums<Acc, N> column = columns.get(i, sum_column);
        // Summed over the channels first: these three serve all four coordinates.
        Weight<Acc> product{0, 0, 0};
#pragma unroll
        for (int n = 0; n < N; ++n) {
          product.add(
              static_cast<Acc>(grads.value[n]),
              {column.value.value[n], column.d_low.value[n], column.d_high.value[n]});
        }
        grad.add(weight, product);
      });
    }
  }
  grad.sum_over_block_and_write(grad_rois + k * 5 + 1, spatial_scale);
}

}  // namespace prroi_pool
