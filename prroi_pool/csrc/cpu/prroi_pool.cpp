// Precise RoI Pooling on the CPU. All kernels process blocks of channels, one row of the feature map at a time. They
// weight a row along x and the result along y, so that a pixel of a row costs about two products per channel.

#include "../prroi_pool.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <array>
#include <memory>
#include <vector>

#include "axis_weights.h"
#include "channel_sums.h"

namespace prroi_pool {
namespace {

// Channels that a kernel processes at once. 128 adjacent floats of a pixel are read in one go, and the same channels of a
// 7 × 7 output still fit in the L1 cache.
constexpr int64_t kBlock = 128;
// Channels that are copied at once from a map that is not channels-last. For a map of 200 x 304 pixels, the copy stays in
// the L3 cache until it is pooled.
constexpr int64_t kCopiedChannels = 64;
// Rows of the map that one task of the feature gradient owns. The number is fixed, and every task adds its RoIs in the same
// order, so that the gradient is bitwise identical for any number of threads.
constexpr int64_t kBandRows = 40;
// Rows of a RoI over which its gradient is summed in the features' dtype; these partial sums are added in double. The
// gradient is a small difference between the RoI's mean and the mean on its border, and a single sum over hundreds of rows
// would lose one of its digits.
constexpr int64_t kSummedRows = 32;

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

// The weights of one RoI on both axes.
template <typename T>
struct RoIWeights {
  AxisWeights<T> x, y;
  int64_t image;

  // `roi` points to batch_index, x1, y1, x2, y2, `stride` apart. Returns whether the RoI pools anything.
  bool compute(
      const T* roi,
      int64_t stride,
      T spatial_scale,
      at::IntArrayRef features_shape,
      int64_t pooled_height,
      int64_t pooled_width) {
    image = image_of(roi[0], features_shape[0]);
    const auto extent = [&](int64_t low, int64_t high, int64_t num_bins) {
      return make_extent(roi[low * stride], roi[high * stride], spatial_scale, num_bins);
    };
    return image >= 0 && x.compute(extent(1, 3, pooled_width), features_shape[3]) &&
        y.compute(extent(2, 4, pooled_height), features_shape[2]);
  }
};

// Some channels of the features, in the layout that the kernels read.
template <typename T>
struct FeatureView {
  const T* data;  // of the first of these channels
  int64_t strides[4];
  int64_t first_channel, end_channel;
};

// Reads rows of a block of channels, with the channels of a pixel adjacent. If they are not adjacent in the view, they are
// gathered into a buffer.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const FeatureView<T>& view) : view_(view) {}

  // Distance in elements between horizontal neighbours in the result of `row`.
  int64_t pixel_stride(int64_t channels) const { return view_.strides[1] == 1 ? view_.strides[3] : channels; }

  const T* row(int64_t image, int64_t channel, int64_t channels, int64_t row, const PixelRange& columns) {
    const int64_t* strides = view_.strides;
    const T* source = view_.data + image * strides[0] + (channel - view_.first_channel) * strides[1] +
        row * strides[2] + columns.first * strides[3];
    if (strides[1] == 1) {
      return source;
    }
    buffer_.resize(columns.count * channels);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < columns.count; ++i) {
        buffer_[i * channels + c] = source[c * strides[1] + i * strides[3]];
      }
    }
    return buffer_.data();
  }

 private:
  const FeatureView<T>& view_;
  std::vector<T> buffer_;
};

// Runs of channels and bins, in any memory layout.
template <typename T>
struct Layout {
  T* data;
  int64_t channel_stride, bin_stride;
};

template <typename T>
void copy(const Layout<T>& target, const Layout<const T>& source, int64_t channels, int64_t bins) {
  if (target.channel_stride == 1 && source.channel_stride == 1) {
    for (int64_t bin = 0; bin < bins; ++bin) {
      std::copy_n(source.data + bin * source.bin_stride, channels, target.data + bin * target.bin_stride);
    }
    return;
  }
  // The inner loop runs over bins, because tensors that are not channels-last are mostly contiguous. Their memory is then
  // accessed in order; only the access to the kernels' block, which is in the L1 cache, is strided.
  for (int64_t c = 0; c < channels; ++c) {
    T* to = target.data + c * target.channel_stride;
    const T* from = source.data + c * source.channel_stride;
    for (int64_t bin = 0; bin < bins; ++bin) {
      to[bin * target.bin_stride] = from[bin * source.bin_stride];
    }
  }
}

