"""iounet-train on six images: the run folder, unusual data, printed output, standalone training."""

import csv
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from faults import Watch
from same_run import same, weights
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from written import REPORT, ROWS

from iounet.commands import train
from iounet.config import describe_scaling, load_config, scale_learning_rate
from iounet.evaluation.tables import gain_in_words
from iounet.training.checkpoint import load_checkpoint


class TestRunFolder:
    def test_it_has_all_documented_files(self, trained):
        assert {path.name for path in trained.iterdir()} - {"git.diff"} == {  # exists if there are uncommitted changes
            "config.yaml",
            "environment.json",
            "metrics.json",
            "metrics.csv",
            "evaluation.csv",
            "tensorboard",
            "checkpoints",
            "model_final.pth",
            *REPORT,
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

    def test_its_config_gives_the_same_weights_again(self, trained, call, tmp_path, read_metrics):
        assert call(train, "--config-file", trained / "config.yaml", "OUTPUT_DIR", tmp_path / "again") is None
        assert same(weights(tmp_path / "again" / "model_final.pth"), weights(trained / "model_final.pth"))
        assert read_metrics(tmp_path / "again") == read_metrics(trained)

    def test_it_has_the_command(self, trained):
        command = json.loads((trained / "environment.json").read_text())["command"]
        assert command.startswith("train.py --config-file ") and f"OUTPUT_DIR {trained}" in command

    def test_metrics(self, trained, read_metrics):
        training, evaluation = read_metrics(trained)
        assert [row["iteration"] for row in training] == [1, 2, 3, 4]
        assert [row["learning_rate"] for row in training] == pytest.approx(
            [lr * 2 / 16 for lr in (0.005, 0.01, 0.01, 0.001)]  # two images per step; the defaults are for 16
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

    def test_files_are_strict_json(self, trained):
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

    def test_the_final_model_has_its_categories_and_config(self, trained, dataset):
        checkpoint = load_checkpoint(trained / "model_final.pth")
        categories = json.loads((dataset / "annotations" / "train.json").read_text())["categories"]
        assert checkpoint["categories"] == categories
        assert yaml.safe_load(checkpoint["config"])["MODEL"]["NUM_CLASSES"] == 5
        assert "optimizer" not in checkpoint
        assert same(checkpoint["model"], weights(trained / "checkpoints" / "iteration_0000004.pth"))


class TestOtherData:
    @pytest.fixture
    def uneven(self, dataset, tmp_path):
        """Unsorted category ids with gaps and 0; an image without objects; an image with only a crowd."""
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

    def test_gaps_empty_images_and_crowds(self, uneven, call, arguments, tmp_path):
        assert call(train, *arguments(tmp_path / "run", uneven | {"SOLVER.MAX_ITERATIONS": 3})) is None
        detections = json.loads((tmp_path / "run" / "detections.json").read_text())
        assert {entry["category_id"] for entry in detections} == {0, 5, 17, 44, 90}
        assert {entry["image_id"] for entry in detections} == {1, 2, 3, 4, 5}
        categories = load_checkpoint(tmp_path / "run" / "model_final.pth")["categories"]
        assert [category["id"] for category in categories] == [0, 5, 17, 44, 90]
        assert [category["name"] for category in categories] == ["ellipse", "star", "rectangle", "triangle", "cross"]

    @pytest.mark.parametrize("kind", ["no annotations", "crowds only"])
    def test_only_background(self, dataset, call, arguments, tmp_path, capsys, kind):
        content = json.loads((dataset / "annotations" / "train.json").read_text())
        if kind == "no annotations":
            content["annotations"] = []
        for entry in content["annotations"]:
            entry["iscrowd"] = 1
        (tmp_path / "empty.json").write_text(json.dumps(content))
        settings = {"DATA.TRAIN_ANNOTATIONS": tmp_path / "empty.json", "SOLVER.MAX_ITERATIONS": 2}
        assert call(train, *arguments(tmp_path / "run", settings)) is None
        assert (tmp_path / "run" / "model_final.pth").is_file()
        first, second, *_ = capsys.readouterr().out.splitlines()
        assert first == f"{tmp_path / 'empty.json'}: 6 images, 0 objects, 5 classes"
        assert second.startswith(f"warning: {tmp_path / 'empty.json'} has no objects: ")


class TestPrintedOutput:
    @pytest.fixture
    def shown(self, call, arguments, tmp_path, capsys, monkeypatch):
        """Output and errors of a run that reports a rising loss."""
        monkeypatch.setattr("iounet.progress.SECONDS_BETWEEN_LINES", 0)
        monkeypatch.setattr("iounet.training.loss_watch.WINDOW", 1)
        monkeypatch.setattr("iounet.training.loss_watch.FACTOR", 0)
        assert call(train, *arguments(tmp_path / "run")) is None
        return capsys.readouterr()

    def test_it_begins_with_the_data_sets(self, shown, dataset):
        count = {
            split: len(json.loads((dataset / "annotations" / f"{split}.json").read_text())["annotations"])
            for split in ("train", "val")
        }
        first, second, *_ = shown.out.splitlines()
        assert first == f"{dataset / 'annotations' / 'train.json'}: 6 images, {count['train']} objects, 5 classes"
        assert second == f"{dataset / 'annotations' / 'val.json'}: 5 images, {count['val']} objects, 5 classes"

    def test_it_ends_with_the_gain(self, shown, tmp_path):
        table = json.loads((tmp_path / "run" / "evaluation.json").read_text())["table"]
        assert shown.out.splitlines()[-1] == gain_in_words(table)

    def test_a_rising_loss_names_the_learning_rate(self, shown):
        [warning] = [line for line in shown.out.splitlines() if line.startswith("warning: ")]
        assert "by iteration 2; if it stays high, the learning rate may be too high" in warning
        assert warning.endswith("SOLVER.BASE_LR")

    def test_losses_keep_their_full_names(self, shown):
        assert ", loss_iou=" in shown.err and " iou=" not in shown.err


def test_standalone_training_changes_only_the_iou_head(trained, call, arguments, tmp_path, read_metrics):
    settings = {
        "MODEL.STANDALONE": True,
        "MODEL.WEIGHTS": trained / "model_final.pth",
        "SOLVER.MAX_ITERATIONS": 2,
        "SOLVER.STEPS": "[]",
    }
    assert call(train, *arguments(tmp_path / "run", settings)) is None
    before, after = weights(trained / "model_final.pth"), weights(tmp_path / "run" / "model_final.pth")
    changed = {key for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if key.startswith("iou_head.")}
    training, _ = read_metrics(tmp_path / "run")
    assert [set(row) for row in training] == [{"iteration", "loss", "loss_iou", "gradient_norm", "learning_rate"}] * 2


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], []),
        (["SOLVER.GLOBAL_BATCH_SIZE", "2", "SOLVER.REFERENCE_BATCH_SIZE", "0"], []),
        (
            ["SOLVER.GLOBAL_BATCH_SIZE", "2"],
            [
                "learning rate scaled from 0.01 for 16 images per step to 0.00125 for 2",
                # 118,287 images of COCO's train2017; the paper's 160k iterations of 16 are 21.6 epochs.
                "iterations not scaled: 160000 iterations of 2 images are 2.7 epochs; if the schedule was made for "
                "16 images, keep its epochs with SOLVER.MAX_ITERATIONS 1280000 SOLVER.STEPS '(960000,)' "
                "SOLVER.WARMUP_ITERATIONS 80000",
            ],
        ),
        (
            ["SOLVER.GLOBAL_BATCH_SIZE", "32", "SOLVER.OPTIMIZER", "AdamW", "SOLVER.DECAY", "linear"],
            [
                "learning rate 0.01 for 16 images per step is not scaled to 32: linear scaling applies to SGD only; "
                "with AdamW, tune SOLVER.BASE_LR",
                "iterations not scaled: 160000 iterations of 32 images are 43.3 epochs; if the schedule was made for "
                "16 images, keep its epochs with SOLVER.MAX_ITERATIONS 80000 SOLVER.WARMUP_ITERATIONS 5000",
            ],
        ),
    ],
    ids=["reference batch size", "switched off", "one GPU", "AdamW"],
)
def test_the_scaled_learning_rate_is_printed(overrides, expected):
    cfg = load_config(None, overrides)
    assert describe_scaling(cfg, scale_learning_rate(cfg), num_images=118_287) == expected


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_steps_leak_no_objects(run_with, arguments, tmp_path):
    """In a manual run of 1,000 steps, resident memory rose by 20 MiB for a while and fell again."""
    settings = {"SOLVER.MAX_ITERATIONS": 80, "SOLVER.CHECKPOINT_PERIOD": 30}
    assert run_with(arguments(tmp_path / "run", settings), Watch(tmp_path / "watched", (20, 50, 79))) == 0
    first, *later = (tmp_path / "watched").read_text().splitlines()
    assert later == [first] * 2
