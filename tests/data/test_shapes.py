import math

import numpy as np
import pytest

from iounet.data.shapes import CLASS_NAMES, outline, rasterise


def pixel_extent(mask):
    """Return the box of a mask; pixel (i, j) covers [j, j + 1] x [i, i + 1]."""
    inside = [(j, i) for i in range(mask.shape[0]) for j in range(mask.shape[1]) if mask[i, j]]
    xs, ys = zip(*inside, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def full_mask(shape, image_size):
    mask = np.zeros(image_size, dtype=bool)
    mask[shape.window] = shape.mask
    return mask


# Width and height of each shape with sides 40 x 20 at angle 0; the star's points lie on a circle of diameter 1.
EXTENTS = {
    "cross": (40, 20),
    "ellipse": (40, 20),
    "rectangle": (40, 20),
    "star": (40 * math.sin(math.radians(72)), 20 * (1 + math.cos(math.radians(36))) / 2),
    "triangle": (40, 20),
}
# Area as a fraction of the product of the sides.
AREAS = {"cross": 0.32 * (2 - 0.32), "ellipse": math.pi / 4, "rectangle": 1.0, "triangle": 0.5}


@pytest.mark.parametrize("class_name", CLASS_NAMES)
def test_extent(class_name):
    upright = rasterise(class_name, (50, 40), (40, 20), 0.0, (80, 100))
    x0, y0, x1, y1 = pixel_extent(full_mask(upright, (80, 100)))
    width, height = EXTENTS[class_name]
    # The tips of triangle and star cover less than half of their last pixels.
    assert (x1 - x0, y1 - y0) == pytest.approx((width, height), abs=4 if class_name in ("star", "triangle") else 1)
    if class_name in ("cross", "ellipse", "rectangle"):
        assert (x0, y0, x1, y1) == pytest.approx((30, 30, 70, 50), abs=0.6)


@pytest.mark.parametrize("class_name", AREAS)
@pytest.mark.parametrize("angle", [0.0, 0.4, 2.0])
def test_area(class_name, angle):
    shape = rasterise(class_name, (50, 50), (60, 40), angle, (100, 100))
    # PIL's polygons include their outline, which adds about an eighth of a pixel along every edge.
    assert shape.full_area == pytest.approx(AREAS[class_name] * 60 * 40, rel=0.06)


def test_a_quarter_turn_swaps_the_sides():
    turned = rasterise("rectangle", (50, 40), (40, 20), math.pi / 2, (80, 100))
    assert pixel_extent(full_mask(turned, (80, 100))) == pytest.approx((40, 20, 60, 60), abs=0.6)


def test_a_shape_beyond_the_edge_keeps_its_full_area():
    inside = rasterise("ellipse", (50, 40), (40, 20), 0.3, (80, 100))
    across = rasterise("ellipse", (100, 40), (40, 20), 0.3, (80, 100))
    assert across.full_area == inside.full_area
    assert across.mask.sum() == pytest.approx(inside.full_area / 2, rel=0.05)


def test_unknown_shape():
    with pytest.raises(ValueError, match="unknown shape 'hexagon'; the shapes are cross, ellipse"):
        outline("hexagon")
