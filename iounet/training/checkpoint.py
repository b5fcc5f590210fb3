"""Checkpoints: written atomically, read without executing code, and refused if incompatible."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..categories import category_differences
from ..errors import CheckpointError, ConfigError
from ..files import replacing
from ..modeling import IoUNet, state_dict_faults

FORMAT = "iounet-1"
RESUMED = ("model", "optimizer", "iteration", "categories", "config")  # keys needed to resume a run
_NAME = re.compile(r"iteration_(\d+)\.pth")


def save_checkpoint(path: Path, **content: Any) -> None:
    """Write a checkpoint under a temporary name and rename it, so that ``path`` is never a partial file.

    Args:
        path: path of the checkpoint; its folder is created if needed.
        content: tensors, numbers, strings, and lists and dicts of them. A detector's checkpoint has ``model`` (state
            dict), ``categories`` (list of id and name in label order) and ``config`` (YAML text). A checkpoint to
            resume from also has ``iteration``, ``optimizer`` (state dict) and ``processes`` (number of processes).

    Raises:
        CheckpointError: if the disk is full, or the file cannot be written for another reason. An existing file at
            ``path`` stays unchanged.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:
        # If the disk is full, torch raises "unexpected pos 832 vs 726"; the OSError is its context.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"{path} could not be written ({reason}); earlier checkpoints are unchanged. Free disk space, or "
            "move the run folder and set OUTPUT_DIR to it, then continue with --resume"
        ) from error


def load_weights_file(path: str | Path) -> dict:
    """Load a file written by ``torch.save`` to the CPU. Only tensors and plain values are accepted, so no code runs.

    Raises:
        CheckpointError: if the file does not exist, is damaged, or contains other objects. Changed bytes in a weight
            are detected only in checkpoints of this project, since other files need not have checksums.
    """
    if str(path).startswith(("http://", "https://")):
        file = f"weights/{str(path).rpartition('/')[2]}"
        download = f"`curl --location --create-dirs --output {file} {path}`"
        raise CheckpointError(f"{path} is a URL; download the file with {download}, then give {file}")
    path = Path(path)
    if path.is_dir():
        example = min(path.glob("*.pth"), default=path / "model_final.pth")
        raise CheckpointError(f"{path} is a folder; give a weights file, such as {example}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such weights file; check the path")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and content.get("format") == FORMAT:
            _verify_checksums(path)
    except pickle.UnpicklingError:  # replaced, because its message recommends weights_only=False
        raise CheckpointError(
            f"{path} cannot be read as plain weights: it is not a weights file, is damaged, or contains Python "
            "objects, which could run code; give a .pth file written by iounet-train, or save a state_dict()"
        ) from None
    except Exception as error:  # torch raises almost any error on a damaged file: KeyError, IndexError, struct.error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(
            f"{path} is damaged or not a weights file ({reason}); copy or download it again, or give another file"
        ) from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} contains a value of type {kind}; expected a state dict or a checkpoint")
    return content


def _verify_checksums(path: Path) -> None:
    # torch.load ignores checksums. Verifying them takes as long as torch.load: 0.06 s for 50 MB.
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
        # One flipped bit in the zip directory marks an entry as a folder; torch then leaves its tensor uninitialised.
        folders = [entry.filename for entry in file.infolist() if entry.external_attr & 0x10]
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    if folders:
        raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")


def load_checkpoint(path: str | Path) -> dict:
    """Load a checkpoint of this project; see `save_checkpoint` for its content.

    Raises:
        CheckpointError: if `load_weights_file` raises it, or if the file is not a checkpoint of this project.
    """
    content = load_weights_file(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project (format {content.get('format')!r}, expected {FORMAT!r}); "
            "to start training from other weights, set MODEL.WEIGHTS"
        )
    return content


def checkpoint_path(folder: Path, iteration: int) -> Path:
    return folder / f"iteration_{iteration:07d}.pth"


def resumable_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that are named by `checkpoint_path`, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pth") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_newest_checkpoint(paths: list[Path]) -> tuple[Path, dict, dict[Path, CheckpointError]]:
    """Load the newest checkpoint that can be read.

    Args:
        paths: paths of the checkpoints, oldest first.

    Returns:
        path: path of the checkpoint.
        content: its content.
        damaged: newer checkpoint → its error.

    Raises:
        CheckpointError: if there is no checkpoint to resume from.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in reversed(paths):
        try:
            content = load_checkpoint(path)
            missing = [key for key in RESUMED if key not in content]
            if missing:
                raise CheckpointError(
                    f"{path} cannot be resumed from: it has no {', '.join(missing)}, as is usual for a final model"
                )
            return path, content, damaged
        except CheckpointError as error:
            damaged[path] = error
    reasons = "; ".join(map(str, damaged.values()))
    raise CheckpointError(
        f"no checkpoint to resume from: {reasons}. Restore one, or start a new run in another OUTPUT_DIR"
    )


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints of a folder, and partial files left by killed processes."""
    for path in [*resumable_checkpoints(folder)[:-keep], *folder.glob(".*.tmp")]:
        path.unlink()


