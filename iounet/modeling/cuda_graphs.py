"""CUDA graphs of a function of tensors: many small kernels in one launch."""

import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

# COCO's images have fewer distinct sizes than this after resizing and padding.
MAX_GRAPHS = 64


class CudaGraphs:
    """A function of tensors, recorded once per combination of shapes and constants and then replayed.

    A graph reads and writes the memory that it was recorded with. Therefore arguments are copied into memory that all
    graphs share, and results are copied to new tensors. Thread-safe: concurrent calls run one after another on one
    stream.

    Args:
        function: (tensors, *constants) → tensors, all on one GPU. The function must not synchronise with the GPU, and
            no shape in it may depend on values.
        weights: function that returns the parameters that ``function`` reads. Graphs are recorded again when these
            tensors have moved in memory, for example because of ``.to()``. Changes in place need no new recording.
    """

    def __init__(self, function: Callable[..., Sequence[Tensor]], weights: Callable[[], Iterable[Tensor]] = tuple):
        self._function = function
        self._weights = weights
        self._lock = threading.Lock()
        self._inputs: dict[Hashable, Tensor] = {}
        # torch's default stream for recording belongs to the first GPU; all GPUs would share its workspace.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._addresses: list[int] = []
        self._forget()

    def __getstate__(self) -> tuple[Any, Any]:
        return self._function, self._weights  # graphs cannot be copied

    def __setstate__(self, state: tuple[Any, Any]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def _forget(self) -> None:
        # All graphs share memory, so all of them are dropped together.
        self._recorded: dict[Hashable, tuple[Callable[[], None], Sequence[Tensor]]] = {}
        self._pool: Any = None

    def __call__(self, tensors: Sequence[Tensor], *constants: Hashable) -> list[Tensor]:
        """Return ``function(tensors, *constants)`` in newly allocated tensors.

        Args:
            tensors: tensors on one GPU, of any shapes and dtypes; the same number in every call.
            constants: other values on which the results depend.
        """
        device = tensors[0].device
        with self._lock, torch.inference_mode(False), torch.no_grad(), self._stream_of(device) as stream:
            addresses = [tensor.data_ptr() for tensor in self._weights()]
            if addresses != self._addresses:
                self._forget()
                self._addresses = addresses
            inputs = [self._copied(number, tensor) for number, tensor in enumerate(tensors)]
            key = (tuple((tensor.shape, tensor.dtype, tensor.device) for tensor in tensors), constants)
            if key not in self._recorded:
                if len(self._recorded) == MAX_GRAPHS:
                    self._forget()
                self._recorded[key] = self._record(inputs, constants, stream)
            replay, outputs = self._recorded[key]
            replay()
            return [stream.handed_over(output.clone()) for output in outputs]

    def _stream_of(self, device: torch.device) -> "_Stream":
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return _Stream(self._streams[device])

    def _copied(self, number: int, tensor: Tensor) -> Tensor:
        """Copy argument ``number`` to the memory that the graphs read; maps [B, C, H, W] become channels-last."""
        place = number, tensor.dtype, tensor.device
        if place not in self._inputs or self._inputs[place].numel() < tensor.numel():
            self._forget()  # the recorded graphs read the old memory
            self._inputs[place] = tensor.new_empty(tensor.numel())
        layout = torch.channels_last if tensor.dim() == 4 else torch.contiguous_format
        strides = torch.empty(tensor.shape, device="meta", memory_format=layout).stride()
        return self._inputs[place].as_strided(tensor.shape, strides).copy_(tensor)

    def _record(
        self, inputs: Sequence[Tensor], constants: Sequence[Hashable], stream: "_Stream"
    ) -> tuple[Callable[[], None], Sequence[Tensor]]:
        """Return the replay function and the tensors to which it writes the results."""
        # On their first call, libraries allocate memory, which is forbidden during a recording.
        self._function(inputs, *constants)
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        graph = torch.cuda.CUDAGraph()
        # Other threads, such as loaders that pin memory, may make CUDA calls that are forbidden during a recording.
        with torch.cuda.graph(graph, pool=self._pool, stream=stream.stream, capture_error_mode="thread_local"):
            outputs = self._function(inputs, *constants)
        return graph.replay, outputs


class _Stream:
    """Context that runs work on a stream, after the caller's earlier work and before the caller's later work."""

    def __init__(self, stream: torch.cuda.Stream):
        self.stream = stream
        self._context = torch.cuda.stream(stream)

    def __enter__(self) -> "_Stream":
        self._outside = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(self._outside)
        self._context.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._context.__exit__(*exception)
        self._outside.wait_stream(self.stream)

    def handed_over(self, tensor: Tensor) -> Tensor:
        """Prepare a tensor that was created in this context for use outside it, and return the tensor."""
        tensor.record_stream(self._outside)
        return tensor
