"""Checkpoints: written whole or not at all, read without executing code, and refused if they do not fit."""

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
RESUMED = ("model", "optimizer", "iteration", "categories", "config")  # what a run needs to go on
_NAME = re.compile(r"iteration_(\d+)\.pth")


def save_checkpoint(path: Path, **content: Any) -> None:
    """Writes a checkpoint under a temporary name and renames it, so that ``path`` is never half a file.

    Args:
        path: of the checkpoint; its folder is made.
        content: tensors, numbers, strings, and lists and dicts of them. A detector's checkpoint has ``model`` (state
            dict), ``categories`` (list of id and name, label order) and ``config`` (YAML text); one to resume from
            also ``iteration``, ``optimizer`` (state dict) and ``processes`` (how many trained it).

    Raises:
        CheckpointError: the disk is full, or refuses for another reason; what stood at ``path`` stands there still.
    """
    try:
        with replacing(path, "wb") as file:
            torch.save({"format": FORMAT, **content}, file)
    except (OSError, RuntimeError) as error:
        # Of a full disk torch says "unexpected pos 832 vs 726", with the reason behind it.
        reason = error.__context__ if isinstance(error.__context__, OSError) else error
        raise CheckpointError(
            f"{path} could not be written ({reason}); earlier checkpoints are untouched. Make room there or choose "
            "another OUTPUT_DIR, then go on with --resume"
        ) from error


def load_weights_file(path: str | Path) -> dict:
    """Reads any file of ``torch.save`` onto the CPU, tensors and plain values only (no pickled code runs).

    Raises:
        CheckpointError: no such file, a damaged one, or one that holds more than tensors and plain values. That a
            weight has changed is noticed in checkpoints of this project alone: others need not have checksums.
    """
    if str(path).startswith(("http://", "https://")):
        file = f"weights/{str(path).rpartition('/')[2]}"
        download = f"`curl --location --create-dirs --output {file} {path}`"
        raise CheckpointError(f"{path} is an address on the web: first {download}, then give {file}")
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
    except pickle.UnpicklingError:  # whose message advises to run the code in the file
        raise CheckpointError(
            f"{path} cannot be read as plain weights: it is no weights file, is damaged, or holds Python objects, "
            "which could run code; give a .pth file of iounet-train, or save a state_dict()"
        ) from None
    except Exception as error:  # torch raises almost any error on a damaged file: KeyError, IndexError, struct.error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise CheckpointError(f"{path} is damaged or not a weights file ({reason})") from None
    if not isinstance(content, dict):
        kind = type(content).__name__
        raise CheckpointError(f"{path} holds a value of type {kind}; expected a state dict or a checkpoint")
    return content


def _verify_checksums(path: Path) -> None:
    # Which torch.load ignores. Takes as long as it: 0.06 s for 50 MB.
    with zipfile.ZipFile(path) as file:
        damaged = file.testzip()
        # One bit of the zip's directory makes an entry a folder, of which torch reads nothing into new memory.
        folders = [entry.filename for entry in file.infolist() if entry.external_attr & 0x10]
    if damaged:
        raise zipfile.BadZipFile(f"the checksum of {damaged} does not match")
    if folders:
        raise zipfile.BadZipFile(f"{folders[0]} is marked as a folder")


def load_checkpoint(path: str | Path) -> dict:
    """Reads a checkpoint of this project; see :func:`save_checkpoint` for what it holds.

    Raises:
        CheckpointError: as :func:`load_weights_file`, or a file that is not a checkpoint of this project.
    """
    content = load_weights_file(path)
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of this project (format {content.get('format')!r}, expected {FORMAT!r}); "
            "to start training from other weights set MODEL.WEIGHTS"
        )
    return content


def checkpoint_path(folder: Path, iteration: int) -> Path:
    return folder / f"iteration_{iteration:07d}.pth"


