"""Refine boxes with an exported ONNX model, using only NumPy and ONNX Runtime.

The model file contains the network and its metadata:

- Inputs: `image` float32 [1, 3, H, W], RGB in [0, 1]; `boxes` float32 [N, 4], xyxy in pixels of the image; `labels`
  int64 [N], 0 for an unknown class.
- Outputs: `refined_boxes` float32 [N, 4], inside the image; a box that did not move is returned bit for bit;
  `ious_before` and `ious` float32 [N], calibrated; `stops` int64 [N], values of `iounet.stops.Stop`.
- Metadata: a JSON object under the key `METADATA_KEY` with `format` (`FORMAT`), `kind` ("refiner", or "detector" for an
  exported detector, which takes no boxes), `categories` (`{"id", "name"}` in label order), `min_size` and `max_size`
  for resizing images, and `nms` (fields of `iounet.nms_options.NMSOptions`). Other keys are ignored.
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
    """Refine and score the boxes of any detector with an exported model: `iounet.IoURefiner` without torch.

    Args:
        path: An ONNX file exported from a checkpoint.
        threads: Number of ONNX Runtime threads; None for its default, one per core.
        providers: Execution providers of `onnxruntime.InferenceSession`, such as `["CUDAExecutionProvider"]`; None for
            the CPU.

    Attributes:
        categories: `{"id", "name"}` of each class in label order.

    Raises:
        CheckpointError: ONNX Runtime is not installed, or the file is missing or damaged, has a newer format, or was
            not exported by this project.
        OptionError: `threads` is less than 1.
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
        """Refine the boxes of one image: move each box to a higher predicted IoU.

        All boxes are refined in one run of the model, so memory use grows with the number of boxes.

        Args:
            image: A PIL image, or an RGB array [H, W, 3], uint8 or floating point in [0, 1]. (OpenCV reads BGR; pass
                `image[..., ::-1]`.) Pixels are used as they are stored, regardless of the EXIF orientation.
            boxes: Array or list [N, 4], xyxy in pixels of the image; clipped to the image.
            labels: Class names [N], or integers [N] where l stands for `categories[l - 1]` and 0 for a class that the
                model was not trained on. None: 0 for all boxes.
            scores: Class scores [N], returned unchanged. None: 1 for all boxes.
            nms: "greedy", "soft" or "iou_guided" suppresses duplicate boxes before refinement, with the threshold of
                the checkpoint's configuration. Greedy NMS ranks by `scores`, IoU-guided NMS by predicted IoU. None:
                keep all boxes.

        Returns:
            The refined boxes in the order given; float64 if the boxes are float64, otherwise float32. A box without
                area inside the image stays unchanged, with a predicted IoU of 0 and `iounet.stops.Stop.UNPLACED`. So do
                all boxes of an image that is too thin to resize for the model, such as 5000 × 1 pixels. With NMS, only
                the boxes that it keeps, by descending score and without boxes that are `UNPLACED`.

        Raises:
            TypeError: The image, boxes, labels or scores are of the wrong type.
            ValueError: They have the wrong shape, boxes are not finite, labels are out of range or unknown, or `nms` is
                unknown.
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
        # Each box is refined independently, so NMS on the unrefined boxes may run after refinement.
        options = replace(self._facts.nms, kind=nms, max_detections=sys.maxsize)
        visible = given.visible
        keep, kept_scores = suppress(
            _single(visible.boxes), visible.labels, _single(visible.scores), _single(refined.ious_before), options
        )
        return replace(refined[keep], scores=kept_scores.astype(refined.scores.dtype))

    def _refined(self, given: Given) -> RefinedArrays:
        """The visible boxes after refinement."""
        visible = given.visible
        if not len(visible):
            return visible
        boxes = _single(visible.boxes)
        refined, ious_before, ious, stops = self._session.run(
            _OUTPUTS, {"image": given.image[None], "boxes": boxes, "labels": visible.labels}
        )
        dtype = visible.boxes.dtype
        # A box that did not move is returned as given, in double precision too.
        moved = (refined != boxes).any(1) & have_area(refined)
        return replace(
            visible,
            boxes=np.where(moved[:, None], refined.astype(dtype), visible.boxes),
            ious=ious.astype(dtype),
            ious_before=ious_before.astype(dtype),
            stops=stops,
        )


def _among_all(detections: RefinedArrays, refined: RefinedArrays) -> RefinedArrays:
    """All boxes given, updated where `refined` has a refined box."""
    columns = {name: getattr(detections, name).copy() for name in ("boxes", "ious", "ious_before", "stops")}
    for name, values in columns.items():
        values[refined.index] = getattr(refined, name)
    return replace(detections, **columns)


def _single(values: np.ndarray) -> np.ndarray:
    """Convert to float32, the precision of the model."""
    return values.astype(np.float32, copy=False)


@dataclass(frozen=True)
class _Facts:
    """Metadata of a model file."""

    categories: list[dict[str, Any]]
    min_size: int
    max_size: int
    nms: NMSOptions

    @classmethod
    def read(cls, metadata: dict[str, str], path: str | Path) -> _Facts:
        """Read the metadata; raise `CheckpointError` if a newer version or another project wrote the file."""
        if METADATA_KEY not in metadata:
            raise CheckpointError(f"{path}: not exported by this project; export a refiner with tools/export_onnx.py")
        try:
            content = json.loads(metadata[METADATA_KEY])
            if content["format"] > FORMAT:
                raise CheckpointError(
                    f"{path}: format {content['format']} is newer than this version of iounet can read ({FORMAT}); "
                    "update iounet"
                )
            if content["kind"] != "refiner":
                raise CheckpointError(f"{path}: an exported {content['kind']} takes no boxes; export a refiner instead")
            categories = [{"id": category["id"], "name": str(category["name"])} for category in content["categories"]]
            return cls(categories, int(content["min_size"]), int(content["max_size"]), NMSOptions(**content["nms"]))
        except (ValueError, KeyError, TypeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CheckpointError(
                f"{path}: the metadata '{METADATA_KEY}' cannot be read ({reason}); export the model again"
            ) from None


def _open(path: Path, threads: int | None, providers: Sequence[Any]) -> Any:
    """Open an `onnxruntime.InferenceSession`. Raises the same errors as `OnnxRefiner`."""
    try:
        import onnxruntime
    except ImportError:
        raise CheckpointError(f"{path}: running the model needs onnxruntime; run pip install onnxruntime") from None
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; check the path")
    options = onnxruntime.SessionOptions()
    if threads is not None:
        check_range("threads", threads, 1)
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers)
    except Exception as error:  # ONNX Runtime's errors have no narrower common base class
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(f"{path}: cannot be loaded; damaged or not an ONNX model ({reason})") from None
