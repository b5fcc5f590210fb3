// CPU implementation of the operators that `ops.py` declares. The module also exports the plain kernels, for tests.

#include <torch/csrc/utils/pybind.h>
#include <torch/library.h>

#include <cmath>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "prroi_pool.h"

namespace prroi_pool {
namespace {

// The dtype of sums over these features and of their RoIs.
at::ScalarType computed_dtype(const at::Tensor& features) {
  return features.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
}

// Converts features to the dtype that the kernels accept.
at::Tensor readable(const at::Tensor& features) {
  return features.to(computed_dtype(features));
}

void check_batch_index(const at::Tensor& rois, int64_t num_images) {
  const at::Tensor batch_index = rois.select(1, 0).to(at::kDouble).contiguous();
  const double* index = batch_index.const_data_ptr<double>();
  for (int64_t k = 0; k < rois.size(0); ++k) {
    TORCH_CHECK_VALUE(
        index[k] >= 0 && index[k] < static_cast<double>(num_images) && index[k] == std::floor(index[k]), "rois[", k,
        ", 0], the batch index, is ", index[k], ", but must be an integer in [0, ", num_images, "), as features holds ",
        num_images, " image(s); the columns of rois must be (batch_index, x1, y1, x2, y2)");
  }
}

at::Tensor prroi_pool2d(
    const at::Tensor& features,
    const at::Tensor& rois,
    int64_t pooled_height,
    int64_t pooled_width,
    double spatial_scale) {
  check_batch_index(rois, features.size(0));
  const at::Tensor pooled = forward(
      readable(features), rois.to(computed_dtype(features)), pooled_height, pooled_width, spatial_scale);
  return pooled.to(features.scalar_type());
}

at::Tensor prroi_pool2d_features_backward(
    const at::Tensor& grad_output,
    const at::Tensor& rois,
    at::IntArrayRef features_shape,
    bool channels_last,
    double spatial_scale) {
  const at::Tensor grad_features = features_backward(
      readable(grad_output), rois.to(computed_dtype(grad_output)), features_shape, channels_last, spatial_scale);
  return grad_features.to(grad_output.scalar_type());
}

at::Tensor prroi_pool2d_rois_backward(
    const at::Tensor& grad_output, const at::Tensor& features, const at::Tensor& rois, double spatial_scale) {
  const at::Tensor values = readable(features);
  const at::Tensor grad_rois = rois_backward(
      grad_output.to(values.scalar_type()), values, rois.to(computed_dtype(features)), spatial_scale);
  return grad_rois.to(rois.scalar_type());
}

// Copies of the package in several projects share this module, but each copy registers its own namespace.
void register_operators(const std::string& name, const std::string& dispatch_key) {
  static std::set<std::string> registered;
  static std::vector<std::unique_ptr<torch::Library>> libraries;
  if (!registered.insert(name).second) {
    return;
  }
  auto library = std::make_unique<torch::Library>(
      torch::Library::IMPL, name, c10::parseDispatchKey(dispatch_key), __FILE__, __LINE__);
  library->impl("prroi_pool2d", &prroi_pool2d);
  library->impl("features_backward", &prroi_pool2d_features_backward);
  library->impl("rois_backward", &prroi_pool2d_rois_backward);
  libraries.push_back(std::move(library));
}

}  // namespace
}  // namespace prroi_pool

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("register_operators", &prroi_pool::register_operators);
  module.def("forward", &prroi_pool::forward, release_gil());
  module.def("features_backward", &prroi_pool::features_backward, release_gil());
  module.def("rois_backward", &prroi_pool::rois_backward, release_gil());
}
