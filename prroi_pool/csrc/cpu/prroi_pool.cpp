// Precise RoI Pooling on the CPU. All kernels work on blocks of channels, row by row of the feature map: a
// row is first weighted along x, and the result along y, so that a pixel of a row costs about two products a
// channel.

#include "../prroi_pool.h"

#include <ATen/Dispatch.h>
#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <vector>

#include "axis_weights.h"
#include "channel_sums.h"

namespace prroi_pool {
namespace {

// Channels a kernel works on at once: 128 floats of a pixel are read in one go, and those of a 7 × 7 output
// still fit in the L1 cache.
constexpr int64_t kBlock = 128;
// Rows of the map that one task of the feature gradient owns. Fixed, and every task adds its RoIs in their
// order, so that the gradient has the same bits for any number of threads.
constexpr int64_t kBandRows = 40;

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

// Reads rows of a block of channels. A map that is not channels-last is gathered into a buffer.
template <typename T>
class RowReader {
 public:
  explicit RowReader(const at::Tensor& features)
      : data_(features.const_data_ptr<T>()), strides_(features.strides()) {}

  // Elements from a pixel to its right neighbour in what `row` returns.
  int64_t pixel_stride(int64_t channels) const { return strides_[1] == 1 ? strides_[3] : channels; }

  const T* row(int64_t image, int64_t channel, int64_t channels, int64_t row, const PixelRange& columns) {
    const T* source =
        data_ + image * strides_[0] + channel * strides_[1] + row * strides_[2] + columns.first * strides_[3];
    if (strides_[1] == 1) {
      return source;
    }
    buffer_.resize(columns.count * channels);
    for (int64_t c = 0; c < channels; ++c) {
      for (int64_t i = 0; i < columns.count; ++i) {
        buffer_[i * channels + c] = source[c * strides_[1] + i * strides_[3]];
      }
    }
    return buffer_.data();
  }

