"""Launches every kernel of prroi_pool a few times, for a profiler.

    ncu --clock-control none --profile-from-start off --csv --page raw python -m benchmarks.profile_kernels

Profiled are the forward pass and both gradients of 512 RoIs of 14 to 28 pixels, and of 100, on one map of 200 x 304, in
float32 and bfloat16, channels-last and contiguous.
"""

import torch

from prroi_pool import extension

BINS, CHANNELS, HEIGHT, WIDTH = 7, 256, 200, 304


def main() -> None:
    kernels = extension.load("cuda")
    generator = torch.Generator().manual_seed(0)
    for num_rois in (512, 100):
        sides = 14 * 2 ** torch.rand(num_rois, 2, generator=generator)
        start = torch.rand(num_rois, 2, generator=generator) * (torch.tensor([WIDTH, HEIGHT]) - sides)
        rois = torch.cat([torch.zeros(num_rois, 1), start, start + sides], 1).cuda()
        for dtype in (torch.float32, torch.bfloat16):
            for channels_last in (True, False):
                layout = torch.channels_last if channels_last else torch.contiguous_format
                features = torch.randn(1, CHANNELS, HEIGHT, WIDTH, generator=generator)
                features = features.to("cuda", dtype, memory_format=layout)
                for profiled in (False, True):
                    torch.cuda.synchronize()
                    if profiled:
                        torch.cuda.profiler.start()
                    output = kernels.forward(features, rois, BINS, BINS, channels_last, 1.0)
                    kernels.features_backward(output, rois, features.shape, channels_last, 1.0)
                    kernels.rois_backward(output, features, rois, 1.0)
                    torch.cuda.synchronize()
                    if profiled:
                        torch.cuda.profiler.stop()


if __name__ == "__main__":
    main()