def resumable_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of :func:`checkpoint_path` in a folder, oldest first."""
    found = [(int(match[1]), path) for path in folder.glob("*.pth") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found)]


def load_newest_checkpoint(paths: list[Path]) -> tuple[Path, dict, dict[Path, CheckpointError]]:
    """The newest checkpoint that can be read.

    Args:
        paths: oldest first.

    Returns:
        path, content: of that checkpoint.
        damaged: the newer ones, with what is wrong with each.

    Raises:
        CheckpointError: there is none, or none that a run can be resumed from.
    """
    damaged: dict[Path, CheckpointError] = {}
    for path in reversed(paths):
        try:
            content = load_checkpoint(path)
            missing = [key for key in RESUMED if key not in content]
            if missing:
                raise CheckpointError(
                    f"{path} lacks {', '.join(missing)}, as a final model does: nothing to resume from"
                )
            return path, content, damaged
        except CheckpointError as error:
            damaged[path] = error
    reasons = "; ".join(map(str, damaged.values()))
    raise CheckpointError(f"no checkpoint to resume from: {reasons}. Restore one, or begin anew in another OUTPUT_DIR")


def prune_checkpoints(folder: Path, *, keep: int) -> None:
    """Removes all but the newest checkpoints of a folder, and what killed processes left of theirs by half."""
    for path in [*resumable_checkpoints(folder)[:-keep], *folder.glob(".*.tmp")]:
        path.unlink()


def load_detector_weights(detector: nn.Module, weights: dict[str, Tensor], source: str, *, need_iou_head: bool) -> None:
    """Loads a state dict, all of it or nothing.

    Args:
        source: where the weights come from, for the message.
        need_iou_head: False: weights of a plain detector will do; IoU and energy head then stay as they are.

    Raises:
        CheckpointError: parameters missing, left over, or of another shape: a checkpoint of another architecture.
    """
    expected = detector.state_dict()
    # Checkpoints of earlier versions have no calibration.
    optional = ("iou_head.calibration",) if need_iou_head else ("iou_head.", "energy_head.")
    if faults := state_dict_faults(expected, weights, optional):
        raise CheckpointError(
            f"{source} is of another architecture than the configuration describes: parameters {'; '.join(faults)}. "
            "Use the configuration the weights were trained with (MODEL.BACKBONE.NAME and .NORM, channels, classes)"
        )
    detector.load_state_dict({key: value for key, value in weights.items() if key in expected}, strict=False)


def load_backbone_weights(detector: IoUNet, weights: dict[str, Tensor], source: str) -> None:
    """Loads backbone and RPN alone, which do not depend on the classes; the other parts stay as they are.

    Args:
        weights: state dict of a detector of any classes.
        source: where the weights come from, for the message.

    Raises:
        CheckpointError: parameters missing, left over, or of another shape.
    """
    kept = {key: value for key, value in weights.items() if key.startswith(("backbone.", "rpn."))}
    if faults := state_dict_faults(detector.state_dict(), kept, ("roi_heads.", "iou_head.", "energy_head.")):
        raise CheckpointError(f"{source}: backbone or RPN do not fit its own configuration: {'; '.join(faults)}")
    detector.load_state_dict(kept, strict=False)


def load_initial_weights(detector: IoUNet, path: str, categories: list[dict[str, Any]]) -> None:
    """Loads the weights that training starts from.

    Args:
        detector: with random weights.
        path: a checkpoint of this project, or a plain Faster R-CNN of torchvision without an IoU head; "": none.
        categories: ``{"id", "name"}`` of the data set's classes in label order.

    Raises:
        CheckpointError: the file is damaged or of another architecture.
        ConfigError: the detector is standalone, and there is no file, or it has other classes.
    """
    if not path:
        if detector.standalone:
            raise ConfigError(
                "MODEL.STANDALONE trains the IoU head of a finished detector: give one with MODEL.WEIGHTS"
            )
        return
    content = load_weights_file(path)
    weights = content.get("model", content)
    trained_on = content.get("categories")
    if detector.standalone and trained_on not in (None, categories):
        raise ConfigError(
            f"MODEL.STANDALONE trains the IoU head of a detector of the same classes, and those of {path} are not the "
            f"data set's: give another MODEL.WEIGHTS ({category_differences(trained_on, categories)})"
        )
    if trained_on is None and "roi_heads.box_predictor.cls_score.bias" in weights:
        weights = select_categories(weights, [category["id"] for category in categories])
    load_detector_weights(detector, weights, path, need_iou_head=False)
    detector.iou_head.calibration.zero_()  # of other weights than those to come


def select_categories(weights: dict[str, Tensor], category_ids: list[int]) -> dict[str, Tensor]:
    """Torchvision's detectors have an output for every COCO category id, 0 to 90; ours for each category there is.

    Args:
        weights: of a Faster R-CNN whose box predictor is indexed by category id.
        category_ids: the category of label l is ``category_ids[l - 1]``.

    Returns:
        The same weights with the box predictor's rows in label order; the same object if they have as many outputs
        as labels already.
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
