#include <torch/csrc/utils/pybind.h>

#include "prroi_pool.h"

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  using release_gil = pybind11::call_guard<pybind11::gil_scoped_release>;
  module.def("forward", &prroi_pool::forward, release_gil());
  module.def("features_backward", &prroi_pool::features_backward, release_gil());
  module.def("rois_backward", &prroi_pool::rois_backward, release_gil());
}
