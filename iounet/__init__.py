"""IoU-Net (Jiang et al., ECCV 2018): boxes ranked by how well they fit, and moved to where they fit better."""

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
except metadata.PackageNotFoundError:  # a checkout that is not installed
    __version__ = "0+checkout"

_MODULES = {
    "Detections": "detections",
    "IoURefiner": "refiner",
    "build_detector": "build",
    "get_cfg": "config",
}


def __getattr__(name: str) -> Any:
    """Imports a public name when it is used: the commands have a say in torch's threads before they import it."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_MODULES[name]}", __name__), name)