// Returns the gradient with a constant stride between the bins of a channel.
at::Tensor with_equidistant_bins(const at::Tensor& grad_output) {
  const bool equidistant = grad_output.size(2) == 1 || grad_output.size(3) == 1 ||
      grad_output.stride(2) == grad_output.size(3) * grad_output.stride(3);
  return equidistant ? grad_output : grad_output.contiguous();
}

// Some channels of one RoI's output, or of the gradient of that output, which must have equidistant bins. The kernels' block
// is [bin][channel].
template <typename T>
Layout<T> bins_of_roi(T* data, const at::Tensor& tensor, int64_t roi, int64_t channel) {
  // A dimension of size 1 may have any stride.
  const int64_t bin_stride = tensor.size(3) > 1 ? tensor.stride(3) : tensor.stride(2);
  return {data + roi * tensor.stride(0) + channel * tensor.stride(1), tensor.stride(1), bin_stride};
}

template <typename T>
void read_bins(T* block, const at::Tensor& tensor, int64_t roi, int64_t channel, int64_t channels) {
  const Layout<const T> source = bins_of_roi(tensor.const_data_ptr<T>(), tensor, roi, channel);
  copy<T>({block, 1, channels}, source, channels, tensor.size(2) * tensor.size(3));
}

template <typename T>
void write_bins(at::Tensor& tensor, const T* block, int64_t roi, int64_t channel, int64_t channels) {
  const Layout<T> target = bins_of_roi(tensor.mutable_data_ptr<T>(), tensor, roi, channel);
  copy<T>(target, {block, 1, channels}, channels, tensor.size(2) * tensor.size(3));
}

// Returns the RoIs of each image, sorted from top to bottom so that pixels under several RoIs are still in the cache. The
// last group contains the RoIs whose image does not exist.
template <typename T>
std::vector<std::vector<int64_t>> group_by_image(const at::Tensor& rois, int64_t num_images) {
  std::vector<std::vector<int64_t>> rois_of_image(num_images + 1);
  const auto roi = rois.accessor<T, 2>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const int64_t image = image_of(roi[k][0], num_images);
    rois_of_image[image >= 0 ? image : num_images].push_back(k);
  }
  for (int64_t image = 0; image < num_images; ++image) {
    // NaN would break the ordering. Such RoIs pool to 0 anyway.
    const auto top = [&](int64_t k) { return roi[k][2] == roi[k][2] ? roi[k][2] : T(0); };
    std::stable_sort(rois_of_image[image].begin(), rois_of_image[image].end(), [&](int64_t a, int64_t b) {
      return top(a) < top(b);
    });
  }
  return rois_of_image;
}

// Whether the RoIs together cover more pixels than a copy of the features would move.
template <typename T>
bool is_worth_copying(const at::Tensor& features, const at::Tensor& rois, T spatial_scale) {
  const auto roi = rois.accessor<T, 2>();
  int64_t covered = 0;
  for (int64_t k = 0; k < rois.size(0); ++k) {
    covered += touched_pixels(roi[k][1] * spatial_scale, roi[k][3] * spatial_scale, features.size(3)).count *
        touched_pixels(roi[k][2] * spatial_scale, roi[k][4] * spatial_scale, features.size(2)).count;
  }
  return covered > features.size(0) * features.size(2) * features.size(3);
}

// Copies channels [first, end) of an image to target[row][column][channel].
template <typename T>
void copy_channels_last(T* target, const at::Tensor& features, int64_t image, int64_t first, int64_t end) {
  constexpr int64_t kTile = 64 / sizeof(T);  // one cache line in source and target
  const int64_t width = features.size(3), channels = end - first;
  const int64_t channel_stride = features.stride(1), column_stride = features.stride(3);
  const T* source = features.const_data_ptr<T>() + image * features.stride(0) + first * channel_stride;
  at::parallel_for(0, features.size(2), 1, [&](int64_t begin_row, int64_t end_row) {
    for (int64_t row = begin_row; row < end_row; ++row) {
      const T* from = source + row * features.stride(2);
      T* to = target + row * width * channels;
      for (int64_t channel = 0; channel < channels; channel += kTile) {
        const int64_t tile_channels = std::min(kTile, channels - channel);
        for (int64_t column = 0; column < width; column += kTile) {
          const int64_t tile_columns = std::min(kTile, width - column);
          for (int64_t i = column; i < column + tile_columns; ++i) {
            for (int64_t c = channel; c < channel + tile_channels; ++c) {
              to[i * channels + c] = from[c * channel_stride + i * column_stride];
            }
          }
        }
      }
    }
  });
}