def load_detector_weights(detector: nn.Module, weights: dict[str, Tensor], source: str, *, need_iou_head: bool) -> None:
    """Load a state dict. If it does not fit, raise CheckpointError and leave the detector unchanged.

    Args:
        source: where the weights come from, for the message.
        need_iou_head: whether the weights must include the IoU head. If False, weights of a plain detector are
            accepted, and the IoU and energy heads then stay unchanged.

    Raises:
        CheckpointError: if parameters are missing, unexpected, or of the wrong shape, as when the architecture differs.
    """
    expected = detector.state_dict()
    # Checkpoints of earlier versions have no calibration.
    optional = ("iou_head.calibration",) if need_iou_head else ("iou_head.", "energy_head.")
    if faults := state_dict_faults(expected, weights, optional):
        raise CheckpointError(
            f"the weights of {source} do not fit the architecture of the configuration: parameters "
            f"{'; '.join(faults)}. Use the configuration that the weights were trained with (MODEL.BACKBONE.NAME and "
            ".NORM, channels, classes)"
        )
    detector.load_state_dict({key: value for key, value in weights.items() if key in expected}, strict=False)


def load_backbone_weights(detector: IoUNet, weights: dict[str, Tensor], source: str) -> None:
    """Load only the backbone and the RPN, which do not depend on the classes.

    Args:
        weights: state dict of a detector, with any classes.
        source: where the weights come from, for the message.

    Raises:
        CheckpointError: if parameters are missing, unexpected, or of the wrong shape.
    """
    kept = {key: value for key, value in weights.items() if key.startswith(("backbone.", "rpn."))}
    if faults := state_dict_faults(detector.state_dict(), kept, ("roi_heads.", "iou_head.", "energy_head.")):
        raise CheckpointError(
            f"{source}: the backbone or the RPN does not fit the checkpoint's own configuration: {'; '.join(faults)}"
        )
    detector.load_state_dict(kept, strict=False)


def load_initial_weights(detector: IoUNet, path: str, categories: list[dict[str, Any]]) -> None:
    """Load the weights that training starts from.

    Args:
        detector: a detector with random weights.
        path: a checkpoint of this project, or torchvision's Faster R-CNN without an IoU head; "" loads nothing.
        categories: ``{"id", "name"}`` of the data set's classes in label order.

    Raises:
        CheckpointError: if the file is damaged, or its weights do not fit the architecture.
        ConfigError: if the detector is standalone, and ``path`` is "" or the file has other classes than
            ``categories``.
    """
    if not path:
        if detector.standalone:
            raise ConfigError(
                "MODEL.STANDALONE trains the IoU head of a finished detector; set MODEL.WEIGHTS to its checkpoint"
            )
        return
    content = load_weights_file(path)
    weights = content.get("model", content)
    trained_on = content.get("categories")
    if detector.standalone and trained_on not in (None, categories):
        raise ConfigError(
            f"MODEL.STANDALONE needs a detector with the classes of the data set, but the classes of {path} differ "
            f"({category_differences(trained_on, categories)}); set MODEL.WEIGHTS to another detector"
        )
    if trained_on is None and "roi_heads.box_predictor.cls_score.bias" in weights:
        weights = select_categories(weights, [category["id"] for category in categories])
    load_detector_weights(detector, weights, path, need_iou_head=False)
    detector.iou_head.calibration.zero_()  # fitted to the loaded weights, which training changes


def select_categories(weights: dict[str, Tensor], category_ids: list[int]) -> dict[str, Tensor]:
    """Select the outputs of the given categories from the weights of a torchvision detector.

    torchvision's detectors have an output for every COCO category id, 0 to 90; this project's detectors have one per
    category.

    Args:
        weights: weights of a Faster R-CNN whose box predictor is indexed by category id.
        category_ids: the category of label l is ``category_ids[l - 1]``.

    Returns:
        The weights with the box predictor's rows in label order; ``weights`` itself if the number of outputs already
            matches, or if a category id has no output.
    """
    num_outputs = len(weights["roi_heads.box_predictor.cls_score.bias"])
    rows = torch.tensor([0, *category_ids])
    if num_outputs == len(rows) or int(rows.max()) >= num_outputs:
        return weights
    selected = dict(weights)
    for name in ("cls_score.weight", "cls_score.bias", "bbox_pred.weight", "bbox_pred.bias"):
        key = f"roi_heads.box_predictor.{name}"
        by_category = weights[key].reshape(num_outputs, -1, *weights[key].shape[1:])
        selected[key] = by_category[rows].flatten(0, 1)
    return selected
