"""What iounet-train says of settings and files that it cannot use."""

import shutil

import pytest
import torch

from iounet.commands import train
from iounet.training.checkpoint import load_checkpoint

UNKNOWN_KEY = "ConfigError: command line: unknown config key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR?"


class TestErrors:
    """One line that names the item and the cure, and nothing written."""

    @pytest.mark.parametrize("value", ["-0.02", "-2e-2"])
    def test_a_negative_value_is_no_option(self, call, arguments, tmp_path, value):
        settings = {"TEST.REFINE.DEGENERATION": value, "MODEL.WEIGHTS": tmp_path / "nowhere.pth"}
        message = call(train, *arguments(tmp_path / "run", settings), "--eval-only")
        assert isinstance(message, str) and "nowhere.pth" in message  # so the value was taken

    def test_an_unknown_key(self, call, arguments, tmp_path):
        message = call(train, *arguments(tmp_path / "run"), "SOLVER.BASE_LRR", "1")
        assert message == UNKNOWN_KEY
        assert not (tmp_path / "run").exists()

    @pytest.mark.slow
    def test_a_user_sees_one_line_and_no_traceback(self, run_tool, arguments, tmp_path):
        done = run_tool("train.py", *arguments(tmp_path / "run"), "SOLVER.BASE_LRR", "1")
        assert done.returncode == 1
        assert done.stderr.splitlines() == [UNKNOWN_KEY]
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "messages"),
        [
            ({"DATA.TRAIN_ANNOTATIONS": "nowhere.json"}, ["nowhere.json", "no such annotation file; check the path"]),
            ({"DATA.VAL_IMAGES": "nowhere"}, ["nowhere", "no such image folder", "check the path"]),
            ({"DATA.VAL_ANNOTATIONS": ""}, ["DATA.VAL_ANNOTATIONS is not set"]),
            ({"DATA.BAD_ANNOTATIONS": "ignore"}, ["DATA.BAD_ANNOTATIONS", "error, skip; got 'ignore'"]),
            ({"MODEL.WEIGHTS": "nowhere.pth"}, ["nowhere.pth", "no such weights file"]),
            ({"MODEL.BACKBONE.WEIGHTS": "nowhere.pth"}, ["nowhere.pth", "no such weights file"]),
            ({"MODEL.BACKBONE.NAME": "resnet20"}, ["MODEL.BACKBONE.NAME must be one of resnet18"]),
            ({"MODEL.BACKBONE.NORM": "GN"}, ["MODEL.BACKBONE.NORM must be one of"]),
            ({"MODEL.BACKBONE.TRAINABLE_LAYERS": 6}, ["MODEL.BACKBONE.TRAINABLE_LAYERS must lie in [0, 5]; got 6"]),
            ({"MODEL.NUM_CLASSES": 3}, ["MODEL.NUM_CLASSES is 3", "train.json has 5 categories", "set it to 0"]),
            ({"MODEL.STANDALONE": True}, ["MODEL.STANDALONE", "MODEL.WEIGHTS"]),
            ({"MODEL.DEVICE": "abacus"}, ["ConfigError: unknown device 'abacus'; choose cpu, cuda, cuda:1"]),
            (
                {"MODEL.DEVICE": "meta"},
                ["ConfigError: this build of torch does not support device meta; choose cpu or auto"],
            ),
            ({"MODEL.DEVICE": "cuda:999"}, ["ConfigError: device cuda:999 not found: torch sees"]),
            ({"TEST.NMS": "hard"}, ["TEST.NMS must be one of greedy, soft, iou_guided; got 'hard'"]),
            ({"SOLVER.WARMUP": "cosine"}, ["SOLVER.WARMUP must be one of constant, linear"]),
            ({"SOLVER.DECAY": "cosine"}, ["SOLVER.DECAY must be one of step, linear"]),
            ({"SOLVER.OPTIMIZER": "LAMB"}, ["SOLVER.OPTIMIZER must be one of SGD, AdamW"]),
            ({"SOLVER.STEPS": "[3, 1]"}, ["SOLVER.STEPS must be in ascending order"]),
            ({"SOLVER.GLOBAL_BATCH_SIZE": 0}, ["SOLVER.GLOBAL_BATCH_SIZE must be at least 1; got 0"]),
            (
                {"SOLVER.ACCUMULATION_STEPS": 3},
                ["GLOBAL_BATCH_SIZE 2 cannot be divided", "1 process with SOLVER.ACCUMULATION_STEPS 3"],
            ),
            ({"SOLVER.REFERENCE_BATCH_SIZE": -1}, ["SOLVER.REFERENCE_BATCH_SIZE must be at least 0; got -1"]),
            ({"TEST.REFINE.NUM_STEPS": -1}, ["TEST.REFINE.NUM_STEPS must be at least 0; got -1"]),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
    )
    def test_settings(self, call, arguments, tmp_path, settings, messages):
        message = call(train, *arguments(tmp_path / "run", settings))
        assert isinstance(message, str)
        for part in messages:
            assert part in message
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("mode", [[], ["--eval-only"]])
    def test_an_output_folder_that_is_a_file(self, trained, call, arguments, tmp_path, mode):
        (tmp_path / "run").write_text("kept")
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth"}
        message = call(train, *arguments(tmp_path / "run", settings), *mode)
        assert message.startswith(f"ConfigError: {tmp_path / 'run'}: cannot be used as the output folder")
        assert (tmp_path / "run").read_text() == "kept"

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, call, arguments, tmp_path):
        message = call(train, *arguments(tmp_path / "run", {"MODEL.DEVICE": "cuda"}))
        assert message == "ConfigError: device cuda not found: torch sees 0 GPUs; choose cpu or auto"

    @pytest.mark.parametrize("flags", [[], ["--eval-only"]])
    @pytest.mark.parametrize(
        "settings",
        [{"MODEL.BACKBONE.NAME": "resnet34"}, {"MODEL.FPN.CHANNELS": 24}, {"MODEL.BACKBONE.NORM": "FrozenBN"}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_a_checkpoint_of_another_architecture(self, trained, call, arguments, tmp_path, settings, flags):
        final = trained / "model_final.pth"
        message = call(train, *arguments(tmp_path / "run", settings | {"MODEL.WEIGHTS": final}), *flags)
        assert message.startswith(f"CheckpointError: the weights of {final} do not fit the architecture")
        assert "backbone." in message and "Use the configuration that the weights were trained with" in message
        assert len(message.splitlines()) == 1

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_truncated_image_is_named(self, dataset, call, arguments, tmp_path, num_workers):
        shutil.copytree(dataset / "train", tmp_path / "images")
        damaged = tmp_path / "images" / "000004.png"
        damaged.write_bytes(damaged.read_bytes()[:500])
        settings = {"DATA.TRAIN_IMAGES": tmp_path / "images", "DATA.NUM_WORKERS": num_workers}
        message = call(train, *arguments(tmp_path / "run", settings))
        assert message.startswith(f"DataError: {damaged}: cannot be read as an image")
        assert len(message.splitlines()) == 1

    def test_a_loss_that_is_not_finite_names_the_images_and_leaves_the_checkpoints(self, call, arguments, tmp_path):
        settings = {"SOLVER.BASE_LR": 1e18, "SOLVER.MAX_ITERATIONS": 10, "SOLVER.CHECKPOINT_PERIOD": 1}
        message = call(train, *arguments(tmp_path / "run", settings))
        assert message.startswith("NonFiniteLossError: iteration ")
        assert "on images [" in message and "lower the learning rate" in message and "SOLVER.BASE_LR" in message
        assert len(message.splitlines()) == 1
        checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
        assert checkpoints
        for path in checkpoints:
            load_checkpoint(path)
