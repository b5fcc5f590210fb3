"""`IoURefiner`: refine and score the boxes of any detector with a trained IoU-Net."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image

from ..boxes import box_sizes
from ..build import load_detector
from ..config import without_paths
from ..detections import Detections, RefinedDetections
from ..devices import build_device
from ..errors import check_choice
from ..files import write_text
from ..modeling import IoUNet
from ..nms_options import KINDS, NMSOptions
from ..postprocess import RefinementOptions, suppress
from ..training.checkpoint import save_checkpoint
from ..wording import listed
from .inputs import AnyImage, AnyValues, Given, as_tensor, check_input
from .pretrained import CARD_FILE, MODEL_FILE, find_checkpoint, model_card, push_folder

Item = TypeVar("Item")
Result = TypeVar("Result")
Method = TypeVar("Method", bound=Callable)


def _allowing_gradients(method: Method) -> Method:
    """Run a method outside the caller's inference mode, which forbids the gradients that refinement needs."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class IoURefiner:
    """Refine and score the boxes of any detector with a trained IoU-Net.

    The methods take:

    - images: PIL images, NumPy arrays [H, W, 3] or tensors [3, H, W], in RGB, uint8 or floating point in [0, 1]. OpenCV
      reads BGR; pass ``image[..., ::-1]``. EXIF orientation is ignored; for boxes in the upright frame of a photograph,
      pass ``PIL.ImageOps.exif_transpose(image)``.
    - boxes [N, 4]: a tensor, an array or a list, xyxy in pixels of the image. Boxes are clipped to the image.
    - labels [N]: class names, or integers. Label l is the class ``categories[l - 1]``. Label 0 stands for a class that
      the refiner was not trained on; the predicted IoU is then the highest of all classes. None means 0 for all boxes.

    Returned boxes are in pixels of the image. Returned tensors are on the device of the given boxes, in float64 if the
    boxes are float64, otherwise in float32; `detect` returns float32 tensors on the CPU.

    Images of equal size are processed as a batch; images of different sizes are not, because padding them to a common
    size would change the results.

    Args:
        detector: a trained IoU-Net on its device. Its parameters are frozen.
        categories: ``{"id", "name"}`` of each class in label order.
        config: configuration of the detector as YAML text. A refiner without a configuration cannot be saved.
    """

    def __init__(self, detector: IoUNet, categories: list[dict], config: str | None = None):
        self.detector = detector.eval().requires_grad_(False)
        self.categories = categories
        self.config = config

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu") -> IoURefiner:
        """Load a refiner from a checkpoint written by iounet-train.

        Args:
            path: checkpoint file; it contains the configuration, the classes and the weights.
            device: device such as "cpu" or "cuda:1"; "auto" chooses a GPU if there is one.

        Raises:
            CheckpointError: the file is missing, damaged, or not a checkpoint of this project.
            ConfigError: the checkpoint's configuration has keys that this version does not know, or the device does not
                exist.
        """
        return cls(*load_detector(path, build_device(str(device))))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None, **download: Any
    ) -> IoURefiner:
        """Load a refiner from a folder, or from the Hugging Face Hub (``pip install huggingface_hub``).

        Args:
            name: a folder that `save_pretrained` or iounet-train wrote, or the id of a model on the Hub, such as
                "user/model".
            device: as in `from_checkpoint`.
            revision: branch, tag or commit of the model on the Hub.
            download: further arguments of ``huggingface_hub.hf_hub_download``, such as ``token`` or
                ``local_files_only``.

        Raises:
            CheckpointError: there is no such model, huggingface_hub is not installed, or the checkpoint cannot be
                loaded.
            ConfigError: as in `from_checkpoint`.
        """
        return cls.from_checkpoint(find_checkpoint(name, revision=revision, **download), device)

    def save_pretrained(self, folder: str | Path, *, repo_id: str | None = None) -> None:
        """Save the model to a folder that `from_pretrained` can load.

        Writes a checkpoint and a model card, README.md; an existing README.md is kept. Paths of data and weights are
        removed from the configuration. Changes made after loading, such as to ``detector.postprocessing``, are not
        saved.

        Args:
            folder: folder to write to; created if missing.
            repo_id: id of the model on the Hub, for README.md; None uses the folder's name.

        Raises:
            ValueError: the refiner was created without ``config``.
            CheckpointError: the folder cannot be written.
        """
        if self.config is None:
            raise ValueError(
                "a refiner without a configuration cannot be saved; use IoURefiner(detector, categories, config)"
            )
        folder = Path(folder)
        config = without_paths(self.config, "the detector's configuration")
        weights = self.detector.state_dict()
        save_checkpoint(folder / MODEL_FILE, model=weights, categories=self.categories, config=config)
        if not (folder / CARD_FILE).exists():
            write_text(folder / CARD_FILE, model_card(repo_id or folder.resolve().name, self.categories, config))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Upload the model, as `save_pretrained` writes it, to the Hugging Face Hub (``pip install huggingface_hub``).

        An existing model card on the Hub is kept.

        Args:
            repo_id: id of the model, such as "user/model"; created if missing.
            commit_message: commit message.
            private: create a new model as private; None uses the default of the user or organisation.
            token: token of the Hub; None uses the token of ``hf auth login``.
            branch: branch to commit to; None means main.
            create_pr: open a pull request instead of committing.

        Returns:
            URL of the commit.

        Raises:
            ValueError: the refiner was created without ``config``.
            CheckpointError: huggingface_hub is not installed.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id)
            commit = {"commit_message": commit_message, "create_pr": create_pr}
            return push_folder(Path(folder), repo_id, token=token, private=private, branch=branch, **commit)

    def __repr__(self) -> str:
        names = listed(category["name"] for category in self.categories)
        return f"IoURefiner(classes: {names}; device: {self.device})"

    @property
    def device(self) -> torch.device:
        return next(self.detector.parameters()).device

    def detect(self, image: AnyImage) -> tuple[Detections, Detections]:
        """Detect objects with the IoU-Net itself and refine their boxes.

        Boxes are refined after NMS, and scores are class scores: TEST.REFINE_BEFORE_NMS and TEST.FINAL_SCORE of the
        configuration are ignored.

        Args:
            image: as described for the class.

        Returns:
            before (Detections): detections before refinement, sorted by descending score.
            after (Detections): the same objects in the same order, with refined boxes.

        Raises:
            TypeError, ValueError: ``image`` is invalid, as in `refine`.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[AnyImage]) -> list[tuple[Detections, Detections]]:
        """Apply `detect` to several images and return one pair per image."""
        tensors = [as_tensor(image) for image in images]
        return _by_size(tensors, [tensor.shape for tensor in tensors], self._detect)

    @_allowing_gradients
    def _detect(self, images: list[Tensor]) -> list[tuple[Detections, Detections]]:
        """Apply `detect` to images of equal size."""
        detector = self.detector
        if not detector.can_resize((images[0].shape[1], images[0].shape[2])):
            nothing = torch.zeros(0)
            none = Detections(torch.zeros(0, 4), nothing.long(), nothing, nothing)
            return [(none, none) for _ in images]
        features = detector.extract([image.to(self.device) for image in images])
        candidates = detector.detect(features, detector.propose(features))
        before = [suppress(of_image, detector.postprocessing.nms) for of_image in candidates]
        after = detector.refine(features, before, detector.postprocessing.refinement)
        return [
            (first.to("cpu"), last.to("cpu"))
            for first, last in zip(features.to_original(before), features.to_original(after), strict=True)
        ]

    def score(self, image: AnyImage, boxes: AnyValues, labels: AnyValues | None = None) -> Tensor:
        """Predict the IoU of each box without moving it: a localisation confidence for ranking and filtering.

        Args:
            image: as described for the class.
            boxes: xyxy in pixels of the image.
            labels: as described for the class.

        Returns:
            Tensor[N]: predicted IoUs, calibrated if the checkpoint is; 0 for a box without area inside the image.

        Raises:
            TypeError, ValueError: as in `refine`.
        """
        return self.score_batch([image], [boxes], [labels])[0]

    def score_batch(
        self, images: Sequence[AnyImage], boxes: Sequence[AnyValues], labels: Sequence[AnyValues | None] | None = None
    ) -> list[Tensor]:
        """Apply `score` to several images; each list has one entry per image."""
        no_steps = replace(self.detector.postprocessing.refinement, num_steps=0)
        return [scored.ious for scored in self._refine_batch(images, boxes, labels, None, no_steps, None)]

    def refine(
        self,
        image: AnyImage,
        boxes: AnyValues,
        labels: AnyValues | None = None,
        scores: AnyValues | None = None,
        *,
        nms: str | None = None,
    ) -> RefinedDetections:
        """Refine boxes of an image by gradient ascent on their predicted IoUs or energies.

        The options of refinement come from the checkpoint's configuration (TEST.REFINE).

        A box without area inside the image is returned unchanged with a predicted IoU of 0 and the stop
        `Stop.UNPLACED`, as are all boxes of an image that is too thin to resize, such as 5000 × 1 pixels. With
        ``nms``, these boxes are dropped.

        Args:
            image: as described for the class.
            boxes: xyxy in pixels of the image.
            labels: as described for the class.
            scores: class scores [N] of the boxes; None means 1 for all.
            nms: "greedy", "soft" or "iou_guided" to suppress duplicate boxes before refinement, with the threshold of
                the checkpoint's configuration (TEST.NMS_THRESHOLD). Greedy NMS ranks by ``scores``, IoU-guided NMS by
                predicted IoU. None keeps all boxes.

        Returns:
            Without ``nms``, all N refined boxes in the given order, with predicted IoUs, stops and unchanged scores.
                With ``nms``, the kept boxes, sorted by descending score. Soft-NMS lowers scores; IoU-guided NMS raises
                the score of a kept box to the highest among the boxes that it suppresses. ``index`` contains the row of
                each box in the input.

        Raises:
            TypeError: ``image`` is not an image, another input cannot be converted to a tensor, or labels are neither
                integers nor names.
            ValueError: an input has the wrong shape or range, a box is not finite, or a label or ``nms`` is unknown.
        """
        return self.refine_batch([image], [boxes], [labels], [scores], nms=nms)[0]

    def refine_batch(
        self,
        images: Sequence[AnyImage],
        boxes: Sequence[AnyValues],
        labels: Sequence[AnyValues | None] | None = None,
        scores: Sequence[AnyValues | None] | None = None,
        *,
        nms: str | None = None,
    ) -> list[RefinedDetections]:
        """Apply `refine` to several images and return one result per image.

        Args:
            images: as described for the class.
            boxes: boxes of each image.
            labels: labels of each image; None means 0 for all boxes.
            scores: scores of each image; None means 1 for all boxes.
            nms: as in `refine`.

        Raises:
            TypeError, ValueError: as in `refine`.
        """
        options = self.detector.postprocessing
        if nms is None:
            return self._refine_batch(images, boxes, labels, scores, options.refinement, None)
        check_choice("nms", nms, KINDS)
        # Return all kept boxes, not only the best 100.
        suppression = replace(options.nms, kind=nms, max_detections=sys.maxsize)
        return self._refine_batch(images, boxes, labels, scores, options.refinement, suppression)

    @_allowing_gradients
    def refinement_path(self, image: AnyImage, boxes: AnyValues, labels: AnyValues | None = None) -> Tensor:
        """Return the boxes after 0, 1, ..., T steps of `refine`: Tensor[T + 1, N, 4], xyxy in pixels of the image.

        T is TEST.REFINE.NUM_STEPS of the configuration. Arguments and errors are as in `refine`.
        """
        given = self._check(image, boxes, labels, None)
        options = self.detector.postprocessing.refinement
        path = given.detections.boxes.repeat(options.num_steps + 1, 1, 1)
        if len(given.visible):
            features = self.detector.extract([given.image.to(self.device)])
            resized = self._resized(given, features.sizes[0])
            for step, (detections,) in enumerate(self.detector.refinement_path(features, [resized], options)):
                path[step, given.visible.index] = features.to_original([detections])[0].boxes.to(path)
        return path

    def _check(self, image: AnyImage, boxes: AnyValues, labels: AnyValues | None, scores: AnyValues | None) -> Given:
        given = check_input(image, boxes, labels, scores, self.categories)
        return given if self.detector.can_resize(given.size) else replace(given, visible=given.visible[:0])

    def _refine_batch(
        self,
        images: Sequence[AnyImage],
        boxes: Sequence[AnyValues],
        labels: Sequence[AnyValues | None] | None,
        scores: Sequence[AnyValues | None] | None,
        options: RefinementOptions,
        nms: NMSOptions | None,
    ) -> list[RefinedDetections]:
        nothing = [None] * len(images)
        columns: dict[str, Sequence[Any]] = {
            "boxes": boxes,
            "labels": nothing if labels is None else labels,
            "scores": nothing if scores is None else scores,
        }
        for name, values in columns.items():
            if len(values) != len(images):
                raise ValueError(f"{len(images)} images, but {name} for {len(values)}; pass one entry per image")
        given = [self._check(*of_image) for of_image in zip(images, *columns.values(), strict=True)]
        return _by_size(given, [of_image.size for of_image in given], partial(self._refine, options=options, nms=nms))

    @_allowing_gradients
    def _refine(
        self, given: list[Given], *, options: RefinementOptions, nms: NMSOptions | None
    ) -> list[RefinedDetections]:
        """Refine the boxes of images of equal size."""
        if not any(len(of_image.visible) for of_image in given):
            return [of_image.detections if nms is None else of_image.detections[:0] for of_image in given]
        features = self.detector.extract([of_image.image.to(self.device) for of_image in given])
        before = [self._resized(of_image, size) for of_image, size in zip(given, features.sizes, strict=True)]
        if nms is not None or not options.num_steps:
            before = self.detector.predict_ious(features, before)
        if nms is not None:
            before = [suppress(of_image, nms) for of_image in before]
        after = self.detector.refine(features, before, options)
        in_images = features.to_original(after)
        return [
            _merged(*of_image, suppressed=nms is not None)
            for of_image in zip(given, before, after, in_images, strict=True)
        ]

    def _resized(self, given: Given, size: tuple[int, int]) -> RefinedDetections:
        """Return the visible boxes in pixels of the resized image, in float32, on the detector's device."""
        single = {name: getattr(given.visible, name).float() for name in ("boxes", "scores", "ious", "ious_before")}
        return replace(given.visible, **single).to(self.device).rescaled(given.size, size)


