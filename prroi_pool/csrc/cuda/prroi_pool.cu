// Precise RoI Pooling on CUDA. A warp works on one bin of one RoI, its lanes on adjacent channels of a
// channels-last map, so that they read and write adjacent memory and take the same way through the loops.

#include "../prroi_pool.h"

#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "../bilinear_integral.h"

namespace prroi_pool {
namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
// Channels a lane works on, for each of which a weight is used once it is computed.
constexpr int kChannelsPerLane = 4;
constexpr int kChannelsPerWarp = kWarp * kChannelsPerLane;

// A tensor as the kernels see it; 64-bit offsets.
template <typename T>
struct View {
  T* data;
  int64_t size[4];
  int64_t stride[4];

  __device__ T& at(int64_t a, int64_t b, int64_t c, int64_t d) const {
    return data[a * stride[0] + b * stride[1] + c * stride[2] + d * stride[3]];
  }
};

template <typename T>
View<const T> view(const at::Tensor& tensor) {
  View<const T> result{tensor.const_data_ptr<T>(), {}, {}};
  for (int d = 0; d < 4; ++d) {
    result.size[d] = tensor.size(d);
    result.stride[d] = tensor.stride(d);
  }
  return result;
}

template <typename T>
View<T> mutable_view(at::Tensor& tensor) {
  const View<const T> result = view<T>(tensor);
  View<T> mutable_result{tensor.mutable_data_ptr<T>(), {}, {}};
  for (int d = 0; d < 4; ++d) {
    mutable_result.size[d] = result.size[d];
    mutable_result.stride[d] = result.stride[d];
  }
  return mutable_result;
}

template <typename T>
struct RoI {
  int64_t image;  // -1 when it pools nothing
  Extent<T> x, y;
};

// `rois` is contiguous [K, 5].
template <typename T>
__device__ RoI<T> read_roi(
    const T* rois,
    int64_t k,
    T spatial_scale,
    int64_t num_images,
    int64_t pooled_height,
    int64_t pooled_width) {
  const T* roi = rois + k * 5;
  RoI<T> result{
      image_of(roi[0], num_images),
      make_extent(roi[1], roi[3], spatial_scale, pooled_width),
      make_extent(roi[2], roi[4], spatial_scale, pooled_height)};
  if (!is_valid(result.x) || !is_valid(result.y)) {
    result.image = -1;
  }
  return result;
}

// blockIdx.x is the RoI, blockIdx.y the block of channels; the warps share the bins.
template <typename T>
__global__ void forward_kernel(View<T> output, View<const T> features, const T* rois, T spatial_scale) {
  const int64_t k = blockIdx.x;
  const int64_t pooled_height = output.size[2], pooled_width = output.size[3];
  const RoI<T> roi = read_roi(rois, k, spatial_scale, features.size[0], pooled_height, pooled_width);
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kChannelsPerWarp + threadIdx.x;
  for (int64_t bin = threadIdx.y; bin < pooled_height * pooled_width; bin += kWarps) {
    const int64_t bin_y = bin / pooled_width, bin_x = bin % pooled_width;
    T sum[kChannelsPerLane] = {};
    if (roi.image >= 0) {
      const PixelRange rows = touched_pixels(roi.y, bin_y, features.size[2]);
      const PixelRange columns = touched_pixels(roi.x, bin_x, features.size[3]);
      for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
        const T weight_y = bin_weight(roi.y, bin_y, j).value;
        for (int64_t i = columns.first; i < columns.first + columns.count; ++i) {
          const T weight = weight_y * bin_weight(roi.x, bin_x, i).value;
          const T* pixel = &features.at(roi.image, 0, j, i);
#pragma unroll
          for (int n = 0; n < kChannelsPerLane; ++n) {
            const int64_t c = channel + n * kWarp;
            if (c < features.size[1]) {
              sum[n] += weight * pixel[c * features.stride[1]];
            }
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < kChannelsPerLane; ++n) {
      const int64_t c = channel + n * kWarp;
      if (c < features.size[1]) {
        output.at(k, c, bin_y, bin_x) = sum[n];
      }
    }
  }
}

// The launch and the loops of `forward_kernel`.
template <typename T>
__global__ void features_backward_kernel(
    View<T> grad_features, View<const T> grad_output, const T* rois, T spatial_scale) {
  const int64_t k = blockIdx.x;
  const int64_t pooled_height = grad_output.size[2], pooled_width = grad_output.size[3];
  const RoI<T> roi = read_roi(rois, k, spatial_scale, grad_features.size[0], pooled_height, pooled_width);
  if (roi.image < 0) {
    return;
  }
  const int64_t channel = static_cast<int64_t>(blockIdx.y) * kChannelsPerWarp + threadIdx.x;
  for (int64_t bin = threadIdx.y; bin < pooled_height * pooled_width; bin += kWarps) {
    const int64_t bin_y = bin / pooled_width, bin_x = bin % pooled_width;
    T grad[kChannelsPerLane] = {};
#pragma unroll
    for (int n = 0; n < kChannelsPerLane; ++n) {
      const int64_t c = channel + n * kWarp;
      if (c < grad_features.size[1]) {
        grad[n] = grad_output.at(k, c, bin_y, bin_x);
      }
    }
    const PixelRange rows = touched_pixels(roi.y, bin_y, grad_features.size[2]);
    const PixelRange columns = touched_pixels(roi.x, bin_x, grad_features.size[3]);
    for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
      const T weight_y = bin_weight(roi.y, bin_y, j).value;
      for (int64_t i = columns.first; i < columns.first + columns.count; ++i) {
        const T weight = weight_y * bin_weight(roi.x, bin_x, i).value;
        T* pixel = &grad_features.at(roi.image, 0, j, i);
#pragma unroll
        for (int n = 0; n < kChannelsPerLane; ++n) {
          const int64_t c = channel + n * kWarp;
          if (c < grad_features.size[1]) {
            atomicAdd(&pixel[c * grad_features.stride[1]], weight * grad[n]);
          }
        }
      }
    }
  }
}

// One block a RoI: its warps share the bins, and its lanes the channels. A product of an output's gradient
// with a pixel serves all four coordinates, so the sum over channels comes first. All sums have a fixed
// order.
template <typename T>
__global__ void rois_backward_kernel(
    T* grad_rois, View<const T> grad_output, View<const T> features, const T* rois, T spatial_scale) {
  const int64_t k = blockIdx.x;
  const int64_t pooled_height = grad_output.size[2], pooled_width = grad_output.size[3];
  const RoI<T> roi = read_roi(rois, k, spatial_scale, features.size[0], pooled_height, pooled_width);
  if (roi.image < 0) {
    return;
  }
  T grad[4] = {};  // x1, y1, x2, y2
  for (int64_t bin = threadIdx.y; bin < pooled_height * pooled_width; bin += kWarps) {
    const int64_t bin_y = bin / pooled_width, bin_x = bin % pooled_width;
    const PixelRange rows = touched_pixels(roi.y, bin_y, features.size[2]);
    const PixelRange columns = touched_pixels(roi.x, bin_x, features.size[3]);
    for (int64_t j = rows.first; j < rows.first + rows.count; ++j) {
      const Weight<T> y = bin_weight(roi.y, bin_y, j);
      for (int64_t i = columns.first; i < columns.first + columns.count; ++i) {
        const Weight<T> x = bin_weight(roi.x, bin_x, i);
        const T* pixel = &features.at(roi.image, 0, j, i);
        const T* grad_bin = &grad_output.at(k, 0, bin_y, bin_x);
        T product = 0;
        for (int64_t c = threadIdx.x; c < features.size[1]; c += kWarp) {
          product += grad_bin[c * grad_output.stride[1]] * pixel[c * features.stride[1]];
        }
        grad[0] += product * x.d_low * y.value;
        grad[1] += product * x.value * y.d_low;
        grad[2] += product * x.d_high * y.value;
        grad[3] += product * x.value * y.d_high;
      }
    }
  }

  __shared__ T warp_sums[kWarps][4];
#pragma unroll
  for (int n = 0; n < 4; ++n) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      grad[n] += __shfl_down_sync(0xffffffff, grad[n], offset);
    }
    if (threadIdx.x == 0) {
      warp_sums[threadIdx.y][n] = grad[n];
    }
  }
  __syncthreads();
  if (threadIdx.y == 0 && threadIdx.x < 4) {
    T total = 0;
    for (int warp = 0; warp < kWarps; ++warp) {
      total += warp_sums[warp][threadIdx.x];
    }
    grad_rois[k * 5 + 1 + threadIdx.x] = total * spatial_scale;
  }
}

