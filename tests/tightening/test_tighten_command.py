"""iounet-tighten from end to end on the validation images of the synthetic set."""

import json
import shutil

import pytest

from iounet import IoURefiner
from iounet.commands import tighten
from iounet.data.label_files import read_labels
from iounet.tightening import run as module
from iounet.tightening.decisions import DECISIONS_FORMAT
from iounet.training.checkpoint import load_checkpoint, save_checkpoint


@pytest.fixture
def source(dataset, tmp_path):
    """A copy of the validation set: annotations.json and images/."""
    folder = tmp_path / "set"
    shutil.copytree(dataset / "val", folder / "images")
    content = json.loads((dataset / "annotations" / "val.json").read_text())
    for annotation in content["annotations"]:
        del annotation["segmentation"]  # labels with a polygon are not moved
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder / "annotations.json"


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def run(call, checkpoint, source, output):
    """A function that runs the command with more arguments and returns its exit status or message."""

    def run(*words, source=source, weights=checkpoint, output=output):
        return call(tighten, source, "--weights", weights, "--output", output, *words)

    return run


def records(output):
    return json.loads((output / "boxes.json").read_text())


def annotations(path):
    return {f"annotation {entry['id']}": entry for entry in json.loads(path.read_text())["annotations"]}


def corners(entry):
    x, y, width, height = entry["bbox"]
    return [x, y, x + width, y + height]


def test_the_copy_has_the_accepted_boxes_and_all_others_unchanged(run, source, output, capsys):
    original = source.read_bytes()
    assert run("--min-gain", "0") is None
    rows = records(output)["boxes"]
    accepted = {row["key"]: row["box_after"] for row in rows if row["decision"] == "accept"}
    assert 0 < len(accepted) < len(rows)  # otherwise half of this test checks nothing
    before, after = annotations(source), annotations(output / "labels" / "annotations.json")
    assert list(after) == list(before) == [row["key"] for row in rows]
    for key, entry in after.items():
        if key in accepted:
            assert corners(entry) == pytest.approx(accepted[key], abs=0.011)
        else:
            assert entry == before[key]
    assert source.read_bytes() == original
    assert {path.name for path in output.iterdir()} == {"labels", "boxes.json", "boxes.csv", "review.html"}
    shown = capsys.readouterr().out
    assert f"{len(rows)} labels in 5 images" in shown and f"{len(accepted):9,} moved" in shown
    labels = read_labels(output / "labels" / "annotations.json", images=source.parent / "images")
    assert len(labels.boxes) == len(rows)


def test_a_coco_file_with_an_upper_case_suffix(run, source, output):
    assert run(source=source.rename(source.with_name("LABELS.JSON"))) is None
    assert [path.name for path in (output / "labels").iterdir()] == ["LABELS.JSON"]


def test_an_output_that_cannot_be_created_fails_before_the_work(run, source, tmp_path, monkeypatch):
    monkeypatch.setattr(IoURefiner, "from_checkpoint", lambda *arguments: pytest.fail("the work has started"))
    (tmp_path / "file").write_text("")
    assert "file is a file); choose another" in run(output=tmp_path / "file" / "out")


