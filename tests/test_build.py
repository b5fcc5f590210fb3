"""Options built from a configuration, and errors that name the key."""

import dataclasses

import pytest
import torch

from iounet.build import build_evaluation, build_optimizer, build_schedule, build_training, load_detector
from iounet.errors import ConfigError
from iounet.postprocess import NMSOptions, Postprocessing, RefinementOptions
from iounet.training.checkpoint import save_checkpoint


def test_postprocessing_follows_the_configuration(build_tiny):
    detector = build_tiny(
        {
            "TEST.NMS": "soft",
            "TEST.NMS_THRESHOLD": 0.4,
            "TEST.NMS_RANKING": "score_times_iou",
            "TEST.SOFT_NMS_SIGMA": 0.3,
            "TEST.DETECTIONS_PER_IMAGE": 7,
            "TEST.FINAL_SCORE": "class_times_iou",
            "TEST.REFINE_BEFORE_NMS": True,
            "TEST.REFINE.NUM_STEPS": 3,
            "TEST.REFINE.STEP_SIZE": 2.0,
            "TEST.REFINE.EARLY_STOP": 0.01,
            "TEST.REFINE.DEGENERATION": -0.1,
            "TEST.REFINE.COORDINATES": "relative",
            "TEST.REFINE.STEP_POLICY": "backtracking",
            "TEST.REFINE.SIZE_STEP_SIZE": 3.0,
            "TEST.REFINE.OBJECTIVE": "energy",
            "MODEL.ENERGY_HEAD.LOSS": "nce",
        }
    )
    refinement = RefinementOptions(3, 2.0, 0.01, -0.1, "relative", "backtracking", 3.0, "energy")
    assert detector.postprocessing == Postprocessing(
        NMSOptions("soft", 0.4, "score_times_iou", 0.3, 7), refinement, True, "class_times_iou"
    )
    # Every value differs from its default, so no key can be missing.
    for options in (detector.postprocessing, detector.postprocessing.nms, detector.postprocessing.refinement):
        defaults = type(options)()
        assert all(getattr(options, f.name) != getattr(defaults, f.name) for f in dataclasses.fields(options))


def test_the_defaults_are_the_papers(build_tiny):
    assert build_tiny().postprocessing == Postprocessing()
    assert build_tiny().cuda_graphs and not build_tiny({"TEST.CUDA_GRAPHS": False}).cuda_graphs


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("TEST.NMS", "hard", "TEST.NMS must be one of greedy, soft, iou_guided; got 'hard'"),
        ("TEST.NMS_RANKING", "x", "TEST.NMS_RANKING must be one of iou, score_times_iou; got 'x'"),
        ("TEST.FINAL_SCORE", "x", "TEST.FINAL_SCORE must be one of class, class_times_iou; got 'x'"),
        (
            "TEST.REFINE.COORDINATES",
            "px",
            "TEST.REFINE.COORDINATES must be one of pixels, relative, center_size; got 'px'",
        ),
        ("TEST.REFINE.STEP_POLICY", "x", "TEST.REFINE.STEP_POLICY must be one of every, best, backtracking; got 'x'"),
        ("MODEL.IOU_HEAD.LOSS", "l2", "MODEL.IOU_HEAD.LOSS must be one of smooth_l1, bce; got 'l2'"),
        ("MODEL.ENERGY_HEAD.LOSS", "kl", "MODEL.ENERGY_HEAD.LOSS must be one of none, nce, nce+; got 'kl'"),
        ("TEST.REFINE.OBJECTIVE", "energy", "TEST.REFINE.OBJECTIVE energy needs an energy head"),
        ("MODEL.BACKBONE.NORM", "GN", "MODEL.BACKBONE.NORM must be one of FrozenBN, BN, SyncBN; got 'GN'"),
        ("MODEL.NUM_CLASSES", 0, "MODEL.NUM_CLASSES is not set"),
    ],
)
def test_errors_name_the_key(build_tiny, key, value, message):
    with pytest.raises(ConfigError) as raised:
        build_tiny({key: value})
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"SOLVER.DECAY": "cosine"}, "SOLVER.DECAY must be one of step, linear; got 'cosine'"),
        ({"SOLVER.WARMUP": "cosine"}, "SOLVER.WARMUP must be one of constant, linear; got 'cosine'"),
        ({"SOLVER.STEPS": "[3, 1]"}, "SOLVER.STEPS must be in ascending order; got (3, 1)"),
        ({"SOLVER.OPTIMIZER": "LAMB"}, "SOLVER.OPTIMIZER must be one of SGD, AdamW; got 'LAMB'"),
    ],
)
def test_errors_of_the_solver_name_the_key(build_tiny, tiny_cfg, settings, message):
    with pytest.raises(ConfigError) as raised:
        build_schedule(tiny_cfg(settings), build_optimizer(tiny_cfg(settings), build_tiny()))
    assert str(raised.value) == message


def test_missing_data(tiny_cfg):
    with pytest.raises(ConfigError, match=r"DATA\.TRAIN_ANNOTATIONS is not set; set it to a COCO-format"):
        build_training(tiny_cfg(), device=torch.device("cpu"), num_processes=1)
    with pytest.raises(ConfigError, match=r"MODEL\.WEIGHTS is not set; set it to the checkpoint"):
        build_evaluation(tiny_cfg(), device=torch.device("cpu"))


def test_a_checkpoint_of_an_earlier_version(build_tiny, tiny_cfg, tmp_path):
    config = tiny_cfg().dump()
    for new, old in (
        ("GLOBAL_BATCH_SIZE: 16", "BATCH_SIZE: 16"),
        ("NMS_RANKING: iou", "RANKING: score_times_iou"),
        ("NUM_STEPS: 5", "STEPS: 3"),
        ("STEP_POLICY: every", "ACCEPT: rising"),
    ):
        assert config.count(f" {new}\n") == 1
        config = config.replace(f" {new}\n", f" {old}\n")
    categories = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]
    save_checkpoint(tmp_path / "old.pth", model=build_tiny().state_dict(), categories=categories, config=config)
    detector, found, _ = load_detector(tmp_path / "old.pth", torch.device("cpu"))
    assert found == categories
    assert detector.postprocessing == Postprocessing(
        NMSOptions(ranking="score_times_iou"), RefinementOptions(num_steps=3, step_policy="backtracking")
    )
