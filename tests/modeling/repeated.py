"""A stand-in for CUDA graphs that needs no GPU."""

from contextlib import contextmanager

import torch

from iounet.modeling.cuda_graphs import CudaGraphs


class Repeated(CudaGraphs):
    """`CudaGraphs` whose replays call the function; like a graph, they read and write the recorded memory."""

    recordings = 0

    @contextmanager
    def _stream_of(self, device):
        yield self

    def handed_over(self, tensor):
        return tensor

    def _record(self, inputs, constants, stream):
        self.recordings += 1
        outputs = [
            torch.full_like(output, torch.nan if output.is_floating_point() else -1)
            for output in self._function(inputs, *constants)
        ]

        def replay():
            for output, value in zip(outputs, self._function(inputs, *constants), strict=True):
                output.copy_(value)

        return replay, outputs