const dim3 kThreads(kWarp, kWarps);

dim3 grid_of(int64_t num_rois, int64_t channels) {
  const int64_t num_blocks = (channels + kChannelsPerWarp - 1) / kChannelsPerWarp;
  return dim3(static_cast<unsigned>(num_rois), static_cast<unsigned>(num_blocks));
}

}  // namespace

at::Tensor forward(
    const at::Tensor& features,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    bool channels_last,
    double spatial_scale) {
  const c10::cuda::CUDAGuard guard(features.device());
  at::Tensor output = at::empty(
      {rois.size(0), features.size(1), pooled_height, pooled_width},
      features.options().memory_format(
          channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous));
  if (output.numel() == 0) {
    return output;
  }
  // The copy is made at the bandwidth of the memory, and saves the kernel reads that are a map apart.
  const at::Tensor readable = features.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor contiguous_rois = rois.contiguous();
  AT_DISPATCH_FLOATING_TYPES(features.scalar_type(), "prroi_pool forward", [&] {
    forward_kernel<scalar_t>
        <<<grid_of(rois.size(0), features.size(1)), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            mutable_view<scalar_t>(output), view<scalar_t>(readable),
            contiguous_rois.const_data_ptr<scalar_t>(), static_cast<scalar_t>(spatial_scale));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

at::Tensor features_backward(
    const at::Tensor& grad_output,
    const at::Tensor& rois,
    at::IntArrayRef features_shape,
    bool channels_last,
    double spatial_scale) {
  at::globalContext().alertNotDeterministic("prroi_pool features_backward on CUDA");
  const c10::cuda::CUDAGuard guard(grad_output.device());
  // Summed channels-last, so that the lanes of a warp add to adjacent addresses.
  at::Tensor grad_features =
      at::empty(features_shape, grad_output.options().memory_format(at::MemoryFormat::ChannelsLast)).zero_();
  if (grad_output.numel() > 0 && grad_features.numel() > 0) {
    const at::Tensor contiguous_rois = rois.contiguous();
    AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "prroi_pool features_backward", [&] {
      features_backward_kernel<scalar_t>
          <<<grid_of(rois.size(0), features_shape[1]), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
              mutable_view<scalar_t>(grad_features), view<scalar_t>(grad_output),
              contiguous_rois.const_data_ptr<scalar_t>(), static_cast<scalar_t>(spatial_scale));
    });
    C10_CUDA_KERNEL_LAUNCH_CHECK();
  }
  return channels_last ? grad_features : grad_features.contiguous();
}

at::Tensor rois_backward(
    const at::Tensor& grad_output,
    const at::Tensor& features,
    const at::Tensor& rois,
    double spatial_scale) {
  const c10::cuda::CUDAGuard guard(features.device());
  at::Tensor grad_rois = at::zeros({rois.size(0), 5}, rois.options());
  if (grad_output.numel() == 0 || features.numel() == 0) {
    return grad_rois;
  }
  const at::Tensor channels_last = features.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor channels_last_grad = grad_output.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor contiguous_rois = rois.contiguous();
  AT_DISPATCH_FLOATING_TYPES(rois.scalar_type(), "prroi_pool rois_backward", [&] {
    rois_backward_kernel<scalar_t>
        <<<static_cast<unsigned>(rois.size(0)), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            grad_rois.mutable_data_ptr<scalar_t>(), view<scalar_t>(channels_last_grad),
            view<scalar_t>(channels_last), contiguous_rois.const_data_ptr<scalar_t>(),
            static_cast<scalar_t>(spatial_scale));
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return grad_rois;
}

}  // namespace prroi_pool
