"""The command without --output: it prints the boxes and writes nothing."""

import json
import re

import pytest
import torch

from iounet import IoURefiner
from iounet.commands import refine as command
from iounet.data import read_image
from iounet.detections import Detections, RefinedDetections
from iounet.refiner.printing import image_table
from iounet.refiner.sources import RefinedImage


@pytest.fixture
def show(call, weights, capsys, tmp_path, monkeypatch):
    """A function that runs the command in an empty folder and returns its exit message, lines of stdout, and stderr."""

    def show(*arguments):
        monkeypatch.chdir(tmp_path)
        before = set(tmp_path.rglob("*"))
        message = call(command, "--weights", weights, *arguments)
        assert set(tmp_path.rglob("*")) == before
        captured = capsys.readouterr()
        return message, captured.out.splitlines(), captured.err

    return show


@pytest.fixture
def refiner_of_run(weights):
    return IoURefiner.from_checkpoint(weights)


def detected(refiner, path):
    return refiner.detect(read_image(path).as_subclass(torch.Tensor))


class TestAsJson:
    def test_one_line_per_image_with_the_boxes_of_the_refiner(self, show, refiner_of_run, dataset):
        paths = [dataset / "val" / f"00000{number}.png" for number in (2, 1)]
        message, lines, _ = show(paths[0], "--json", paths[1])
        assert message is None
        for number, (line, path) in enumerate(zip(lines, paths, strict=True), start=1):
            shown = json.loads(line)
            boxes = shown.pop("boxes")
            assert shown == {"image": str(path), "image_id": number, "width": 64, "height": 64}
            before, after = detected(refiner_of_run, path)
            order = after.scores.argsort(descending=True, stable=True)
            assert len(boxes) == len(after) > 0
            for name, expected in (
                ("box_before", before.boxes), ("box", after.boxes), ("score", after.scores),
                ("predicted_iou_before", before.ious), ("predicted_iou", after.ious),
            ):  # fmt: skip
                torch.testing.assert_close(torch.tensor([box[name] for box in boxes]), expected[order])
            names = {category["id"]: category["name"] for category in refiner_of_run.categories}
            assert [box["class"] for box in boxes] == [names[box["category_id"]] for box in boxes]
            assert [box["category_id"] for box in boxes] == [
                refiner_of_run.categories[label - 1]["id"] for label in after.labels[order].tolist()
            ]

    def test_the_boxes_of_another_detector(self, show, dataset, write):
        """With a known and an unknown class; messages about them go to stderr."""
        content = json.loads((dataset / "annotations" / "val.json").read_text())
        known = content["categories"][2]
        content["categories"] = [{"id": 40, "name": known["name"]}, {"id": 41, "name": "unheard of"}]
        detections = [
            {"image_id": 1, "category_id": 40, "bbox": [10, 10, 30, 30], "score": 0.375},
            {"image_id": 1, "category_id": 41, "bbox": [0, 0, 9, 9], "score": 0.9},
            {"image_id": 1, "category_id": 40, "bbox": [20, 5, 25, 30], "score": 0.625},
        ]
        files = ("--detections", write(detections), "--annotations", write(content, "annotations.json"))
        _, lines, aside = show("--images", dataset / "val", "--json", *files)
        (boxes,) = (json.loads(line)["boxes"] for line in lines)
        assert [(box["class"], box["category_id"], box["score"]) for box in boxes] == [
            (known["name"], 40, 0.625), (known["name"], 40, 0.375),
        ]  # fmt: skip
        assert [box["box_before"] for box in boxes] == [[20, 5, 45, 35], [10, 10, 40, 40]]
        assert "unchanged, class unknown to the refiner: 1 box of 1 class: 41 unheard of" in aside

    def test_rescored(self, show, dataset):
        path = dataset / "val" / "000001.png"
        plain, rescored = (json.loads(show(path, "--json", *more)[1][0])["boxes"] for more in ([], ["--rescore"]))
        expected = sorted((box["score"] * min(max(box["predicted_iou"], 0), 1) for box in plain), reverse=True)
        assert [box["score"] for box in rescored] == pytest.approx(expected)


class TestAsATable:
    def table(self, rows):
        nothing = RefinedDetections.unmoved(Detections(torch.zeros(0, 4), *torch.zeros(3, 0)))
        refined = RefinedImage(1, torch.zeros(3, 50, 80), nothing, nothing, [])
        return image_table("a.png", refined, rows)

    def test_columns(self):
        rows = [
            {"class": "playing card", "score": 0.98, "predicted_iou_before": 0.5, "predicted_iou": 0.875,
             "box": [5.0, 5.0, 24.0, 1234.56]},
            {"class": "star", "score": 0.5, "predicted_iou_before": 0.25, "predicted_iou": 0.375,
             "box": [2.0, 3.0, 31.25, 40.0]},
            {"class": "star", "score": 0.49, "predicted_iou_before": 0.25, "predicted_iou": 0.375,
             "box": [2.0, 3.0, 31.25, 40.0]},
        ]  # fmt: skip
        assert self.table(rows) == (
            "a.png (80 x 50 pixels)\n"
            "  class         score  predicted IoU       x1      y1      x2      y2\n"
            "  playing card   0.98   0.50 -> 0.88      5.0     5.0    24.0  1234.6\n"
            "  star           0.50   0.25 -> 0.38      2.0     3.0    31.2    40.0\n"
            "  not shown: 1 with a score below 0.5 (--json prints all)\n"
        )
        assert self.table(rows[2:]).splitlines()[1:] == ["  not shown: 1 with a score below 0.5 (--json prints all)"]
        assert self.table([]).splitlines()[1:] == ["  no boxes"]

    def test_the_command_prints_every_image(self, show, dataset):
        message, lines, _ = show(dataset / "val")
        assert message is None
        headings = [line for line in lines if line.endswith("(64 x 64 pixels)")]
        assert [re.search(r"(\d+)\.png", line)[1] for line in headings] == [f"00000{number}" for number in range(1, 6)]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["photo.png", "--resume"], "ConfigError: --resume needs output, the folder of the run that was stopped"),
        (["photo.png", "--json", "--output", "out"], "ConfigError: --json cannot be combined with an output folder"),
        (["photo.png"], "DataError: photo.png: no such image or folder"),
    ],
)
def test_errors(show, words, message):
    stopped, lines, _ = show(*words)
    assert stopped.startswith(message) and not lines


def test_an_image_is_needed(show):
    stopped, _, aside = show()
    assert stopped == 2 and "arguments are required: PATH" in aside
