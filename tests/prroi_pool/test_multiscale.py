"""Pooling from a pyramid, compared with single levels and with the torchvision module that it replaces."""

import numpy as np
import pytest
import torch
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_fpn, fasterrcnn_resnet50_fpn
from torchvision.ops import MultiScaleRoIAlign

from prroi_pool import MultiScalePrRoIPool, prroi_pool2d
from prroi_pool.multiscale import _pool_in_fixed_shapes, _scales

IMAGE_SHAPES = [(250, 310), (224, 320)]
STRIDES = {"0": 4, "1": 8, "2": 16, "3": 32}


def make_pyramid(dtype=torch.float32):
    torch.manual_seed(0)
    maps = {name: torch.randn(2, 3, 256 // s, 320 // s, dtype=dtype) for name, s in STRIDES.items()}
    return maps | {"pool": torch.randn(2, 3, 4, 5, dtype=dtype)}


def make_boxes(dtype=torch.float32):
    """Return boxes of all sizes, so that every level is used."""
    torch.manual_seed(1)
    boxes = []
    for count in (23, 17):
        center, size = (
            torch.rand(count, 2, dtype=dtype) * 250,
            2 ** (2 + 7 * torch.rand(count, 2, dtype=dtype)),
        )
        boxes.append(torch.cat([center - size / 2, center + size / 2], dim=1))
        boxes[-1][0] = torch.tensor([-200, -150, 500, 400])
    return boxes


def test_scales_are_powers_of_two_despite_padding():
    def scale(map_side, image_side):
        return _scales([torch.empty(1, 1, map_side, map_side)], [(image_side, image_side)])[0]

    assert [scale(side, 800) for side in (200, 208, 104, 52, 25, 1, 800, 1600)] == [
        *(1 / 4, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 1024, 1, 2)
    ]
    with pytest.raises(ValueError, match=r"height \+ width is 0 for images whose height \+ width is 1600"):
        scale(0, 800)


@pytest.mark.parametrize("transposed", [False, True])
def test_scales_of_a_thin_image(transposed):
    # Padding from 43 to 64 rows makes the ratio of heights 2.69 on a map of stride 4.
    image_size, maps = (43, 448), [torch.empty(1, 1, 16, 112), torch.empty(1, 1, 8, 56)]
    if transposed:
        image_size, maps = image_size[::-1], [features.mT for features in maps]
    assert _scales(maps, [image_size]) == [1 / 4, 1 / 8]


def test_levels_match_torchvision():
    # Includes boxes of exactly a canonical size, which rounding must not move to a finer level.
    exact = torch.tensor([[0.0, 0, s, s] for s in (56, 112, 224, 448, 896)])
    boxes, pyramid = [torch.cat([make_boxes()[0], exact]), make_boxes()[1]], make_pyramid()
    theirs = MultiScaleRoIAlign(list(STRIDES), 7, 2)
    theirs(pyramid, boxes, IMAGE_SHAPES)
    levels = MultiScalePrRoIPool(list(STRIDES), 7).assign_levels(pyramid, boxes, IMAGE_SHAPES)
    assert torch.equal(levels, theirs.map_levels(boxes))
    assert levels.dtype == torch.int64 and set(levels.tolist()) == {0, 1, 2, 3}
    assert levels[23:28].tolist() == [0, 1, 2, 3, 3]


def test_each_box_is_pooled_from_its_level_in_the_order_of_the_boxes():
    pyramid, boxes = make_pyramid(), make_boxes()
    pool = MultiScalePrRoIPool(list(STRIDES), (3, 5))
    pooled = pool(pyramid, boxes, IMAGE_SHAPES)
    assert pooled.shape == (40, 3, 3, 5)
    levels = pool.assign_levels(pyramid, boxes, IMAGE_SHAPES).tolist()
    images = [0] * 23 + [1] * 17
    for row, (box, level, image) in enumerate(zip(torch.cat(boxes), levels, images, strict=True)):
        roi = torch.cat([torch.tensor([float(image)]), box])[None]
        alone = prroi_pool2d(pyramid[str(level)], roi, 3, 5, 1 / STRIDES[str(level)])
        torch.testing.assert_close(pooled[row : row + 1], alone)


def test_given_levels_are_used():
    pyramid, boxes = make_pyramid(), make_boxes()
    pool = MultiScalePrRoIPool(list(STRIDES), 2)
    levels = torch.full((40,), 2)
    rois = torch.cat([torch.tensor([[0.0]] * 23 + [[1.0]] * 17), torch.cat(boxes)], dim=1)
    expected = prroi_pool2d(pyramid["2"], rois, 2, 2, 1 / 16)
    torch.testing.assert_close(pool(pyramid, boxes, IMAGE_SHAPES, levels), expected)
    with pytest.raises(ValueError, match="levels must have shape"):
        pool(pyramid, boxes, IMAGE_SHAPES, levels[:-1])


def test_invalid_levels_raise():
    pyramid, boxes = make_pyramid(), make_boxes()
    pool = MultiScalePrRoIPool(list(STRIDES), 2)
    levels = pool.assign_levels(pyramid, boxes, IMAGE_SHAPES)
    expected = pool(pyramid, boxes, IMAGE_SHAPES, levels)
    spread = torch.stack([levels, levels], 1)[:, 0]
    for same in (levels.int(), levels.to(torch.uint8), spread):
        assert torch.equal(pool(pyramid, boxes, IMAGE_SHAPES, same), expected)
    for wrong in (levels.float(), levels.bool()):
        with pytest.raises(TypeError, match="levels must be integers, got torch"):
            pool(pyramid, boxes, IMAGE_SHAPES, wrong)
    for level in (-1, 4):
        levels[7] = level
        with pytest.raises(ValueError, match=rf"levels\[7\] is {level}, but must be in \[0, 4\)"):
            pool(pyramid, boxes, IMAGE_SHAPES, levels)


def test_gradients_reach_every_level_and_the_boxes():
    pyramid, boxes = make_pyramid(torch.float64), make_boxes(torch.float64)
    boxes = [b[:4].clone() for b in boxes]
    pool = MultiScalePrRoIPool(list(STRIDES), 2)
    levels = pool.assign_levels(pyramid, boxes, IMAGE_SHAPES)

    def pool_boxes(first, second):
        return pool(pyramid, [first, second], IMAGE_SHAPES, levels)

    assert torch.autograd.gradcheck(pool_boxes, [b.requires_grad_() for b in boxes])
    for features in pyramid.values():
        features.requires_grad_()
    pool(pyramid, make_boxes(torch.float64), IMAGE_SHAPES).sum().backward()
    assert all(pyramid[name].grad.any() for name in STRIDES) and pyramid["pool"].grad is None


def test_fixed_shapes_give_the_same_result():
    pyramid, boxes = make_pyramid(), [b.requires_grad_() for b in make_boxes()]
    maps = [pyramid[name].requires_grad_() for name in STRIDES]
    maps[1].data[0, 0, 0, 0] = torch.inf  # an infinite feature of one level must not give NaN on another
    pool = MultiScalePrRoIPool(list(STRIDES), 3)
    levels = pool.assign_levels(pyramid, boxes, IMAGE_SHAPES)
    rois = torch.cat([torch.cat([torch.full((len(b), 1), i), b], 1) for i, b in enumerate(boxes)])
    fixed = _pool_in_fixed_shapes(maps, rois, levels, [1 / stride for stride in STRIDES.values()], (3, 3))
    grouped = pool(pyramid, boxes, IMAGE_SHAPES, levels)
    finite = grouped.isfinite().flatten(1).all(1)
    assert finite.sum() >= 35
    assert torch.equal(fixed[finite], grouped[finite])
    grad = torch.randn(grouped.shape) * finite[:, None, None, None]
    for found, expected in zip(
        *(torch.autograd.grad(pooled, [*maps, *boxes], grad) for pooled in (fixed, grouped)), strict=True
    ):
        torch.testing.assert_close(found, expected, equal_nan=True)


def test_levels_carry_no_gradient():
    boxes = [b.requires_grad_() for b in make_boxes()]
    assert not MultiScalePrRoIPool(list(STRIDES), 2).assign_levels(make_pyramid(), boxes, IMAGE_SHAPES).requires_grad


def test_boxes_without_area_pool_to_zero():
    boxes = [torch.tensor([[5.0, 5, 5, 5], [9, 9, 3, 12], [2, 2, 60, 60]]), torch.zeros(0, 4)]
    pooled = MultiScalePrRoIPool(list(STRIDES), 2)(make_pyramid(), boxes, IMAGE_SHAPES)
    assert not pooled[:2].any() and pooled[2].all()


def test_no_boxes():
    boxes = [torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4)]
    pooled = MultiScalePrRoIPool(list(STRIDES), 7)(make_pyramid(), boxes, IMAGE_SHAPES)
    assert pooled.shape == (0, 3, 7, 7)
    pooled.sum().backward()


def test_maps_that_a_pyramid_does_not_have_are_skipped():
    pyramid, boxes = make_pyramid(), make_boxes()
    some = {name: pyramid[name] for name in ("0", "1", "pool")}
    pool, theirs = MultiScalePrRoIPool(list(STRIDES), 2), MultiScaleRoIAlign(list(STRIDES), 2, 2)
    theirs(some, boxes, IMAGE_SHAPES)
    levels = pool.assign_levels(some, boxes, IMAGE_SHAPES)
    assert torch.equal(levels, theirs.map_levels(boxes)) and set(levels.tolist()) == {0, 1}
    assert torch.equal(pool(some, boxes, IMAGE_SHAPES), MultiScalePrRoIPool(["0", "1"], 2)(some, boxes, IMAGE_SHAPES))
    with pytest.raises(KeyError, match=r"none of the maps in featmap_names, \['0', '1', '2', '3'\], only \['pool'\]"):
        pool({"pool": pyramid["pool"]}, boxes, IMAGE_SHAPES)


def test_in_a_pyramid_with_a_gap_a_box_goes_to_the_next_finer_map():
    pyramid, boxes = make_pyramid(), make_boxes()
    whole, gap = MultiScalePrRoIPool(list(STRIDES), 2), MultiScalePrRoIPool(["0", "2", "3"], 2)
    expected = torch.tensor([0, 0, 1, 2])[whole.assign_levels(pyramid, boxes, IMAGE_SHAPES)]
    assert torch.equal(gap.assign_levels(pyramid, boxes, IMAGE_SHAPES), expected)
    assert gap(pyramid, boxes, IMAGE_SHAPES).shape == (40, 3, 2, 2)


def test_the_first_of_maps_with_equal_strides_is_used():
    """As in torchvision, whose MobileNet detectors have two maps of stride 32."""
    pyramid, boxes = make_pyramid(), make_boxes()
    pyramid = {"0": pyramid["3"], "1": pyramid["3"] + 1}
    theirs = MultiScaleRoIAlign(["0", "1"], 2, 2)
    theirs(pyramid, boxes, IMAGE_SHAPES)
    levels = MultiScalePrRoIPool(["0", "1"], 2).assign_levels(pyramid, boxes, IMAGE_SHAPES)
    assert torch.equal(levels, theirs.map_levels(boxes)) and not levels.any()


@pytest.mark.parametrize("output_size", [7, 7.0, np.int64(7), (7, 7.0), [7, np.float32(7)], torch.Size([7, 7])])
def test_output_sizes_are_accepted_as_in_torchvision(output_size):
    pool = MultiScalePrRoIPool(["0"], output_size, 2, canonical_scale=112)
    assert pool.output_size == (7, 7) and all(type(size) is int for size in pool.output_size)
    assert (pool.featmap_names, pool.canonical_scale) == (["0"], 112)


def test_a_wrong_output_size_is_named():
    with pytest.raises(TypeError, match="whole numbers, got 7.5"):
        MultiScalePrRoIPool(["0"], 7.5)
    with pytest.raises(ValueError, match="at least 1"):
        MultiScalePrRoIPool(["0"], (0, 7))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_boxes_are_converted_to_float32(dtype):
    boxes = [b.to(dtype).requires_grad_() for b in make_boxes()]  # float16 would overflow at an area of 65504
    pool, pyramid = MultiScalePrRoIPool(list(STRIDES), 2), make_pyramid()
    pooled, expected = (pool(pyramid, given, IMAGE_SHAPES) for given in (boxes, [b.float() for b in boxes]))
    assert torch.equal(pooled, expected)
    assert all(grad.dtype == dtype and grad.any() for grad in torch.autograd.grad(pooled.sum(), boxes))


def test_maps_of_several_dtypes():
    """Under autocast, layers may produce different dtypes."""
    pyramid, boxes = make_pyramid(), make_boxes()
    mixed = pyramid | {"1": pyramid["1"].bfloat16()}
    expected = MultiScalePrRoIPool(list(STRIDES), 2)(pyramid, boxes, IMAGE_SHAPES)
    pooled = MultiScalePrRoIPool(list(STRIDES), 2)(mixed, boxes, IMAGE_SHAPES)
    assert pooled.dtype == torch.float32
    torch.testing.assert_close(pooled, expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make_detector", [fasterrcnn_resnet50_fpn, fasterrcnn_mobilenet_v3_large_fpn])
def test_it_replaces_roi_align_in_a_torchvision_detector(make_detector, training, autocast):
    torch.manual_seed(0)
    model = make_detector(weights=None, weights_backbone=None, num_classes=3, min_size=64, max_size=96).train(training)
    theirs = model.roi_heads.box_roi_pool
    model.roi_heads.box_roi_pool = MultiScalePrRoIPool(theirs.featmap_names, theirs.output_size, theirs.sampling_ratio)
    image = torch.rand(3, 64, 80)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        if training:
            target = {"boxes": torch.tensor([[8.0, 8, 40, 48]]), "labels": torch.tensor([1])}
            losses = model([image], [target])
            assert all(loss.isfinite() for loss in losses.values())
        else:
            assert set(model([image])[0]) == {"boxes", "labels", "scores"}
    if training:
        sum(losses.values()).backward()
        first_layer = next(model.backbone.parameters())
        assert first_layer.grad.any()