def _merged(
    given: Given,
    before: RefinedDetections,
    after: RefinedDetections,
    in_image: RefinedDetections,
    *,
    suppressed: bool,
) -> RefinedDetections:
    """Combine the given boxes with the outcome of refinement, on the device and in the dtype of the given boxes.

    Args:
        given: the image and all its boxes.
        before: visible boxes before refinement, in pixels of the resized image.
        after: the same boxes after refinement, in pixels of the resized image.
        in_image: ``after`` in pixels of the original image.
        suppressed: whether NMS was applied. If so, return only the boxes in ``before``; otherwise, all given boxes.
    """
    detections = given.detections
    index = after.index.to(detections.index.device)
    own = detections[index]
    clipped = clip_boxes_to_image(own.boxes, given.size)
    # Scaling to the resized image and back would round the coordinates of unmoved boxes.
    moved = (after.boxes != before.boxes).any(1).to(index.device)
    boxes = in_image.boxes.to(clipped)
    moved &= (box_sizes(boxes) > 0).all(1)  # rounding may remove the last 1e-5 pixels of a thin box
    outcome = {
        "boxes": torch.where(moved[:, None], boxes, clipped),
        "ious": after.ious.to(own.ious),
        "ious_before": after.ious_before.to(own.ious),
        "stops": after.stops.to(own.stops),
    }
    if suppressed:
        return replace(own, scores=after.scores.to(own.scores), **outcome)
    return replace(
        detections, **{name: getattr(detections, name).index_copy(0, index, values) for name, values in outcome.items()}
    )


def _by_size(items: list[Item], sizes: list[Any], work: Callable[[list[Item]], list[Result]]) -> list[Result]:
    """Apply ``work`` to the items of each size separately, and return the results in the order of the items."""
    rows: dict[Any, list[int]] = {}
    for row, size in enumerate(sizes):
        rows.setdefault(size, []).append(row)
    results: dict[int, Result] = {}
    for group in rows.values():
        results |= zip(group, work([items[row] for row in group]), strict=True)
    return [results[row] for row in range(len(items))]
