"""CUDA graphs without CUDA."""

import torch

from iounet.modeling.cuda_graphs import CudaGraphs


class Repeated(CudaGraphs):
    """As a graph does, a replay reads the inputs where they were when it was recorded, and writes to one place."""

    recordings = 0

    def _record(self, inputs, constants):
        self.recordings += 1
        outputs = [torch.full_like(output, torch.nan) for output in self._function(inputs, *constants)]

        def replay():
            for output, value in zip(outputs, self._function(inputs, *constants), strict=True):
                output.copy_(value)

        return replay, outputs
