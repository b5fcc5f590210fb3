"""Images of a long list, read while the ones before are being worked on."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from torch import Tensor

from ..data import read_image
from ..errors import DataError


def read_ahead(
    paths: Mapping[Any, Path],
    batch_size: int,
    *,
    exif: bool = False,
    on_fault: Callable[[Any, DataError], None] | None = None,
) -> Iterator[tuple[list[Any], list[Tensor]]]:
    """Batches of images, in order, the last one smaller; two more batches are read ahead by threads.

    Args:
        paths: image id → file.
        exif: as :func:`read_image` takes it.
        on_fault: called with the id and the error of an image that cannot be read, which its batch then lacks; None:
            the error is raised.

    Yields:
        The ids and the images, uint8 [3, H, W], of a batch.

    Raises:
        DataError: as :func:`read_image`, when the batch of the damaged image is asked for.
    """
    items = iter(paths.items())
    read = partial(read_image, exif=exif)
    pending: deque[tuple[list[Any], list[Future[Tensor]]]] = deque()
    with ThreadPoolExecutor(max_workers=batch_size) as pool:
        while True:
            while len(pending) <= 2 and (batch := list(islice(items, batch_size))):
                pending.append(([id_ for id_, _ in batch], [pool.submit(read, path) for _, path in batch]))
            if not pending:
                return
            ids, images = pending.popleft()
            if on_fault is None:
                yield ids, [image.result() for image in images]
                continue
            good: dict[Any, Tensor] = {}
            for id_, image in zip(ids, images, strict=True):
                try:
                    good[id_] = image.result()
                except DataError as error:
                    on_fault(id_, error)
            if good:
                yield list(good), list(good.values())
