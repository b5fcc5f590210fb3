"""Better boxes for anybody's detections, with a trained IoU-Net."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from .boxes import box_sizes
from .build import build_detector
from .config import get_cfg, merge_yaml
from .detections import Detections
from .modeling import IoUNet, to_original
from .training.checkpoint import load_checkpoint, load_detector_weights


class IoURefiner:
    """Scores and moves boxes that any detector found.

    Args:
        detector: a trained IoU-Net, on its device.
        categories: ``{"id", "name"}`` of each class in label order: label l is ``categories[l - 1]``.
    """

    def __init__(self, detector: IoUNet, categories: list[dict]):
        self.detector = detector.eval().requires_grad_(False)
        self.categories = categories

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu") -> IoURefiner:
        """Builds the detector that a checkpoint of tools/train.py describes and loads its weights.

        Raises:
            CheckpointError: the file is missing, damaged, or no checkpoint of this project.
            ConfigError: its configuration has keys that this version does not know.
        """
        checkpoint = load_checkpoint(path)
        cfg = get_cfg()
        merge_yaml(checkpoint["config"], cfg, str(path))
        cfg.MODEL.BACKBONE.WEIGHTS = ""  # where training started; the checkpoint has them all
        detector = build_detector(cfg)
        load_detector_weights(detector, checkpoint["model"], str(path), need_iou_head=True)
        return cls(detector.to(device), checkpoint["categories"])

    @property
    def device(self) -> torch.device:
        return next(self.detector.parameters()).device

    @torch.no_grad()
    def detect(self, image: Tensor) -> tuple[Detections, Detections]:
        """The detector's own detections of an image, before and after refinement, by falling score.

        Args:
            image (Tensor[3, H, W]): RGB, float in [0, 1].

        Returns:
            before, after: the same objects in the same order; boxes xyxy in pixels of the image.
        """
        detector = self.detector
        features = detector.extract([image.to(self.device)])
        candidates = detector.detect(features, detector.propose(features))
        before = [detector.suppress(candidates[0])]
        after = detector.refine(features, before)
        return tuple(to_original(features, detections)[0].to("cpu") for detections in (before, after))

    @torch.no_grad()
    def score(self, image: Tensor, boxes: Tensor, labels: Tensor) -> Tensor:
        """Predicted IoU of each box as it lies: Tensor[N]. Arguments and errors as :meth:`refine`."""
        given = Detections(boxes, labels, boxes.new_zeros(len(boxes)), boxes.new_zeros(len(boxes)))
        return self._place(image, given, refine=False).ious

    @torch.no_grad()
    def refine(self, image: Tensor, boxes: Tensor, labels: Tensor, scores: Tensor) -> Detections:
        """Moves boxes of an image to where the predicted IoU is higher.

        Args:
            image (Tensor[3, H, W]): RGB, float in [0, 1].
            boxes (Tensor[N, 4]): xyxy in pixels of the image; clipped to it.
            labels (Tensor[N]): 1..C, the place from 1 in :attr:`categories`.
            scores (Tensor[N]): returned as they are.

        Returns:
            The same N objects in the same order: refined boxes, in pixels of the image, and their predicted IoUs.
            A box without area inside the image stays as it is and has a predicted IoU of 0.

        Raises:
            ValueError: shapes that do not agree, boxes that are not finite, labels out of range.
        """
        given = Detections(boxes, labels, scores, torch.zeros_like(scores))
        return self._place(image, given, refine=self.detector.postprocessing.refinement_steps > 0)

    def _place(self, image: Tensor, given: Detections, *, refine: bool) -> Detections:
        boxes, labels = given.boxes, given.labels
        if not torch.isfinite(boxes).all():
            row = int((~torch.isfinite(boxes)).any(1).nonzero()[0, 0])
            raise ValueError(f"box {row} is not finite: {boxes[row].tolist()}")
        if len(labels) and not 1 <= int(labels.min()) <= int(labels.max()) <= len(self.categories):
            raise ValueError(
                f"labels must lie in 1..{len(self.categories)}, the places of the classes "
                f"{[category['name'] for category in self.categories]}; got {int(labels.min())}..{int(labels.max())}"
            )
        image_size = tuple(image.shape[-2:])
        clipped = clip_boxes_to_image(boxes, image_size)
        movable = (box_sizes(clipped) > 0).all(1)
        if not movable.any():
            return given
        features = self.detector.extract([image.to(self.device)])
        resized = given.with_boxes(clipped, given.ious)[movable].to(self.device).rescaled(image_size, features.sizes[0])
        predict_iou = self.detector.iou_predictor(features, [resized])
        placed = resized.with_boxes(resized.boxes, predict_iou(resized.boxes))
        if refine:
            (placed,) = self.detector.refine(features, [placed])
        (placed,) = to_original(features, [placed])
        new_boxes, new_ious = boxes.clone(), given.ious.clone()
        # In the dtype and on the device that the caller's tensors have.
        new_boxes[movable], new_ious[movable] = placed.boxes.to(new_boxes), placed.ious.to(new_ious)
        return given.with_boxes(new_boxes, new_ious)
