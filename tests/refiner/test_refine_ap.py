"""The command with ground truth: AP before and after refinement."""

import json

import pytest
from coco_results import entry, perfect_entries

from iounet.evaluation import AP_COLUMNS, CocoEvaluator


@pytest.fixture
def val_json(dataset):
    return dataset / "annotations" / "val.json"


@pytest.fixture
def annotations(val_json):
    return json.loads(val_json.read_text())


def test_ap_before_and_after(refine, write, val_json, annotations, capsys, tmp_path):
    refined = refine(write(perfect_entries(annotations)), "--annotations", val_json)
    lines = capsys.readouterr().out.splitlines()
    before, after = (next(line for line in lines if line.startswith(f"| {row}")) for row in ("before", "refined"))
    assert before.split("|")[1].strip() == "before" and set(before.split("|")[2:-1]) == {" 100.0 "}
    expected = CocoEvaluator(annotations)(refined)
    columns = [f"{expected[column]:.1f}" for column in AP_COLUMNS]
    assert [cell.strip() for cell in after.split("|")[1:-1]] == ["refined", *columns]
    table = json.loads((tmp_path / "out" / "evaluation.json").read_text())["table"]
    assert table["before"]["AP"] == pytest.approx(100) and table["refined"]["AP"] == pytest.approx(expected["AP"])
    page = (tmp_path / "out" / "report.html").read_text()
    assert ">100.0<" in page
    assert page.count("data:image/") == 1 + 5  # the sheet of changes and five images


def test_ultralytics_with_an_annotation_file(refine, write, val_json, annotations, capsys):
    """ultralytics names images by file stem; images and classes are still matched, and AP is computed."""
    by_stem = [given | {"image_id": f"{given['image_id']:06d}"} for given in perfect_entries(annotations)]
    refined = refine(write(by_stem), "--annotations", val_json)
    assert [found["image_id"] for found in refined] == [given["image_id"] for given in by_stem]
    shown = capsys.readouterr().out
    assert "matched by name" in shown and "| before  | 100.0 |" in shown
    by_id = refine(write([found | {"image_id": int(found["image_id"])} for found in by_stem], "ids.json"))
    assert [found["bbox"] for found in refined] == [found["bbox"] for found in by_id]


def test_detections_left_out_of_ap_are_counted(refine, write, val_json, annotations, capsys):
    unscored = [entry(1, [30.0, 30.0, -5.0, 4.0]), entry(1, [1.0, 2.0, 3.0, 4.0], category_id=99)]
    given = [*perfect_entries(annotations), *unscored]
    assert isinstance(refine(write(given), "--annotations", val_json), list)
    shown = capsys.readouterr().out
    assert "AP leaves out 2 of the detections" in shown and "| before  | 100.0 |" in shown


@pytest.mark.parametrize(
    "fault", [{"annotations": [{"image_id": 1, "category_id": 1}]}, {"categories": []}, {"annotations": [5]}]
)
def test_with_invalid_objects_only_ap_is_missing(refine, write, annotations, capsys, fault):
    bad = write(annotations | fault, "bad.json")
    refined = refine(write([entry(1, [5, 6, 30, 40])]), "--annotations", bad)
    assert refined[0]["predicted_iou"] != 0
    assert "AP is not computed: the objects of" in capsys.readouterr().out


def test_the_ap_of_no_detections_is_0(refine, write, val_json, capsys):
    assert refine(write([]), "--annotations", val_json) == []
    rows = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [[cell.strip() for cell in row] for row in rows[2:]] == [["0.0"] * len(AP_COLUMNS)] * 2


def test_outdated_files_of_an_earlier_run_are_removed(refine, detect, write, dataset, val_json, tmp_path):
    given = write([entry(1, [5, 6, 30, 40])])
    detect(dataset / "val")
    refine(given, "--annotations", val_json)
    assert (tmp_path / "out" / "evaluation.json").exists() and not (tmp_path / "out" / "images.json").exists()
    refine(given)
    assert not (tmp_path / "out" / "evaluation.json").exists()
