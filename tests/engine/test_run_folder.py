import csv
import json
import os
import shlex
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iounet import files
from iounet.engine import run_folder
from iounet.engine.run_folder import RunFolder, environment, git_state


def rows(path):
    return [json.loads(line) for line in (path / "metrics.json").read_text().splitlines()]


def table(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def logged(path):
    """Return tag → [(iteration, value)] and image tag → [iteration] from all TensorBoard files."""
    events = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0}).Reload()
    tags = events.Tags()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags["scalars"]}
    return scalars, {tag: [event.step for event in events.Images(tag)] for tag in tags["images"]}


def test_config_environment_metrics_and_logs_are_written(tmp_path):
    path = tmp_path / "deep" / "run"
    folder = RunFolder(path, "SEED: 3\n")
    folder.log(20, {"loss": 1.5, "loss_iou": 0.25})
    folder.log(40, {"loss": 1.25})
    folder.close()
    assert (path / "config.yaml").read_text() == "SEED: 3\n"
    assert json.loads((path / "environment.json").read_text())["torch"] == torch.__version__.split("+")[0]
    assert rows(path) == [{"iteration": 20, "loss": 1.5, "loss_iou": 0.25}, {"iteration": 40, "loss": 1.25}]
    assert (path / "metrics.csv").read_text().splitlines() == ["iteration,loss,loss_iou", "20,1.5,0.25", "40,1.25,"]
    assert not (path / "evaluation.csv").exists()
    assert logged(path)[0] == {"loss": [(20, 1.5), (40, 1.25)], "loss_iou": [(20, 0.25)]}


