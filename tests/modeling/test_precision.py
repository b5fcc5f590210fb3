"""The detector with MODEL.AMP: which values are computed in bfloat16 and which in float32."""

from functools import partial

import pytest
import torch
from torchvision.models.detection.image_list import ImageList

from iounet.modeling import AnchorGenerator
from iounet.postprocess import postprocess

pytestmark = pytest.mark.usefixtures("one_thread")

LEVELS = ("0", "1", "2", "3", "pool")


@pytest.fixture
def images():
    return [torch.rand(3, 64, 80, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]


@pytest.fixture
def pair(build_tiny):
    """The same detector in float32 and with AMP, with heads scaled as if trained; untrained heads hide differences."""
    detectors = build_tiny(), build_tiny({"MODEL.AMP": "True"})
    with torch.no_grad():
        for detector in detectors:
            detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
            detector.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
            detector.iou_head.predictor.weight.mul_(20)
    return detectors


def test_anchors_are_not_rounded():
    generator = AnchorGenerator(((37,),), ((0.7,),))
    images = ImageList(torch.zeros(1, 3, 1000, 1333), [(1000, 1333)])
    exact, found = (
        generator(images, [torch.zeros(1, 1, 250, 334, dtype=dtype)]) for dtype in (torch.float32, torch.bfloat16)
    )
    assert torch.equal(found[0], exact[0])


def test_maps_are_in_bfloat16_but_boxes_scores_and_ious_in_float32(pair, images):
    _, detector = pair
    features = detector.extract(images)
    assert {features.maps[level].dtype for level in LEVELS} == {torch.bfloat16}
    proposals = detector.propose(features)
    candidates = detector.detect(features, proposals)
    detections = postprocess(candidates, detector.postprocessing, refine=partial(detector.refine, features))
    assert sum(map(len, detections))
    for of_image in (*candidates, *detections):
        assert {values.dtype for values in (of_image.boxes, of_image.scores, of_image.ious)} == {torch.float32}
    for boxes in (*proposals, *(of_image.boxes for of_image in (*candidates, *detections))):
        inside = boxes[(boxes > 8) & (boxes < 56)]
        assert (inside != inside.bfloat16()).float().mean() > 0.9  # values with eight significant bits would be equal


def test_hidden_layers_compute_in_bfloat16_and_last_layers_in_float32(pair, images):
    _, detector = pair
    dtypes = {}
    names = ("backbone.body.layer1.0.conv1", "rpn.head.conv.0.0", "rpn.head.cls_logits", "rpn.head.bbox_pred")
    names += ("roi_heads.box_head.fc6", "roi_heads.box_predictor.cls_score", "roi_heads.box_predictor.bbox_pred")
    names += ("iou_head.mlp.fc6", "iou_head.predictor")
    for name in names:
        detector.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: dtypes.update({name: (inputs[0].dtype, output.dtype)})
        )
    last = {name for name in names if name.endswith(("logits", "pred", "score", "predictor"))}
    for training in (True, False):
        dtypes.clear()
        targets = [{"boxes": torch.tensor([[10.0, 12.0, 40.0, 50.0]]), "labels": torch.tensor([1])}] * 2
        detector.train(training)(images, targets)
        assert set(dtypes) == set(names)
        in_float32 = last | (set() if training else {"iou_head.mlp.fc6"})
        for name, (given, output) in dtypes.items():
            assert output == (torch.float32 if name in in_float32 else torch.bfloat16), (name, training)
            assert name not in in_float32 or given == torch.float32, (name, training)


def test_explicit_conversions_of_the_module_work(build_tiny):
    assert next(build_tiny().bfloat16().parameters()).dtype == torch.bfloat16
    images = [torch.rand(3, 64, 80, dtype=torch.float64)]
    detections = build_tiny().double()(images)[0]
    assert len(detections) and detections.boxes.dtype == torch.float64


def test_the_iou_head_computes_in_float32_at_inference(pair, images):
    _, detector = pair
    features = detector.extract(images)
    boxes = [torch.tensor([[10.0, 12.0, 40.0, 50.0]]), torch.tensor([[3.0, 5.0, 60.0, 33.0]])]
    labels = torch.tensor([1, 2])
    found = detector.iou_head(features.maps, boxes, labels, features.sizes)
    maps = {level: features.maps[level].float() for level in LEVELS}
    torch.testing.assert_close(found, detector.iou_head(maps, boxes, labels, features.sizes), rtol=0, atol=1e-3)
    moved = [boxes[0] + 0.01, boxes[1]]
    assert detector.iou_head(features.maps, moved, labels, features.sizes)[0] != found[0]


def test_losses_and_gradients_agree_with_float32_up_to_rounding(build_tiny, images):
    targets = [
        {"boxes": torch.tensor([[10.0, 12.0, 40.0, 50.0], [30.0, 8.0, 70.0, 60.0]]), "labels": torch.tensor([1, 3])},
        {"boxes": torch.tensor([[3.0, 5.0, 60.0, 33.0]]), "labels": torch.tensor([2])},
    ]
    losses, gradients = [], []
    for detector in (build_tiny(), build_tiny({"MODEL.AMP": "True"})):
        torch.manual_seed(0)
        losses.append(detector.train().losses(images, targets))
        assert {loss.dtype for loss in losses[-1].values()} == {torch.float32}
        sum(losses[-1].values()).backward()
        # Compare only gradients that do not depend on the sampled proposals, which rounding can change.
        weights = (detector.iou_head.mlp.fc6.weight, detector.rpn.head.conv[0][0].weight)
        gradients.append([weight.grad.flatten() for weight in weights])
    for name, loss in losses[0].items():
        assert losses[1][name].item() == pytest.approx(loss.item(), rel=0.1), name
    for exact, found in zip(*gradients, strict=True):
        assert torch.cosine_similarity(exact, found, dim=0) > 0.99


def test_autocast_by_the_caller_works(build_tiny, images):
    with torch.autocast("cpu", torch.bfloat16):
        detections = build_tiny()(images)
    assert sum(map(len, detections))
    assert {of_image.boxes.dtype for of_image in detections} == {torch.float32}
