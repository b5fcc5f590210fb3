"""Opening label files in any format as data sets for training and evaluation."""

import shlex
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import DataError
from .annotations import load_json
from .coco import CocoDataset, Converted
from .coco_form import as_coco
from .coco_labels import find_images
from .label_files import list_splits, read_labels
from .labels import REPEATED_BOX


def open_dataset(
    source: str | Path,
    image_folder: str | Path | None = None,
    *,
    split: str,
    transforms: Callable[[Tensor, dict[str, Any]], tuple[Tensor, dict[str, Any]]] | None = None,
    bad_annotations: str = "error",
) -> CocoDataset:
    """Open a COCO-format file, or a split of Pascal VOC or YOLO labels, as a data set.

    Args:
        source: see `iounet.data.label_files.read_labels`.
        image_folder: see ``images`` of `read_labels`; None uses the usual place for the format.
        split: the split to read from a source that has splits. The categories are those of the whole source, so that
            all its splits agree.
        transforms: see `CocoDataset`.
        bad_annotations: see `CocoDataset`; for COCO-format files only. Unusable labels in other formats are left out
            and counted.

    Raises:
        DataError: if the source or its images cannot be used.
    """
    source = Path(source)
    if not source.is_dir() and source.suffix.lower() not in (".yaml", ".yml"):
        if image_folder is None:
            image_folder = find_images(source, load_json(source)["images"])
        return CocoDataset(source, image_folder, transforms=transforms, bad_annotations=bad_annotations)
    images = None if image_folder is None else Path(image_folder)
    part = split if list_splits(source, images=images) else None
    labels = read_labels(source, images=images, split=part)
    content, folder = as_coco(labels)
    command = ["python", "-m", "iounet.data.convert", str(source)]
    command += ["--split", part] if part else []
    command += ["--images", str(images)] if images else []
    converted = Converted(
        content=content,
        left_out=dict(Counter(fault.rule for fault in labels.faults if fault.rule != REPEATED_BOX)),
        command=shlex.join(command),
    )
    name = f"{source} ({part})" if part else source
    return CocoDataset(name, folder, transforms=transforms, bad_annotations=bad_annotations, converted=converted)


def check_separate(train_set: CocoDataset, val_set: CocoDataset) -> None:
    """Raise DataError if both data sets are the same split of the same labels, or the same labels without splits.

    A COCO-format file may be used twice: it is a single split, so naming it for both is deliberate.
    """
    if train_set.is_converted and train_set.annotation_file == val_set.annotation_file:
        raise DataError(
            f"{train_set.annotation_file}: training and validation would use the same images; put the images and "
            "labels of each split into folders named train and val, or choose splits (DATA.TRAIN_SPLIT, DATA.VAL_SPLIT)"
        )