 private:
  const T* data_;
  at::IntArrayRef strides_;
  std::vector<T> buffer_;
};

// A block of channels of one RoI's output, or its gradient, in both memory layouts: [bin][channel] in the
// kernels, strided in the tensor.
template <typename T>
void read_bins(T* block, const at::Tensor& tensor, int64_t roi, int64_t channel, int64_t channels) {
  const T* source = tensor.const_data_ptr<T>() + roi * tensor.stride(0) + channel * tensor.stride(1);
  for (int64_t row = 0; row < tensor.size(2); ++row) {
    for (int64_t column = 0; column < tensor.size(3); ++column) {
      const T* bin = source + row * tensor.stride(2) + column * tensor.stride(3);
      for (int64_t c = 0; c < channels; ++c) {
        *block++ = bin[c * tensor.stride(1)];
      }
    }
  }
}

template <typename T>
void write_bins(at::Tensor& tensor, const T* block, int64_t roi, int64_t channel, int64_t channels) {
  T* target = tensor.mutable_data_ptr<T>() + roi * tensor.stride(0) + channel * tensor.stride(1);
  for (int64_t row = 0; row < tensor.size(2); ++row) {
    for (int64_t column = 0; column < tensor.size(3); ++column) {
      T* bin = target + row * tensor.stride(2) + column * tensor.stride(3);
      for (int64_t c = 0; c < channels; ++c) {
        bin[c * tensor.stride(1)] = *block++;
      }
    }
  }
}

// The features as they are, or a channels-last copy where the RoIs together cover more than the copy costs.
template <typename T>
at::Tensor readable_features(const at::Tensor& features, const at::Tensor& rois, T spatial_scale) {
  if (features.stride(1) == 1) {
    return features;
  }
  const auto roi = rois.accessor<T, 2>();
  int64_t covered = 0;
  for (int64_t k = 0; k < rois.size(0); ++k) {
    covered += touched_pixels(roi[k][1] * spatial_scale, roi[k][3] * spatial_scale, features.size(3)).count *
        touched_pixels(roi[k][2] * spatial_scale, roi[k][4] * spatial_scale, features.size(2)).count;
  }
  const int64_t pixels = features.size(0) * features.size(2) * features.size(3);
  return covered > pixels ? features.contiguous(at::MemoryFormat::ChannelsLast) : features;
}

template <typename T>
void forward_kernel(
    at::Tensor& output, const at::Tensor& all_features, const at::Tensor& rois, T spatial_scale) {
  const at::Tensor features = readable_features(all_features, rois, spatial_scale);
  const int64_t channels = features.size(1);
  const int64_t pooled_height = output.size(2), pooled_width = output.size(3);

  at::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
    RoIWeights<T> weights;
    RowReader<T> reader(features);
    std::vector<T> bins(pooled_height * pooled_width * kBlock), row_bins(pooled_width * kBlock);
    for (int64_t k = begin; k < end; ++k) {
      const T* roi = rois.const_data_ptr<T>() + k * rois.stride(0);
      const bool pools =
          weights.compute(roi, rois.stride(1), spatial_scale, features.sizes(), pooled_height, pooled_width);
      for (int64_t channel = 0; channel < channels; channel += kBlock) {
        const int64_t block = std::min(kBlock, channels - channel);
        std::fill_n(bins.begin(), pooled_height * pooled_width * block, T(0));
        if (pools) {
          const PixelRange rows = weights.y.pixels(), columns = weights.x.pixels();
          const int64_t pixel_stride = reader.pixel_stride(block);
          for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
            const T* row = reader.row(weights.image, channel, block, j, columns);
            std::fill_n(row_bins.begin(), pooled_width * block, T(0));
            for (int64_t bin = 0; bin < pooled_width; ++bin) {
              const PixelRange pixels = weights.x.pixels_of(bin);
              add_weighted(
                  &row_bins[bin * block], row + (pixels.first - columns.first) * pixel_stride, pixel_stride,
                  weights.x.value(bin, pixels.first), 1, pixels.count, block);
            }
            const BinRange row_of_bins = weights.y.bins_of(j);
            for (int64_t bin = row_of_bins.first; bin < row_of_bins.first + row_of_bins.count; ++bin) {
              add_weighted(
                  &bins[bin * pooled_width * block], row_bins.data(), 0, weights.y.value(bin, j), 1, 1,
                  pooled_width * block);
            }
          }
        }
        write_bins(output, bins.data(), k, channel, block);
      }
    }
  });
}

// The RoIs of each image, in their order.
template <typename T>
std::vector<std::vector<int64_t>> group_by_image(const at::Tensor& rois, int64_t num_images) {
  std::vector<std::vector<int64_t>> rois_of_image(num_images);
  const auto roi = rois.accessor<T, 2>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    const int64_t image = image_of(roi[k][0], num_images);
    if (image >= 0) {
      rois_of_image[image].push_back(k);
    }
  }
  return rois_of_image;
}

