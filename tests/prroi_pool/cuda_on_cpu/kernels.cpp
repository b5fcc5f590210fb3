// prroi_pool's CUDA kernels and their launches, compiled for the CPU; test_cuda_kernels.py calls them.

#include "cuda_on_cpu.h"

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include "launch.cuh"

using prroi_pool::TensorView;

namespace {

template <typename T>
TensorView<T> view(T* data, const int64_t* sizes_and_strides) {
  TensorView<T> result{data, {}, {}};
  for (int d = 0; d < 4; ++d) {
    result.size[d] = sizes_and_strides[d];
    result.stride[d] = sizes_and_strides[4 + d];
  }
  return result;
}

}  // namespace

#define EXPORT(T, ACC, NAME)                                                                                        \
  extern "C" int forward_##NAME(                                                                                    \
      T* output, const int64_t* output_shape, const T* features, const int64_t* features_shape, const ACC* rois,    \
      double scale) {                                                                                               \
    return prroi_pool::launch_forward<T, ACC>(                                                                      \
        view(output, output_shape), view(features, features_shape), rois, static_cast<ACC>(scale), nullptr);        \
  }                                                                                                                 \
  extern "C" int features_backward_##NAME(                                                                          \
      ACC* grad_features, const int64_t* features_shape, const T* grad_output, const int64_t* output_shape,         \
      const ACC* rois, double scale) {                                                                              \
    return prroi_pool::launch_features_backward<T, ACC>(                                                            \
        view(grad_features, features_shape), view(grad_output, output_shape), rois, static_cast<ACC>(scale),        \
        nullptr);                                                                                                   \
  }                                                                                                                 \
  extern "C" int rois_backward_##NAME(                                                                              \
      ACC* grad_rois, const T* grad_output, const int64_t* output_shape, const T* features,                         \
      const int64_t* features_shape, const ACC* rois, double scale) {                                               \
    return prroi_pool::launch_rois_backward<T, ACC>(                                                                \
        grad_rois, view(grad_output, output_shape), view(features, features_shape), rois, static_cast<ACC>(scale),  \
        nullptr);                                                                                                   \
  }

EXPORT(double, double, float64)
EXPORT(float, float, float32)
EXPORT(c10::Half, float, float16)
EXPORT(c10::BFloat16, float, bfloat16)
