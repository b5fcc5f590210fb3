// Structures that describe tensors and RoIs to the CUDA kernels. `cuda_kernels.py` packs the same structures.

#pragma once

#include "../bilinear_integral.h"
#include "half_types.cuh"

namespace prroi_pool {

constexpr int kWarp = 32;
// Maximum number of warps in a block.
constexpr int kWarps = 8;
// Maximum number of levels in a feature pyramid.
constexpr int kMaxLevels = 8;

// A map [images, channels, height, width] with arbitrary strides, in elements. Offsets are 64 bits wide.
template <typename T>
struct FeatureMap {
  T* data;
  int64_t images, height, width;
  int64_t image_stride, channel_stride, row_stride, column_stride;

  PRROI_POOL_INLINE T* at(int64_t image, int64_t channel) const {
    return data + image * image_stride + channel * channel_stride;
  }
};

// The maps that a call pools from: one, or the levels of a pyramid.
template <typename T, typename Acc>
struct Pyramid {
  FeatureMap<T> maps[kMaxLevels];
  Acc spatial_scales[kMaxLevels];
  const int64_t* levels;  // the level of each RoI; null if there is one map
  int64_t num_levels;
};

// RoIs [K, 5] and their bins; `output` and its gradient are contiguous [K, channels, pooled_height, pooled_width].
template <typename Acc>
struct RoIs {
  const Acc* data;
  int count, channels, pooled_height, pooled_width;

  PRROI_POOL_INLINE int64_t offset(int64_t k, int channel, int bin_y, int bin_x) const {
    return ((k * channels + channel) * pooled_height + bin_y) * pooled_width + bin_x;
  }
};

template <typename T, typename Acc>
struct RoI {
  bool pools;  // false if it has no area or a NaN or infinite coordinate, or if its image or level does not exist
  int64_t image;
  const FeatureMap<T>* map;
  Acc spatial_scale;
  Extent<Acc> x, y;
};

template <typename T, typename Acc>
__device__ RoI<T, Acc> read_roi(const Pyramid<T, Acc>& pyramid, const RoIs<Acc>& rois, int64_t k) {
  const Acc* data = rois.data + k * 5;
  const int64_t level = pyramid.levels != nullptr ? pyramid.levels[k] : 0;
  const bool has_level = level >= 0 && level < pyramid.num_levels;
  RoI<T, Acc> roi;
  roi.map = &pyramid.maps[has_level ? level : 0];
  roi.spatial_scale = pyramid.spatial_scales[has_level ? level : 0];
  roi.image = image_of(data[0], roi.map->images);
  roi.x = make_extent(data[1], data[3], roi.spatial_scale, rois.pooled_width);
  roi.y = make_extent(data[2], data[4], roi.spatial_scale, rois.pooled_height);
  roi.pools = has_level && roi.image >= 0 && is_valid(roi.x) && is_valid(roi.y);
  return roi;
}

// N adjacent elements, loaded or stored by one instruction.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T value[N];
};

template <int N, typename T>
__device__ Pack<T, N> load(const T* data) {
  return *reinterpret_cast<const Pack<T, N>*>(data);
}

// sums += weight * values, for each of N channels.
template <typename T, typename Acc, int N>
__device__ void add_weighted(Pack<Acc, N>& sums, Acc weight, const Pack<T, N>& values) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    sums.value[n] += weight * widen(values.value[n]);
  }
}

}  // namespace prroi_pool
