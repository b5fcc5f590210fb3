import csv
import hashlib
import json
import math
import shutil

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iounet.config import ConfigError, load_config, scale_learning_rate
from iounet.processes import Process
from iounet.training.checkpoint import load_checkpoint

ROWS = ["greedy NMS", "soft-NMS", "IoU-guided NMS", "IoU-guided NMS + refinement"]


def hashes(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def weights(path):
    return torch.load(path, weights_only=True)["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(value, b[key]) for key, value in a.items())


class TestRunFolder:
    def test_it_holds_all_that_is_promised(self, trained):
        assert {path.name for path in trained.iterdir()} - {"git.diff"} == {  # which there is where work is going on
            "config.yaml",
            "environment.json",
            "metrics.json",
            "metrics.csv",
            "evaluation.csv",
            "tensorboard",
            "checkpoints",
            "model_final.pth",
            "table.md",
            "evaluation.json",
            "detections.json",
            "correlation.png",
            "boxes.png",
            "changes.png",
            "report.html",
        }
        assert sorted(path.name for path in (trained / "checkpoints").iterdir()) == [
            "iteration_0000002.pth",
            "iteration_0000004.pth",
        ]

    def test_the_resolved_config_can_be_used_again(self, trained, dataset):
        cfg = load_config(trained / "config.yaml")
        assert cfg.MODEL.NUM_CLASSES == 5
        assert cfg.SOLVER.MAX_ITERATIONS == 4
        assert cfg.MODEL.FPN.CHANNELS == 16
        assert cfg.DATA.TRAIN_IMAGES == str(dataset / "train")

    def test_its_config_gives_the_same_weights_again(self, trained, run_tool, tmp_path, read_metrics):
        done = run_tool("train.py", "--config-file", trained / "config.yaml", "OUTPUT_DIR", tmp_path / "again")
        assert done.returncode == 0, done.stderr
        assert same(weights(tmp_path / "again" / "model_final.pth"), weights(trained / "model_final.pth"))
        assert read_metrics(tmp_path / "again") == read_metrics(trained)

    def test_it_tells_the_command(self, trained):
        command = json.loads((trained / "environment.json").read_text())["command"]
        assert "tools/train.py --config-file" in command and f"OUTPUT_DIR {trained}" in command

    def test_metrics(self, trained, read_metrics):
        training, evaluation = read_metrics(trained)
        assert [row["iteration"] for row in training] == [1, 2, 3, 4]
        assert [row["learning_rate"] for row in training] == pytest.approx(
            [lr * 2 / 16 for lr in (0.005, 0.01, 0.01, 0.001)]  # two images a step, where the defaults are for 16
        )
        for row in training:
            losses = {key: value for key, value in row.items() if key.startswith("loss_")}
            assert set(losses) == {"loss_objectness", "loss_rpn_box_reg", "loss_classifier", "loss_box_reg", "loss_iou"}
            assert row["loss"] == pytest.approx(sum(losses.values()), rel=1e-4)
        assert [row["iteration"] for row in evaluation] == [4]

    def test_metrics_as_tables(self, trained, read_metrics):
        for name, expected in zip(("metrics.csv", "evaluation.csv"), read_metrics(trained), strict=True):
            with open(trained / name, newline="") as file:
                found = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
            assert found == expected

    def test_tensorboard(self, trained, read_metrics):
        events = EventAccumulator(str(trained / "tensorboard")).Reload()
        tags = events.Tags()
        training, [evaluation] = read_metrics(trained)
        assert set(tags["scalars"]) == (training[0].keys() | evaluation.keys()) - {"iteration"}
        assert set(tags["images"]) == {"boxes", "changes", "correlation"}
        assert set(tags["histograms"]) == {"candidates/true_iou", "candidates/predicted_iou"}
        for tag in tags["histograms"]:
            [event] = events.Histograms(tag)
            assert event.step == 4 and event.histogram_value.num > 0

    def test_the_table(self, trained):
        table = json.loads((trained / "evaluation.json").read_text())["table"]
        assert list(table) == ROWS
        for row in table.values():
            assert {"AP", "AP50", "AP60", "AP70", "AP75", "AP80", "AP90"} <= set(row)
        text = (trained / "table.md").read_text()
        assert [text.index(f"| {row} ") for row in ROWS] == sorted(text.index(f"| {row} ") for row in ROWS)

    def test_files_are_json_that_any_reader_takes(self, trained):
        def refuse(constant):
            raise AssertionError(f"{constant} is not JSON")

        for name in ("evaluation.json", "environment.json", "detections.json"):
            json.loads((trained / name).read_text(), parse_constant=refuse)
        for line in (trained / "metrics.json").read_text().splitlines():
            json.loads(line, parse_constant=refuse)

    def test_detections_are_coco_results_of_the_validation_images(self, trained, dataset):
        images = {image["id"] for image in json.loads((dataset / "annotations" / "val.json").read_text())["images"]}
        detections = json.loads((trained / "detections.json").read_text())
        assert {entry["image_id"] for entry in detections} == images
        for entry in detections:
            x, y, width, height = entry["bbox"]
            assert x >= 0 and y >= 0 and width > 0 and height > 0 and x + width <= 64.001 and y + height <= 64.001
            assert 1 <= entry["category_id"] <= 5
            assert 0 <= entry["score"] <= 1
            assert math.isfinite(entry["predicted_iou"])

    def test_the_final_model_says_what_it_is(self, trained, dataset):
        checkpoint = load_checkpoint(trained / "model_final.pth")
        categories = json.loads((dataset / "annotations" / "train.json").read_text())["categories"]
        assert checkpoint["categories"] == categories
        assert yaml.safe_load(checkpoint["config"])["MODEL"]["NUM_CLASSES"] == 5
        assert "optimizer" not in checkpoint
        assert same(checkpoint["model"], weights(trained / "checkpoints" / "iteration_0000004.pth"))


class TestResuming:
    @pytest.fixture
    def interrupted(self, trained, tmp_path):
        """The run as it was when it had written the checkpoint of its second iteration and logged the third."""
        output = tmp_path / "interrupted"
        shutil.copytree(trained, output)
        for name in ("model_final.pth", "evaluation.json", "detections.json", "checkpoints/iteration_0000004.pth"):
            (output / name).unlink()
        rows = (output / "metrics.json").read_text().splitlines(keepends=True)
        (output / "metrics.json").write_text("".join(rows[:3]))
        return output

    def test_a_resumed_run_ends_as_the_uninterrupted_one(self, interrupted, trained, run_tool, arguments, read_metrics):
        done = run_tool("train.py", *arguments(interrupted), "--resume")
        assert done.returncode == 0, done.stderr
        assert read_metrics(interrupted) == read_metrics(trained)
        for name in ("metrics.csv", "evaluation.csv"):
            assert (interrupted / name).read_text() == (trained / name).read_text()
        assert "--resume" in json.loads((interrupted / "environment_0000002.json").read_text())["command"]
        assert "learning rate" not in done.stdout  # which was told when the run began
        assert "warning" not in done.stdout
        assert same(weights(interrupted / "model_final.pth"), weights(trained / "model_final.pth"))
        assert (interrupted / "detections.json").read_text() == (trained / "detections.json").read_text()

    def test_with_adamw_and_linear_decay(self, call_tool, arguments, tmp_path, read_metrics):
        settings = {"SOLVER.OPTIMIZER": "AdamW", "SOLVER.BASE_LR": 1e-3, "SOLVER.DECAY": "linear"}
        assert call_tool("train.py", *arguments(tmp_path / "whole", settings)) is None
        shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
        (tmp_path / "resumed" / "checkpoints" / "iteration_0000004.pth").unlink()
        assert call_tool("train.py", *arguments(tmp_path / "resumed", settings), "--resume") is None
        training, _ = read_metrics(tmp_path / "resumed")
        assert [row["learning_rate"] for row in training] == pytest.approx([5e-4, 7.5e-4, 5e-4, 2.5e-4])
        whole, resumed = (weights(tmp_path / run / "model_final.pth") for run in ("whole", "resumed"))
        assert same(whole, resumed)

    def test_a_run_is_not_overwritten_without_being_told(self, interrupted, call_tool, arguments):
        before = hashes(interrupted)
        message = call_tool("train.py", *arguments(interrupted))
        assert "holds the checkpoints of another run: give --resume to continue it, or another OUTPUT_DIR" in message
        assert str(interrupted) in message and "\n" not in message
        assert hashes(interrupted) == before

    def test_a_finished_run_is_evaluated_again(self, trained, tmp_path, run_tool, arguments):
        output = tmp_path / "finished"
        shutil.copytree(trained, output)
        (output / "evaluation.json").unlink()
        done = run_tool("train.py", *arguments(output), "--resume")
        assert done.returncode == 0, done.stderr
        assert "has done all 4 iterations: evaluating it" in done.stdout
        assert (output / "evaluation.json").read_text() == (trained / "evaluation.json").read_text()
        assert (output / "metrics.json").read_text() == (trained / "metrics.json").read_text()

    def test_a_damaged_checkpoint_is_named(self, interrupted, call_tool, arguments):
        path = interrupted / "checkpoints" / "iteration_0000002.pth"
        path.write_bytes(path.read_bytes()[:5000])
        before = hashes(interrupted)
        message = call_tool("train.py", *arguments(interrupted), "--resume")
        assert message.startswith("CheckpointError") and str(path) in message and "damaged" in message
        assert hashes(interrupted) == before

    @pytest.mark.parametrize("settings", [{"MODEL.BACKBONE.TRAINABLE_LAYERS": 2}, {"SOLVER.OPTIMIZER": "AdamW"}])
    def test_a_checkpoint_of_another_optimizer_is_refused_with_a_message(
        self, interrupted, call_tool, arguments, settings
    ):
        message = call_tool("train.py", *arguments(interrupted, settings), "--resume")
        assert isinstance(message, str) and "iteration_0000002.pth" in message and "\n" not in message

    def test_a_failing_save_leaves_the_last_checkpoint(self, interrupted, call_tool, arguments, monkeypatch):
        before = hashes(interrupted / "checkpoints")
        save = torch.save

        def disk_full(content, file):
            save(content, file)
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(torch, "save", disk_full)
        message = call_tool("train.py", *arguments(interrupted), "--resume")
        assert "could not be written" in message and "No space left" in message and "--resume" in message
        assert hashes(interrupted / "checkpoints") == before


class TestEvalOnly:
    def test_it_gives_what_the_training_run_gave(self, trained, run_tool, arguments, tmp_path):
        final = trained / "model_final.pth"
        done = run_tool("train.py", *arguments(tmp_path / "eval", {"MODEL.WEIGHTS": final}), "--eval-only")
        assert done.returncode == 0, done.stderr
        assert {path.name for path in (tmp_path / "eval").iterdir()} == {
            "table.md",
            "evaluation.json",
            "detections.json",
            "correlation.png",
            "boxes.png",
            "changes.png",
            "report.html",
        }
        found, expected = (
            sorted(json.loads((output / "detections.json").read_text()), key=lambda e: (e["image_id"], -e["score"]))
            for output in (tmp_path / "eval", trained)
        )
        assert [entry["category_id"] for entry in found] == [entry["category_id"] for entry in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        assert "| IoU-guided NMS + refinement |" in done.stdout + done.stderr

    def test_steps_of_no_length_leave_the_row_as_it_was(self, trained, call_tool, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.REFINE.STEP_SIZE": 0.0}
        assert call_tool("train.py", *arguments(tmp_path / "eval", settings), "--eval-only") is None
        table = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["table"]
        assert table["IoU-guided NMS + refinement"] == table["IoU-guided NMS"]

    def test_a_detector_that_finds_nothing_has_an_ap_of_0(self, trained, call_tool, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.SCORE_THRESHOLD": 1.0}
        assert call_tool("train.py", *arguments(tmp_path / "eval", settings), "--eval-only") is None
        assert json.loads((tmp_path / "eval" / "detections.json").read_text()) == []
        table = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["table"]
        assert [table[row][column] for row in ROWS for column in ("AP", "AP50", "AR100")] == [0.0] * 12

    def test_it_needs_weights(self, call_tool, arguments, tmp_path):
        message = call_tool("train.py", *arguments(tmp_path), "--eval-only")
        assert "--eval-only evaluates MODEL.WEIGHTS, which is not set" in message

    def test_categories_must_agree(self, trained, dataset, call_tool, arguments, tmp_path):
        content = json.loads((dataset / "annotations" / "val.json").read_text())
        content["categories"][0]["name"] = "plus"
        (tmp_path / "renamed.json").write_text(json.dumps(content))
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "DATA.VAL_ANNOTATIONS": tmp_path / "renamed.json"}
        message = call_tool("train.py", *arguments(tmp_path / "eval", settings), "--eval-only")
        assert "model_final.pth" in message and "renamed.json" in message and "ids and names must agree" in message


class TestOtherData:
    @pytest.fixture
    def uneven(self, dataset, tmp_path):
        """Category ids with gaps and 0, in no order; an image without objects; one with nothing but a crowd."""
        ids = {1: 90, 2: 0, 3: 17, 4: 5, 5: 44}
        settings = {}
        for split in ("train", "val"):
            content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
            for category in content["categories"]:
                category["id"] = ids[category["id"]]
            content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]
            for entry in content["annotations"]:
                entry["category_id"] = ids[entry["category_id"]]
                entry["iscrowd"] = int(entry["image_id"] == 3)
            (tmp_path / f"{split}.json").write_text(json.dumps(content))
            settings[f"DATA.{split.upper()}_ANNOTATIONS"] = tmp_path / f"{split}.json"
        return settings

    def test_gaps_empty_images_and_crowds(self, uneven, call_tool, arguments, tmp_path):
        assert call_tool("train.py", *arguments(tmp_path / "run", uneven | {"SOLVER.MAX_ITERATIONS": 3})) is None
        detections = json.loads((tmp_path / "run" / "detections.json").read_text())
        assert {entry["category_id"] for entry in detections} == {0, 5, 17, 44, 90}
        assert {entry["image_id"] for entry in detections} == {1, 2, 3, 4, 5}
        categories = load_checkpoint(tmp_path / "run" / "model_final.pth")["categories"]
        assert [category["id"] for category in categories] == [0, 5, 17, 44, 90]
        assert [category["name"] for category in categories] == ["ellipse", "star", "rectangle", "triangle", "cross"]

    def test_nothing_but_background(self, dataset, call_tool, arguments, tmp_path):
        content = json.loads((dataset / "annotations" / "train.json").read_text()) | {"annotations": []}
        (tmp_path / "empty.json").write_text(json.dumps(content))
        settings = {"DATA.TRAIN_ANNOTATIONS": tmp_path / "empty.json", "SOLVER.MAX_ITERATIONS": 2}
        assert call_tool("train.py", *arguments(tmp_path / "run", settings)) is None
        assert (tmp_path / "run" / "model_final.pth").is_file()


def test_standalone_training_changes_the_iou_head_alone(trained, call_tool, arguments, tmp_path, read_metrics):
    settings = {
        "MODEL.STANDALONE": True,
        "MODEL.WEIGHTS": trained / "model_final.pth",
        "SOLVER.MAX_ITERATIONS": 2,
        "SOLVER.STEPS": "[]",
    }
    assert call_tool("train.py", *arguments(tmp_path / "run", settings)) is None
    before, after = weights(trained / "model_final.pth"), weights(tmp_path / "run" / "model_final.pth")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("iou_head.")}
    training, _ = read_metrics(tmp_path / "run")
    assert [set(row) for row in training] == [{"iteration", "loss", "loss_iou", "gradient_norm", "learning_rate"}] * 2


def test_two_processes(run_tool, arguments, tmp_path, read_metrics):
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    done = run_tool("train.py", *arguments(tmp_path / "run"), launcher=launcher)
    assert done.returncode == 0, done.stderr
    training, evaluation = read_metrics(tmp_path / "run")
    assert [row["iteration"] for row in training] == [1, 2, 3, 4]
    assert [row["iteration"] for row in evaluation] == [4]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "iteration_0000004.pth")["processes"] == 2
    assert done.stdout.count("learning rate 0.01 for 16 images a step → 0.00125 for 2\n") == 1
    detections = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert {entry["image_id"] for entry in detections} == {1, 2, 3, 4, 5}  # an odd number
    assert len({json.dumps(entry) for entry in detections}) == len(detections)
    per_image = [sum(entry["image_id"] == image_id for entry in detections) for image_id in range(1, 6)]
    assert max(per_image) <= 100
    assert done.stderr.count("Traceback") == 0


def test_evaluation_by_one_two_and_three_processes_is_the_same(trained, run_tool, arguments, tmp_path):
    files = {}
    for count in (1, 2, 3):
        launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
        # One image at a time, as by default: images padded to one size differ in the last digits.
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.BATCH_SIZE": 1}
        run = tmp_path / str(count)
        done = run_tool("train.py", *arguments(run, settings), "--eval-only", launcher=launcher)
        assert done.returncode == 0, done.stderr
        files[count] = [(run / name).read_bytes() for name in ("detections.json", "evaluation.json", "table.md")]
    assert json.loads(files[1][0])
    assert files[2] == files[1] and files[3] == files[1]


def test_norms_over_processes_are_refused_on_cpus(load_tool, arguments, tmp_path):
    train = load_tool("train.py")
    config, *overrides = arguments(tmp_path / "run", {"MODEL.BACKBONE.NORM": "SyncBN"})[1:]
    with pytest.raises(ConfigError, match="SyncBN under torchrun needs GPUs"):
        train.train(load_config(config, overrides), Process(torch.device("cpu"), rank=0, world_size=2), resume=False)


def test_two_processes_cannot_share_an_odd_batch(load_tool, arguments, tmp_path):
    train = load_tool("train.py")
    config, *overrides = arguments(tmp_path / "run", {"SOLVER.BATCH_SIZE": 3})[1:]
    with pytest.raises(ConfigError, match=r"SOLVER\.BATCH_SIZE 3 cannot be shared by 2 processes"):
        train.train(load_config(config, overrides), Process(torch.device("cpu"), rank=0, world_size=2), resume=False)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["SOLVER.BATCH_SIZE", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"], []),
        (
            ["SOLVER.BATCH_SIZE", "2"],
            [
                "learning rate 0.01 for 16 images a step → 0.00125 for 2",
                # 118,287 images of COCO's train2017; the paper's 160k iterations of 16 are 21.6 epochs.
                "iterations are not scaled: 160000 of 2 images are 2.7 epochs; if they were meant for 16 images, "
                "as many epochs take SOLVER.MAX_ITERATIONS 1280000 SOLVER.STEPS '(960000,)' "
                "SOLVER.WARMUP_ITERATIONS 80000",
            ],
        ),
        (
            ["SOLVER.BATCH_SIZE", "32", "SOLVER.OPTIMIZER", "AdamW", "SOLVER.DECAY", "linear"],
            [
                "learning rate 0.01 for 16 images a step, kept for 32: the linear rule is SGD's; "
                "for AdamW try SOLVER.BASE_LR",
                "iterations are not scaled: 160000 of 32 images are 43.3 epochs; if they were meant for 16 images, "
                "as many epochs take SOLVER.MAX_ITERATIONS 80000 SOLVER.WARMUP_ITERATIONS 5000",
            ],
        ),
    ],
    ids=["its own batch size", "told not to", "one GPU", "AdamW"],
)
def test_the_linear_rule_is_told(load_tool, capsys, overrides, expected):
    cfg = load_config(None, overrides)
    load_tool("train.py").describe_scaling(cfg, scale_learning_rate(cfg), num_images=118_287)
    assert capsys.readouterr().out.splitlines() == expected


