// Kernels for maps whose channels are adjacent in memory. Each lane of a warp processes N adjacent channels. A warp thus
// reads adjacent memory, and all its lanes use the same weights and take the same path through the loops.

#pragma once

#include "roi_gradient.cuh"
#include "tiles.cuh"

namespace prroi_pool {

// The channels of a lane. A lane beyond the last channel repeats the last N channels and writes nothing.
template <int N>
struct LaneChannels {
  int first_of_block, first;
  bool exist;

  __device__ explicit LaneChannels(int channels) : first_of_block(blockIdx.y * kWarp * N) {
    const int own = first_of_block + static_cast<int>(threadIdx.x) * N;
    exist = own < channels;
    first = exist ? own : channels - N;
  }
};

// Finds the first pixels of kAtOnce columns of a tile, from its column `first` on. Positions beyond the last column repeat
// it; their sums are not used.
template <int kAtOnce, typename T>
__device__ void find_columns(
    T* (&pixels)[kAtOnce], T* first_row, const FeatureMap<T>& map, const Range& columns, int first) {
#pragma unroll
  for (int m = 0; m < kAtOnce; ++m) {
    const int column = first + m < columns.count ? first + m : columns.count - 1;
    pixels[m] = first_row + (columns.first + column) * map.column_stride;
  }
}

// The gradient of the output for a group of bins and the channels of a block.
template <typename Acc, int N>
struct GradTile {
  Pack<Acc, N> values[kBins * kBins][kWarp + 1];  // padded by one, so that elements of a column lie in different banks

  __device__ Pack<Acc, N> at(int bin_y, int bin_x) const { return values[bin_y * kBins + bin_x][threadIdx.x]; }

  // To be called by all threads of the block, with barriers before and after.
  template <typename T>
  __device__ void fill(
      const T* grad_output, const RoIs<Acc>& rois, int64_t k, int first_channel, const Range& bins_y, const Range& bins_x) {
    const int channels = rois.channels - first_channel < kWarp * N ? rois.channels - first_channel : kWarp * N;
    for (int bin = threadIdx.x; bin < bins_y.count * bins_x.count; bin += kWarp) {
      const int bin_y = bin / bins_x.count, bin_x = bin % bins_x.count;
      const int64_t channel_stride = static_cast<int64_t>(rois.pooled_height) * rois.pooled_width;
      const T* source = grad_output + rois.offset(k, first_channel, bins_y.first + bin_y, bins_x.first + bin_x);
#pragma unroll 16
      for (int channel = threadIdx.y; channel < channels; channel += blockDim.y) {
        values[bin_y * kBins + bin_x][channel / N].value[channel % N] = widen(source[channel * channel_stride]);
      }
    }
  }
};

// Block (k, chunk) pools 32 N channels of RoI k, and each warp one row of bins. A warp processes kAtOnce columns of the map
// at a time. It sums each column along y and adds the sum to the bins that the column reaches into.
template <typename T, typename Acc, int N>
__global__ void __launch_bounds__(kWarp * kBins)
    forward_channels_last(T* output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kAtOnce = N == 1 ? 8 : 4, kRows = 2;
  __shared__ PixelsOfBins<Acc, Acc> y;
  __shared__ BinsOfPixels<Acc, Acc> x;
  __shared__ Pack<Acc, N> sums[kBins][kBins][kWarp + 1];
  const int64_t k = blockIdx.x;
  const RoI<const T, Acc> roi = read_roi(pyramid, rois, k);
  const LaneChannels<N> channels(rois.channels);
  const int warp = threadIdx.y, lane = threadIdx.x;

  for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
    for (int bin_x = 0; bin_x < bins_x.count; ++bin_x) {
      sums[warp][bin_x][lane] = Pack<Acc, N>{};
    }
    if (roi.pools) {
      const FeatureMap<const T>& map = *roi.map;
      const T* const source = map.at(roi.image, channels.first);
      for_each_tile<kPixels, kPixels>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        if (warp >= bins_y.count) {
          return;
        }
        const Range bin_rows = y.pixels[warp];
        const Acc* const y_weights = y.weights(warp, rows);
        const T* const first_row = source + bin_rows.first * map.row_stride;
        for (int first = 0; first < columns.count; first += kAtOnce) {
          Pack<Acc, N> column_sums[kAtOnce] = {};
          const T* pixels[kAtOnce];
          find_columns(pixels, first_row, map, columns, first);
          in_parts<kRows>(0, bin_rows.count, [&](int row, auto number) {
            Pack<T, N> values[number.value][kAtOnce];
            load_rows(values, pixels, 0, row, map.row_stride);
#pragma unroll
            for (int r = 0; r < number.value; ++r) {
              const Acc weight = y_weights[row + r];
#pragma unroll
              for (int m = 0; m < kAtOnce; ++m) {
                add_weighted(column_sums[m], weight, values[r][m]);
              }
            }
          });
#pragma unroll
          for (int m = 0; m < kAtOnce; ++m) {
            if (first + m >= columns.count) {
              break;
            }
            const Range bins = x.bins[first + m];
            const Acc* const x_weights = x.weights(first + m);
#pragma unroll 1
            for (int n = 0; n < bins.count; ++n) {
              add_weighted(sums[warp][bins.first + n][lane], x_weights[n], column_sums[m]);
            }
          }
        }
      });
    }
    __syncwarp();
    if (warp < bins_y.count) {
      // From here on, adjacent lanes process adjacent bins instead of channels, because bins are adjacent in the output.
      const int left = rois.channels - channels.first_of_block, count = left < kWarp * N ? left : kWarp * N;
      T* const target = output + rois.offset(k, channels.first_of_block, bins_y.first + warp, bins_x.first);
      const int64_t channel_stride = static_cast<int64_t>(rois.pooled_height) * rois.pooled_width;
      for (int index = lane; index < count * bins_x.count; index += kWarp) {
        const int channel = index / bins_x.count, bin_x = index % bins_x.count;
        target[channel * channel_stride + bin_x] = Narrow<T>::from(sums[warp][bin_x][channel / N].value[channel % N]);
      }
    }
    __syncwarp();
  });
}