// Calls visit(view, indices of RoIs) until every RoI has been paired with every channel. RoIs whose image does not exist
// get an empty view. If the features are not channels-last and the RoIs cover many pixels, a view is a channels-last copy of
// some channels of one image.
template <typename T, typename Visit>
void for_each_view(const at::Tensor& features, const at::Tensor& rois, T spatial_scale, const Visit& visit) {
  const int64_t num_images = features.size(0), channels = features.size(1);
  const auto rois_of_image = group_by_image<T>(rois, num_images);
  visit(FeatureView<T>{nullptr, {}, 0, channels}, rois_of_image[num_images]);
  if (features.stride(1) == 1 || !is_worth_copying(features, rois, spatial_scale)) {
    FeatureView<T> view{features.const_data_ptr<T>(), {}, 0, channels};
    std::copy_n(features.strides().begin(), 4, view.strides);
    for (int64_t image = 0; image < num_images; ++image) {
      visit(view, rois_of_image[image]);
    }
    return;
  }
  const int64_t height = features.size(2), width = features.size(3);
  const std::unique_ptr<T[]> copy(new T[height * width * std::min(kCopiedChannels, channels)]);  // uninitialised
  for (int64_t image = 0; image < num_images; ++image) {
    for (int64_t first = 0; first < channels && !rois_of_image[image].empty(); first += kCopiedChannels) {
      const int64_t end = std::min(first + kCopiedChannels, channels), count = end - first;
      copy_channels_last(copy.get(), features, image, first, end);
      visit(FeatureView<T>{copy.get(), {0, 1, width * count, count}, first, end}, rois_of_image[image]);
    }
  }
}

template <typename T>
void forward_kernel(at::Tensor& output, const at::Tensor& features, const at::Tensor& rois, T spatial_scale) {
  const int64_t pooled_height = output.size(2), pooled_width = output.size(3);
  const auto pool = [&](const FeatureView<T>& view, const std::vector<int64_t>& indices) {
    at::parallel_for(0, indices.size(), 1, [&](int64_t begin, int64_t end) {
      RoIWeights<T> weights;
      RowReader<T> reader(view);
      std::vector<T> bins(pooled_height * pooled_width * kBlock), row_bins(pooled_width * kBlock);
      for (int64_t n = begin; n < end; ++n) {
        const T* roi = rois.const_data_ptr<T>() + indices[n] * rois.stride(0);
        // If the RoI pools nothing, the loops below leave the zeros unchanged.
        const bool pools =
            weights.compute(roi, rois.stride(1), spatial_scale, features.sizes(), pooled_height, pooled_width);
        const PixelRange rows = pools ? weights.y.pixels() : PixelRange{};
        const PixelRange columns = pools ? weights.x.pixels() : PixelRange{};
        for (int64_t channel = view.first_channel; channel < view.end_channel; channel += kBlock) {
          const int64_t block = std::min(kBlock, view.end_channel - channel);
          const int64_t pixel_stride = reader.pixel_stride(block);
          std::fill_n(bins.begin(), pooled_height * pooled_width * block, T(0));
          for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
            const T* row = reader.row(weights.image, channel, block, j, columns);
            std::fill_n(row_bins.begin(), pooled_width * block, T(0));
            for (int64_t bin = 0; bin < pooled_width; ++bin) {
              const PixelRange pixels = weights.x.pixels_of(bin);
              add_weighted<T>(
                  &row_bins[bin * block], {row + (pixels.first - columns.first) * pixel_stride, pixel_stride},
                  {weights.x.value(bin, pixels.first), 1}, pixels.count, block);
            }
            const BinRange row_of_bins = weights.y.bins_of(j);
            for (int64_t bin = row_of_bins.first; bin < row_of_bins.first + row_of_bins.count; ++bin) {
              add_weighted<T>(
                  &bins[bin * pooled_width * block], {row_bins.data(), 0}, {weights.y.value(bin, j), 1}, 1,
                  pooled_width * block);
            }
          }
          write_bins(output, bins.data(), indices[n], channel, block);
        }
      }
    });
  };
  for_each_view<T>(features, rois, spatial_scale, pool);
}

// The rows and channels of one image's feature gradient that one task computes. The sums are accumulated in place if the
// channels of a pixel are adjacent, and otherwise in a buffer with that layout.
template <typename T>
class Band {
 public:
  Band(at::Tensor& grad_features, int64_t image, int64_t first_row, int64_t channel)
      : first_row(first_row),
        end_row(std::min(first_row + kBandRows, grad_features.size(2))),
        channels(std::min(kBlock, grad_features.size(1) - channel)),
        width_(grad_features.size(3)),
        strides_(grad_features.strides()),
        target_(
            grad_features.mutable_data_ptr<T>() + image * strides_[0] + channel * strides_[1] +
            first_row * strides_[2]),
        in_place_(strides_[1] == 1) {
    if (!in_place_) {
      buffer_.resize((end_row - first_row) * width_ * channels);
    }
    for (int64_t j = first_row; j < end_row; ++j) {
      for (int64_t i = 0; i < width_; ++i) {
        std::fill_n(pixel(j, i), channels, T(0));
      }
    }
  }

