"""Tools that compare, calibrate and draw, on a run of four iterations with an energy head."""

import json
import sys

import pytest
import torch
from PIL import Image

from iounet import IoURefiner
from iounet.commands import train
from iounet.training.checkpoint import load_checkpoint
from tools import (
    calibrate,
    compare,
    evidence,
    loose_boxes,
    publish,
    reproduce,
    show_refinement,
    show_unmatched,
    summarize,
)

SETTINGS = {
    "MODEL.ENERGY_HEAD.LOSS": "nce",
    "MODEL.IOU_HEAD.CANDIDATES_PER_IMAGE": 16,
    "MODEL.IOU_HEAD.LOSS": "bce",
    "TEST.REFINE.OBJECTIVE": "energy",
    "TEST.FINAL_SCORE": "class_times_iou",
    "TEST.SCORE_THRESHOLD": 0.001,
}


def words_for(run, output):
    """A tool's arguments for the detector of a run."""
    return ["--config-file", run / "config.yaml", "--weights", run / "model_final.pth", "--output", output]


@pytest.fixture(scope="module")
def compared(trained, arguments, one_thread, tmp_path_factory):
    """The folder of a run with an energy head, and the folder of its comparison."""
    folder = tmp_path_factory.mktemp("energy")
    run = folder / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, arguments(run, SETTINGS))])
        train.main()
    words = words_for(run, folder / "comparison")
    words += ["--baseline", trained / "config.yaml", trained / "model_final.pth"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["compare.py", *map(str, words)])
        compare.main()
    return run, folder / "comparison"


def test_training_calibrates_at_its_end(compared):
    run, folder = compared
    weights = load_checkpoint(run / "model_final.pth")["model"]
    assert weights["iou_head.calibration"][0] > 0
    summary = json.loads((folder / "comparison.json").read_text())
    # On the data used for fitting, the mean predicted IoU equals the mean true IoU.
    assert abs(summary["calibration"]["all candidates"]["bias"]) < 0.01


def test_calibrating_again_changes_only_the_calibration(compared, dataset, tmp_path, monkeypatch, capsys):
    run, _ = compared
    words = words_for(run, tmp_path / "again.pth")
    words += ["DATA.VAL_ANNOTATIONS", dataset / "annotations" / "train.json", "DATA.VAL_IMAGES", dataset / "train"]
    monkeypatch.setattr(sys, "argv", ["calibrate.py", *map(str, words)])
    calibrate.main()
    assert "predicted IoU calibrated on the" in capsys.readouterr().out
    before, after = (load_checkpoint(path) for path in (run / "model_final.pth", tmp_path / "again.pth"))
    changed = {key for key, value in after["model"].items() if not torch.equal(value, before["model"][key])}
    assert changed == {"iou_head.calibration"} and after["model"]["iou_head.calibration"][0] > 0
    assert after["config"] == before["config"] and after["categories"] == before["categories"]


def test_a_comparison_has_the_plain_detector_and_all_columns(compared):
    _, folder = compared
    table = json.loads((folder / "comparison.json").read_text())["table"]
    assert next(iter(table)) == "plain detector, greedy NMS"
    assert {"AP", "AP90", "Loc50", "Loc75", "ms"} <= set(table["this configuration"])
    assert (folder / "comparison.md").read_text().count("\n") == len(table) + 2


def test_evidence_for_two_seeds(compared, tmp_path, monkeypatch, capsys):
    _, folder = compared
    content = json.loads((folder / "comparison.json").read_text())
    for seed, added in ((0, 0.0), (1, 2.0)):
        table = json.loads(json.dumps(content["table"]))
        table["this configuration"] |= {"AP": 50 + added, "AP75": 40.0, "AP90": 30.0}
        table["plain detector, greedy NMS"] |= {"AP": 45.0, "AP75": 40.0, "AP90": 10.0}
        correlation = dict.fromkeys(content["correlation"], 0.8)  # undefined if nothing is detected
        changed = {"table": table, "correlation": correlation}
        (tmp_path / f"set_seed{seed}.json").write_text(json.dumps(content | changed))
    output = tmp_path / "summary.json"
    files = [str(tmp_path / f"set_seed{seed}.json") for seed in (0, 1)]
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--output", str(output), "--set", "synthetic", *files])
    evidence.main()
    summary = json.loads(output.read_text())["synthetic"]
    assert summary["seeds"] == [0, 1]
    assert summary["AP"] == {"mean": 51.0, "std": pytest.approx(2**0.5)}
    assert summary["gain_AP"]["mean"] == 6.0 and summary["gain_AP90"] == {"mean": 20.0, "std": 0.0}
    assert set(summary) == {
        "seeds",
        *(f"{prefix}{column}" for prefix in ("", "gain_") for column in ("AP", "AP75", "AP90")),
        *(f"{what}_{which}" for what in ("calibration_error", "correlation") for which in ("all", "matched")),
        "laece",
        "basin_0.75",
        "basin_0.75_predicted",
    }
    assert "synthetic, seeds [0, 1]: AP 51.000" in capsys.readouterr().out


def test_files_without_a_seed_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evidence.py", "--output", "x", "--set", "a", str(tmp_path / "run.json")])
    with pytest.raises(SystemExit, match=r"must end in _seed<N>\.json, such as _seed0\.json"):
        evidence.main()


