"""New IoU and energy heads for other classes, on the backbone of a checkpoint."""

import pytest
import torch

from iounet.build import build_heads
from iounet.config import changed_settings, for_new_heads
from iounet.errors import CheckpointError
from iounet.training.checkpoint import save_checkpoint

ENERGY = {"MODEL.ENERGY_HEAD.LOSS": "nce", "MODEL.ENERGY_HEAD.HIDDEN_DIM": "32", "TEST.REFINE.OBJECTIVE": "energy"}


@pytest.fixture
def save(build_tiny, tiny_cfg, tmp_path):
    """Save the tiny detector without the parameters in `left_out`; return the checkpoint's path and the weights."""

    def save(settings=None, left_out=()):
        weights = {name: value for name, value in build_tiny(settings).state_dict().items() if name not in left_out}
        path = tmp_path / "model.pth"
        save_checkpoint(path, model=weights, categories=[], config=tiny_cfg(settings).dump())
        return path, weights

    return save


def build(path, **options):
    return build_heads(path, **({"num_classes": 5, "num_iterations": 40, "device": torch.device("cpu")} | options))


def test_the_configuration_changes_for_new_heads(tiny_cfg):
    given = tiny_cfg({"SOLVER.WARMUP_ITERATIONS": "10000", "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": "8"})
    changes = changed_settings(given, for_new_heads(given, 5, 40))
    assert {key for key in changes if not key.startswith("SOLVER.")} == {
        "MODEL.NUM_CLASSES",
        "MODEL.STANDALONE",
        "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE",
    }
    assert changes["SOLVER.MAX_ITERATIONS"].endswith("→ 40")
    assert given.MODEL.NUM_CLASSES == 3  # the argument is not modified


@pytest.mark.parametrize("settings", [{}, ENERGY], ids=["IoU head", "IoU and energy head"])
def test_only_the_heads_are_new_and_trainable(save, settings):
    path, weights = save(settings)
    job = build(path)
    trained = {name for name, parameter in job.detector.named_parameters() if parameter.requires_grad}
    heads = ("iou_head.", "energy_head.") if settings else ("iou_head.",)
    assert trained == {name for name, _ in job.detector.named_parameters() if name.startswith(heads)}
    assert sum(len(group["params"]) for group in job.optimizer.param_groups) == len(trained)
    for name, value in job.detector.state_dict().items():
        if name.startswith(("backbone.", "rpn.")):
            assert torch.equal(value, weights[name]), name
    assert len(job.detector.iou_head.predictor.bias) == 6  # including the background
    assert job.detector.postprocessing.refinement.objective == ("energy" if settings else "iou")


def test_the_heads_are_reproducible(save):
    path, _ = save()
    first, second = (build(path).detector.state_dict() for _ in range(2))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_learning_rate_falls_to_zero(save):
    job = build(save()[0], num_iterations=40)
    rates = []
    for _ in range(40):
        rates.append(job.optimizer.param_groups[0]["lr"])
        job.optimizer.step()
        job.schedule.step()
    assert 0 < rates[0] < 0.001 and 0 < rates[-1] < 0.0002 and max(rates) < 0.003
    assert job.optimizer.param_groups[0]["lr"] == 0


def test_a_checkpoint_without_a_backbone_is_refused(save):
    path, _ = save(left_out=("backbone.body.conv1.weight",))
    with pytest.raises(CheckpointError, match=r"1 missing \(backbone\.body\.conv1\.weight\)"):
        build(path)
