// Chooses the kernel for a layout and its launch configuration.

#pragma once

#include "channels_last.cuh"
#include "strided.cuh"

namespace prroi_pool {

// Whether the channels can be moved N at a time, which is what the kernels of channels_last.cuh do.
template <int N, typename T>
bool is_packable(const TensorView<T>& tensor) {
  bool packable = tensor.stride[1] == 1 && tensor.size[1] % N == 0 &&
      reinterpret_cast<std::uintptr_t>(tensor.data) % (N * sizeof(T)) == 0;
  for (const int d : {0, 2, 3}) {
    packable = packable && tensor.stride[d] % N == 0;
  }
  return packable;
}

inline int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

template <typename... Parameters, typename... Arguments>
cudaError_t launch(
    void (*kernel)(Parameters...),
    int64_t num_rois,
    int64_t num_chunks,
    int64_t num_warps,
    cudaStream_t stream,
    const Arguments&... arguments) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(num_rois), static_cast<unsigned>(num_chunks));
  config.blockDim = dim3(kWarp, static_cast<unsigned>(num_warps));
  config.stream = stream;
  return cudaLaunchKernelEx(&config, kernel, arguments...);
}

template <typename T, typename Acc>
cudaError_t launch_forward(
    const TensorView<T>& output,
    const TensorView<const T>& features,
    const Acc* rois,
    Acc spatial_scale,
    cudaStream_t stream) {
  const int64_t num_rois = output.size[0], channels = output.size[1], pooled_height = output.size[2];
  constexpr int kChannels = 16 / sizeof(T);  // the most that one instruction loads
  if (is_packable<kChannels>(features) && is_packable<kChannels>(output)) {
    return launch(
        forward_channels_last<T, Acc, kChannels>, num_rois, divide_up(channels, kWarp * kChannels),
        pooled_height < 8 ? pooled_height : 8, stream, output, features, rois, spatial_scale);
  }
  return launch(
      forward_strided<T, Acc>, num_rois, divide_up(channels, kBlockChannels), kStridedWarps, stream, output, features,
      rois, spatial_scale);
}

template <typename T, typename Acc>
cudaError_t launch_features_backward(
    const TensorView<Acc>& grad_features,
    const TensorView<const T>& grad_output,
    const Acc* rois,
    Acc spatial_scale,
    cudaStream_t stream) {
  const int64_t num_rois = grad_output.size[0], channels = grad_output.size[1];
  if (grad_features.stride[1] == 1) {
    constexpr int kChannels = 4;
    return launch(
        features_backward_channels_last<T, Acc, kChannels>, num_rois, divide_up(channels, kWarp * kChannels), 8,
        stream, grad_features, grad_output, rois, spatial_scale);
  }
  return launch(
      features_backward_strided<T, Acc>, num_rois, divide_up(channels, kBlockChannels), kStridedWarps, stream,
      grad_features, grad_output, rois, spatial_scale);
}

template <typename T, typename Acc>
cudaError_t launch_rois_backward(
    Acc* grad_rois,
    const TensorView<const T>& grad_output,
    const TensorView<const T>& features,
    const Acc* rois,
    Acc spatial_scale,
    cudaStream_t stream) {
  constexpr int kChannels = 16 / sizeof(Acc);  // the sums of more do not fit into registers
  const auto kernel = is_packable<kChannels>(features) && is_packable<kChannels>(grad_output)
      ? rois_backward_channels_last<T, Acc, kChannels>
      : rois_backward_strided<T, Acc>;
  return launch(
      kernel, grad_output.size[0], 1, kMaxWarps, stream, grad_rois, grad_output, features, rois, spatial_scale);
}

}  // namespace prroi_pool