def test_yolo_labels_stay_yolo_labels(run, source, output, tmp_path):
    """The same boxes in YOLO format: images/IMG.png, and labels/IMG.txt with class, relative centre and size."""
    content = json.loads(source.read_text())
    folder = tmp_path / "yolo"
    shutil.copytree(source.parent / "images", folder / "images")
    (folder / "labels").mkdir()
    for image in content["images"]:
        width, height = image["width"], image["height"]
        lines = []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, w, h = entry["bbox"]
                shares = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
                lines.append(f"{entry['category_id'] - 1} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
        (folder / "labels" / image["file_name"]).with_suffix(".txt").write_text("".join(lines))
    names = "".join(f"  {entry['id'] - 1}: {entry['name']}\n" for entry in content["categories"])
    (folder / "data.yaml").write_text(f"train: images\nval: images\nnames:\n{names}")
    before = {path.name: path.read_text() for path in (folder / "labels").iterdir()}

    assert run("--min-gain", "0", source=folder / "data.yaml") is None
    accepted = [row for row in records(output)["boxes"] if row["decision"] == "accept"]
    assert accepted
    copies = {path.name: path.read_text() for path in (output / "labels").rglob("*.txt")}
    assert set(copies) == set(before)
    changed = [
        (old, new)
        for name, text in before.items()
        for old, new in zip(text.splitlines(), copies[name].splitlines(), strict=True)
        if old != new
    ]
    assert len(changed) == len(accepted)
    assert all(old.split()[0] == new.split()[0] for old, new in changed)
    assert {path.name: path.read_text() for path in (folder / "labels").iterdir()} == before


def test_thresholds_decide(run, output):
    assert run("--min-gain", "1") is None
    assert {row["decision"] for row in records(output)["boxes"]} == {"keep"}


def test_only_some_classes(run, output):
    assert run("--only", "star") is None
    for row in records(output)["boxes"]:
        assert ("box_after" in row) == (row["class"] == "star")


class TestOtherClasses:
    """The data set has the classes cross, ellipse, rectangle, star and triangle."""

    def test_none_is_known(self, run, output):
        message = run("--only", "rectangle", "ellipse")
        assert message.startswith("DataError: ") and "trained on none of its classes" in message
        assert "--folds 4" in message and "--class-agnostic" in message and "\n" not in message
        assert "Classes to tighten: ellipse, rectangle. Classes of the checkpoint: cross, star, triangle" in message
        assert not output.exists()
        assert run("--only", "rectangle", "ellipse", "--class-agnostic") is None

    def test_some_are_known(self, run, capsys):
        assert run() is None
        assert "classes unknown to the refiner: ellipse, rectangle; --folds 4 trains" in capsys.readouterr().out

    def test_a_network_that_does_not_recognise_the_objects_moves_nothing(
        self, run, output, checkpoint, tmp_path, capsys
    ):
        """The predicted IoU is the sigmoid of the head's output, so a bias of -9 makes it close to 0 for all boxes."""
        content = load_checkpoint(checkpoint)
        del content["format"]
        content["model"]["iou_head.predictor.bias"] -= 9
        save_checkpoint(tmp_path / "blind.pth", **content)
        assert run("--min-gain", "0", weights=tmp_path / "blind.pth") is None
        rows = records(output)["boxes"]
        judged = sum("box_after" in row for row in rows)
        assert judged > 0 and {row["decision"] for row in rows} == {"keep"}
        shown = capsys.readouterr().out
        assert "kept: predicted IoU below 0.5" in shown
        assert f"for {judged} of {judged} labels it predicts an IoU below 0.5" in shown
        assert "with --folds 4" in shown


class TestDecisions:
    @pytest.fixture
    def decide(self, run, output, tmp_path):
        """Runs once, and saves a file that reverses the decisions on the first two moved labels."""
        assert run() is None
        content = records(output)
        moved = [row for row in content["boxes"] if row.get("move")][:2]
        decisions = {row["key"]: "keep" if row["decision"] == "accept" else "accept" for row in moved}
        assert len(decisions) == 2
        path = tmp_path / "decisions.json"
        saved = {key: content[key] for key in ("labels", "proposals")}
        path.write_text(json.dumps({"format": DECISIONS_FORMAT, **saved, "decisions": decisions}))
        return path, decisions, content

    def test_decisions_override_thresholds_without_running_the_network(self, run, output, decide, monkeypatch):
        path, decisions, before = decide
        monkeypatch.setattr(IoURefiner, "from_checkpoint", None)  # calling it would fail
        assert run("--decisions", path) is None
        for row, earlier in zip(records(output)["boxes"], before["boxes"], strict=True):
            if row["key"] in decisions:
                assert row["decision"] == decisions[row["key"]] and row["reason"] == "reviewed"
            else:
                assert row == earlier

    def test_decisions_apply_in_another_folder(self, run, decide, tmp_path):
        path, decisions, _ = decide
        assert run("--decisions", path, output=tmp_path / "other") is None
        rows = {row["key"]: row["decision"] for row in records(tmp_path / "other")["boxes"]}
        assert {key: rows[key] for key in decisions} == decisions

    def test_decisions_on_another_data_set_are_refused(self, run, source, output, decide):
        path, *_ = decide
        content = json.loads(source.read_text())
        content["annotations"][0]["bbox"][2] += 1
        source.write_text(json.dumps(content))
        before = {file: file.read_bytes() for file in output.rglob("*") if file.is_file()}
        message = run("--decisions", path)
        assert message.startswith(f"DataError: {path}: the decisions do not belong to the labels")
        assert "\n" not in message
        assert {file: file.read_bytes() for file in output.rglob("*") if file.is_file()} == before

    def test_decisions_on_other_proposals_are_refused(self, run, decide, capsys):
        path, *_ = decide
        assert "do not belong to these proposed boxes" in run("--decisions", path, "--class-agnostic")
        assert "computing them again" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--min-gain", "2"], "ConfigError: --min-gain must lie in [0, 1]; got 2.0"),
        (["--folds", "1"], "ConfigError: --folds must be at least 2; got 1"),
        (["--folds", "2", "--class-agnostic"], "ConfigError: --class-agnostic has no effect with --folds"),
        (["--min-iou", "-1"], "ConfigError: --min-iou must lie in [0, 1]; got -1.0"),
        (["--batch-size", "0"], "ConfigError: --batch-size must be at least 1; got 0"),
        (["--only", "moon"], "DataError: --only moon: no such class"),
        (["--decisions", "none.json"], "DataError: none.json: no such decisions file"),
        (["--weights", "none.pth"], "CheckpointError: none.pth: no such weights file"),
        (["--images", "none"], "DataError: none: no such image folder"),
        (["--device", "foo"], "ConfigError: unknown device 'foo'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(run, output, words, message):
    found = run(*words)
    assert found.startswith(message) and "\n" not in found
    assert not output.exists()


def test_an_output_inside_the_data_set_is_refused(run, source):
    assert "overlaps the data set" in run(output=source.parent)


def test_a_damaged_image_is_counted(run, source, output, capsys):
    first = json.loads(source.read_text())["images"][0]
    path = source.parent / "images" / first["file_name"]
    path.write_bytes(path.read_bytes()[:-200])
    assert run() is None
    kept = [row for row in records(output)["boxes"] if row["reason"] == "image missing or damaged"]
    assert kept and {row["image"] for row in kept} == {str(first["id"])}
    assert f"{len(kept):9,} kept: image missing or damaged" in capsys.readouterr().out


@pytest.mark.parametrize("stopped_in", ["propose", "write_review"])
def test_ctrl_c_leaves_nothing(run, output, monkeypatch, capsys, stopped_in):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, stopped_in, interrupt)
    assert run() == 130
    assert not output.exists() and "is unchanged" in capsys.readouterr().err


def test_ctrl_c_leaves_the_earlier_run(run, output, monkeypatch):
    assert run() is None
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}

    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_review", interrupt)
    assert run("--min-gain", "1") == 130
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before
