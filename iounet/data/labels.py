"""Labels as people have them, whichever form their files are in: what `convert` and `iounet-tighten` work on."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

Box = tuple[float, float, float, float]

# The rule of the only fault whose label is used nevertheless.
REPEATED_BOX = "repeated box"


@dataclass(frozen=True)
class LabeledImage:
    """An image that the labels belong to.

    Attributes:
        key: names the image within the data set, the same on every machine: the COCO image's id, or the path of the
            image relative to the data set's folder, with ``/`` between folders.
        path: of the image file.
        width, height: of the stored image, in pixels.
    """

    key: str
    path: Path
    width: int
    height: int


@dataclass(frozen=True)
class LabeledBox:
    """A labelled object.

    Attributes:
        key: names the label within the data set, the same on every machine: ``annotation 17`` (COCO's id),
            ``train/IMG_1.xml object 2``, ``labels/IMG_1.txt line 4``; numbers count from 1.
        image: index among the images.
        class_name: of the object.
        box: xyxy in pixels of the stored image, measured from its left and top edges; clipped to it; has an area.
        crowd: a group of objects, or one that VOC calls difficult: not to be learned from, nor moved.
        movable: False where the label has more than a box (a polygon), so that another box would contradict it.
    """

    key: str
    image: int
    class_name: str
    box: Box
    crowd: bool = False
    movable: bool = True


@dataclass(frozen=True)
class LabelFault:
    """A label that cannot be used, or is there twice: it stays in the files, and in their copies, as it is.

    Attributes:
        where: file and line, object or id, such as ``labels/IMG_1.txt line 4``.
        rule: what is wrong in a few words, the same for all labels with that fault, to count by.
        text: what is wrong, and the cure.
    """

    where: str
    rule: str
    text: str


@dataclass(frozen=True)
class LabelSet(ABC):
    """The labels of a data set, or of one of its splits.

    Attributes:
        source: the file or folder that was read.
        class_names: in the order of the data set.
        images: also those without an object; the ones that cannot be opened are among the faults instead.
        boxes: by image, in the order of the files.
        faults: what was passed over, and what is there twice.
    """

    source: Path
    class_names: list[str]
    images: list[LabeledImage]
    boxes: list[LabeledBox]
    faults: list[LabelFault]

    @abstractmethod
    def write_copy(self, output: Path, boxes: Mapping[str, Box]) -> list[Path]:
        """Writes a copy of the label files with other boxes; whatever else they hold stays as it is, and in its order.

        The files that were read are never opened for writing. Images are not copied.

        Args:
            output: a COCO file's copy, or the folder for the copies of all others, named as they are.
            boxes: key of a label → its box, in the frame of :attr:`LabeledBox.box`. Labels that are not among them
                are copied as they are, byte by byte where the form allows it.

        Returns:
            The files written.

        Raises:
            DataError: a file that would be written is one that was read; a label file has changed since it was read.
            ValueError: a key is not that of a label, or of one that may not be moved.
            OSError: a file cannot be written.
        """


def repeated_boxes(boxes: Iterable[LabeledBox]) -> list[LabelFault]:
    """A fault for each label that says what an earlier one says. Both stay usable, since neither contradicts the other.

    Labels with more than a box (``movable`` False) are not compared.
    """
    first: dict[tuple[int, str, Box], str] = {}
    faults = []
    for label in boxes:
        earlier = first.setdefault((label.image, label.class_name, label.box), label.key)
        if earlier != label.key and label.movable:
            faults.append(LabelFault(label.key, REPEATED_BOX, f"is the same as {earlier}; remove one of them"))
    return faults
