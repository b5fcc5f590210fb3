"""Boxes refined by an exported model: NumPy and ONNX Runtime alone, no torch.

The model file holds, besides the network:

- inputs: image float32 [1, 3, H, W], RGB in [0, 1]; boxes float32 [N, 4], xyxy in pixels of the image; labels int64
  [N], 0 for an unknown class.
- outputs: refined_boxes float32 [N, 4], inside the image, and to the bit as given where a box did not move;
  ious_before and ious float32 [N], calibrated; stops int64 [N], numbers of :class:`iounet.stops.Stop`.
- metadata: under :data:`METADATA_KEY` a JSON object with ``format`` (:data:`FORMAT`), ``kind`` ("refiner"; "detector"
  of an exported detector, which takes no boxes), ``categories`` (``{"id", "name"}`` in label order), ``min_size`` and
  ``max_size`` of the images' resizing, and ``nms``: fields of :class:`iounet.nms_options.NMSOptions`. Other keys are
  ignored.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .arrays import AnyValues, Given, RefinedArrays, check_input, have_area
from .checks import can_resize
from .errors import CheckpointError, check_choice, check_range
from .nms_options import KINDS, NMSOptions
from .numpy_nms import suppress
from .wording import listed

if TYPE_CHECKING:
    from PIL import Image

METADATA_KEY = "iounet"
FORMAT = 1

_OUTPUTS = ("refined_boxes", "ious_before", "ious", "stops")


class OnnxRefiner:
    """Scores and moves boxes that any detector found: what :class:`iounet.IoURefiner` does, without torch.

    Args:
        path: of the model, as exported from a checkpoint.
        threads: number of threads of ONNX Runtime; None: its default, one for each core.
        providers: of ``onnxruntime.InferenceSession``, such as ["CUDAExecutionProvider"]; None: the CPU.

    Attributes:
        categories: ``{"id", "name"}`` of each class in label order.

    Raises:
        CheckpointError: ONNX Runtime is not installed; the file is missing, damaged, of a newer version, or was not
            exported by this project.
        OptionError: less than one thread.
    """

    def __init__(
        self, path: str | Path, threads: int | None = None, providers: Sequence[str | tuple[str, dict]] | None = None
    ):
        self._session = _open(Path(path), threads, providers or ["CPUExecutionProvider"])
        facts = _Facts.read(self._session.get_modelmeta().custom_metadata_map, path)
        self.categories = facts.categories
        self._facts = facts

    def __repr__(self) -> str:
        return f"OnnxRefiner(classes: {listed(category['name'] for category in self.categories)})"

    def refine(
        self,
        image: np.ndarray | Image.Image,
        boxes: AnyValues,
        labels: AnyValues | None = None,
        scores: AnyValues | None = None,
        *,
        nms: str | None = None,
    ) -> RefinedArrays:
        """Moves boxes of an image to where the predicted IoU is higher.

        All boxes are refined in one run of the model, whose memory grows with their number.

        Args:
            image: a PIL image, or an array [H, W, 3], RGB, uint8 or floating point in [0, 1]. (OpenCV reads BGR: give
                ``image[..., ::-1]``.) The pixels are used as they are stored, whatever the EXIF orientation.
            boxes [N, 4]: an array or a list, xyxy in pixels of the image; clipped to it.
            labels [N]: class names; or integers, of which l is the class ``categories[l - 1]`` and 0 a class that the
                model was not trained on. None: 0 for all.
            scores [N]: class scores of the boxes; returned as they are. None: 1 for all.
            nms: "greedy", "soft" or "iou_guided": suppress the boxes that show the same object, judged as they lie
                before refinement, by the threshold of the checkpoint's configuration. Greedy NMS ranks by ``scores``,
                IoU-guided NMS by predicted IoU.

        Returns:
            The same N objects in the same order, in refined boxes; float64 if the boxes are, otherwise float32. A box
            without area inside the image stays as it is and has a predicted IoU of 0
            (:attr:`iounet.stops.Stop.UNPLACED`), as do all boxes of an image that is too thin for the model to resize,
            such as one of 5000 × 1 pixels. With NMS, the objects that it leaves, by falling score; such boxes are not
            among them.

        Raises:
            TypeError, ValueError: an image, boxes, labels or scores of another kind or shape, boxes that are not
                finite, labels out of range or unknown, an unknown ``nms``.
        """
        if nms is not None:
            check_choice("nms", nms, KINDS)
        given = check_input(image, boxes, labels, scores, self.categories)
        height, width = given.image.shape[1:]
        if not can_resize((height, width), self._facts.min_size, self._facts.max_size):
            given = replace(given, visible=given.visible[:0])
        refined = self._refined(given)
        if nms is None:
            return _among_all(given.detections, refined)
        # Each box is refined by itself, so that suppressing them afterwards leaves what suppressing them before does.
        options = replace(self._facts.nms, kind=nms, max_detections=sys.maxsize)
        visible = given.visible
        keep, kept_scores = suppress(
            _single(visible.boxes), visible.labels, _single(visible.scores), _single(refined.ious_before), options
        )
        return replace(refined[keep], scores=kept_scores.astype(refined.scores.dtype))

    def _refined(self, given: Given) -> RefinedArrays:
        """The visible boxes in their refined places."""
        visible = given.visible
        if not len(visible):
            return visible
        boxes = _single(visible.boxes)
        refined, ious_before, ious, stops = self._session.run(
            _OUTPUTS, {"image": given.image[None], "boxes": boxes, "labels": visible.labels}
        )
        dtype = visible.boxes.dtype
        # A box that did not move stays as it was given, in double precision, too.
        moved = (refined != boxes).any(1) & have_area(refined)
        return replace(
            visible,
            boxes=np.where(moved[:, None], refined.astype(dtype), visible.boxes),
            ious=ious.astype(dtype),
            ious_before=ious_before.astype(dtype),
            stops=stops,
        )


def _among_all(detections: RefinedArrays, refined: RefinedArrays) -> RefinedArrays:
    """All boxes that were given, those of ``refined`` as they are there."""
    columns = {name: getattr(detections, name).copy() for name in ("boxes", "ious", "ious_before", "stops")}
    for name, values in columns.items():
        values[refined.index] = getattr(refined, name)
    return replace(detections, **columns)


def _single(values: np.ndarray) -> np.ndarray:
    """In the precision of the model."""
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Facts:
    """What a model file says of itself."""

    categories: list[dict[str, Any]]
    min_size: int
    max_size: int
    nms: NMSOptions

    @classmethod
    def read(cls, metadata: dict[str, str], path: str | Path) -> _Facts:
        """Raises CheckpointError if the file is of a newer version, or not of this project."""
        if METADATA_KEY not in metadata:
            raise CheckpointError(f"{path}: is no refiner that this project exported; export one from a checkpoint")
        try:
            content = json.loads(metadata[METADATA_KEY])
            if content["format"] > FORMAT:
                newer = f"is of format {content['format']}, newer than this version of iounet reads ({FORMAT})"
                raise CheckpointError(f"{path}: {newer}; update iounet")
            if content["kind"] != "refiner":
                raise CheckpointError(
                    f"{path}: is an exported {content['kind']}, which takes no boxes; export a refiner"
                )
            categories = [{"id": category["id"], "name": str(category["name"])} for category in content["categories"]]
            return cls(categories, int(content["min_size"]), int(content["max_size"]), NMSOptions(**content["nms"]))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"{path}: its metadata '{METADATA_KEY}' cannot be used ({reason}); export the model again"
            ) from None


def _open(path: Path, threads: int | None, providers: Sequence[Any]) -> Any:
    """An ``onnxruntime.InferenceSession``; errors as :class:`OnnxRefiner`."""
    try:
        import onnxruntime
    except ImportError:
        raise CheckpointError(f"{path}: to run it needs onnxruntime: pip install 'iounet[onnx]'") from None
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        check_range("threads", threads, 1)
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:  # ONNX Runtime's own have no other class in common
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be loaded; it is damaged, or no ONNX model ({reason})") from None
