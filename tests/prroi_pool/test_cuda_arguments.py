"""cuda_kernels.py packs its structures with the layout of csrc/cuda/tensors.cuh."""

import ctypes
import struct
import subprocess
import sys

import pytest
import torch
from processes import PACKAGE

from prroi_pool import cuda_kernels, extension
from prroi_pool.build_cache import BuildError

LAYOUT = """
#include <cstddef>
#include <cstdio>
#define __device__
#include "cuda/tensors.cuh"
using namespace prroi_pool;
template <typename T>
void print() {
  using Maps = Pyramid<T, T>;
  using Map = FeatureMap<T>;
  const size_t numbers[] = {
      sizeof(Map), offsetof(Map, data), offsetof(Map, images), offsetof(Map, height), offsetof(Map, width),
      offsetof(Map, image_stride), offsetof(Map, channel_stride), offsetof(Map, row_stride),
      offsetof(Map, column_stride), sizeof(Maps), offsetof(Maps, maps), offsetof(Maps, spatial_scales),
      offsetof(Maps, levels), offsetof(Maps, num_levels), sizeof(RoIs<T>), offsetof(RoIs<T>, data),
      offsetof(RoIs<T>, count), offsetof(RoIs<T>, channels), offsetof(RoIs<T>, pooled_height),
      offsetof(RoIs<T>, pooled_width), kMaxLevels};
  for (size_t number : numbers) {
    std::printf("%zu ", number);
  }
  std::printf("\\n");
}
int main() {
  print<float>();
  print<double>();
}
"""


@pytest.fixture(scope="module")
def layouts(tmp_path_factory) -> dict[torch.dtype, list[int]]:
    """Return sizes and offsets of the structures in tensors.cuh, by dtype."""
    if sys.platform == "win32":
        pytest.skip("options of g++ and clang")
    try:
        compiler = extension.find_compiler()
    except BuildError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("layout")
    (folder / "layout.cpp").write_text(LAYOUT)
    options = ["-std=c++17", f"-I{PACKAGE / 'csrc'}"]
    subprocess.run([compiler, *options, folder / "layout.cpp", "-o", folder / "layout"], check=True)
    printed = subprocess.run([folder / "layout"], capture_output=True, text=True, check=True).stdout
    rows = [list(map(int, line.split())) for line in printed.splitlines()]
    return dict(zip((torch.float32, torch.float64), rows, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arguments_have_the_layout_of_the_structures(layouts, dtype):
    map_bytes, *fields = layouts[dtype][:9]
    pyramid_bytes, first_map, first_scale, levels_at, num_levels_at = layouts[dtype][9:14]
    rois_bytes, rois_at, *sizes_at, max_levels = layouts[dtype][14:]

    maps = [torch.zeros(2, 3, 5 * n, 7, dtype=dtype)[:, :, ::n, 1:] for n in (1, 2, 3)]
    maps[1] = maps[1].to(memory_format=torch.channels_last)
    rois, levels = torch.zeros(11, 5, dtype=dtype), torch.zeros(11, dtype=torch.int64)
    scales = [0.5, 0.25, 0.125]
    pyramid, described = cuda_kernels._arguments(maps, rois, levels, (11, 3, 4, 6), scales)

    def read(kind: str, buffer: ctypes.Array, offset: int) -> int | float:
        return struct.unpack_from(f"={kind}", buffer, offset)[0]

    assert len(pyramid) == pyramid_bytes and len(described) == rois_bytes and cuda_kernels.MAX_LEVELS == max_levels
    scale_kind = "f" if dtype == torch.float32 else "d"
    for n, (features, scale) in enumerate(zip(maps, scales, strict=True)):
        images, _, height, width = features.shape
        expected = features.data_ptr(), images, height, width, *features.stride()
        assert tuple(read("q", pyramid, first_map + n * map_bytes + field) for field in fields) == expected
        assert read(scale_kind, pyramid, first_scale + n * struct.calcsize(scale_kind)) == scale
    assert (read("q", pyramid, levels_at), read("q", pyramid, num_levels_at)) == (levels.data_ptr(), len(maps))
    assert read("q", described, rois_at) == rois.data_ptr()
    assert [read("i", described, at) for at in sizes_at] == [11, 3, 4, 6]
