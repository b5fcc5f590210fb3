"""Data sets in COCO form: read and checked, augmented, and batched.

Two programs make such sets: ``python -m iounet.data.voc`` from Pascal VOC,
``python -m iounet.data.synthetic`` from nothing but a seed. A third, ``python -m iounet.data.check``, says what
is wrong with one, and repairs it.
"""

from ..errors import DataError
from .coco import CocoDataset, Sample, check_categories
from .images import has_exif_rotation, read_image
from .loader import eval_loader, train_loader
from .transforms import build_transforms

__all__ = [
    "CocoDataset",
    "DataError",
    "Sample",
    "build_transforms",
    "check_categories",
    "eval_loader",
    "has_exif_rotation",
    "read_image",
    "train_loader",
]
