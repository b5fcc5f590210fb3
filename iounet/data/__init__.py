"""Detection data sets: labels of any form, read and checked, augmented, and batched.

`label_files` reads COCO JSON, Pascal VOC and YOLO labels. Training reads COCO form, to which the others are converted:
in memory by `open_dataset`, into a file by ``python -m iounet.data.convert`` or, all splits at once,
``python -m iounet.data.voc``. ``python -m iounet.data.synthetic`` makes a data set from nothing but a seed;
``python -m iounet.data.check`` says what is wrong with a COCO-form file, and repairs it.
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
