"""Labels of a data set, independent of the file format; used by `convert` and `iounet-tighten`."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]

# The only fault that leaves a label usable.
REPEATED_BOX = "repeated box"


@dataclass(frozen=True)
class LabeledImage:
    """An image of a data set.

    Attributes:
        key: identifier of the image, the same on every machine: the id of the COCO image, or the path of the image
            relative to the folder of the data set, with ``/`` as separator.
        path: path of the image file.
        width, height: size of the stored image in pixels.
    """

    key: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class LabeledBox:
    """A labelled object.

    Attributes:
        key: identifier of the label, the same on every machine, such as ``annotation 17`` (id in a COCO file),
            ``train/IMG_1.xml object 2`` or ``labels/IMG_1.txt line 4``; objects and lines count from 1.
        image: index of the image in `LabelSet.images`.
        class_name: class of the object.
        box: xyxy in pixels of the stored image, measured from its left and top edges and clipped to it; its area is
            positive.
        crowd: whether the label stands for a group of objects, or is marked ``difficult`` in VOC; such labels are
            neither trained on nor moved.
        movable: False if the label has more than a box, such as a polygon, which a new box would contradict.
    """

    key: str
    image: int
    class_name: str
    box: Box
    crowd: bool = False
    movable: bool = True


@dataclass(frozen=True)
class LabelFault:
    """A label that is unusable or repeated. `LabelSet.write_copy` copies it unchanged.

    Attributes:
        where: file and line, object or id, such as ``labels/IMG_1.txt line 4``.
        rule: short name of the fault, the same for all labels that have it.
        text: what is wrong and how to correct it.
    """

    where: str
    rule: str
    text: str


@dataclass(frozen=True)
class LabelSet(ABC):
    """The labels of a data set, or of one of its splits.

    Attributes:
        source: the file or folder that was read.
        class_names: names of the classes in the order of the data set.
        images: all images that can be opened, including images without objects.
        boxes: usable labels, grouped by image, in the order of the files.
        faults: unusable images and labels, and repeated labels.
    """

    source: Path
    class_names: list[str]
    images: list[LabeledImage]
    boxes: list[LabeledBox]
    faults: list[LabelFault]

    @abstractmethod
    def write_copy(self, output: Path, boxes: Mapping[str, Box]) -> list[Path]:
        """Write a copy of the label files with new boxes. All other content and its order stay the same.

        The files that were read are never opened for writing. Images are not copied.

        Args:
            output: for a COCO file, the path of the copy; for other formats, the folder of the copies, which
                keep the names of the originals.
            boxes: key of a label → its new box, in the frame of `LabeledBox.box`. Other labels are copied unchanged,
                byte for byte where the format allows it.

        Returns:
            The files written.

        Raises:
            DataError: if a source file would be overwritten, or a label file has changed since it was read.
            ValueError: if a key does not belong to a label, or belongs to one that is not movable.
            OSError: if a file cannot be written.
        """


def repeated_boxes(boxes: Iterable[LabeledBox]) -> list[LabelFault]:
    """Return a fault for each label with the same image, class and box as an earlier one. Both stay usable.

    Labels with more than a box (``movable`` False) are not compared.
    """
    first: dict[tuple[int, str, Box], str] = {}
    faults = []
    for label in boxes:
        earlier = first.setdefault((label.image, label.class_name, label.box), label.key)
        if earlier != label.key and label.movable:
            faults.append(LabelFault(label.key, REPEATED_BOX, f"repeats {earlier}; remove one of them"))
    return faults
