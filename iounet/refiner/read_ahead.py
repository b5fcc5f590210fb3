"""Read batches of images ahead while earlier batches are being processed."""

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
    """Yield batches of images in order while threads read the next two batches.

    Args:
        paths: image id → file.
        batch_size: number of images in a batch; the last batch may be smaller.
        exif: as in `iounet.data.read_image`.
        on_fault: called with the id and the error of each image that cannot be read; its batch then lacks the image.
            None raises the error.

    Yields:
        The ids and the images, uint8 [3, H, W], of a batch.

    Raises:
        DataError: an image cannot be read and ``on_fault`` is None; raised when its batch is requested.
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
