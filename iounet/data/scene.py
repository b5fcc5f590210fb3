"""Synthetic images of overlapping textured shapes on a cluttered background, with the visible pixels of every shape.

The boxes are exact by construction, so errors at high IoU thresholds are the detector's, not the annotator's.
Localisation is hard on purpose: shapes occlude one another, textures put strong edges inside them, and some shapes
differ little from their background.
"""

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .shapes import CLASS_NAMES, Shape, rasterise

# Range of the number of objects; a scene without room for them has fewer.
NUM_OBJECTS = (2, 6)
# Side of a shape before it is stretched, as a fraction of the image's shorter side: 32 to 77 of 128 pixels.
RELATIVE_SIDE = (0.25, 0.6)
# Largest rotation of a shape, in radians. At larger angles, shapes touch their boxes only at their tips, and a
# detector trained from scratch learns to localise them far more slowly (docs/results_notes.md).
MAX_TILT = 0.25
# A shape is drawn only if every shape then keeps at least this fraction of its area visible, and its visible part is at
# least this many pixels wide and high. Otherwise, its class could only be guessed.
MIN_VISIBLE_FRACTION = 0.4
MIN_VISIBLE_SIDE = 8

# Distance in RGB, each channel in [0, 1], between a shape's colour and the mean colour behind it. At the lower end, a
# shape is barely visible on the strongest clutter.
CONTRAST = (0.5, 1.0)

# Each class has a fifth of the hue circle and uses this range of it, in fifths relative to its centre. A
# detector trained from scratch then learns to classify within minutes and spends the rest of its training on the
# purpose of the set, exact localisation.
HUE_SPREAD = (-0.3, 0.3)


@dataclass(frozen=True)
class Scene:
    """An image and its objects.

    Attributes:
        image: uint8 RGB ``[H, W, 3]``.
        instances: int64 ``[H, W]``: 0 for the background, k for a visible pixel of object k, k = 1..N.
        labels: int64 ``[N]`` in 1..C: the class of object k is ``CLASS_NAMES[labels[k - 1] - 1]``.
    """

    image: np.ndarray
    instances: np.ndarray
    labels: np.ndarray


def render_scene(rng: np.random.Generator, image_size: tuple[int, int]) -> Scene:
    """Draw one scene of ``image_size`` = (height, width) pixels; all randomness comes from ``rng``."""
    canvas = _background(rng, image_size)
    instances = np.zeros(image_size, dtype=np.int64)
    labels: list[int] = []
    full_areas: list[int] = []
    wanted = int(rng.integers(NUM_OBJECTS[0], NUM_OBJECTS[1] + 1))
    for _ in range(4 * wanted):  # a crowded scene may have no room for another object
        if len(labels) == wanted:
            break
        label = int(rng.integers(1, len(CLASS_NAMES) + 1))
        shape = _random_shape(rng, label, image_size)
        after = instances.copy()
        after[shape.window][shape.mask] = len(labels) + 1
        if _all_recognisable(after, [*full_areas, shape.full_area]):
            instances = after
            labels.append(label)
            full_areas.append(shape.full_area)
            _paint(rng, canvas, shape, label)
    return Scene(_photograph(rng, canvas), instances, np.array(labels, dtype=np.int64))


def visible_boxes(instances: np.ndarray, num_objects: int) -> np.ndarray:
    """Return the tight boxes of objects 1..N in an instance map ``[H, W]``: int64 ``[N, 4]``, xyxy pixel edges.

    The pixel in row i and column j covers x from j to j + 1 and y from i to i + 1. The box of an object without
    pixels is all zeros.
    """
    boxes = np.zeros((num_objects, 4), dtype=np.int64)
    for number in range(1, num_objects + 1):
        mask = instances == number
        columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        if len(rows):
            boxes[number - 1] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return boxes


def _random_shape(rng: np.random.Generator, label: int, image_size: tuple[int, int]) -> Shape:
    height, width = image_size
    side = min(image_size) * math.exp(rng.uniform(*np.log(RELATIVE_SIDE)))
    stretch = math.exp(rng.uniform(-0.35, 0.35))
    return rasterise(
        CLASS_NAMES[label - 1],
        center=(rng.uniform(0, width), rng.uniform(0, height)),
        sides=(side * stretch, side / stretch),
        angle=rng.uniform(-MAX_TILT, MAX_TILT),
        image_size=image_size,
    )


def _all_recognisable(instances: np.ndarray, full_areas: list[int]) -> bool:
    visible = np.bincount(instances.ravel(), minlength=len(full_areas) + 1)[1:]
    if (visible < MIN_VISIBLE_FRACTION * np.array(full_areas)).any():
        return False
    boxes = visible_boxes(instances, len(full_areas))
    return bool((boxes[:, 2:] - boxes[:, :2] >= MIN_VISIBLE_SIDE).all())


