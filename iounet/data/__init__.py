"""Detection data sets: reading, checking, augmenting and batching.

`label_files` reads COCO JSON, Pascal VOC and YOLO labels. Training works on COCO format: `open_dataset` converts the
other formats in memory, ``python -m iounet.data.convert`` converts them to a file, and ``python -m iounet.data.voc``
converts all splits of Pascal VOC at once. ``python -m iounet.data.check`` lists the faults of a COCO-format file and
repairs it. ``python -m iounet.data.synthetic`` generates a data set from a seed.
"""

from ..errors import DataError
from .coco import CocoDataset, Sample, check_categories
from .images import has_exif_rotation, read_image
from .loader import eval_loader, train_loader
from .sources import check_separate, open_dataset
from .transforms import build_transforms

__all__ = [
    "CocoDataset",
    "DataError",
    "Sample",
    "build_transforms",
    "check_categories",
    "check_separate",
    "eval_loader",
    "has_exif_rotation",
    "open_dataset",
    "read_image",
    "train_loader",
]
