"""IoU-Net (Jiang et al., ECCV 2018): an object detector that predicts how well each box fits and refines its boxes."""

from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .build import build_detector
    from .config import get_cfg
    from .detections import Detections
    from .refiner import IoURefiner

__all__ = ["Detections", "IoURefiner", "build_detector", "get_cfg"]

try:
    __version__ = metadata.version("iounet")
except metadata.PackageNotFoundError:  # a checkout without an installation
    __version__ = "0+checkout"

_MODULES = {
    "Detections": "detections",
    "IoURefiner": "refiner",
    "build_detector": "build",
    "get_cfg": "config",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that the commands can configure OpenMP before torch is imported."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