def test_pictures(compared, dataset, tmp_path, monkeypatch, capsys):
    run, _ = compared
    words = ["--weights", run / "model_final.pth", "--annotations", dataset / "annotations" / "val.json"]
    words += ["--images", dataset / "val", "--output", tmp_path / "shown", "--rows", "0", "1", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["show_refinement.py", *map(str, words)])
    show_refinement.main()
    assert {path.name for path in (tmp_path / "shown").iterdir()} == {"loose.png", "steps.gif", "landscape.png"}
    assert "true IoU 0." in capsys.readouterr().out


def test_detections_where_nothing_is_annotated(compared, dataset, tmp_path, monkeypatch, capsys):
    run, _ = compared
    monkeypatch.setattr(show_unmatched, "MIN_SCORE", 0.0)
    empty = json.loads((dataset / "annotations" / "val.json").read_text()) | {"annotations": []}
    (tmp_path / "empty.json").write_text(json.dumps(empty))
    words = [
        "--weights",
        run / "model_final.pth",
        "--annotations",
        tmp_path / "empty.json",
        "--images",
        dataset / "val",
    ]
    words += ["--output", tmp_path / "sheet.png", "--tiles", "3", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["show_unmatched.py", *map(str, words)])
    show_unmatched.main()
    assert "(100 %) overlap no annotated object" in capsys.readouterr().out
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 3 * show_unmatched.TILE + 4 * 8


def test_reproduce_with_an_energy_head_refuses_beyond(compared, tmp_path, monkeypatch):
    run, _ = compared
    words = words_for(run, tmp_path / "tables")
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, [*words, "--beyond"])])
    with pytest.raises(SystemExit, match="for a detector with an energy head, use tools/compare.py"):
        reproduce.main()
    monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
    reproduce.main()
    content = json.loads((tmp_path / "tables" / "reproduction.json").read_text())
    evaluated = json.loads((run / "evaluation.json").read_text())
    assert list(content["nms"]) == list(evaluated["table"])
    assert list(content["nms"])[-1].endswith("class score × IoU")
    assert list(content["step_size"]) == ["0.25", "0.5", "1", "2", "4"]


def test_the_summary_of_a_comparison_has_only_tables(compared, monkeypatch, capsys):
    _, folder = compared
    monkeypatch.setattr(sys, "argv", ["summarize.py", *[str(folder / "comparison.json")] * 2])
    summarize.main()
    printed = capsys.readouterr().out
    assert "| plain detector, greedy NMS | " in printed and " ± 0.0 |" in printed
    assert "candidates of true IoU ≥ 0.5" in printed and "basins" not in printed


def test_a_published_model_has_half_the_size_and_similar_predictions(compared, call, dataset, tmp_path):
    run, _ = compared
    small = tmp_path / "small.pth"
    assert call(publish, "--weights", run / "model_final.pth", "--output", small) is None
    assert small.stat().st_size < 0.55 * (run / "model_final.pth").stat().st_size
    before, after = (load_checkpoint(path) for path in (run / "model_final.pth", small))
    assert set(after) == {"format", "model", "categories", "config"} and str(run) not in after["config"]
    for name, values in before["model"].items():
        assert after["model"][name].dtype == (torch.float16 if values.dim() > 1 else values.dtype)
        torch.testing.assert_close(after["model"][name].to(values), values, rtol=2**-11, atol=1e-7)
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    boxes = [[10.0, 10.0, 40.0, 44.0], [5.0, 20.0, 60.0, 60.0]]
    exact, rounded = (IoURefiner.from_checkpoint(path).score(image, boxes) for path in (run / "model_final.pth", small))
    torch.testing.assert_close(rounded, exact, rtol=0, atol=5e-3)
    assert call(publish, "--weights", small, "--output", small) == 2  # it would overwrite its input


def test_values_too_large_for_half_precision_are_not_published(compared, call, tmp_path):
    content = load_checkpoint(compared[0] / "model_final.pth")
    content["model"]["rpn.head.cls_logits.weight"][0] = 1e5
    torch.save(content, tmp_path / "large.pth")
    message = call(publish, "--weights", tmp_path / "large.pth", "--output", tmp_path / "small.pth")
    assert "rpn.head.cls_logits.weight has values that overflow in half precision" in message
    assert not (tmp_path / "small.pth").exists()


def test_loose_boxes_are_grouped_by_initial_iou(compared, call, dataset, tmp_path, capsys):
    words = [dataset / "annotations" / "val.json", "--images", dataset / "val", "--output", tmp_path / "loose.json"]
    assert call(loose_boxes, *words, "--weights", compared[0] / "model_final.pth") is None
    starts = json.loads((tmp_path / "loose.json").read_text())["starts"]
    for name, row in starts.items():
        low, high = map(float, name.split(" to "))
        assert low <= row["before"] <= high and 0 <= row["improved"] <= 1 and row["boxes"] > 0
    parts = ["0.6 to 0.7", "0.7 to 0.8", "0.8 to 0.9"]
    assert starts["0.6 to 0.9"]["boxes"] == sum(starts[name]["boxes"] for name in parts)
    assert f"| 0.6 to 0.9 | {starts['0.6 to 0.9']['boxes']} |" in capsys.readouterr().out