// Some rows and channels of the gradient of one image's features, which one task computes. They are summed in
// place where the channels of a pixel are adjacent, else in a buffer of that layout.
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
          add_weighted(
              row_bins.data(), &bins[y_bins.first * row_size], row_size, weights.y.value(y_bins.first, j),
              weights.y.bin_stride(), y_bins.count, row_size);
          for (int64_t i = columns.first; i < columns.first + columns.count; ++i) {
            const BinRange x_bins = weights.x.bins_of(i);
            add_weighted(
                band.pixel(j, i), &row_bins[x_bins.first * band.channels], band.channels,
                weights.x.value(x_bins.first, i), weights.x.bin_stride(), x_bins.count, band.channels);
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
    const at::Tensor& all_features,
    const at::Tensor& rois,
    T spatial_scale) {
  const at::Tensor features = readable_features(all_features, rois, spatial_scale);
  const int64_t channels = features.size(1);
  const int64_t pooled_height = grad_output.size(2), pooled_width = grad_output.size(3);

  at::parallel_for(0, rois.size(0), 1, [&](int64_t begin, int64_t end) {
    RoIWeights<T> weights;
    RowReader<T> reader(features);
    const int64_t row_size = pooled_width * kBlock;
    std::vector<T> bins(pooled_height * row_size);
    // Along x a row of pixels is summed to a row of bins; along y the rows of the output's gradient are. Each
    // with the weights, their derivatives by the low, and those by the high end of the RoI.
    std::vector<T> x_value(row_size), x_low(row_size), x_high(row_size);
    std::vector<T> y_value(row_size), y_low(row_size), y_high(row_size);
    // Sums over rows of x1, y1, x2, y2's gradients, still apart by bin and channel: adding them up last keeps
    // the inner loop free of reductions.
    std::vector<T> grad_x1(row_size), grad_y1(row_size), grad_x2(row_size), grad_y2(row_size);
    for (int64_t k = begin; k < end; ++k) {
      const T* roi = rois.const_data_ptr<T>() + k * rois.stride(0);
      if (!weights.compute(
              roi, rois.stride(1), spatial_scale, features.sizes(), pooled_height, pooled_width)) {
        continue;
      }
      for (auto* sum : {&grad_x1, &grad_y1, &grad_x2, &grad_y2}) {
        std::fill(sum->begin(), sum->end(), T(0));
      }
      const PixelRange rows = weights.y.pixels(), columns = weights.x.pixels();
      for (int64_t channel = 0; channel < channels; channel += kBlock) {
        const int64_t block = std::min(kBlock, channels - channel);
        const int64_t pixel_stride = reader.pixel_stride(block);
        read_bins(bins.data(), grad_output, k, channel, block);
        for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
          for (auto* sum : {&x_value, &x_low, &x_high, &y_value, &y_low, &y_high}) {
            std::fill_n(sum->begin(), pooled_width * block, T(0));
          }
          const T* row = reader.row(weights.image, channel, block, j, columns);
          for (int64_t bin = 0; bin < pooled_width; ++bin) {
            const PixelRange pixels = weights.x.pixels_of(bin);
            const T* source = row + (pixels.first - columns.first) * pixel_stride;
            const auto sum_pixels = [&](std::vector<T>& sums, const T* weight) {
              add_weighted(&sums[bin * block], source, pixel_stride, weight, 1, pixels.count, block);
            };
            sum_pixels(x_value, weights.x.value(bin, pixels.first));
            sum_pixels(x_low, weights.x.d_low(bin, pixels.first));
            sum_pixels(x_high, weights.x.d_high(bin, pixels.first));
          }
          const BinRange row_of_bins = weights.y.bins_of(j);
          const auto sum_bins = [&](std::vector<T>& sums, const T* weight) {
            add_weighted(
                sums.data(), &bins[row_of_bins.first * pooled_width * block], pooled_width * block, weight,
                weights.y.bin_stride(), row_of_bins.count, pooled_width * block);
          };
          sum_bins(y_value, weights.y.value(row_of_bins.first, j));
          sum_bins(y_low, weights.y.d_low(row_of_bins.first, j));
          sum_bins(y_high, weights.y.d_high(row_of_bins.first, j));
          for (int64_t c = 0; c < pooled_width * block; ++c) {
            grad_x1[c] += x_low[c] * y_value[c];
            grad_y1[c] += x_value[c] * y_low[c];
            grad_x2[c] += x_high[c] * y_value[c];
            grad_y2[c] += x_value[c] * y_high[c];
          }
        }
      }
      T* grad = grad_rois.mutable_data_ptr<T>() + k * 5;
      for (const auto* sum : {&grad_x1, &grad_y1, &grad_x2, &grad_y2}) {
        double total = 0;
        for (const T term : *sum) {
          total += term;
        }
        *++grad = static_cast<T>(total) * spatial_scale;
      }
    }
  });
}

}  // namespace

at::Tensor forward(
    const at::Tensor& features,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    bool channels_last,
    double spatial_scale) {
  at::Tensor output = at::empty(
      {rois.size(0), features.size(1), pooled_height, pooled_width},
      features.options().memory_format(
          channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
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
        grad_features, grad_output, rois, static_cast<scalar_t>(spatial_scale));
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
        grad_rois, grad_output, features, rois, static_cast<scalar_t>(spatial_scale));
  });
  return grad_rois;
}

}  // namespace prroi_pool
