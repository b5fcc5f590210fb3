"""Judge labels by heads that were trained on the labels of other images."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torchvision.transforms.v2 import Compose

from ..build import build_heads
from ..data import CocoDataset, build_transforms, train_loader
from ..data.coco import Converted
from ..data.coco_form import boxes_as_coco
from ..data.labels import LabelSet
from ..devices import build_device
from ..engine import Process, calibrate
from ..errors import DataError
from ..jobs import EvaluationJob
from ..modeling import IoUNet
from ..progress import progress
from ..refiner import IoURefiner
from ..training import train_steps
from .proposals import Judgement, propose

TOO_FEW_EXAMPLES = "class has too few other labels to learn from"

_SEED = 0
# Minimum number of labels of a class in the other folds. With fewer labels, heads learn too little about it.
_MIN_EXAMPLES = 10
# Every tenth image is held out for calibration, but no more than 200 images. Each image gives tens of boxes, which is
# enough to fit two numbers.
_HELD_OUT = 10
_CALIBRATION_IMAGES = 200


def fold_of_images(num_images: int, folds: int) -> list[int]:
    """Return the fold of each image, drawn with a fixed seed. The sizes of folds differ by at most one image."""
    order = torch.randperm(num_images, generator=torch.Generator().manual_seed(_SEED))
    return (torch.argsort(order) % folds).tolist()


def propose_in_folds(
    weights: str,
    labels: LabelSet,
    rows: Sequence[int],
    *,
    folds: int,
    iterations: int,
    batch_size: int,
    device: str,
) -> dict[int, Judgement]:
    """Refine the boxes of labels, as `propose` does, by heads that were trained on the images of the other folds.

    Backbone and FPN come from the checkpoint and stay frozen. The heads are new and learn the classes of the data set.
    Every tenth training image, but no more than 200 images, is held out to calibrate the predicted IoU. With fewer than
    twenty images, the heads train on all images and are calibrated on the same images.

    Args:
        weights: Checkpoint written by iounet-train, for any classes.
        labels: The label set. The heads train on all of its labels except crowds.
        rows: Indices of the labels to judge in `labels.boxes`.
        folds: Number of folds, at least 2.
        iterations: Training iterations per fold.
        batch_size: Images per batch when boxes are refined.
        device: As in `iounet.devices.build_device`.

    Returns:
        Row → proposal, or the reason why there is none.

    Raises:
        CheckpointError: As in `iounet.build.build_heads`.
        ConfigError: As in `iounet.build.build_heads`.
        DataError: An image cannot be read, or too few images have labels.
    """
    # Folds divide files, so that a file that is listed twice, with labels for each entry, is in one fold.
    files = list(dict.fromkeys(image.path for image in labels.images))
    fold_of_file = dict(zip(files, fold_of_images(len(files), folds), strict=True))
    fold_of = [fold_of_file[image.path] for image in labels.images]
    with_labels = sorted({label.image for label in labels.boxes if not label.crowd})
    categories = [{"id": number, "name": name} for number, name in enumerate(labels.class_names, start=1)]
    judged: dict[int, Judgement] = {}
    for fold in range(folds):
        in_fold = [row for row in rows if fold_of[labels.boxes[row].image] == fold]
        if not in_fold:
            continue
        others = [image for image in with_labels if fold_of[image] != fold]
        if not others:
            raise DataError(f"{labels.source}: too few images have labels for {folds} folds; run without --folds")
        learned = Counter(
            label.class_name for label in labels.boxes if not label.crowd and fold_of[label.image] != fold
        )
        judgeable = [row for row in in_fold if learned[labels.boxes[row].class_name] >= _MIN_EXAMPLES]
        judged |= dict.fromkeys(set(in_fold) - set(judgeable), TOO_FEW_EXAMPLES)
        if judgeable:
            name = f"fold {fold + 1} of {folds}"
            detector = train_heads(weights, labels, others, iterations, build_device(device), name)
            refiner = IoURefiner(detector, categories)
            judged |= propose(refiner, labels, judgeable, batch_size=batch_size, description=f"{name}: tighten")
    return judged


def train_heads(
    weights: str, labels: LabelSet, images: Sequence[int], iterations: int, device: torch.device, name: str
) -> IoUNet:
    """Train new IoU and energy heads on the frozen backbone of a checkpoint.

    Args:
        weights: The checkpoint.
        labels: The label set.
        images: Indices of the images to train on.
        iterations: Training iterations.
        device: Device to train on.
        name: Prefix of the progress bar.

    Returns:
        A detector that can refine boxes. Its box branch, which detects objects, is not trained.
    """
    # Calibrate on images that the heads were not trained on, because they predict training boxes too well.
    share = max(_HELD_OUT, math.ceil(len(images) / _CALIBRATION_IMAGES))
    held_out = images[::share] if len(images) >= 2 * _HELD_OUT else images
    learned = sorted(set(images) - set(held_out)) or images
    job = build_heads(weights, len(labels.class_names), num_iterations=iterations, device=device)
    # Each step recomputes its features. Caching them would save more than half of the time, but take 80 MB per
    # image of COCO's size, and several times as much with augmentation.
    batches = train_loader(
        _dataset_of(labels, learned, job.transforms),
        batch_size=job.batch_size,
        num_workers=job.num_workers,
        seed=_SEED,
        num_iterations=job.num_iterations,
    )
    steps = train_steps(
        job.detector,
        batches,
        job.optimizer,
        job.schedule,
        device=device,
        seed=_SEED,
        clip_gradient=job.clip_gradient,
    )
    bar = progress(steps, total=job.num_iterations, desc=f"{name}: train", unit="it", smoothing=0.05)
    for step in bar:
        bar.set_postfix(loss=f"{step.losses['loss']:.3f}", refresh=False)
    held_out_set = _dataset_of(labels, held_out, build_transforms(False))
    calibrate(
        EvaluationJob(
            job.detector, held_out_set, batch_size=1, num_workers=0, output_dir=Path(), calibrated_for="labels"
        ),
        Process(device),
    )
    return job.detector


def _dataset_of(labels: LabelSet, images: Sequence[int], transforms: Compose) -> CocoDataset:
    """Return a data set of some images of a label set. Label l is the class `labels.class_names[l - 1]`."""
    position = {image: position for position, image in enumerate(images)}
    boxes = [replace(box, image=position[box.image]) for box in labels.boxes if box.image in position]
    content, folder = boxes_as_coco(replace(labels, images=[labels.images[image] for image in images], boxes=boxes))
    return CocoDataset(labels.source, folder, transforms=transforms, converted=Converted(content, {}, ""))
