"""iounet-train --eval-only, with one process and with several."""

import json
from pathlib import Path

import pytest
from process_group import run_train
from written import REPORT, ROWS

from iounet.commands import train


class TestEvalOnly:
    def test_it_gives_the_results_of_the_training_run(self, trained, call, arguments, tmp_path, capsys):
        final = trained / "model_final.pth"
        assert call(train, *arguments(tmp_path / "eval", {"MODEL.WEIGHTS": final}), "--eval-only") is None
        assert {path.name for path in (tmp_path / "eval").iterdir()} == REPORT
        found, expected = (
            sorted(json.loads((output / "detections.json").read_text()), key=lambda e: (e["image_id"], -e["score"]))
            for output in (tmp_path / "eval", trained)
        )
        assert [entry["category_id"] for entry in found] == [entry["category_id"] for entry in expected]
        for one, other in zip(found, expected, strict=True):
            assert one["bbox"] == pytest.approx(other["bbox"], abs=1e-2)
        shown = capsys.readouterr().out
        assert "| IoU-guided NMS + refinement |" in shown
        assert f"report: {tmp_path / 'eval' / 'report.html'}" in shown

    def test_the_page_states_its_origin(self, trained, dataset, call, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.REFINE.NUM_STEPS": 2}
        assert call(train, *arguments(tmp_path / "eval", settings), "--eval-only") is None
        page = (tmp_path / "eval" / "report.html").read_text()
        for fact in (
            "IoU-Net: eval",
            "--eval-only",
            f"{dataset / 'annotations' / 'val.json'}, 5 images",
            "num steps 2, step size 0.5, early stop 0.001, degeneration -0.01, coordinates pixels, step policy every",
        ):
            assert fact in page

    def test_steps_of_length_0_do_not_change_the_row(self, trained, call, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.REFINE.STEP_SIZE": 0.0}
        assert call(train, *arguments(tmp_path / "eval", settings), "--eval-only") is None
        table = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["table"]
        assert table["IoU-guided NMS + refinement"] == table["IoU-guided NMS"]

    def test_a_detector_that_finds_nothing_has_an_ap_of_0(self, trained, call, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.SCORE_THRESHOLD": 1.0}
        assert call(train, *arguments(tmp_path / "eval", settings), "--eval-only") is None
        assert json.loads((tmp_path / "eval" / "detections.json").read_text()) == []
        table = json.loads((tmp_path / "eval" / "evaluation.json").read_text())["table"]
        assert [table[row][column] for row in ROWS for column in ("AP", "AP50", "AR100")] == [0.0] * 12

    def test_it_needs_weights(self, call, arguments, tmp_path):
        message = call(train, *arguments(tmp_path), "--eval-only")
        assert "MODEL.WEIGHTS is not set; set it to the checkpoint" in message

    def test_categories_must_agree(self, trained, dataset, call, arguments, tmp_path):
        content = json.loads((dataset / "annotations" / "val.json").read_text())
        content["categories"][0]["name"] = "plus"
        (tmp_path / "renamed.json").write_text(json.dumps(content))
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "DATA.VAL_ANNOTATIONS": tmp_path / "renamed.json"}
        message = call(train, *arguments(tmp_path / "eval", settings), "--eval-only")
        assert "model_final.pth" in message and "renamed.json" in message
        assert message.endswith("; give files with the same category ids and names")

    @pytest.mark.parametrize(
        ("key", "value", "change"),
        [
            ("MODEL.IOU_HEAD.LOSS", "bce", "MODEL.IOU_HEAD.LOSS smooth_l1 → bce"),
            ("MODEL.FPN.CANONICAL_SCALE", 999, "MODEL.FPN.CANONICAL_SCALE "),
        ],
    )
    def test_settings_that_decode_the_weights_must_agree(self, trained, call, arguments, tmp_path, key, value, change):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", key: value}
        message = call(train, *arguments(tmp_path / "eval", settings), "--eval-only")
        assert f"model_final.pth was trained with other settings (training → now): {change}" in message
        assert message.endswith("; evaluate with the settings of training") and not (tmp_path / "eval").exists()

    @pytest.mark.parametrize(
        ("key", "value", "message"),
        [
            ("TEST.BATCH_SIZE_PER_DEVICE", 0, "TEST.BATCH_SIZE_PER_DEVICE must be at least 1; got 0"),
            ("DATA.NUM_WORKERS", -1, "DATA.NUM_WORKERS must be at least 0; got -1"),
        ],
    )
    def test_numbers_out_of_range(self, trained, call, arguments, tmp_path, key, value, message):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", key: value}
        assert call(train, *arguments(tmp_path / "eval", settings), "--eval-only") == f"ConfigError: {message}"

    def test_the_initial_weights_of_training_are_not_needed(self, trained, call, arguments, tmp_path):
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "MODEL.BACKBONE.WEIGHTS": tmp_path / "gone.pth"}
        assert call(train, *arguments(tmp_path / "eval", settings), "--eval-only") is None

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
    def test_a_full_disk(self, trained, call, arguments, tmp_path):
        output = tmp_path / "eval"
        output.mkdir()
        (output / ".table.md.tmp").symlink_to("/dev/full")
        words = arguments(output, {"MODEL.WEIGHTS": trained / "model_final.pth"})
        message = call(train, *words, "--eval-only")
        assert "No space left on device" in message and message.endswith(f": free disk space for {output}")


class TestByProcesses:
    """Any number of processes writes the same bytes; five images and five classes do not divide evenly."""

    FILES = ("detections.json", "evaluation.json", "table.md")

    @pytest.fixture
    def words(self, trained, arguments, tmp_path):
        # One image at a time, the default: results of padded batches differ in the last digits.
        settings = {"MODEL.WEIGHTS": trained / "model_final.pth", "TEST.BATCH_SIZE_PER_DEVICE": 1}
        return lambda count: [*arguments(tmp_path / str(count), settings), "--eval-only"]

    def test_two_processes_give_the_files_of_one(self, call, run_group, words, tmp_path):
        assert call(train, *words(1)) is None
        assert run_group(2, run_train, *map(str, words(2))) == [0, 0]
        one, two = ([(tmp_path / run / name).read_bytes() for name in self.FILES] for run in ("1", "2"))
        assert json.loads(one[0])
        assert two == one

    @pytest.mark.slow
    def test_one_two_and_three_processes_of_torchrun(self, run_tool, words, tmp_path):
        files = {}
        for count in (1, 2, 3):
            launcher = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}")
            done = run_tool("train.py", *words(count), launcher=launcher)
            assert done.returncode == 0, done.stderr
            files[count] = [(tmp_path / str(count) / name).read_bytes() for name in self.FILES]
        assert json.loads(files[1][0])
        assert files[2] == files[1] and files[3] == files[1]
