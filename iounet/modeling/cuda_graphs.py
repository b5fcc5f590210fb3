"""Many small kernels launched as one: CUDA graphs of a function of tensors."""

from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

# Images of COCO, resized and padded, have fewer sizes.
MOST_GRAPHS = 64


class CudaGraphs:
    """Calls of a function, recorded once for each combination of shapes and constants, and replayed from then on.

    A graph reads and writes where it was recorded to. So arguments are copied to one place, the same for all graphs,
    and results from it; all else that the function reads, such as weights, has to stay where it is, or :meth:`clear` be
    called.

    Args:
        function: (tensors, *constants) → tensors, all on one GPU. It never waits for the GPU, and no shape in it
            depends on values.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]]):
        self._function = function
        self._memory: dict[Hashable, Tensor] = {}
        # Torch's own for all graphs stays on the GPU of the first, and would share its workspace among them.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._forget()

    def __getstate__(self) -> Callable[..., Sequence[Tensor]]:
        return self._function  # a copy begins without graphs

    def __setstate__(self, function: Callable[..., Sequence[Tensor]]) -> None:
        self.__init__(function)

    def clear(self) -> None:
        """Forgets all graphs, and frees what they read from."""
        self._forget()
        self._memory.clear()

    def _forget(self) -> None:
        # All at once: they share memory.
        self._recorded: dict[Hashable, tuple[Callable[[], None], Sequence[Tensor]]] = {}
        self._pool = None

    def __call__(self, tensors: Sequence[Tensor], *constants: Hashable) -> list[Tensor]:
        """``function(tensors, *constants)``; the results are the caller's own.

        Args:
            tensors: always as many, on one GPU; of any shapes and dtypes.
            constants: what else the results depend on.
        """
        with torch.inference_mode(False), torch.no_grad():
            inputs = [self._placed(number, tensor) for number, tensor in enumerate(tensors)]
        key = (tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors), constants)
        if key not in self._recorded:
            if len(self._recorded) == MOST_GRAPHS:
                self._forget()
            self._recorded[key] = self._record(inputs, constants)
        replay, outputs = self._recorded[key]
        replay()
        return [output.clone() for output in outputs]

    def _placed(self, number: int, tensor: Tensor) -> Tensor:
        """A copy where the graphs look for argument ``number``; maps, [B, C, H, W], are channels-last there."""
        place = number, tensor.dtype, tensor.device
        if place not in self._memory or self._memory[place].numel() < tensor.numel():
            self._forget()  # they look elsewhere
            self._memory[place] = tensor.new_empty(tensor.numel())
        layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        strides = torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
        return self._memory[place].as_strided(tensor.shape, strides).copy_(tensor)

    def _record(
        self, inputs: Sequence[Tensor], constants: Sequence[Hashable]
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """What computes the results from the inputs as they are then, and where it leaves them."""
        device = inputs[0].device
        with torch.cuda.device(device):
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream()
            stream = self._streams[device]
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):  # libraries take memory at their first call, which cannot be recorded
                self._function(inputs, *constants)
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # Other threads may do meanwhile what must not be recorded: loaders pin memory.
            with torch.cuda.graph(graph, pool=self._pool, stream=stream, capture_error_mode="thread_local"):
                outputs = self._function(inputs, *constants)
        return graph.replay, outputs