  // The sums of a pixel's channels.
  T* pixel(int64_t row, int64_t column) {
    return in_place_ ? target_ + (row - first_row) * strides_[2] + column * strides_[3]
                     : buffer_.data() + ((row - first_row) * width_ + column) * channels;
  }

  void write() {
    if (in_place_) {
      return;
    }
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t j = first_row; j < end_row; ++j) {
        T* row = target_ + c * strides_[1] + (j - first_row) * strides_[2];
        for (int64_t i = 0; i < width_; ++i) {
          row[i * strides_[3]] = pixel(j, i)[c];
        }
      }
    }
  }

  const int64_t first_row, end_row, channels;

 private:
  const int64_t width_;
  const at::IntArrayRef strides_;
  T* const target_;
  const bool in_place_;
  std::vector<T> buffer_;
};

template <typename T>
void features_backward_kernel(
    at::Tensor& grad_features, const at::Tensor& grad_output, const at::Tensor& rois, T spatial_scale) {
  const int64_t num_images = grad_features.size(0), height = grad_features.size(2);
  const int64_t pooled_height = grad_output.size(2), pooled_width = grad_output.size(3);
  const int64_t num_blocks = divide_up(grad_features.size(1), kBlock);
  const int64_t num_bands = divide_up(height, kBandRows);
  const auto rois_of_image = group_by_image<T>(rois, num_images);

  at::parallel_for(0, num_images * num_bands * num_blocks, 1, [&](int64_t begin, int64_t end) {
    RoIWeights<T> weights;
    std::vector<T> bins(pooled_height * pooled_width * kBlock), row_bins(pooled_width * kBlock);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t image = task / num_blocks / num_bands;
      const int64_t channel = task % num_blocks * kBlock;
      Band<T> band(grad_features, image, task / num_blocks % num_bands * kBandRows, channel);
      const int64_t row_size = pooled_width * band.channels;

      for (const int64_t k : rois_of_image[image]) {
        const T* roi = rois.const_data_ptr<T>() + k * rois.stride(0);
        const PixelRange reached = touched_pixels(
            roi[2 * rois.stride(1)] * spatial_scale, roi[4 * rois.stride(1)] * spatial_scale, height);
        if (reached.first >= band.end_row || reached.first + reached.count <= band.first_row ||
            !weights.compute(
                roi, rois.stride(1), spatial_scale, grad_features.sizes(), pooled_height, pooled_width)) {
          continue;
        }
        read_bins(bins.data(), grad_output, k, channel, band.channels);
        const PixelRange rows = weights.y.pixels(), columns = weights.x.pixels();
        const int64_t end_row = std::min(rows.first + rows.count, band.end_row);
        for (int64_t j = std::max(rows.first, band.first_row); j < end_row; ++j) {
          const BinRange y_bins = weights.y.bins_of(j);
          std::fill_n(row_bins.begin(), row_size, T(0));
          add_weighted<T>(
              row_bins.data(), {&bins[y_bins.first * row_size], row_size},
              {weights.y.value(y_bins.first, j), weights.y.bin_stride()}, y_bins.count, row_size);
          for (int64_t i = columns.first; i < columns.first + columns.count; ++i) {
            const BinRange x_bins = weights.x.bins_of(i);
            add_weighted<T>(
                band.pixel(j, i), {&row_bins[x_bins.first * band.channels], band.channels},
                {weights.x.value(x_bins.first, i), weights.x.bin_stride()}, x_bins.count, band.channels);
          }
        }
      }
      band.write();
    }
  });
}

