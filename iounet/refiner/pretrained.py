"""Trained models in folders, local or on the Hugging Face Hub; each contains a checkpoint and a model card.

The conventions follow huggingface_hub's ModelHubMixin. The mixin is not used, so local folders do not need
huggingface_hub.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError

MODEL_FILE = "model_final.pth"  # the name that iounet-train uses
CARD_FILE = "README.md"

_CARD = """\
---
library_name: iounet
pipeline_tag: object-detection
tags:
- object-detection
- iou-net
- bounding-box-refinement
---

# {title}

An IoU-Net ([Jiang et al., ECCV 2018](https://arxiv.org/abs/1807.11590)). It detects objects of {count}, predicts the
IoU of a box with its object, and refines the boxes of any detector.

```python
from iounet import IoURefiner

refiner = IoURefiner.from_pretrained("{title}")
before, after = refiner.detect(image)  # PIL image, RGB array or tensor
better = refiner.refine(image, boxes)  # boxes of any detector, xyxy in pixels
better.boxes, better.ious_before, better.ious
```

You can also pass `{model_file}` to `iounet-refine --weights`.

## Classes

{classes}

## Configuration

```yaml
{config}
```
"""


def model_card(title: str, categories: list[dict[str, Any]], config: str) -> str:
    """Return the text of README.md.

    Args:
        title: name of the repository or of the folder.
        categories: ``{"id", "name"}`` of each class in label order.
        config: configuration as YAML text.
    """
    count = "one class" if len(categories) == 1 else f"{len(categories)} classes"
    classes = ", ".join(f"{category['name']} ({category['id']})" for category in categories)
    return _CARD.format(title=title, count=count, classes=classes, config=config.strip(), model_file=MODEL_FILE)


def find_checkpoint(name: str | Path, **download: Any) -> Path:
    """Return the path of a model's checkpoint, in a local folder or, without such a folder, downloaded from the Hub.

    Args:
        name: a folder, or the id of a model on the Hub, such as "user/model".
        download: arguments of ``huggingface_hub.hf_hub_download``.

    Raises:
        CheckpointError: there is neither a folder nor a model with this name, ``name`` is a file, the folder contains
            only checkpoints with other names, the Hub cannot be reached, or huggingface_hub is not installed.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / MODEL_FILE).is_file() and (others := sorted(folder.glob("*.pth"))):
            cure = f"load another checkpoint with IoURefiner.from_checkpoint('{others[0]}')"
            raise CheckpointError(f"{folder}: contains no {MODEL_FILE}; {cure}")
        return folder / MODEL_FILE
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file, not a folder; load it with IoURefiner.from_checkpoint('{folder}')")
    hub = _import_hub(f"{name}: no such folder; looking for it on the Hugging Face Hub")
    try:
        return Path(hub.hf_hub_download(str(name), MODEL_FILE, **download))
    except (OSError, ValueError) as error:  # base classes of all errors of huggingface_hub
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and no model on the Hugging Face Hub with a file {MODEL_FILE} ({reason}); "
            "check the name and the network"
        ) from error


def push_folder(
    folder: Path, repo_id: str, *, token: str | None, private: bool | None, branch: str | None, **commit: Any
) -> str:
    """Upload a folder to the Hub in one commit and return the URL of the commit; an existing model card is kept.

    Args:
        folder: folder to upload.
        repo_id: id of the model; created if missing.
        token: as in `iounet.IoURefiner.push_to_hub`.
        private: as in `iounet.IoURefiner.push_to_hub`.
        branch: as in `iounet.IoURefiner.push_to_hub`.
        commit: arguments of ``huggingface_hub.HfApi.upload_folder``: commit_message, create_pr.

    Raises:
        CheckpointError: huggingface_hub is not installed.
    """
    api = _import_hub("pushing a model to the Hugging Face Hub").HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    kept = [CARD_FILE] if api.file_exists(repo_id, CARD_FILE, revision=branch) else []
    return str(api.upload_folder(repo_id=repo_id, folder_path=folder, revision=branch, ignore_patterns=kept, **commit))


def _import_hub(purpose: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError:
        raise CheckpointError(f"{purpose} needs huggingface_hub; run pip install huggingface_hub") from None
    return huggingface_hub
