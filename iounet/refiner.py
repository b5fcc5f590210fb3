"""Better boxes for anybody's detections, with a trained IoU-Net."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import clip_boxes_to_image
from torchvision.transforms.v2 import functional as F

from .boxes import box_sizes
from .build import build_detector, build_device
from .config import get_cfg, merge_yaml
from .detections import Detections
from .modeling import IoUNet, Postprocessing, to_original
from .postprocess import Stop
from .training.checkpoint import load_checkpoint, load_detector_weights


@dataclass(frozen=True)
class RefinedDetections(Detections):
    """Detections, and how their boxes came to lie where they lie.

    Attributes:
        ious_before (Tensor[N]): predicted IoUs of the boxes as they were given; ``ious`` are those of ``boxes``.
        stops (Tensor[N]): int64, the :class:`iounet.postprocess.Stop` of each box: what ended its refinement.
        index (Tensor[N]): int64, the row of each among the boxes given; without NMS 0, 1, ..., N - 1.
    """

    ious_before: Tensor
    stops: Tensor
    index: Tensor


def _with_gradients(method: Callable) -> Callable:
    """Refinement switches gradients on for its boxes alone; in inference mode, where a caller may be, it could not."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class IoURefiner:
    """Scores and moves boxes that any detector found.

    Every method takes

    - an image: a PIL image; or a NumPy array [H, W, 3] or a tensor [3, H, W], RGB, uint8 or floating point in [0, 1].
      (OpenCV reads BGR: give ``image[..., ::-1]``.) The pixels count as they lie, without EXIF rotation.
    - boxes [N, 4]: a tensor, an array or a list, xyxy in pixels of the image; clipped to it.
    - labels [N]: integers 1..C, the places from 1 of the classes in :attr:`categories`; 0 for a class that the refiner
      was not trained on, whose predicted IoU is the highest of the classes'; None: 0 for all.

    and answers in tensors on the device of the boxes, float64 if the boxes are, otherwise float32; boxes in pixels of
    the image. Of several images those of one size are worked on at once, as padding would change the results.

    Args:
        detector: a trained IoU-Net, on its device; its parameters are frozen.
        categories: ``{"id", "name"}`` of each class in label order: label l is ``categories[l - 1]``.
    """

    def __init__(self, detector: IoUNet, categories: list[dict]):
        self.detector = detector.eval().requires_grad_(False)
        self.categories = categories

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu") -> IoURefiner:
        """Builds the detector that a checkpoint of tools/train.py describes and loads its weights.

        Args:
            device: such as "cpu" or "cuda:1"; "auto": a GPU if there is one.

        Raises:
            CheckpointError: the file is missing, damaged, or no checkpoint of this project.
            ConfigError: its configuration has keys that this version does not know; there is no such device.
        """
        device = build_device(str(device))
        checkpoint = load_checkpoint(path)
        cfg = get_cfg()
        merge_yaml(checkpoint["config"], cfg, str(path))
        cfg.MODEL.BACKBONE.WEIGHTS = ""  # where training started; the checkpoint has them all
        cfg.MODEL.AMP &= device.type != "cpu"  # where bfloat16 takes longer
        detector = build_detector(cfg)
        load_detector_weights(detector, checkpoint["model"], str(path), need_iou_head=True)
        return cls(detector.to(device), checkpoint["categories"])

    @property
    def device(self) -> torch.device:
        return next(self.detector.parameters()).device

    def detect(self, image: Tensor | np.ndarray | Image.Image) -> tuple[Detections, Detections]:
        """The detector's own detections of an image, before and after refinement, by falling score.

        They are refined after NMS, also where the configuration (TEST.REFINE.BEFORE_NMS) refines before.

        Returns:
            before, after: the same objects in the same order.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence) -> list[tuple[Detections, Detections]]:
        """:meth:`detect` of several images at once."""
        tensors = [_as_tensor(image) for image in images]
        return _by_size(tensors, self._detect, tensors)

    @_with_gradients
    def _detect(self, images: list[Tensor]) -> list[tuple[Detections, Detections]]:
        detector = self.detector
        features = detector.extract([image.to(self.device) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        before = [detector.suppress(of_image) for of_image in candidates]
        after = detector.refine(features, before)
        in_frame = (to_original(features, detections) for detections in (before, after))
        return [(first.to("cpu"), second.to("cpu")) for first, second in zip(*in_frame, strict=True)]

    def score(self, image, boxes, labels=None) -> Tensor:
        """Predicted IoU of each box as it lies, Tensor[N]: a localisation confidence for ranking and filtering.

        A box without area inside the image has 0. Errors as :meth:`refine`.
        """
        return self.score_batch([image], [boxes], [labels])[0]

    def score_batch(self, images: Sequence, boxes: Sequence, labels: Sequence | None = None) -> list[Tensor]:
        """:meth:`score` of several images at once; one entry an image in each list."""
        return [scored.ious for scored in self._place_all(images, boxes, labels, None, steps=0, nms=None)]

    def refine(self, image, boxes, labels=None, scores=None, *, nms: str | None = None) -> RefinedDetections:
        """Moves boxes of an image to where the predicted IoU is higher.

        Args:
            image, boxes, labels: see the class.
            scores [N]: class scores of the boxes; returned as they are. None: 1 for all.
            nms: "greedy", "soft" or "iou_guided": first suppress the boxes that show the same object, by the
                threshold of the checkpoint's configuration. Greedy NMS ranks by ``scores``, IoU-guided NMS by
                predicted IoU.

        Returns:
            The same N objects in the same order, in refined boxes. A box without area inside the image stays as it is
            and has a predicted IoU of 0 (:attr:`iounet.postprocess.Stop.UNPLACED`). With NMS, the objects that it
            leaves, by falling score (which soft-NMS lowers, and IoU-guided NMS raises to the best of the cluster's);
            boxes without area are not among them.

        Raises:
            TypeError, ValueError: an image, boxes, labels or scores of another kind or shape, boxes that are not
                finite, labels out of range.
        """
        return self.refine_batch([image], [boxes], [labels], [scores], nms=nms)[0]

    def refine_batch(
        self,
        images: Sequence,
        boxes: Sequence,
        labels: Sequence | None = None,
        scores: Sequence | None = None,
        *,
        nms: str | None = None,
    ) -> list[RefinedDetections]:
        """:meth:`refine` of several images at once; one entry an image in each list."""
        steps = self.detector.postprocessing.refinement_steps
        return self._place_all(images, boxes, labels, scores, steps=steps, nms=nms)

    @_with_gradients
    def refinement_path(self, image, boxes, labels=None) -> Tensor:
        """Where the boxes of an image lie after 0, 1, ..., T steps of :meth:`refine`: Tensor[T + 1, N, 4]."""
        image = _as_tensor(image)
        given = self._as_given(boxes, labels, None)
        path = given.boxes.repeat(self.detector.postprocessing.refinement_steps + 1, 1, 1)
        rows = _rows_with_area(given.boxes, image)
        if len(rows):
            features = self.detector.extract([image.to(self.device)])
            resized = self._resized(given[rows], image, features.sizes[0])
            for step, ((detections, _),) in enumerate(self.detector.refinement_path(features, [resized])):
                path[step, rows] = to_original(features, [detections])[0].boxes.to(path)
        return path

    def _place_all(
        self,
        images: Sequence,
        boxes: Sequence,
        labels: Sequence | None,
        scores: Sequence | None,
        *,
        steps: int,
        nms: str | None,
    ) -> list[RefinedDetections]:
        nothing = [None] * len(images)
        lists = {
            "boxes": boxes,
            "labels": nothing if labels is None else labels,
            "scores": nothing if scores is None else scores,
        }
        for name, values in lists.items():
            if len(values) != len(images):
                raise ValueError(f"{len(images)} images, but {name} of {len(values)}: give one entry for each image")
        options = replace(self.detector.postprocessing, refinement_steps=steps)
        if nms is not None:
            # All that are left, not the best hundred of them.
            options = replace(options, nms=nms, detections_per_image=sys.maxsize)
        tensors = [_as_tensor(image) for image in images]
        given = [self._as_given(*of_image) for of_image in zip(*lists.values(), strict=True)]
        return _by_size(tensors, partial(self._place, options=options, suppress=nms is not None), tensors, given)

    @_with_gradients
    def _place(
        self, images: list[Tensor], answers: list[RefinedDetections], *, options: Postprocessing, suppress: bool
    ) -> list[RefinedDetections]:
        """Of images of one size."""
        rows = [_rows_with_area(answer.boxes, image) for answer, image in zip(answers, images, strict=True)]
        if not any(map(len, rows)):
            return [answer[index] if suppress else answer for answer, index in zip(answers, rows, strict=True)]
        features = self.detector.extract([image.to(self.device) for image in images])
        placed = [
            self._resized(answer[index], image, size)
            for answer, index, image, size in zip(answers, rows, images, features.sizes, strict=True)
        ]
        if suppress:
            ((*scored,),) = self.detector.refinement_path(features, placed, replace(options, refinement_steps=0))
            for image, (of_image, _) in enumerate(scored):
                keep, new_scores = self.detector.nms(of_image, options)
                placed[image] = of_image[keep]
                kept = answers[image][rows[image][keep.to(rows[image].device)]]
                answers[image] = replace(kept, scores=new_scores.to(kept.scores))
                rows[image] = torch.arange(len(keep), device=kept.boxes.device)

        path = list(self.detector.refinement_path(features, placed, options))
        ends = to_original(features, [after for after, _ in path[-1]])
        for image, (answer, index, (before, _), (after, stops), end) in enumerate(
            zip(answers, rows, path[0], path[-1], ends, strict=True)
        ):
            # One that did not move stays as it was given, without the rounding of another frame and back.
            moved = (after.boxes != before.boxes).any(1).to(index.device)
            clipped = clip_boxes_to_image(answer.boxes[index], images[image].shape[-2:])
            end_boxes = end.boxes.to(answer.boxes)
            moved &= (box_sizes(end_boxes) > 0).all(1)  # rounding may take the last 1e-5 pixels of a thin one
            new_boxes = torch.where(moved[:, None], end_boxes, clipped)
            answers[image] = replace(
                answer,
                boxes=answer.boxes.index_copy(0, index, new_boxes),
                ious=answer.ious.index_copy(0, index, after.ious.to(answer.ious)),
                ious_before=answer.ious_before.index_copy(0, index, before.ious.to(answer.ious)),
                stops=answer.stops.index_copy(0, index, stops.to(answer.stops)),
            )
        return answers

    def _as_given(self, boxes, labels, scores) -> RefinedDetections:
        """The caller's boxes, checked, before anything is done about them."""
        boxes = torch.as_tensor(boxes).detach()
        boxes = boxes.clone() if boxes.dtype == torch.float64 else boxes.float().clone()
        boxes = boxes.reshape(0, 4) if boxes.numel() == 0 else boxes
        count, device = len(boxes), boxes.device
        labels = torch.as_tensor(labels if labels is not None else [0] * count, device=device)
        if labels.is_floating_point() and len(labels):
            raise TypeError(f"labels must be integers, got {labels.dtype}")
        scores = boxes.new_ones(count) if scores is None else torch.as_tensor(scores, device=device).detach()
        given = RefinedDetections(
            boxes,
            labels.long(),
            scores.to(boxes.dtype, copy=True),
            ious=boxes.new_zeros(count),
            ious_before=boxes.new_zeros(count),
            stops=torch.full((count,), Stop.UNPLACED, device=device),
            index=torch.arange(count, device=device),
        )
        if not torch.isfinite(boxes).all():
            row = int((~torch.isfinite(boxes)).any(1).nonzero()[0, 0])
            raise ValueError(f"box {row} is not finite: {boxes[row].tolist()}")
        if count and not 0 <= int(given.labels.min()) <= int(given.labels.max()) <= len(self.categories):
            raise ValueError(
                f"labels must lie in 1..{len(self.categories)}, the places of the classes "
                f"{[category['name'] for category in self.categories]}, or be 0 for any other class; "
                f"got {int(given.labels.min())}..{int(given.labels.max())}"
            )
        return given

    def _resized(self, given: Detections, image: Tensor, size: tuple[int, int]) -> Detections:
        """Boxes as the detector takes them: clipped to the image, in pixels of the resized image, on its device."""
        image_size = tuple(image.shape[-2:])
        boxes = clip_boxes_to_image(given.boxes, image_size)
        in_float32 = Detections(boxes.float(), given.labels, given.scores.float(), given.ious.float())
        return in_float32.to(self.device).rescaled(image_size, size)


def _by_size(images: list[Tensor], work: Callable[..., list], *columns: list) -> list:
    """``work(*columns)`` of the images of each size by themselves, put together again in the order of the images."""
    places: dict[tuple[int, ...], list[int]] = {}
    for place, image in enumerate(images):
        places.setdefault(tuple(image.shape), []).append(place)
    answers: list = [None] * len(images)
    for group in places.values():
        for place, answer in zip(group, work(*([column[place] for place in group] for column in columns)), strict=True):
            answers[place] = answer
    return answers


def _rows_with_area(boxes: Tensor, image: Tensor) -> Tensor:
    """Rows of the boxes that have an area inside the image."""
    return (box_sizes(clip_boxes_to_image(boxes, image.shape[-2:])) > 0).all(1).nonzero()[:, 0]


def _as_tensor(image: Tensor | np.ndarray | Image.Image) -> Tensor:
    """RGB [3, H, W], float32 in [0, 1]; see :class:`IoURefiner` for what is taken."""
    if isinstance(image, Image.Image):
        if image.mode.startswith(("I", "F")):
            raise ValueError(f"the image has pixels of more than 8 bits (PIL mode {image.mode}); convert it to 8 bits")
        tensor = F.pil_to_tensor(image.convert("RGB"))
    elif isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3:
            raise ValueError(f"an array must be an RGB image of shape [H, W, 3], got {list(image.shape)}")
        tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    elif isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"a tensor must be an RGB image of shape [3, H, W], got {list(image.shape)}")
        tensor = image.detach().as_subclass(Tensor)
    else:
        raise TypeError(f"an image is a PIL image, a NumPy array or a tensor, not {type(image).__name__}")
    if tensor.dtype != torch.uint8:
        if not tensor.is_floating_point():
            raise ValueError(f"an image must be uint8, or floating point in [0, 1]; got {tensor.dtype}")
        if tensor.numel() and not 0 <= float(tensor.min()) <= float(tensor.max()) <= 1:
            raise ValueError(
                f"an image of floating point must lie in [0, 1], got {float(tensor.min()):g} to "
                f"{float(tensor.max()):g}: divide by 255, and leave normalising to the refiner"
            )
    return F.to_dtype(tensor, torch.float32, scale=True)
