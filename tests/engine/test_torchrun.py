"""Training with two torchrun processes, with and without a fault in one of them."""

import json
import re
import shutil
import time

import pytest

from iounet.training.checkpoint import load_checkpoint, resumable_checkpoints

pytestmark = pytest.mark.slow

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


def test_two_processes(run_tool, arguments, tmp_path, read_metrics):
    done = run_tool("train.py", *arguments(tmp_path / "run"), launcher=TORCHRUN)
    assert done.returncode == 0, done.stderr
    training, evaluation = read_metrics(tmp_path / "run")
    assert [row["iteration"] for row in training] == [1, 2, 3, 4]
    assert [row["iteration"] for row in evaluation] == [4]
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["processes"] == 2
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "iteration_0000004.pth")["processes"] == 2
    assert done.stdout.count("learning rate scaled from 0.01 for 16 images per step to 0.00125 for 2\n") == 1
    detections = json.loads((tmp_path / "run" / "detections.json").read_text())
    assert {entry["image_id"] for entry in detections} == {1, 2, 3, 4, 5}  # an odd number of images
    assert len({json.dumps(entry) for entry in detections}) == len(detections)
    per_image = [sum(entry["image_id"] == image_id for entry in detections) for image_id in range(1, 6)]
    assert max(per_image) <= 100
    assert done.stderr.count("Traceback") == 0


# Also logs the files that each process opens for writing, creates, renames or removes.
WITH_FAULT = """
import os, signal, sys
from iounet.commands import train
from iounet.engine import training

log = open(f"{writes}_{{os.environ['RANK']}}", "w", buffering=1)

def watch(event, arguments):
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        print(event, arguments[0], file=log)

sys.addaudithook(watch)

first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
steps = training.train_steps

def stepping(*args, **kwargs):
    for step in steps(*args, **kwargs):
        if step.iteration == 3 and first and os.environ["RANK"] == "1":
            {fault}
        yield step

training.train_steps = stepping
train.main()
"""


class TestWithFaults:
    @pytest.fixture
    def run_two(self, run_tool, tmp_path):
        def run(*arguments, fault="pass", options=()):
            script = tmp_path / "train_with_fault.py"
            script.write_text(WITH_FAULT.format(fault=fault, writes=tmp_path / "writes"))
            return run_tool(script, *arguments, launcher=(*TORCHRUN, *options))

        return run

    def test_one_is_killed_and_torchrun_recovers(self, run_two, arguments, tmp_path, read_metrics):
        fault = "os.kill(os.getpid(), signal.SIGKILL)"
        done = run_two(*arguments(tmp_path / "run"), "--resume", fault=fault, options=["--max-restarts=1"])
        assert done.returncode == 0, done.stderr
        assert "exitcode: -9" in done.stderr or "Signal 9" in done.stderr or "SIGKILL" in done.stderr
        training, evaluation = read_metrics(tmp_path / "run")
        assert [row["iteration"] for row in training] == [1, 2, 3, 4]
        assert [row["iteration"] for row in evaluation] == [4]
        assert (tmp_path / "run" / "environment_0000002.json").exists()

    def test_only_rank_0_writes(self, run_two, arguments, tmp_path):
        done = run_two(*arguments(tmp_path / "run"))
        assert done.returncode == 0, done.stderr
        first, second = ((tmp_path / f"writes_{rank}").read_text() for rank in (0, 1))
        for name in ("metrics.json", "model_final.pth", "iteration_0000004.pth", "report.html", "tensorboard"):
            assert re.search(rf"{tmp_path}/run/.*{name}", first)
        assert str(tmp_path) not in second

    def test_if_one_is_killed_all_end(self, run_two, arguments, tmp_path):
        started = time.monotonic()
        done = run_two(*arguments(tmp_path / "run"), fault="os.kill(os.getpid(), signal.SIGKILL)")
        assert done.returncode != 0 and "SIGKILL" in done.stderr
        assert time.monotonic() - started < 60
        assert load_checkpoint(tmp_path / "run" / "checkpoints" / "iteration_0000002.pth")["iteration"] == 2

    def test_one_reads_a_damaged_image(self, run_two, dataset, arguments, tmp_path):
        shutil.copytree(dataset / "train", tmp_path / "images")
        damaged = tmp_path / "images" / "000004.png"
        damaged.write_bytes(damaged.read_bytes()[:500])
        started = time.monotonic()
        done = run_two(*arguments(tmp_path / "run", {"DATA.TRAIN_IMAGES": tmp_path / "images"}))
        assert done.returncode == 1
        assert f"DataError: {damaged}: cannot be read as an image" in done.stderr
        assert time.monotonic() - started < 60

    def test_torchrun_is_stopped(self, run_two, arguments, tmp_path):
        done = run_two(*arguments(tmp_path / "run"), fault="os.kill(os.getppid(), signal.SIGTERM)")
        assert done.returncode != 0
        assert "SIGTERM: stopped after iteration" in done.stdout + done.stderr
        newest = resumable_checkpoints(tmp_path / "run" / "checkpoints")[-1]
        assert load_checkpoint(newest)["iteration"] in (3, 4)
