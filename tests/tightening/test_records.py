"""boxes.json and boxes.csv."""

import csv
import json
import os
from dataclasses import replace

import pytest

from iounet.data.labels import LabelFault
from iounet.errors import DataError
from iounet.tightening import Proposal
from iounet.tightening.decisions import Decision
from iounet.tightening.records import is_record, read_judgements, write_records

SETTINGS = {"weights": "abc", "only": []}
JUDGEMENTS = [
    Proposal((8.25, 9.0, 41.0, 44.0), 0.5, 0.75, 0.125),
    Proposal((30.0, 10.0, 75.0, 48.0), 0.3, 0.3, 0.0),
    "image missing or damaged",
    "class unknown to the refiner",
    "crowd or difficult",
    "has more than a box",
]
DECISIONS = [Decision(True, "gain of 0.02 or more"), Decision(False, "no better box found")] + [
    Decision(False, reason) for reason in JUDGEMENTS[2:]
]


@pytest.fixture
def folder(labels, tmp_path):
    write_records(tmp_path, labels, JUDGEMENTS, DECISIONS, SETTINGS)
    return tmp_path


def test_judgements_are_read_as_they_were_written(folder, labels):
    assert read_judgements(folder, labels, SETTINGS) == JUDGEMENTS


def test_faults_of_the_label_files_are_listed(labels, tmp_path):
    fault = LabelFault("one.txt line 3", "no area", "has no area; remove it")
    write_records(tmp_path, replace(labels, faults=[fault]), JUDGEMENTS, DECISIONS, SETTINGS)
    (listed,) = json.loads((tmp_path / "boxes.json").read_text())["faults"]
    assert listed == {"where": "one.txt line 3", "rule": "no area", "text": "has no area; remove it"}


def test_records_of_other_settings_or_labels_are_not_read(folder, labels):
    assert read_judgements(folder, labels, SETTINGS | {"only": ["star"]}) is None
    assert read_judgements(folder, replace(labels, boxes=labels.boxes[:5]), SETTINGS) is None


def test_an_empty_folder_has_none(tmp_path, labels):
    assert read_judgements(tmp_path, labels, SETTINGS) is None


def test_the_error_names_a_damaged_file(folder, labels):
    path = folder / "boxes.json"
    content = json.loads(path.read_text())
    del content["boxes"][0]["move"]
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match="boxes.json: was modified"):
        read_judgements(folder, labels, SETTINGS)


def test_a_file_name_that_is_not_valid_utf8(labels, tmp_path):
    """Linux allows any bytes in a file name. Python represents invalid UTF-8 as lone surrogates."""
    key = os.fsdecode(b"caf\xe9.png")
    images = [replace(labels.images[0], key=key), *labels.images[1:]]
    write_records(tmp_path, replace(labels, images=images), JUDGEMENTS, DECISIONS, SETTINGS)
    assert json.loads((tmp_path / "boxes.json").read_text())["boxes"][0]["image"] == key
    assert "caf\\udce9.png" in (tmp_path / "boxes.csv").read_text(encoding="utf-8")


def test_other_files_are_not_records(folder, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"images": []}')
    assert is_record(folder / "boxes.json") and not is_record(other) and not is_record(tmp_path / "none.json")


def test_the_table_has_a_row_for_each_label(folder, labels):
    with open(folder / "boxes.csv", newline="") as file:
        first, second, *others = csv.DictReader(file)
    assert first == {
        "key": "first", "image": "one.png", "class": "cross",
        "x1_before": "8.00", "y1_before": "9.00", "x2_before": "40.00", "y2_before": "44.00",
        "x1_after": "8.25", "y1_after": "9.00", "x2_after": "41.00", "y2_after": "44.00",
        "predicted_iou_before": "0.5000", "predicted_iou_after": "0.7500", "gain": "0.2500", "move": "0.1250",
        "decision": "accept", "reason": "gain of 0.02 or more",
    }  # fmt: skip
    assert second["decision"] == "keep" and second["gain"] == "0.0000"
    assert [row["reason"] for row in others] == JUDGEMENTS[2:] and {row["x1_after"] for row in others} == {""}
