// The operator and its two gradients on the CPU. `cuda_kernels.py` contains the CUDA versions.

#pragma once

#include <ATen/core/Tensor.h>

namespace prroi_pool {

// features [N, C, H, W] and rois [K, 5] have the same dtype, float or double. A RoI whose image does not exist pools to 0,
// like a RoI without area.

// Returns [K, C, pooled_height, pooled_width], contiguous.
at::Tensor forward(
    const at::Tensor& features,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    double spatial_scale);

// Returns the gradient [N, C, H, W] of the features, optionally in channels-last memory format.
at::Tensor features_backward(
    const at::Tensor& grad_output,
    const at::Tensor& rois,
    at::IntArrayRef features_shape,
    bool channels_last,
    double spatial_scale);

// Returns the gradient [K, 5] of the RoIs, 0 for the batch index.
at::Tensor rois_backward(
    const at::Tensor& grad_output,
    const at::Tensor& features,
    const at::Tensor& rois,
    double spatial_scale);

}  // namespace prroi_pool
