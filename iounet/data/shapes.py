"""The shapes of the synthetic set: outlines and rasterisation."""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

CLASS_NAMES = ("cross", "ellipse", "rectangle", "star", "triangle")

# Samples per pixel along each axis when a shape is drawn: 4 x 4 samples give 17 levels of coverage.
_SUPERSAMPLING = 4


@dataclass(frozen=True)
class Shape:
    """A shape in an image.

    Attributes:
        window: (rows, columns) of the part of the image that the arrays below refer to.
        coverage: float32 ``[h, w]``, covered fraction of each pixel, in [0, 1].
        full_area: number of pixels of the mask, including those beyond the edge of the image.
        local: float32 ``[2, h, w]``, x and y of each pixel in the frame that rotates with the shape, in pixels.
    """

    window: tuple[slice, slice]
    coverage: np.ndarray
    full_area: int
    local: np.ndarray

    @property
    def mask(self) -> np.ndarray:
        """Mask of the pixels that the shape covers by at least half: bool ``[h, w]``."""
        return self.coverage >= 0.5


def outline(class_name: str) -> np.ndarray:
    """Return the corners of a shape in its own frame: float64 ``[P, 2]``, x and y in [-0.5, 0.5]."""
    if class_name == "cross":
        a, b = 0.5, 0.16
        top = np.array([(-b, -a), (b, -a), (b, -b)])
        quarter_turn = np.array([(0, 1), (-1, 0)])
        return np.concatenate([top, top @ quarter_turn, -top, -top @ quarter_turn])
    if class_name == "ellipse":
        return 0.5 * _on_circle(np.arange(64) / 64)
    if class_name == "rectangle":
        return np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    if class_name == "star":
        return np.array([0.5, 0.22] * 5)[:, None] * _on_circle(np.arange(10) / 10)
    if class_name == "triangle":
        return np.array([(0.0, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    raise ValueError(f"unknown shape {class_name!r}; the shapes are {', '.join(CLASS_NAMES)}")


def rasterise(
    class_name: str,
    center: tuple[float, float],
    sides: tuple[float, float],
    angle: float,
    image_size: tuple[int, int],
) -> Shape:
    """Rasterise a shape of ``sides`` (width, height), rotated by ``angle`` radians and centred at (x, y)."""
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    corners = outline(class_name) * sides @ turn.T + center
    x0, y0 = np.floor(corners.min(axis=0)).astype(int) - 1
    x1, y1 = np.ceil(corners.max(axis=0)).astype(int) + 1

    drawing = Image.new("L", ((x1 - x0) * _SUPERSAMPLING, (y1 - y0) * _SUPERSAMPLING))
    # PIL puts integer coordinates at the centres of samples, this code at the corners of pixels.
    samples = (corners - (x0, y0)) * _SUPERSAMPLING - 0.5
    ImageDraw.Draw(drawing).polygon([tuple(point) for point in samples.tolist()], fill=255)
    coverage = np.asarray(drawing.reduce(_SUPERSAMPLING), dtype=np.float32) / 255

    height, width = image_size
    left, right = np.clip((x0, x1), 0, width)
    top, bottom = np.clip((y0, y1), 0, height)
    grid = np.mgrid[top:bottom, left:right][::-1].astype(np.float32) + 0.5
    offset = grid - np.array(center, dtype=np.float32)[:, None, None]
    return Shape(
        window=(slice(top, bottom), slice(left, right)),
        coverage=coverage[top - y0 : bottom - y0, left - x0 : right - x0],
        full_area=int((coverage >= 0.5).sum()),
        local=np.tensordot(turn.T.astype(np.float32), offset, axes=1),
    )


def _on_circle(turns: np.ndarray) -> np.ndarray:
    return np.stack([np.sin(2 * np.pi * turns), -np.cos(2 * np.pi * turns)], axis=1)