// Block (k, chunk) computes the contribution of 32 N channels to the gradient of RoI k, partial_grads[chunk][k] of
// [chunks, K, 5]. Each warp processes one row of bins.
template <typename T, typename Acc, int N>
__global__ void __launch_bounds__(kWarp * kBins) rois_backward_channels_last(
    Acc* partial_grads, const T* grad_output, const __grid_constant__ Pyramid<const T, Acc> pyramid, const RoIs<Acc> rois) {
  constexpr int kAtOnce = 2, kRows = 4;
  __shared__ PixelsOfBins<Acc, Weight<Acc>> y;
  __shared__ BinsOfPixels<Acc, Weight<Acc>> x;
  __shared__ GradTile<Acc, N> grads;
  const int64_t k = blockIdx.x;
  const RoI<const T, Acc> roi = read_roi(pyramid, rois, k);
  const LaneChannels<N> channels(rois.channels);
  const int warp = threadIdx.y;
  RoIGradient<Acc> grad;

  if (roi.pools) {
    const FeatureMap<const T>& map = *roi.map;
    const T* const source = map.at(roi.image, channels.first);
    for_each_group(rois, [&](const Range& bins_y, const Range& bins_x) {
      __syncthreads();
      grads.fill(grad_output, rois, k, channels.first_of_block, bins_y, bins_x);
      for_each_tile<kPixels, kPixels>(roi, bins_y, bins_x, y, x, [&](const Range& rows, const Range& columns) {
        if (warp >= bins_y.count || !channels.exist) {
          return;
        }
        RoIGradient<Acc> of_tile;  // a sum per tile; a single sum of thousands of terms would lose precision
        const Range bin_rows = y.pixels[warp];
        const Weight<Acc>* const y_weights = y.weights(warp, rows);
        const T* const first_row = source + bin_rows.first * map.row_stride;
        for (int first = 0; first < columns.count; first += kAtOnce) {
          // Sums over each column along y, with the weights and with their derivatives.
          Pack<Acc, N> values[kAtOnce] = {}, d_lows[kAtOnce] = {}, d_highs[kAtOnce] = {};
          const T* pixels[kAtOnce];
          find_columns(pixels, first_row, map, columns, first);
          in_parts<kRows>(0, bin_rows.count, [&](int row, auto number) {
            Pack<T, N> loaded[number.value][kAtOnce];
            load_rows(loaded, pixels, 0, row, map.row_stride);
#pragma unroll
            for (int r = 0; r < number.value; ++r) {
              const Weight<Acc> weight = y_weights[row + r];
#pragma unroll
              for (int m = 0; m < kAtOnce; ++m) {
                add_weighted(values[m], weight.value, loaded[r][m]);
                add_weighted(d_lows[m], weight.d_low, loaded[r][m]);
                add_weighted(d_highs[m], weight.d_high, loaded[r][m]);
              }
            }
          });
#pragma unroll
          for (int m = 0; m < kAtOnce; ++m) {
            if (first + m >= columns.count) {
              break;
            }
            const Range bins = x.bins[first + m];
            const Weight<Acc>* const x_weights = x.weights(first + m);
#pragma unroll 1
            for (int n = 0; n < bins.count; ++n) {
              const Pack<Acc, N> of_bin = grads.at(warp, bins.first + n);
              // Sum over the channels first, because all four coordinates use the same three sums.
              Weight<Acc> sums{0, 0, 0};
#pragma unroll
              for (int c = 0; c < N; ++c) {
                sums.add(of_bin.value[c], {values[m].value[c], d_lows[m].value[c], d_highs[m].value[c]});
              }
              of_tile.add(x_weights[n], sums);
            }
          }
        }
        grad.add(of_tile);
      });
    });
  }
  grad.sum_over_block_and_write(partial_grads + (blockIdx.y * static_cast<int64_t>(gridDim.x) + k) * 5, roi.spatial_scale);
}

}  // namespace prroi_pool
