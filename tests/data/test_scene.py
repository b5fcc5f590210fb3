import numpy as np
import pytest

from iounet.data.scene import MIN_VISIBLE_FRACTION, MIN_VISIBLE_SIDE, NUM_OBJECTS, render_scene, visible_boxes
from iounet.data.shapes import CLASS_NAMES, rasterise


def pixel_extent(mask):
    """Return the box of a mask, pixel by pixel; pixel (i, j) covers [j, j + 1] x [i, i + 1]."""
    inside = [(j, i) for i in range(mask.shape[0]) for j in range(mask.shape[1]) if mask[i, j]]
    xs, ys = zip(*inside, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def full_mask(shape, image_size):
    mask = np.zeros(image_size, dtype=bool)
    mask[shape.window] = shape.mask
    return mask


@pytest.mark.parametrize("seed", range(4))
def test_boxes_are_the_extent_of_the_visible_pixels(seed):
    scene = render_scene(np.random.default_rng(seed), (96, 128))
    boxes = visible_boxes(scene.instances, len(scene.labels))
    for number, box in enumerate(boxes.tolist(), start=1):
        assert box == pixel_extent(scene.instances == number)


@pytest.mark.parametrize("seed", range(20))
def test_a_scene_is_valid(seed):
    scene = render_scene(np.random.default_rng(seed), (120, 160))
    assert scene.image.shape == (120, 160, 3)
    assert scene.image.dtype == np.uint8
    assert len(scene.labels) <= NUM_OBJECTS[1]
    assert set(scene.labels) <= set(range(1, len(CLASS_NAMES) + 1))
    boxes = visible_boxes(scene.instances, len(scene.labels))
    assert (boxes[:, 2:] - boxes[:, :2] >= MIN_VISIBLE_SIDE).all()
    assert (boxes >= 0).all() and (boxes[:, 2:] <= (160, 120)).all()


def test_an_object_without_a_pixel_has_a_box_of_zeros():
    assert visible_boxes(np.array([[0, 2]]), 2).tolist() == [[0, 0, 0, 0], [1, 0, 2, 1]]


def test_enough_of_every_object_stays_visible(monkeypatch):
    """Every rasterised shape is recorded; at the end, enough of each must be visible."""
    drawn = []

    def recording(*args, **kwargs):
        drawn.append(rasterise(*args, **kwargs))
        return drawn[-1]

    monkeypatch.setattr("iounet.data.scene.rasterise", recording)
    for seed in range(10):
        drawn.clear()
        scene = render_scene(np.random.default_rng(seed), (96, 96))
        masks = [(full_mask(shape, (96, 96)), shape.full_area) for shape in drawn]
        for number in range(1, len(scene.labels) + 1):
            visible = scene.instances == number
            # A rejected shape may cover the same pixels, so at least one of the matching shapes must pass.
            fractions = [visible.sum() / area for mask, area in masks if (mask | ~visible).all()]
            assert max(fractions) >= MIN_VISIBLE_FRACTION
