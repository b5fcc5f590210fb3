// Tables of the 1-D weights of one RoI along one axis, for the CPU kernels.

#pragma once

#include <algorithm>
#include <vector>

#include "../bilinear_integral.h"
#include "channel_sums.h"

namespace prroi_pool {

// `compute` reuses the memory of the previous RoI.
template <typename T>
class AxisWeights {
 public:
  // Returns whether the RoI has an extent on this axis and touches the map.
  bool compute(const Extent<T>& extent, int64_t size) {
    if (!is_valid(extent)) {
      return false;
    }
    pixels_ = touched_pixels(extent, 0, extent.num_bins, size);
    if (pixels_.count == 0) {
      return false;
    }
    bin_pixels_.resize(extent.num_bins);
    pixel_bins_.assign(pixels_.count, BinRange{});
    value_.resize(extent.num_bins * pixels_.count);
    d_low_.resize(value_.size());
    d_high_.resize(value_.size());
    for (int64_t bin = 0; bin < extent.num_bins; ++bin) {
      compute_bin(extent, bin, size);
    }
    return true;
  }

  PixelRange pixels() const { return pixels_; }
  PixelRange pixels_of(int64_t bin) const { return bin_pixels_[bin]; }
  BinRange bins_of(int64_t pixel) const { return pixel_bins_[pixel - pixels_.first]; }

  // The weight of a pixel in a bin. The weight of the next pixel follows, and that of the next bin is `bin_stride` away.
  // Valid only for the pixels in `pixels_of(bin)`.
  const T* value(int64_t bin, int64_t pixel) const { return &value_[index(bin, pixel)]; }
  int64_t bin_stride() const { return pixels_.count; }

  // Weights of one bin for the pixels from `pixel` on, and of one pixel for the bins from `bin` on.
  DifferentiableWeights<T> of_pixels(int64_t bin, int64_t pixel) const { return differentiable(bin, pixel, 1); }
  DifferentiableWeights<T> of_bins(int64_t bin, int64_t pixel) const {
    return differentiable(bin, pixel, bin_stride());
  }

 private:
  int64_t index(int64_t bin, int64_t pixel) const { return bin * pixels_.count + pixel - pixels_.first; }

  DifferentiableWeights<T> differentiable(int64_t bin, int64_t pixel, int64_t stride) const {
    const int64_t first = index(bin, pixel);
    return {&value_[first], &d_low_[first], &d_high_[first], stride};
  }

  void compute_bin(const Extent<T>& extent, int64_t bin, int64_t size) {
    PixelRange range = touched_pixels(extent, bin, size);
    // By rounding, the last bin may end one pixel beyond the RoI. The weight of that pixel is only rounding error.
    range.count = std::min(range.count, pixels_.first + pixels_.count - range.first);
    bin_pixels_[bin] = range;
    for (int64_t pixel = range.first; pixel < range.first + range.count; ++pixel) {
      const Weight<T> weight = bin_weight(extent, bin, pixel);
      value_[index(bin, pixel)] = weight.value;
      d_low_[index(bin, pixel)] = weight.d_low;
      d_high_[index(bin, pixel)] = weight.d_high;
      BinRange& bins = pixel_bins_[pixel - pixels_.first];
      if (bins.count == 0) {
        bins.first = bin;
      }
      bins.count = bin - bins.first + 1;
    }
  }

  PixelRange pixels_{};
  std::vector<PixelRange> bin_pixels_;
  std::vector<BinRange> pixel_bins_;
  std::vector<T> value_, d_low_, d_high_;
};

}  // namespace prroi_pool