template <typename T>
void rois_backward_kernel(
    at::Tensor& grad_rois,
    const at::Tensor& grad_output,
    const at::Tensor& features,
    const at::Tensor& rois,
    T spatial_scale) {
  const int64_t pooled_height = grad_output.size(2), pooled_width = grad_output.size(3);
  // Gradients with respect to x1, y1, x2 and y2 of each RoI, summed over the views in order.
  std::vector<std::array<double, 4>> totals(rois.size(0), std::array<double, 4>{});

  const auto accumulate = [&](const FeatureView<T>& view, const std::vector<int64_t>& indices) {
    at::parallel_for(0, indices.size(), 1, [&](int64_t begin, int64_t end) {
      RoIWeights<T> weights;
      RowReader<T> reader(view);
      std::vector<T> bins(pooled_height * pooled_width * kBlock);
      // Sums over one bin in one row of pixels, per channel.
      std::array<std::vector<T>, 3> x_sums{std::vector<T>(kBlock), std::vector<T>(kBlock), std::vector<T>(kBlock)};
      const DifferentiableSums<T> x{x_sums[0].data(), x_sums[1].data(), x_sums[2].data()};
      // The same gradients per channel. Adding up the channels last keeps reductions out of the inner loops.
      std::vector<T> grads(4 * kBlock);
      for (int64_t n = begin; n < end; ++n) {
        const T* roi = rois.const_data_ptr<T>() + indices[n] * rois.stride(0);
        if (!weights.compute(
                roi, rois.stride(1), spatial_scale, features.sizes(), pooled_height, pooled_width)) {
          continue;
        }
        const PixelRange rows = weights.y.pixels(), columns = weights.x.pixels();
        for (int64_t channel = view.first_channel; channel < view.end_channel; channel += kBlock) {
          const int64_t block = std::min(kBlock, view.end_channel - channel);
          const int64_t pixel_stride = reader.pixel_stride(block);
          read_bins(bins.data(), grad_output, indices[n], channel, block);
          for (int64_t first_row = rows.first; first_row < rows.end(); first_row += kSummedRows) {
            const int64_t end_row = std::min(first_row + kSummedRows, rows.end());
            std::fill(grads.begin(), grads.end(), T(0));
            for (int64_t j = first_row; j < end_row; ++j) {
              const T* row = reader.row(weights.image, channel, block, j, columns);
              const BinRange y_bins = weights.y.bins_of(j);
              for (int64_t bin = 0; bin < pooled_width; ++bin) {
                const PixelRange pixels = weights.x.pixels_of(bin);
                for (std::vector<T>& sum : x_sums) {
                  std::fill_n(sum.begin(), block, T(0));
                }
                add_weighted<T>(
                    x, {row + (pixels.first - columns.first) * pixel_stride, pixel_stride},
                    weights.x.of_pixels(bin, pixels.first), pixels.count, block);
                add_product_gradients<T>(
                    grads.data(), x, {&bins[(y_bins.first * pooled_width + bin) * block], pooled_width * block},
                    weights.y.of_bins(y_bins.first, j), y_bins.count, block);
              }
            }
            for (int axis = 0; axis < 4; ++axis) {
              for (int64_t c = 0; c < block; ++c) {
                totals[indices[n]][axis] += grads[axis * block + c];
              }
            }
          }
        }
      }
    });
  };
  for_each_view<T>(features, rois, spatial_scale, accumulate);
  auto grad = grad_rois.accessor<T, 2>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    for (int axis = 0; axis < 4; ++axis) {
      grad[k][axis + 1] = static_cast<T>(totals[k][axis]) * spatial_scale;
    }
  }
}

}  // namespace

at::Tensor forward(
    const at::Tensor& features,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    double spatial_scale) {
  at::Tensor output =
      at::empty({rois.size(0), features.size(1), pooled_height, pooled_width}, features.options());
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "prroi_pool forward", [&] {
    forward_kernel<scalar_t>(output, features, rois, static_cast<scalar_t>(spatial_scale));
  });
  return output;
}

at::Tensor features_backward(
    const at::Tensor& grad_output,
    const at::Tensor& rois,
    at::IntArrayRef features_shape,
    bool channels_last,
    double spatial_scale) {
  at::Tensor grad_features = at::empty(
      features_shape,
      grad_output.options().memory_format(
          channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
  AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "prroi_pool features_backward", [&] {
    features_backward_kernel<scalar_t>(
        grad_features, with_equidistant_bins(grad_output), rois, static_cast<scalar_t>(spatial_scale));
  });
  return grad_features;
}

at::Tensor rois_backward(
    const at::Tensor& grad_output,
    const at::Tensor& features,
    const at::Tensor& rois,
    double spatial_scale) {
  at::Tensor grad_rois = at::zeros({rois.size(0), 5}, rois.options());
  AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "prroi_pool rois_backward", [&] {
    rois_backward_kernel<scalar_t>(
        grad_rois, with_equidistant_bins(grad_output), features, rois, static_cast<scalar_t>(spatial_scale));
  });
  return grad_rois;
}

}  // namespace prroi_pool
