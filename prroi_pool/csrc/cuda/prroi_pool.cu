// Precise RoI Pooling on CUDA: the operators on ATen's tensors. The kernels know nothing of ATen, so that they can be
// tested on a machine without a GPU, too.

#include "../prroi_pool.h"

#include <ATen/AccumulateType.h>
#include <ATen/Context.h>
#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "launch.cuh"

namespace prroi_pool {
namespace {

template <typename T, typename Pointer>
TensorView<T> view(const at::Tensor& tensor, Pointer* data) {
  TensorView<T> result{data, {}, {}};
  for (int d = 0; d < 4; ++d) {
    result.size[d] = tensor.size(d);
    result.stride[d] = tensor.stride(d);
  }
  return result;
}

template <typename T>
TensorView<const T> const_view(const at::Tensor& tensor) {
  return view<const T>(tensor, tensor.const_data_ptr<T>());
}

template <typename T>
TensorView<T> mutable_view(const at::Tensor& tensor) {
  return view<T>(tensor, tensor.mutable_data_ptr<T>());
}

at::MemoryFormat memory_format(bool channels_last) {
  return channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
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
  const at::Tensor output = at::empty(
      {rois.size(0), features.size(1), pooled_height, pooled_width},
      features.options().memory_format(memory_format(channels_last)));
  if (output.numel() == 0) {
    return output;
  }
  const at::Tensor contiguous_rois = rois.contiguous();
  AT_DISPATCH_FLOATING_TYPES_AND2(at::kHalf, at::kBFloat16, features.scalar_type(), "prroi_pool forward", [&] {
    using acc_t = at::acc_type<scalar_t, true>;
    C10_CUDA_CHECK((launch_forward<scalar_t, acc_t>(
        mutable_view<scalar_t>(output), const_view<scalar_t>(features), contiguous_rois.const_data_ptr<acc_t>(),
        static_cast<acc_t>(spatial_scale), c10::cuda::getCurrentCUDAStream())));
  });
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
  // Of the RoIs' dtype: a float16 sum of many RoIs would lose most of them.
  const at::Tensor grad_features =
      at::empty(features_shape, rois.options().memory_format(memory_format(channels_last))).zero_();
  if (grad_output.numel() > 0 && grad_features.numel() > 0) {
    const at::Tensor contiguous_rois = rois.contiguous();
    AT_DISPATCH_FLOATING_TYPES_AND2(
        at::kHalf, at::kBFloat16, grad_output.scalar_type(), "prroi_pool features_backward", [&] {
          using acc_t = at::acc_type<scalar_t, true>;
          C10_CUDA_CHECK((launch_features_backward<scalar_t, acc_t>(
              mutable_view<acc_t>(grad_features), const_view<scalar_t>(grad_output),
              contiguous_rois.const_data_ptr<acc_t>(), static_cast<acc_t>(spatial_scale),
              c10::cuda::getCurrentCUDAStream())));
        });
  }
  return grad_features.to(grad_output.scalar_type());
}

at::Tensor rois_backward(
    const at::Tensor& grad_output,
    const at::Tensor& features,
    const at::Tensor& rois,
    double spatial_scale) {
  const c10::cuda::CUDAGuard guard(features.device());
  const at::Tensor grad_rois = at::zeros({rois.size(0), 5}, rois.options());
  if (grad_output.numel() == 0 || features.numel() == 0) {
    return grad_rois;
  }
  const at::Tensor contiguous_rois = rois.contiguous();
  // Often an expanded scalar, or in the other layout than the features; they are far larger.
  const at::Tensor readable_grad = grad_output.contiguous(memory_format(features.stride(1) == 1));
  AT_DISPATCH_FLOATING_TYPES_AND2(
      at::kHalf, at::kBFloat16, features.scalar_type(), "prroi_pool rois_backward", [&] {
        using acc_t = at::acc_type<scalar_t, true>;
        C10_CUDA_CHECK((launch_rois_backward<scalar_t, acc_t>(
            grad_rois.mutable_data_ptr<acc_t>(), const_view<scalar_t>(readable_grad), const_view<scalar_t>(features),
            contiguous_rois.const_data_ptr<acc_t>(), static_cast<acc_t>(spatial_scale),
            c10::cuda::getCurrentCUDAStream())));
      });
  return grad_rois;
}

}  // namespace prroi_pool