class TestErrors:
    """One line that names the item and the cure, and nothing written."""

    @pytest.mark.parametrize("value", ["-0.02", "-2e-2"])
    def test_a_negative_value_is_no_option(self, call_tool, arguments, tmp_path, value):
        settings = {"TEST.REFINE.DEGENERATION": value, "MODEL.WEIGHTS": tmp_path / "nowhere.pth"}
        message = call_tool("train.py", *arguments(tmp_path / "run", settings), "--eval-only")
        assert isinstance(message, str) and "nowhere.pth" in message  # so the value was taken

    def test_a_user_sees_one_line_and_no_traceback(self, run_tool, arguments, tmp_path):
        done = run_tool("train.py", *arguments(tmp_path / "run"), "SOLVER.BASE_LRR", "1")
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            "ConfigError: command line: unknown config key SOLVER.BASE_LRR; did you mean SOLVER.BASE_LR?"
        ]
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("settings", "messages"),
        [
            ({"DATA.TRAIN_ANNOTATIONS": "nowhere.json"}, ["nowhere.json", "no such annotation file; check the path"]),
            ({"DATA.VAL_IMAGES": "nowhere"}, ["nowhere", "no such image folder", "check the path"]),
            ({"DATA.VAL_ANNOTATIONS": ""}, ["DATA.VAL_ANNOTATIONS", "are not set"]),
            ({"DATA.BAD_ANNOTATIONS": "ignore"}, ["DATA.BAD_ANNOTATIONS", "'error' or 'skip'"]),
            ({"MODEL.WEIGHTS": "nowhere.pth"}, ["nowhere.pth", "no such weights file"]),
            ({"MODEL.BACKBONE.WEIGHTS": "nowhere.pth"}, ["nowhere.pth", "no such weights file"]),
            ({"MODEL.BACKBONE.NAME": "resnet20"}, ["MODEL.BACKBONE.NAME is one of resnet18"]),
            ({"MODEL.BACKBONE.NORM": "GN"}, ["MODEL.BACKBONE.NORM is one of"]),
            ({"MODEL.BACKBONE.TRAINABLE_LAYERS": 6}, ["MODEL.BACKBONE.TRAINABLE_LAYERS must lie in 0..5"]),
            ({"MODEL.NUM_CLASSES": 3}, ["MODEL.NUM_CLASSES is 3", "train.json has 5 categories", "leave it at 0"]),
            ({"MODEL.STANDALONE": True}, ["MODEL.STANDALONE", "MODEL.WEIGHTS"]),
            ({"MODEL.DEVICE": "abacus"}, ["ConfigError: unknown device 'abacus'; choose cpu, cuda, cuda:1"]),
            ({"MODEL.DEVICE": "meta"}, ["ConfigError: device meta cannot be used with this torch; choose cpu or auto"]),
            ({"MODEL.DEVICE": "cuda:999"}, ["ConfigError: no device cuda:999: torch sees"]),
            ({"TEST.NMS": "hard"}, ["TEST.NMS is one of greedy, soft, iou_guided"]),
            ({"SOLVER.WARMUP": "cosine"}, ["SOLVER.WARMUP is constant or linear"]),
            ({"SOLVER.DECAY": "cosine"}, ["SOLVER.DECAY is step or linear"]),
            ({"SOLVER.OPTIMIZER": "LAMB"}, ["SOLVER.OPTIMIZER is SGD or AdamW"]),
            ({"SOLVER.STEPS": "[3, 1]"}, ["SOLVER.STEPS must rise"]),
            ({"SOLVER.BATCH_SIZE": 0}, ["SOLVER.BATCH_SIZE"]),
            ({"SOLVER.ACCUMULATION_STEPS": 3}, ["BATCH_SIZE 2 cannot be shared", "1 processes in 3 parts"]),
            ({"SOLVER.REFERENCE_BATCH_SIZE": -1}, ["SOLVER.REFERENCE_BATCH_SIZE must be at least 1, or 0"]),
            ({"SOLVER.MAX_ITERATIONS": 0}, ["SOLVER.MAX_ITERATIONS"]),
            ({"SOLVER.LOG_PERIOD": 0}, ["SOLVER.LOG_PERIOD"]),
            ({"SOLVER.CHECKPOINT_PERIOD": 0}, ["SOLVER.CHECKPOINT_PERIOD"]),
        ],
        ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
    )
    def test_settings(self, call_tool, arguments, tmp_path, settings, messages):
        message = call_tool("train.py", *arguments(tmp_path / "run", settings))
        assert isinstance(message, str)
        for part in messages:
            assert part in message
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "run").exists()

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_a_gpu_that_is_not_there(self, call_tool, arguments, tmp_path):
        message = call_tool("train.py", *arguments(tmp_path / "run", {"MODEL.DEVICE": "cuda"}))
        assert message == "ConfigError: no device cuda: torch sees 0 GPUs; choose cpu or auto"

    @pytest.mark.parametrize("flags", [[], ["--eval-only"]])
    @pytest.mark.parametrize(
        "settings",
        [{"MODEL.BACKBONE.NAME": "resnet34"}, {"MODEL.FPN.CHANNELS": 24}, {"MODEL.BACKBONE.NORM": "FrozenBN"}],
        ids=lambda settings: next(iter(settings)),
    )
    def test_a_checkpoint_of_another_architecture(self, trained, call_tool, arguments, tmp_path, settings, flags):
        final = trained / "model_final.pth"
        message = call_tool("train.py", *arguments(tmp_path / "run", settings | {"MODEL.WEIGHTS": final}), *flags)
        assert message.startswith(f"CheckpointError: {final} is of another architecture")
        assert "backbone." in message and "Use the configuration the weights were trained with" in message
        assert len(message.splitlines()) == 1

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_a_truncated_image_is_named(self, dataset, call_tool, arguments, tmp_path, num_workers):
        shutil.copytree(dataset / "train", tmp_path / "images")
        damaged = tmp_path / "images" / "000004.png"
        damaged.write_bytes(damaged.read_bytes()[:500])
        settings = {"DATA.TRAIN_IMAGES": tmp_path / "images", "DATA.NUM_WORKERS": num_workers}
        message = call_tool("train.py", *arguments(tmp_path / "run", settings))
        assert message.startswith(f"DataError: {damaged}: cannot be read as an image")
        assert len(message.splitlines()) == 1

    def test_a_loss_that_is_not_finite_names_the_images_and_leaves_the_checkpoints(
        self, call_tool, arguments, tmp_path
    ):
        settings = {"SOLVER.BASE_LR": 1e18, "SOLVER.MAX_ITERATIONS": 10, "SOLVER.CHECKPOINT_PERIOD": 1}
        message = call_tool("train.py", *arguments(tmp_path / "run", settings))
        assert message.startswith("NonFiniteLossError: iteration ")
        assert "on images [" in message and "lower SOLVER.BASE_LR" in message
        assert len(message.splitlines()) == 1
        checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
        assert checkpoints
        for path in checkpoints:
            load_checkpoint(path)
