"""Refinement of arbitrary boxes: count, order and classes are kept; visible boxes stay finite, inside and non-empty."""

import pytest
import torch
from torchvision.ops import clip_boxes_to_image

from iounet.postprocess import Stop

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::iounet.checks.BoxWarning"),
]


def boxes_of_all_kinds(width, height, number=100):
    generator = torch.Generator().manual_seed(0)

    def uniform(*shape):
        return torch.rand(*shape, generator=generator)

    size = torch.tensor([width, height, width, height], dtype=torch.float32)
    corner = uniform(number, 2) * size[:2]
    inside = torch.cat([corner, corner + uniform(number, 2) * (size[:2] - corner)], 1)
    reach = 10 ** (38 * uniform(number, 4))
    kinds = {
        "inside": inside,
        "thinner than float32 can tell": torch.cat([corner, corner + 10 ** (-8 * uniform(number, 2))], 1),
        "larger than the image": torch.cat([-reach[:, :2], reach[:, 2:]], 1),
        "at its end": torch.cat([size[:2] - 10 ** (-7 * uniform(number, 2)), size[:2].expand(number, 2)], 1),
        "reversed": inside[:, [2, 3, 0, 1]],
        "overhanging or off it": inside + size * 2 * (2 * uniform(number, 1) - 1),
        "anywhere": reach * (uniform(number, 4) - 0.5).sign(),
    }
    return torch.cat(list(kinds.values()))


@pytest.mark.parametrize("step_size", [0.0, 0.5, 50.0, 1e6])
@pytest.mark.parametrize("step_policy", ["every", "best", "backtracking"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_boxes_stay_valid(refiner, set_options, image, step_size, step_policy, dtype):
    set_options(step_size=step_size, step_policy=step_policy)
    image_size = height, width = image.shape[1:]
    given = boxes_of_all_kinds(width, height).to(dtype)
    labels, scores = torch.arange(len(given)) % 4, torch.linspace(0, 1, len(given), dtype=dtype)
    refined = refiner.refine(image, given, labels, scores)
    assert torch.equal(refined.labels, labels) and torch.equal(refined.scores, scores)
    assert torch.equal(refined.index, torch.arange(len(given)))
    assert torch.isfinite(refined.boxes).all() and torch.isfinite(refined.ious).all()
    clipped = clip_boxes_to_image(given, image_size)
    placed = (clipped[:, 2:] > clipped[:, :2]).all(1)
    assert torch.equal(refined.stops != Stop.UNPLACED, placed)
    assert torch.equal(refined.boxes[~placed], given[~placed])
    boxes = refined.boxes[placed]
    assert torch.equal(clip_boxes_to_image(boxes, image_size), boxes)
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    if step_size == 0:
        assert torch.equal(boxes, clipped[placed])


def test_extremely_thin_boxes_keep_an_area(refiner, set_options):
    """Boxes are scaled from 213 x 160 pixels to the network's 85 x 64 and back."""
    generator = torch.Generator().manual_seed(1)
    image = torch.rand(3, 213, 160, generator=generator)
    corner = torch.rand(4000, 2, generator=generator) * torch.tensor([150.0, 200.0])
    given = torch.cat([corner, corner + 10 ** (-6.5 * torch.rand(4000, 2, generator=generator))], 1)
    set_options(step_size=5.0)
    refined = refiner.refine(image, given)
    boxes = refined.boxes[refined.stops != Stop.UNPLACED]
    assert len(boxes) > 1000
    assert (boxes[:, 2:] > boxes[:, :2]).all()
