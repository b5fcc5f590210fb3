"""Launch every CUDA kernel of prroi_pool, for a profiler.

    ncu --clock-control none --profile-from-start off --csv --page raw python -m benchmarks.profile_kernels

This profiles the forward pass and both gradients of 512 and of 100 RoIs with sides of 14 to 28 pixels on one map of
200 x 304, in float32 and bfloat16, channels-last and contiguous.
"""

from dataclasses import replace

import torch

from prroi_pool import extension

from .workloads import BINS, WORKLOADS, make_levels


def main() -> None:
    kernels = extension.load("cuda")
    for num_rois in (512, 100):
        workload = replace(WORKLOADS[0], num_rois=(num_rois,))
        for dtype in (torch.float32, torch.bfloat16):
            for channels_last in (True, False):
                (level,) = make_levels(workload, dtype, channels_last, torch.device("cuda"))
                features, rois, scale = level.features, level.rois, level.scale
                grad_output = level.grad_output.contiguous()
                for profiled in (False, True):
                    torch.cuda.synchronize()
                    if profiled:
                        torch.cuda.profiler.start()
                    kernels.forward([features], rois, None, BINS, BINS, [scale])
                    kernels.features_backward(grad_output, rois, None, [features.shape], [channels_last], [scale])
                    kernels.rois_backward(grad_output, [features], rois, None, [scale])
                    torch.cuda.synchronize()
                    if profiled:
                        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
