"""Trained models as folders, on the disk or on the Hugging Face Hub: a checkpoint, and a README.md as model card.

The conventions are those of huggingface_hub's ModelHubMixin. The mixin itself is not used, so that folders on the disk
need no huggingface_hub.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import CheckpointError

MODEL_FILE = "model_final.pth"  # as in the folder of a run of iounet-train
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
IoU of any box with its object, and moves boxes of any detector to where they fit better.

```python
from iounet import IoURefiner

refiner = IoURefiner.from_pretrained("{title}")
before, after = refiner.detect(image)  # a PIL image, an RGB array or tensor
better = refiner.refine(image, boxes)  # xyxy in pixels, of any detector
better.boxes, better.ious_before, better.ious
```

`{model_file}` is a checkpoint for `iounet-refine --weights`, too.

## Classes

{classes}

## Configuration

```yaml
{config}
```
"""


def model_card(title: str, categories: list[dict[str, Any]], config: str) -> str:
    """The text of README.md.

    Args:
        title: the name of the repository or of the folder.
        categories: ``{"id", "name"}`` of each class in label order.
        config: YAML text of the configuration.
    """
    count = "one class" if len(categories) == 1 else f"{len(categories)} classes"
    classes = ", ".join(f"{category['name']} ({category['id']})" for category in categories)
    return _CARD.format(title=title, count=count, classes=classes, config=config.strip(), model_file=MODEL_FILE)


def find_checkpoint(name: str | Path, **download: Any) -> Path:
    """The checkpoint of a folder on the disk, or, if there is no such folder, of a model on the Hub.

    Args:
        name: a folder, or the id of a model on the Hub, such as "user/model".
        download: arguments of ``huggingface_hub.hf_hub_download``.

    Raises:
        CheckpointError: there is neither; the folder holds only checkpoints of other names, or is a file; the Hub
            cannot be reached; huggingface_hub is not installed.
    """
    folder = Path(name)
    if folder.is_dir():
        if not (folder / MODEL_FILE).is_file() and (others := sorted(folder.glob("*.pth"))):
            cure = f"to load another checkpoint: IoURefiner.from_checkpoint('{others[0]}')"
            raise CheckpointError(f"{folder}: holds no {MODEL_FILE}; {cure}")
        return folder / MODEL_FILE
    if folder.is_file():
        raise CheckpointError(f"{folder}: is a file, not a folder; to load it: IoURefiner.from_checkpoint('{folder}')")
    hub = _import_hub(f"{name}: no such folder; to look for it on the Hugging Face Hub")
    try:
        return Path(hub.hf_hub_download(str(name), MODEL_FILE, **download))
    except (OSError, ValueError) as error:  # of which all errors of huggingface_hub are
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{name}: no such folder, and no model on the Hugging Face Hub with a file {MODEL_FILE} ({reason}); "
            "check the name, and the network"
        ) from error


def push_folder(
    folder: Path, repo_id: str, *, token: str | None, private: bool | None, branch: str | None, **commit: Any
) -> str:
    """Uploads a folder to the Hub in one commit and returns the commit's address; an existing model card stays.

    Args:
        repo_id: of the model; made if it is not there.
        token, private, branch: see :meth:`iounet.IoURefiner.push_to_hub`.
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
        raise CheckpointError(f"{purpose} needs huggingface_hub: pip install 'iounet[hub]'") from None
    return huggingface_hub