def test_rows_can_be_read_during_the_run(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(1, {"loss": 1.0})
    assert rows(tmp_path) == [{"iteration": 1, "loss": 1.0}]
    assert table(tmp_path / "metrics.csv") == [{"iteration": "1", "loss": "1.0"}]
    folder.close()


def test_a_new_column_of_a_table_is_empty_in_older_rows(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(1, {"loss": 1.0})
    folder.log(2, {"loss": 0.5, "loss_iou": 0.25})
    folder.log(3, {"loss_iou": 0.125, "loss": 0.75})
    folder.close()
    assert (tmp_path / "metrics.csv").read_text().splitlines() == [
        "iteration,loss,loss_iou",
        "1,1.0,",
        "2,0.5,0.25",
        "3,0.75,0.125",
    ]


def test_a_resumed_run_keeps_the_rows_up_to_its_checkpoint(tmp_path):
    folder = RunFolder(tmp_path, "")
    for iteration in (20, 40, 60):
        folder.log(iteration, {"loss": float(iteration)})
    folder.close()
    time.sleep(1.1)  # TensorBoard orders its files by name, which begins with the time in seconds
    folder = RunFolder(tmp_path, "", start_iteration=40)
    assert [row["iteration"] for row in rows(tmp_path)] == [20, 40]
    folder.log(60, {"loss": 0.5})
    folder.close()
    assert [row["loss"] for row in rows(tmp_path)] == [20.0, 40.0, 0.5]
    assert [(row["iteration"], row["loss"]) for row in table(tmp_path / "metrics.csv")] == [
        ("20", "20.0"),
        ("40", "40.0"),
        ("60", "0.5"),
    ]
    assert logged(tmp_path)[0]["loss"] == [(20, 20.0), (40, 40.0), (60, 0.5)]


def test_a_partial_row_of_a_killed_run_is_removed_on_resume(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.close()
    with open(tmp_path / "metrics.json", "a") as file:
        file.write('{"iteration": 40, "lo')
    with open(tmp_path / "metrics.csv", "a") as file:
        file.write("4")
    RunFolder(tmp_path, "", start_iteration=20).close()
    assert rows(tmp_path) == [{"iteration": 20, "loss": 1.0}]
    assert table(tmp_path / "metrics.csv") == [{"iteration": "20", "loss": "1.0"}]


def test_missing_tables_are_written_on_resume(tmp_path):
    metrics = [{"iteration": 1, "loss": 2.0}, {"iteration": 1, "soft-NMS/AP": 3.0}, {"iteration": 2, "loss": 1.0}]
    (tmp_path / "metrics.json").write_text("".join(f"{json.dumps(row)}\n" for row in metrics))
    RunFolder(tmp_path, "", start_iteration=1).close()
    assert table(tmp_path / "metrics.csv") == [{"iteration": "1", "loss": "2.0"}]
    assert table(tmp_path / "evaluation.csv") == [{"iteration": "1", "soft-NMS/AP": "3.0"}]


def test_a_new_run_removes_old_rows(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.close()
    RunFolder(tmp_path, "").close()
    assert rows(tmp_path) == []
    assert not (tmp_path / "metrics.csv").exists()


def test_a_restarted_run_replaces_the_logs_of_a_killed_one(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.flush()  # then killed, without a checkpoint
    time.sleep(1.1)  # see above
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 0.5})
    folder.close()
    assert rows(tmp_path) == [{"iteration": 20, "loss": 0.5}]
    assert logged(tmp_path)[0]["loss"] == [(20, 0.5)]


def test_evaluated_iterations(tmp_path):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.log(20, {"soft-NMS/AP": 3.0})
    folder.log(40, {"soft-NMS/AP": 3.0})
    folder.close()
    folder = RunFolder(tmp_path, "", start_iteration=20)
    folder.close()
    assert folder.evaluated == {20}


def test_a_run_killed_while_it_rewrites_its_metrics_keeps_them(tmp_path, monkeypatch):
    folder = RunFolder(tmp_path, "")
    folder.log(20, {"loss": 1.0})
    folder.close()

    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(files.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            RunFolder(tmp_path, "", start_iteration=20)
    assert rows(tmp_path) == [{"iteration": 20, "loss": 1.0}]
    RunFolder(tmp_path, "", start_iteration=20).close()
    assert rows(tmp_path) == [{"iteration": 20, "loss": 1.0}]
    assert not (tmp_path / ".metrics.json.tmp").exists()


def test_an_evaluation_is_logged_with_its_pictures(tmp_path):
    folder = RunFolder(tmp_path, "")
    for name in ("boxes", "changes", "correlation"):
        Image.new("RGBA", (8, 6), "red").save(tmp_path / f"{name}.png")
    summary = {
        "table": {"greedy NMS": {"AP": 30.0}, "soft-NMS": {"AP": 31.0}},
        "correlation": {"score": 0.25, "predicted_iou": 0.5, "num_boxes": 7},
    }
    ious, predicted = torch.tensor([0.0, 0.01, 0.5, 0.51, 0.99, 1.0]), torch.tensor([-0.1, 0.0, 0.25, 0.75, 1.0, 1.1])
    folder.log_evaluation(100, summary, {"true_iou": ious, "predicted_iou": predicted, "nothing": torch.empty(0)})
    folder.close()
    expected = {
        "greedy NMS/AP": 30.0,
        "soft-NMS/AP": 31.0,
        "correlation/score": 0.25,
        "correlation/predicted_iou": 0.5,
        "correlation/num_boxes": 7,
    }
    assert rows(tmp_path) == [{"iteration": 100} | expected]
    assert table(tmp_path / "evaluation.csv") == [
        {key: str(value) for key, value in ({"iteration": 100} | expected).items()}
    ]
    scalars, images = logged(tmp_path)
    assert [value for [(_, value)] in scalars.values()] == pytest.approx(list(expected.values()))
    assert images == {"boxes": [100], "changes": [100], "correlation": [100]}
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert events.Tags()["histograms"] == ["candidates/true_iou", "candidates/predicted_iou"]
    counts = {}
    for tag in events.Tags()["histograms"]:
        [event] = events.Histograms(tag)
        assert event.step == 100
        bins = zip(event.histogram_value.bucket_limit, event.histogram_value.bucket, strict=True)
        counts[tag] = {round(limit, 6): count for limit, count in bins if count}
    # Upper limits of bins of width 0.02. Values outside [0, 1] are counted in the outermost bins.
    assert counts["candidates/true_iou"] == {0.02: 2, 0.52: 2, 1.0: 2}
    assert counts["candidates/predicted_iou"] == {0.02: 2, 0.26: 1, 0.76: 1, 1.0: 2}


def test_the_environment_can_be_written():
    found = environment()
    assert json.loads(json.dumps(found)) == found
    assert {"python", "platform", "processor", "threads", "cuda", "gpu", "torch", "torchvision", "pycocotools"} <= set(
        found
    )
    assert found["threads"] == torch.get_num_threads()


def test_the_environment_contains_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tools/train.py", "OUTPUT_DIR", "my runs"])
    RunFolder(tmp_path, "").close()
    found = json.loads((tmp_path / "environment.json").read_text())
    assert shlex.split(found["command"]) == sys.argv
    assert found["working_directory"] == os.getcwd()
    assert found["processes"] == 1


def test_a_resumed_run_keeps_the_original_environment(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "git_state", lambda folder: ({"commit": "a"}, b"first"))
    RunFolder(tmp_path, "").close()
    monkeypatch.setattr(run_folder, "git_state", lambda folder: ({"commit": "b"}, b"second"))
    RunFolder(tmp_path, "", start_iteration=40).close()
    for suffix, commit, diff in (("", "a", b"first"), ("_0000040", "b", b"second")):
        assert json.loads((tmp_path / f"environment{suffix}.json").read_text())["git"] == {"commit": commit}
        assert (tmp_path / f"git{suffix}.diff").read_bytes() == diff
    # Resume from the same iteration again, with the changes committed.
    monkeypatch.setattr(run_folder, "git_state", lambda folder: ({"commit": "c"}, b""))
    RunFolder(tmp_path, "", start_iteration=40).close()
    assert not (tmp_path / "git_0000040.diff").exists() and (tmp_path / "git.diff").exists()


class TestGitState:
    @pytest.fixture
    def git(self, tmp_path):
        """Run git in a repository that contains code/net.py, without the user's git configuration."""
        try:
            subprocess.run(["git", "--version"], check=True, capture_output=True)
        except OSError:
            pytest.skip("no git")
        environment = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull} | {
            f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }

        def git(*arguments, **options):
            command = ["git", "-C", str(tmp_path), *arguments]
            return subprocess.run(command, check=True, capture_output=True, env=os.environ | environment, **options)

        (tmp_path / "code").mkdir()
        (tmp_path / "code" / "net.py").write_text("a = 1\n")
        git("init")
        git("add", ".")
        git("commit", "-m", "first")
        return git

    def test_a_clean_tree(self, git, tmp_path):
        commit = git("rev-parse", "HEAD").stdout.decode().strip()
        assert git_state(tmp_path / "code") == ({"commit": commit, "uncommitted": []}, b"")

    def test_changes_can_be_applied_to_the_commit(self, git, tmp_path):
        (tmp_path / "code" / "net.py").write_text("a = 2\n")
        (tmp_path / "staged.bin").write_bytes(bytes(range(256)))
        git("add", "staged.bin")
        (tmp_path / "new.py").write_text("")
        state, diff = git_state(tmp_path / "code")
        assert sorted(state["uncommitted"]) == [" M code/net.py", "?? new.py", "A  staged.bin"]
        git("reset", "--hard")
        git("apply", "-", input=diff)
        assert (tmp_path / "code" / "net.py").read_text() == "a = 2\n"
        assert (tmp_path / "staged.bin").read_bytes() == bytes(range(256))

    def test_a_huge_diff_is_left_out(self, git, tmp_path, monkeypatch):
        monkeypatch.setattr(run_folder, "LARGEST_DIFF", 50)
        (tmp_path / "code" / "net.py").write_text("a = 2\n")
        state, diff = git_state(tmp_path / "code")
        assert state["uncommitted"] == [" M code/net.py"] and diff == b""

    def test_no_state_outside_a_checkout_without_a_commit_or_without_git(self, git, tmp_path, monkeypatch):
        environment_in_it = tmp_path / ".venv" / "iounet"
        environment_in_it.mkdir(parents=True)
        (environment_in_it / "net.py").write_text("")
        assert git_state(environment_in_it) == (None, b"")
        git("update-ref", "-d", "HEAD")
        assert git_state(tmp_path / "code") == (None, b"")
        monkeypatch.setenv("PATH", "")
        assert git_state(tmp_path / "code") == (None, b"")
        RunFolder(tmp_path / "run", "").close()
        assert json.loads((tmp_path / "run" / "environment.json").read_text())["git"] is None
        assert not (tmp_path / "run" / "git.diff").exists()
