"""Images so thin that torchvision would resize them to a side of 0 pixels."""

import pytest
import torch

from iounet.modeling import ImageTransform


def resized(height, width, boxes):
    transform = ImageTransform(64, 96, [0.0] * 3, [1.0] * 3)
    batch, targets = transform([torch.full((3, height, width), 0.5)], [{"boxes": torch.tensor(boxes)}])
    return batch.image_sizes[0], targets[0]["boxes"].tolist(), batch.tensors


@pytest.mark.parametrize(
    ("size", "expected_size", "boxes", "expected_boxes"),
    [
        ((1, 960), (1, 96), [[100.0, 0.0, 200.0, 1.0]], [[10.0, 0.0, 20.0, 1.0]]),
        ((960, 2), (96, 1), [[0.0, 100.0, 1.0, 200.0]], [[0.0, 10.0, 0.5, 20.0]]),
        ((1, 96), (1, 96), [[10.0, 0.0, 20.0, 1.0]], [[10.0, 0.0, 20.0, 1.0]]),
        ((48, 64), (64, 85), [[0.0, 0.0, 48.0, 48.0]], [[0.0, 0.0, 63.75, 64.0]]),  # as in torchvision
    ],
)
def test_each_side_keeps_a_pixel_and_boxes_are_scaled(size, expected_size, boxes, expected_boxes):
    found_size, found_boxes, pixels = resized(*size, boxes)
    assert found_size == expected_size
    assert found_boxes == [pytest.approx(box) for box in expected_boxes]
    assert torch.all(pixels[0, :, : found_size[0], : found_size[1]] == 0.5)


def test_a_detector_trains_and_detects_on_a_thin_image(build_tiny):
    detector = build_tiny()
    image = torch.rand(3, 1, 500, generator=torch.Generator().manual_seed(0))
    targets = [{"boxes": torch.tensor([[50.0, 0.0, 150.0, 1.0]]), "labels": torch.tensor([1])}]
    losses = detector.train()([image], targets)
    assert all(torch.isfinite(loss) for loss in losses.values())
    sum(losses.values()).backward()
    [found] = detector.eval()([image])
    assert torch.isfinite(found.boxes).all() and (found.boxes >= 0).all() and (found.boxes[:, 3] <= 1).all()
