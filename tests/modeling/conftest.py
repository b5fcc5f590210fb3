import pytest
import torch


@pytest.fixture
def opinionated(build_tiny):
    """A function that builds a tiny detector whose scores, offsets and IoUs differ between boxes."""

    def build(settings=None):
        detector = build_tiny(settings)
        with torch.no_grad():
            detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
            detector.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
            detector.iou_head.predictor.weight.mul_(20)
        return detector

    return build
