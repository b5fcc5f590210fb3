"""Training runs that are killed, signalled or given damaged files, and what must hold afterwards.

The faults are injected from inside of a process that is forked from one with everything imported, which takes a second
where a new one takes ten.
"""

import importlib.util
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from alive import alive
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from iounet.config import load_config
from iounet.modeling import IoUNet
from iounet.processes import Process
from iounet.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    resumable_checkpoints,
    save_checkpoint,
)

ROOT = Path(__file__).parents[2]


def train_with_faults(arguments, fault):
    """Runs tools/train.py in a process that is there for nothing else; ``fault(moment)`` is called at each moment.

    A moment is a string, such as "step 3": around the steps, and around and within whatever writes files.
    """
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # of the loading processes
    os.setsid()  # so that a signal to its group does not reach the tests
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which tests in the background of a shell ignore
    spec = importlib.util.spec_from_file_location("train", ROOT / "tools" / "train.py")
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)

    def around(owner, name, moment):
        function = getattr(owner, name)

        def wrapped(*args, **kwargs):
            fault(f"before {moment}")
            result = function(*args, **kwargs)
            fault(f"after {moment}")
            return result

        setattr(owner, name, wrapped)

    save, steps = torch.save, train.train_steps

    def save_by_halves(content, file):
        save(content, file)
        file.truncate(file.tell() // 2)
        fault("half a checkpoint")
        file.seek(0)
        save(content, file)

    def stepping(*args, **kwargs):
        for step in steps(*args, **kwargs):
            fault(f"step {step.iteration}")
            yield step

    torch.save, train.train_steps = save_by_halves, stepping
    around(train, "save_checkpoint", "a checkpoint")
    around(train, "prune_checkpoints", "old ones are removed")
    around(train, "evaluate_and_report", "an evaluation")
    around(train.RunFolder, "log", "a row")
    around(sys.modules["iounet.training.run_folder"], "_add_rows", "a row of a table")
    sys.argv = ["train.py", *map(str, arguments)]
    train.main()


class Signal:
    """The fault of a signal to the process and its group, at the n-th time that a moment comes."""

    def __init__(self, number, moment, count=1):
        self.number, self.moment, self.count = number, moment, count

    def __call__(self, moment):
        self.count -= self.moment in ("any", moment)
        if self.count == 0:
            os.killpg(0, self.number)
            self.count = -1


def no_fault(moment):
    pass


@pytest.fixture(scope="session")
def forks():
    """Makes processes, by a server with everything imported. This one has run threads, and must not be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "iounet.build", "iounet.evaluation", "iounet.training.run_folder"])
    return context


@pytest.fixture
def run_with(forks):
    """Trains with a fault: the exit code, negative for a signal that ended the process."""

    def run(arguments, fault):
        # TensorBoard reads its files in the order of their names, which begin with the second.
        time.sleep(1.1)
        process = forks.Process(target=train_with_faults, args=(list(map(str, arguments)), fault))
        process.start()
        process.join(300)
        return process.exitcode

    return run


def logged(folder):
    events = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def same(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    return one == other


def assert_same_run(found, expected, last=4):
    """Bit for bit: weights, the optimizer's state, every number that was logged; no row twice."""
    checkpoint, other = (load_checkpoint(checkpoint_path(run / "checkpoints", last)) for run in (found, expected))
    for key in ("model", "optimizer", "iteration", "categories"):
        assert same(checkpoint[key], other[key]), key
    assert same(*(load_checkpoint(run / "model_final.pth")["model"] for run in (found, expected)))
    for name in ("metrics.json", "metrics.csv", "evaluation.csv"):
        assert (found / name).read_text() == (expected / name).read_text()
    assert logged(found) == logged(expected)
    assert not [path for path in found.rglob("*") if path.name.endswith(".tmp")]


class TestKilled:
    def test_twenty_times(self, run_with, arguments, tmp_path):
        """Where it matters most, then at random: within steps, rows, checkpoints and evaluations."""
        settings = {"SOLVER.MAX_ITERATIONS": 24, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EVAL_PERIOD": 8}
        whole, killed = tmp_path / "whole", tmp_path / "killed"
        assert run_with(arguments(whole, settings), no_fault) == 0
        chance = random.Random(0)
        faults = [("half a checkpoint", 1), ("before an evaluation", 1), ("after an evaluation", 1)]
        faults += [("any", chance.randint(2, 15)) for _ in range(17)]
        command = [*arguments(killed, settings), "--resume"]
        for moment, count in faults:
            assert run_with(command, Signal(signal.SIGKILL, moment, count)) == -signal.SIGKILL
        assert run_with(command, no_fault) == 0
        assert_same_run(killed, whole, last=24)


class TestStopped:
    def test_by_sigterm_in_a_step_then_by_ctrl_c_in_the_evaluation(self, run_with, arguments, trained, tmp_path):
        command = [*arguments(tmp_path / "run", {"DATA.NUM_WORKERS": 1}), "--resume"]
        assert run_with(command, Signal(signal.SIGTERM, "step 1")) == 143
        checkpoints = tmp_path / "run" / "checkpoints"
        assert [path.name for path in checkpoints.iterdir()] == ["iteration_0000001.pth"]
        assert run_with(command, Signal(signal.SIGINT, "before an evaluation")) == 130
        assert sorted(path.name for path in checkpoints.iterdir()) == ["iteration_0000002.pth", "iteration_0000004.pth"]
        assert not (tmp_path / "run" / "evaluation.csv").exists()
        assert run_with(command, no_fault) == 0
        assert_same_run(tmp_path / "run", trained)


class TestDamaged:
    def test_the_checkpoint_before_is_used(self, call_tool, arguments, trained, tmp_path, capsys):
        shutil.copytree(trained, tmp_path / "run")
        path = tmp_path / "run" / "checkpoints" / "iteration_0000004.pth"
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        assert call_tool("train.py", *arguments(tmp_path / "run"), "--resume") is None
        warning = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("warning: "))
        assert f"{path} is damaged" in warning and "checksum" in warning
        assert f"set aside as {path.name}.damaged, and the run goes on from " in warning
        assert warning.endswith("iteration_0000002.pth")
        assert path.with_name(f"{path.name}.damaged").read_bytes() == content
        assert_same_run(tmp_path / "run", trained)


class NoNumber:
    """After two steps the gradient of a loss is NaN; what is printed as an error goes to a file."""

    def __init__(self, log):
        self.log = log

    def __call__(self, moment):
        if moment == "step 2":
            sys.stderr = open(self.log, "w", buffering=1)  # noqa: SIM115
            forward = IoUNet.forward

            def broken(detector, *args):
                losses = forward(detector, *args)
                losses["loss_iou"].register_hook(lambda gradient: gradient * float("nan"))
                return losses

            IoUNet.forward = broken


def test_a_gradient_that_is_no_number_ends_a_run_that_can_go_on(run_with, arguments, trained, tmp_path):
    assert run_with(arguments(tmp_path / "run"), NoNumber(tmp_path / "log")) == 1
    shown = (tmp_path / "log").read_text()
    assert re.search(r"NonFiniteLossError: iteration 2: .*gradient nan.* on images \[\d+, \d+\]", shown)
    assert "Traceback" not in shown
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["iteration_0000002.pth"]
    assert run_with([*arguments(tmp_path / "run"), "--resume"], no_fault) == 0
    assert_same_run(tmp_path / "run", trained)


class FullDisk:
    """After two steps what is written to a file finds no room; what is printed as an error goes to another."""

    def __init__(self, file, log):
        self.file, self.log = file, log

    def __call__(self, moment):
        if moment == "step 2":
            sys.stderr = open(self.log, "w", buffering=1)  # noqa: SIM115
            if self.file.exists():
                self.file.rename(f"{self.file}.before")
            self.file.symlink_to("/dev/full")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux's file that is always full")
@pytest.mark.parametrize("name", ["metrics.json", "table.md"])
def test_a_disk_that_is_full_ends_a_run_that_can_go_on(run_with, arguments, trained, tmp_path, name):
    run, file = tmp_path / "run", tmp_path / "run" / name
    assert run_with(arguments(run), FullDisk(file, tmp_path / "log")) == 1
    shown = (tmp_path / "log").read_text()
    assert "No space left on device" in shown and f"make room for {run}; --resume" in shown
    assert "Traceback" not in shown
    file.unlink()
    if (run / f"{name}.before").exists():
        (run / f"{name}.before").rename(file)
    assert run_with([*arguments(run), "--resume"], no_fault) == 0
    assert_same_run(run, trained)


class TestOtherSettings:
    @pytest.fixture
    def interrupted(self, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "run")
        (tmp_path / "run" / "checkpoints" / "iteration_0000004.pth").unlink()
        return tmp_path / "run"

    def test_they_are_told_and_apply(self, interrupted, call_tool, arguments, read_metrics, capsys):
        path = interrupted / "checkpoints" / "iteration_0000002.pth"
        content = load_checkpoint(path) | {"processes": 8}
        save_checkpoint(path, **{key: value for key, value in content.items() if key != "format"})
        settings = {"SOLVER.BASE_LR": 0.02, "SOLVER.MAX_ITERATIONS": 3, "TEST.REFINE.STEPS": 0}
        assert call_tool("train.py", *arguments(interrupted, settings), "--resume") is None
        assert (
            f"warning: {path} was trained with other settings; from here on: "
            "SOLVER.BASE_LR 0.00125 → 0.0025, SOLVER.MAX_ITERATIONS 4 → 3, TEST.REFINE.STEPS 5 → 0, processes 8 → 1\n"
        ) in capsys.readouterr().out
        training, _ = read_metrics(interrupted)
        assert [row["learning_rate"] for row in training] == pytest.approx([0.000625, 0.00125, 0.0025])

    def test_weights_that_would_mean_something_else_are_refused(self, interrupted, call_tool, arguments):
        settings = {"MODEL.RPN.ANCHOR_SIZES": "[4, 8, 16, 32, 64]"}
        message = call_tool("train.py", *arguments(interrupted, settings), "--resume")
        assert message.startswith("CheckpointError: ") and "iteration_0000002.pth cannot go on with another" in message
        assert "MODEL.RPN.ANCHOR_SIZES [8, 16, 32, 64, 128] → [4, 8, 16, 32, 64]" in message

    def test_processes_that_see_other_checkpoints_are_refused(self, interrupted, load_tool, arguments):
        class Behind(Process):
            def maximum(self, value):
                return value + 2  # another process resumes from there

        config, *overrides = arguments(interrupted)[1:]
        with pytest.raises(CheckpointError, match="other processes resume from a later iteration than 2: all must see"):
            load_tool("train.py").train(load_config(config, overrides), Behind(torch.device("cpu")), resume=True)

    def test_other_classes_are_refused(self, interrupted, dataset, call_tool, arguments, tmp_path):
        settings = {}
        for split in ("train", "val"):
            content = json.loads((dataset / "annotations" / f"{split}.json").read_text())
            content["categories"][0]["name"] = "plus"
            settings[f"DATA.{split.upper()}_ANNOTATIONS"] = tmp_path / f"{split}.json"
            settings[f"DATA.{split.upper()}_ANNOTATIONS"].write_text(json.dumps(content))
        message = call_tool("train.py", *arguments(interrupted, settings), "--resume")
        assert "iteration_0000002.pth" in message and "ids and names must agree" in message


# Also writes down which files each process opens to write, makes, renames or removes.
WITH_FAULT = """
import os, runpy, signal, sys
import iounet.training

log = open(f"{writes}_{{os.environ['RANK']}}", "w", buffering=1)

def watch(event, arguments):
    writing = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
    if writing or event in ("os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"):
        print(event, arguments[0], file=log)

sys.addaudithook(watch)

first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
steps = iounet.training.train_steps

def stepping(*args, **kwargs):
    for step in steps(*args, **kwargs):
        if step.iteration == 3 and first and os.environ["RANK"] == "1":
            {fault}
        yield step

iounet.training.train_steps = stepping
runpy.run_path({tool!r}, run_name="__main__")
"""


class TestTwoProcesses:
    TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")

    @pytest.fixture
    def run_two(self, run_tool, tmp_path):
        def run(*arguments, fault="pass", options=()):
            script = tmp_path / "train_with_fault.py"
            tool = str(ROOT / "tools" / "train.py")
            script.write_text(WITH_FAULT.format(fault=fault, tool=tool, writes=tmp_path / "writes"))
            return run_tool(script, *arguments, launcher=(*self.TORCHRUN, *options))

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

    def test_only_the_first_writes(self, run_two, arguments, tmp_path):
        done = run_two(*arguments(tmp_path / "run"))
        assert done.returncode == 0, done.stderr
        first, second = ((tmp_path / f"writes_{rank}").read_text() for rank in (0, 1))
        for name in ("metrics.json", "model_final.pth", "iteration_0000004.pth", "report.html", "tensorboard"):
            assert re.search(rf"{tmp_path}/run/.*{name}", first)
        assert str(tmp_path) not in second

    def test_one_is_killed_and_all_end(self, run_two, arguments, tmp_path):
        started = time.monotonic()
        done = run_two(*arguments(tmp_path / "run"), fault="os.kill(os.getpid(), signal.SIGKILL)")
        assert done.returncode != 0 and "SIGKILL" in done.stderr
        assert time.monotonic() - started < 60
        assert load_checkpoint(tmp_path / "run" / "checkpoints" / "iteration_0000002.pth")["iteration"] == 2

    def test_one_meets_a_bad_image(self, run_two, dataset, arguments, tmp_path):
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


class Watch:
    """Writes at some steps what the process holds on to."""

    def __init__(self, path, steps):
        self.path, self.moments = path, [f"step {step}" for step in steps]

    def __call__(self, moment):
        if moment in self.moments:
            with open(self.path, "a") as file:
                file.write(f"{alive()}\n")


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads Linux's /proc")
def test_nothing_piles_up_over_steps(run_with, arguments, tmp_path):
    """Over 1,000 steps, by hand, resident memory rose by 20 MiB for a while and fell again."""
    settings = {"SOLVER.MAX_ITERATIONS": 80, "SOLVER.CHECKPOINT_PERIOD": 30}
    assert run_with(arguments(tmp_path / "run", settings), Watch(tmp_path / "watched", (20, 50, 79))) == 0
    first, *later = (tmp_path / "watched").read_text().splitlines()
    assert later == [first] * 2
