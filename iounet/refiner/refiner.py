"""Better boxes for anybody's detections, with a trained IoU-Net."""

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
    """Leaves the caller's inference mode, which forbids the gradients that refinement needs."""
    return torch.inference_mode(False)(torch.no_grad()(method))


class IoURefiner:
    """Scores and moves boxes that any detector found.

    Every method takes

    - an image: a PIL image; or a NumPy array [H, W, 3] or a tensor [3, H, W], RGB, uint8 or floating point in [0, 1].
      (OpenCV reads BGR: give ``image[..., ::-1]``.) The pixels are used as they are stored. For boxes in the upright
      frame of a photograph with an EXIF orientation, give ``PIL.ImageOps.exif_transpose(image)``.
    - boxes [N, 4]: a tensor, an array or a list, xyxy in pixels of the image; clipped to it.
    - labels [N]: class names; or integers, of which l is the class ``categories[l - 1]``. 0 stands for a class that the
      refiner was not trained on, whose predicted IoU is the highest of the classes'. None: 0 for all.

    and answers in tensors on the device of the boxes, float64 if the boxes are, otherwise float32; boxes in pixels of
    the image. Images of one size are processed as a batch; padding to a common size would change the results.

    Args:
        detector: a trained IoU-Net, on its device; its parameters are frozen.
        categories: ``{"id", "name"}`` of each class in label order.
        config: YAML text of the configuration that the detector was built by; without it the refiner cannot be saved.
    """

    def __init__(self, detector: IoUNet, categories: list[dict], config: str | None = None):
        self.detector = detector.eval().requires_grad_(False)
        self.categories = categories
        self.config = config

    @classmethod
    def from_checkpoint(cls, path: str | Path, device: str | torch.device = "cpu") -> IoURefiner:
        """Builds the detector that a checkpoint of iounet-train describes and loads its weights.

        Args:
            device: such as "cpu" or "cuda:1"; "auto": a GPU if there is one.

        Raises:
            CheckpointError: the file is missing, damaged, or no checkpoint of this project.
            ConfigError: its configuration has keys that this version does not know; there is no such device.
        """
        return cls(*load_detector(path, build_device(str(device))))

    @classmethod
    def from_pretrained(
        cls, name: str | Path, *, device: str | torch.device = "cpu", revision: str | None = None, **download: Any
    ) -> IoURefiner:
        """Loads a model from a folder, or from the Hugging Face Hub (``pip install 'iounet[hub]'``).

        Args:
            name: a folder that :meth:`save_pretrained` or iounet-train wrote; or a model's id, such as "user/model".
            device: as for :meth:`from_checkpoint`.
            revision: of the model on the Hub: a branch, a tag or a commit.
            download: further arguments of ``huggingface_hub.hf_hub_download``, such as token or local_files_only.

        Raises:
            CheckpointError: there is no such model, or huggingface_hub is missing; as :meth:`from_checkpoint`.
            ConfigError: as :meth:`from_checkpoint`.
        """
        return cls.from_checkpoint(find_checkpoint(name, revision=revision, **download), device)

    def save_pretrained(self, folder: str | Path, *, repo_id: str | None = None) -> None:
        """Writes the model to a folder, for :meth:`from_pretrained`: a checkpoint, and README.md if there is none.

        The paths of data and weights on this machine are left out of the configuration. What was changed after loading,
        such as ``detector.postprocessing``, is not saved.

        Args:
            folder: is made.
            repo_id: of the model on the Hub, for README.md; None: the folder's name.

        Raises:
            ValueError: the refiner was made without ``config``.
            CheckpointError: the folder cannot be written.
        """
        if self.config is None:
            raise ValueError("the configuration of the detector is not known: IoURefiner(detector, categories, config)")
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
        """Uploads what :meth:`save_pretrained` writes to the Hugging Face Hub (``pip install 'iounet[hub]'``).

        A model card that is there already is kept.

        Args:
            repo_id: of the model, such as "user/model"; made if it is not there.
            private: whether a new model is; None: as the user or organisation has it by default.
            token: of the Hub; None: that of ``hf auth login``.
            branch: to commit to; None: main.
            create_pr: open a pull request instead.

        Returns:
            The address of the commit.

        Raises:
            ValueError: as :meth:`save_pretrained`.
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
        """The detector's own detections of an image, before and after refinement, by falling score.

        They are refined after NMS, and their scores are class scores, also where the configuration wants it otherwise
        (TEST.REFINE_BEFORE_NMS, TEST.FINAL_SCORE).

        Returns:
            before, after: the same objects in the same order.
        """
        return self.detect_batch([image])[0]

    def detect_batch(self, images: Sequence[AnyImage]) -> list[tuple[Detections, Detections]]:
        """:meth:`detect` for several images."""
        tensors = [as_tensor(image) for image in images]
        return _by_size(tensors, [tensor.shape for tensor in tensors], self._detect)

    @_allowing_gradients
    def _detect(self, images: list[Tensor]) -> list[tuple[Detections, Detections]]:
        """Of images of one size."""
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
        """Predicted IoU of each box where it lies, Tensor[N]: a localisation confidence for ranking and filtering.

        A box without area inside the image has 0. Errors as :meth:`refine`.
        """
        return self.score_batch([image], [boxes], [labels])[0]

    def score_batch(
        self, images: Sequence[AnyImage], boxes: Sequence[AnyValues], labels: Sequence[AnyValues | None] | None = None
    ) -> list[Tensor]:
        """:meth:`score` for several images; one entry an image in each list."""
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
        """Moves boxes of an image to where the predicted IoU is higher.

        Args:
            image, boxes, labels: see the class.
            scores [N]: class scores of the boxes; returned as they are. None: 1 for all.
            nms: "greedy", "soft" or "iou_guided": first suppress the boxes that show the same object, by the
                threshold of the checkpoint's configuration. Greedy NMS ranks by ``scores``, IoU-guided NMS by
                predicted IoU.

        Returns:
            The same N objects in the same order, in refined boxes. A box without area inside the image stays as it is
            and has a predicted IoU of 0 (:attr:`iounet.postprocess.Stop.UNPLACED`), as do all boxes of an image that is
            too thin for the detector to resize, such as one of 5000 × 1 pixels. With NMS, the objects that it
            leaves, by falling score (which soft-NMS lowers, and IoU-guided NMS raises to the best of the cluster's);
            such boxes are not among them.

        Raises:
            TypeError, ValueError: an image, boxes, labels or scores of another kind or shape, boxes that are not
                finite, labels out of range or unknown, an unknown ``nms``.
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
        """:meth:`refine` for several images; one entry an image in each list."""
        options = self.detector.postprocessing
        if nms is None:
            return self._refine_batch(images, boxes, labels, scores, options.refinement, None)
        check_choice("nms", nms, KINDS)
        # All boxes that are left, not the best hundred of them.
        suppression = replace(options.nms, kind=nms, max_detections=sys.maxsize)
        return self._refine_batch(images, boxes, labels, scores, options.refinement, suppression)

    @_allowing_gradients
    def refinement_path(self, image: AnyImage, boxes: AnyValues, labels: AnyValues | None = None) -> Tensor:
        """Where the boxes of an image lie after 0, 1, ..., T steps of :meth:`refine`: Tensor[T + 1, N, 4]."""
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
                raise ValueError(f"{len(images)} images, but {name} of {len(values)}: give one entry for each image")
        given = [self._check(*of_image) for of_image in zip(images, *columns.values(), strict=True)]
        return _by_size(given, [of_image.size for of_image in given], partial(self._refine, options=options, nms=nms))

    @_allowing_gradients
    def _refine(
        self, given: list[Given], *, options: RefinementOptions, nms: NMSOptions | None
    ) -> list[RefinedDetections]:
        """Refines the boxes of images of one size."""
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
        """The visible boxes as the detector takes them: in pixels of the resized image, in float32, on its device."""
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
    """What the caller gave, with the outcome of refinement, on the device and in the dtype of what was given.

    Args:
        before, after: the boxes that could be refined, in pixels of the resized image.
        in_image: ``after`` in pixels of the original image.
        suppressed: ``before`` is what NMS left, and only that is returned; else all boxes that were given.
    """
    detections = given.detections
    index = after.index.to(detections.index.device)
    own = detections[index]
    clipped = clip_boxes_to_image(own.boxes, given.size)
    # A box that did not move stays as it was given, without the rounding of another frame and back.
    moved = (after.boxes != before.boxes).any(1).to(index.device)
    boxes = in_image.boxes.to(clipped)
    moved &= (box_sizes(boxes) > 0).all(1)  # rounding may take the last 1e-5 pixels of a thin box
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
    """``work`` on the items of each size by themselves, put together again in the order of the items."""
    rows: dict[Any, list[int]] = {}
    for row, size in enumerate(sizes):
        rows.setdefault(size, []).append(row)
    results: dict[int, Result] = {}
    for group in rows.values():
        results |= zip(group, work([items[row] for row in group]), strict=True)
    return [results[row] for row in range(len(items))]
