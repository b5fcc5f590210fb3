"""iounet-train --resume: runs that continue like uninterrupted ones, and runs that are refused."""

import json
import shutil

import pytest
import torch
import yaml
from same_run import another_second, assert_same_run, hashes, same, weights

from iounet.build import build_training, load_detector
from iounet.commands import train
from iounet.config import RENAMED, load_config, scale_learning_rate
from iounet.engine import Process
from iounet.engine import train as train_job
from iounet.engine.resuming import compare_settings
from iounet.errors import CheckpointError
from iounet.training.checkpoint import load_checkpoint, save_checkpoint


class TestResumed:
    def test_it_ends_like_the_uninterrupted_run(self, interrupted, trained, call, arguments, read_metrics, capsys):
        another_second()
        assert call(train, *arguments(interrupted), "--resume") is None
        assert_same_run(interrupted, trained)
        assert read_metrics(interrupted) == read_metrics(trained)
        assert "--resume" in json.loads((interrupted / "environment_0000002.json").read_text())["command"]
        shown = capsys.readouterr().out
        assert "\nresumed from iteration 2 of 4\n" in shown
        assert "learning rate" not in shown  # printed only at the start of the run
        assert "warning" not in shown
        assert (interrupted / "detections.json").read_text() == (trained / "detections.json").read_text()

    @pytest.mark.slow
    def test_with_adamw_and_linear_decay(self, call, arguments, tmp_path, read_metrics):
        settings = {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.BASE_LR": 1e-3, "SOLVER.DECAY": "linear"}
        assert call(train, *arguments(tmp_path / "whole", settings)) is None
        shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
        (tmp_path / "resumed" / "checkpoints" / "iteration_0000004.pth").unlink()
        assert call(train, *arguments(tmp_path / "resumed", settings), "--resume") is None
        training, _ = read_metrics(tmp_path / "resumed")
        assert [row["learning_rate"] for row in training] == pytest.approx([5e-4, 7.5e-4, 5e-4, 2.5e-4])
        whole, resumed = (weights(tmp_path / run / "model_final.pth") for run in ("whole", "resumed"))
        assert same(whole, resumed)

    def test_from_iteration_0_without_a_checkpoint(self, call, arguments, tmp_path, capsys):
        settings = {"SOLVER.MAX_ITERATIONS": 1, "SOLVER.STEPS": "[]"}
        assert call(train, *arguments(tmp_path / "run", settings), "--resume") is None
        shown = capsys.readouterr().out
        assert f"no checkpoint in {tmp_path / 'run'}; starting at iteration 0" in shown
        assert "learning rate scaled from 0.01 for 16 images per step to 0.00125 for 2" in shown

    def test_a_finished_run_is_evaluated_again(self, trained, tmp_path, call, arguments, capsys):
        output = tmp_path / "finished"
        shutil.copytree(trained, output)
        (output / "evaluation.json").unlink()
        assert call(train, *arguments(output), "--resume") is None
        assert f"all 4 iterations of {output} are done; evaluating only" in capsys.readouterr().out
        assert (output / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()
        assert (output / "metrics.json").read_text() == (trained / "metrics.json").read_text()

    def test_from_the_checkpoint_before_a_damaged_one(self, call, arguments, trained, tmp_path, capsys):
        shutil.copytree(trained, tmp_path / "run")
        path = tmp_path / "run" / "checkpoints" / "iteration_0000004.pth"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        another_second()
        assert call(train, *arguments(tmp_path / "run"), "--resume") is None
        warning = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
        assert f"{path} is damaged" in warning and "checksum" in warning
        assert f"the checkpoint is renamed to {path.name}.damaged, and the run resumes from " in warning
        assert warning.endswith("iteration_0000002.pth")
        assert path.with_name(f"{path.name}.damaged").read_bytes() == content
        assert_same_run(tmp_path / "run", trained)


class TestRefused:
    def test_without_the_option_resume(self, interrupted, call, arguments):
        before = hashes(interrupted)
        message = call(train, *arguments(interrupted))
        assert "already has the checkpoints of a run; pass --resume to continue it, or set another" in message
        assert str(interrupted) in message and "\n" not in message
        assert hashes(interrupted) == before

    def test_from_a_damaged_checkpoint(self, interrupted, call, arguments):
        path = interrupted / "checkpoints" / "iteration_0000002.pth"
        path.write_bytes(path.read_bytes()[:5000])
        before = hashes(interrupted)
        message = call(train, *arguments(interrupted), "--resume")
        assert message.startswith("CheckpointError") and str(path) in message and "damaged" in message
        assert hashes(interrupted) == before

    @pytest.mark.parametrize("settings", [{"MODEL.BACKBONE.TRAINABLE_LAYERS": 2}, {"SOLVER.OPTIMIZER": "AdamW"}])
    def test_from_a_checkpoint_of_another_optimizer(self, interrupted, call, arguments, settings):
        message = call(train, *arguments(interrupted, settings), "--resume")
        assert isinstance(message, str) and "iteration_0000002.pth" in message and "\n" not in message

    def test_with_settings_that_change_the_meaning_of_the_weights(self, interrupted, call, arguments):
        settings = {"MODEL.RPN.ANCHOR_SIZES": "[4, 8, 16, 32, 64]"}
        message = call(train, *arguments(interrupted, settings), "--resume")
        assert message.startswith("CheckpointError: ")
        assert "iteration_0000002.pth cannot be resumed with changed settings: " in message
        assert "MODEL.RPN.ANCHOR_SIZES (8, 16, 32, 64, 128) → (4, 8, 16, 32, 64)" in message

    def test_with_other_classes(self, interrupted, dataset, call, arguments, tmp_path):
        settings = {}
        for split in ("train", "val"):
            content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
            content["categories"][0]["name"] = "plus"
            settings[f"DATA.{split.upper()}_ANNOTATIONS"] = tmp_path / f"{split}.json"
            settings[f"DATA.{split.upper()}_ANNOTATIONS"].write_text(json.dumps(content))
        message = call(train, *arguments(interrupted, settings), "--resume")
        assert "iteration_0000002.pth" in message and "give files with the same category ids and names" in message

    def test_if_processes_see_different_checkpoints(self, interrupted, arguments):
        class Behind(Process):
            def maximum(self, value):
                return value + 2  # another process resumes from a later iteration

        config, *overrides = map(str, arguments(interrupted)[1:])
        process = Behind(torch.device("cpu"))
        job = build_training(load_config(config, overrides), device=process.device, num_processes=1)
        with pytest.raises(CheckpointError, match="another process found a newer checkpoint than that of iteration 2"):
            train_job(job, process, resume=True)


def test_changed_settings_are_printed_and_used(interrupted, call, arguments, read_metrics, capsys):
    path = interrupted / "checkpoints" / "iteration_0000002.pth"
    write_again(path, processes=8)
    settings = {"SOLVER.BASE_LR": 0.02, "SOLVER.MAX_ITERATIONS": 3, "TEST.REFINE.NUM_STEPS": 0}
    assert call(train, *arguments(interrupted, settings), "--resume") is None
    assert (
        f"warning: settings differ from those of {path}; the run continues with: SOLVER.BASE_LR 0.00125 → 0.0025, "
        "SOLVER.MAX_ITERATIONS 4 → 3, TEST.REFINE.NUM_STEPS 5 → 0, processes 8 → 1\n"
    ) in capsys.readouterr().out
    training, _ = read_metrics(interrupted)
    assert [row["learning_rate"] for row in training] == pytest.approx([0.000625, 0.00125, 0.0025])


def write_again(path, **changes):
    content = load_checkpoint(path) | changes
    save_checkpoint(path, **{key: value for key, value in content.items() if key != "format"})


class TestEarlierVersions:
    """Checkpoints of earlier versions have other names for some settings."""

    SETTINGS = {
        "TEST.NMS_RANKING": "score_times_iou",
        "TEST.REFINE.NUM_STEPS": 3,
        "TEST.REFINE.STEP_POLICY": "backtracking",
        "TEST.REFINE_BEFORE_NMS": True,
    }

    def as_before(self, config):
        """Return the text of a configuration as earlier versions wrote it."""
        settings = yaml.safe_load(config)
        known_as = {new: old for old, new in RENAMED.items() if new}
        for new, old in known_as.items():
            value = take(settings, new)
            put(settings, old, "rising" if value == "backtracking" else value)
        take(settings, "TEST.CUDA_GRAPHS")
        put(settings, "TEST.REFINE.CUDA_GRAPHS", False)
        return yaml.safe_dump(settings)

    @pytest.fixture
    def before(self, interrupted, arguments, trained):
        """The interrupted run and its final model, as written by an earlier version."""
        config, *overrides = map(str, arguments(interrupted, self.SETTINGS)[1:])
        job = build_training(load_config(config, overrides), device=torch.device("cpu"), num_processes=1)
        text = self.as_before(job.config)
        assert all(f" {old.rsplit('.', 1)[1]}: " in text for old in RENAMED)
        assert "ACCEPT: rising" in text and "GLOBAL_BATCH_SIZE" not in text and "STEP_POLICY" not in text
        (interrupted / "config.yaml").write_text(text)
        write_again(interrupted / "checkpoints" / "iteration_0000002.pth", config=text)
        shutil.copy(trained / "model_final.pth", interrupted.parent)
        write_again(interrupted.parent / "model_final.pth", config=text)
        return interrupted

    def test_are_resumed_without_a_warning(self, before, trained, call, arguments, capsys):
        assert call(train, *arguments(before, self.SETTINGS), "--resume") is None
        assert "warning" not in capsys.readouterr().out
        assert same(weights(before / "model_final.pth"), weights(trained / "model_final.pth"))

    def test_their_own_config_file_can_be_used(self, before, arguments):
        config, *overrides = map(str, arguments(before, self.SETTINGS | {"MODEL.NUM_CLASSES": 5})[1:])
        assert load_config(before / "config.yaml") == scale_learning_rate(load_config(config, overrides))

    def test_changed_settings_have_their_new_names(self, before):
        old = (before / "config.yaml").read_text()
        now = ["TEST.REFINE.STEP_POLICY", "every", "SOLVER.GLOBAL_BATCH_SIZE", "4"]
        assert compare_settings(old, load_config(before / "config.yaml", now).dump(), "a.pth") == [
            "SOLVER.GLOBAL_BATCH_SIZE 2 → 4",
            "TEST.REFINE.STEP_POLICY backtracking → every",
        ]

    def test_a_detector_is_loaded_with_the_settings_it_had(self, before, trained):
        detector, categories, _ = load_detector(before.parent / "model_final.pth", torch.device("cpu"))
        postprocessing = detector.postprocessing
        assert postprocessing.nms.ranking == "score_times_iou"
        assert postprocessing.refinement.num_steps == 3
        assert postprocessing.refinement.step_policy == "backtracking"
        assert postprocessing.refine_before_nms is True
        assert categories == load_checkpoint(trained / "model_final.pth")["categories"]
        assert same(dict(detector.state_dict()), weights(trained / "model_final.pth"))

    def test_are_evaluated(self, before, trained, call, arguments, tmp_path):
        found = []
        for run, model in (("new", trained / "model_final.pth"), ("old", before.parent / "model_final.pth")):
            words = arguments(tmp_path / run, self.SETTINGS | {"MODEL.WEIGHTS": model})
            assert call(train, *words, "--eval-only") is None
            found.append((tmp_path / run / "evaluation.json").read_text())
        assert found[0] == found[1]


def take(settings, name):
    """Remove a key, given by its full name, from nested dicts; return its value."""
    *groups, key = name.split(".")
    for group in groups:
        settings = settings[group]
    return settings.pop(key)


def put(settings, name, value):
    *groups, key = name.split(".")
    for group in groups:
        settings = settings[group]
    settings[key] = value
