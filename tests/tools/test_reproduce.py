import contextlib
import io
import json
import sys

import pytest

from tools import reproduce


@pytest.fixture(scope="module")
def reproduced(trained, arguments, one_thread, tmp_path_factory):
    """The output folder and the printed text."""
    output = tmp_path_factory.mktemp("reproduce") / "tables"
    weights = trained / "model_final.pth"
    words = ["--weights", weights, "--baseline", weights, "--output", output, "--beyond", *arguments(output / "unused")]
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as printed:
        patch.setattr(sys, "argv", ["reproduce.py", *map(str, words)])
        reproduce.main()
    return output, printed.getvalue()


def test_the_page_shows_every_file(reproduced):
    output, printed = reproduced
    page = (output / "README.md").read_text()
    for picture in output.glob("*.png"):
        assert f"({picture.name})" in page
    for table in output.glob("*.md"):
        if table.name != "README.md":
            assert table.read_text().strip() in page
            assert table.with_suffix(".csv").exists()
    assert {path.stem for path in output.glob("*.csv")} == {
        "nms",
        "ablation",
        "step_size",
        "beyond",
        "steps",
        "surviving",
        "latency",
    }
    assert (output / "ablation.md").read_text() in printed and not (output / "unused").exists()


def test_the_tables_are_those_of_the_evaluation(reproduced, trained):
    output, _ = reproduced
    content = json.loads((output / "reproduction.json").read_text())
    evaluated = json.loads((trained / "evaluation.json").read_text())
    assert list(content["nms"]) == list(evaluated["table"])
    for row, columns in content["nms"].items():
        assert columns == pytest.approx({column: evaluated["table"][row][column] for column in columns})
    assert content["correlation"] == pytest.approx(evaluated["correlation"], nan_ok=True)
    # The detector itself serves as the baseline.
    assert content["ablation"]["plain detector"] == content["nms"]["greedy NMS"]
    assert content["ablation"]["+ refinement"] == content["nms"]["IoU-guided NMS + refinement"]
    assert content["beyond"]["the paper's"] == content["step_size"]["0.5"] == content["ablation"]["+ refinement"]
    for start in ("gradient ascent, 0", "repeated box regression, 0"):
        assert content["steps"][start] == content["nms"]["IoU-guided NMS"]


def test_an_output_folder_that_is_a_file_is_refused_before_detection(trained, call, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(reproduce, "reproduce", lambda *_, **__: pytest.fail("detected"))
    (tmp_path / "file").touch()
    words = ["--weights", trained / "model_final.pth", "--output", tmp_path / "file", *arguments(tmp_path / "unused")]
    assert call(reproduce, *words).startswith(f"ConfigError: {tmp_path / 'file'}: cannot be used as the output folder")


def test_wrong_weights_are_named(call, arguments, tmp_path):
    message = call(reproduce, "--weights", tmp_path / "none.pth", "--output", tmp_path, *arguments(tmp_path))
    assert "none.pth" in message and "\n" not in message