def _background(rng: np.random.Generator, image_size: tuple[int, int]) -> np.ndarray:
    """Draw soft shading, scribbles, and blobs too small for an object: float32 ``[H, W, 3]`` in [0, 1]."""
    height, width = image_size
    base = _random_color(rng, saturation=(0.0, 0.15), value=(0.25, 0.85))
    canvas = np.broadcast_to(base, (height, width, 3)).copy()
    for cells, strength in ((3, rng.uniform(0.1, 0.3)), (14, rng.uniform(0.02, 0.15))):
        noise = _soft_noise(rng, cells, image_size)
        gray = noise.mean(axis=2, keepdims=True)
        canvas += strength * (1.5 * gray + 0.15 * (noise - gray))  # more light and shade than colour
    picture = Image.fromarray(_to_bytes(canvas))
    draw = ImageDraw.Draw(picture)
    scale = min(image_size) / 160
    for _ in range(rng.integers(2, 9)):
        steps = rng.normal(0, 14 * scale, size=(rng.integers(3, 9), 2)) + rng.normal(0, 9 * scale, size=2)
        points = np.cumsum(steps, axis=0) + rng.uniform(0, 1, 2) * (width, height)
        color = _near(rng, base, rng.uniform(0.1, 0.7))
        draw.line(
            [tuple(p) for p in points.tolist()],
            _rgb(color),
            width=max(1, round(scale * rng.uniform(0.6, 2.4))),
            joint="curve",
        )
    for _ in range(rng.integers(5, 26)):
        (x, y), (rx, ry) = rng.uniform(0, 1, 2) * (width, height), rng.uniform(0.8, 3.0, 2) * scale
        draw.ellipse((x - rx, y - ry, x + rx, y + ry), _rgb(_near(rng, base, rng.uniform(0.2, 0.9))))
    return np.asarray(picture, dtype=np.float32) / 255


def _paint(rng: np.random.Generator, canvas: np.ndarray, shape: Shape, label: int) -> None:
    hue = (label + HUE_SPREAD[0]) / len(CLASS_NAMES), (label + HUE_SPREAD[1]) / len(CLASS_NAMES)
    behind = canvas[shape.window]
    surroundings = behind.reshape(-1, 3).mean(axis=0)
    first = _apart(rng, surroundings, math.exp(rng.uniform(*np.log(CONTRAST))), hue)
    second = _near(rng, first, rng.uniform(0.1, 0.35))
    pattern = _texture(rng, shape.local)[..., None]
    light = 1 + rng.uniform(0, 0.2) * _ramp(rng, shape.local)[..., None]
    surface = np.clip((first + (second - first) * pattern) * light, 0, 1)
    behind += shape.coverage[..., None] * (surface - behind)


def _texture(rng: np.random.Generator, local: np.ndarray) -> np.ndarray:
    """Return the share of the second colour at each pixel: none, a ramp, stripes, checks, dots or speckle."""
    x, y = local
    kind = rng.integers(6)
    period = rng.uniform(5, 14)
    if kind == 0:
        return np.zeros_like(x)
    if kind == 1:
        return 0.5 + 0.5 * _ramp(rng, local)
    if kind == 2:
        return (np.mod(x, period) < rng.uniform(0.3, 0.7) * period).astype(np.float32)
    if kind == 3:
        return np.mod(np.floor(x / period) + np.floor(y / period), 2)
    if kind == 4:
        u, v = np.mod(x, period) - period / 2, np.mod(y, period) - period / 2
        return (np.hypot(u, v) < 0.3 * period).astype(np.float32)
    return rng.random(x.shape, dtype=np.float32)


def _ramp(rng: np.random.Generator, local: np.ndarray) -> np.ndarray:
    """Return a linear ramp in a random direction, from -1 to 1 over the pixels."""
    angle = rng.uniform(0, 2 * math.pi)
    height = math.cos(angle) * local[0] + math.sin(angle) * local[1]
    return height / np.abs(height).max()


def _photograph(rng: np.random.Generator, canvas: np.ndarray) -> np.ndarray:
    """Apply a camera's blur and noise; return uint8."""
    picture = Image.fromarray(_to_bytes(canvas)).filter(ImageFilter.GaussianBlur(rng.uniform(0.2, 0.9)))
    noise = rng.standard_normal(canvas.shape, dtype=np.float32) * np.float32(rng.uniform(0.005, 0.02))
    return _to_bytes(np.asarray(picture, dtype=np.float32) / 255 + noise)


def _soft_noise(rng: np.random.Generator, cells: int, image_size: tuple[int, int]) -> np.ndarray:
    """Return noise with about ``cells`` bumps along each side: float32 ``[H, W, 3]`` around 0."""
    height, width = image_size
    coarse = rng.integers(0, 256, size=(cells, cells, 3), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 255 - 0.5


def _random_color(
    rng: np.random.Generator,
    saturation: tuple[float, float],
    value: tuple[float, float],
    hue: tuple[float, float] = (0, 1),
) -> np.ndarray:
    h, s, v = rng.uniform(*hue), rng.uniform(*saturation), rng.uniform(*value)
    # HSV to RGB: each channel is a clipped triangle wave of the hue, a third of a turn from the next.
    wave = np.clip(np.abs((h * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return (v * (1 - s + s * wave)).astype(np.float32)


def _apart(rng: np.random.Generator, color: np.ndarray, distance: float, hue: tuple[float, float]) -> np.ndarray:
    """Return a vivid colour with a hue in the range ``hue``, at most ``distance`` (RGB) from ``color``."""
    vivid = [_random_color(rng, saturation=(0.6, 1.0), value=(0.4, 1.0), hue=hue) - color for _ in range(4)]
    direction = max(vivid, key=np.linalg.norm)
    return color + direction * min(1, distance / np.linalg.norm(direction))


def _near(rng: np.random.Generator, color: np.ndarray, distance: float) -> np.ndarray:
    """Return a colour between ``color`` (distance 0) and a random vivid one (distance 1)."""
    vivid = _random_color(rng, saturation=(0.3, 1.0), value=(0.1, 1.0))
    return (color + np.float32(distance) * (vivid - color)).astype(np.float32)


def _rgb(color: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = _to_bytes(color).tolist()
    return red, green, blue


def _to_bytes(color: np.ndarray) -> np.ndarray:
    return np.clip(color * 255 + 0.5, 0, 255).astype(np.uint8)
