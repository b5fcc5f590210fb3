"""Images of a long list, read while the ones before are being worked on."""

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from torch import Tensor

from ..data import read_image


def read_ahead(paths: Sequence[Path], batch_size: int) -> Iterator[list[Tensor]]:
    """Batches of images, uint8 [3, H, W], in order, the last one smaller; two more batches are read ahead by threads.

    Raises:
        DataError: as :func:`read_image`, when the batch of the damaged image is asked for.
    """
    with ThreadPoolExecutor(max_workers=batch_size) as pool:
        pending: deque[list[Future[Tensor]]] = deque()
        for start in range(0, len(paths), batch_size):
            pending.append([pool.submit(read_image, path) for path in paths[start : start + batch_size]])
            if len(pending) > 2:
                yield [image.result() for image in pending.popleft()]
        for batch in pending:
            yield [image.result() for image in batch]
