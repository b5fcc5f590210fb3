"""Fixtures that run training in separate processes, for tests of kills, signals and process groups."""

import multiprocessing
import shutil
import socket

import pytest

pytest.register_assert_rewrite("same_run")

from faults import train_with_faults  # noqa: E402
from process_group import as_member  # noqa: E402
from same_run import another_second  # noqa: E402


@pytest.fixture(scope="session")
def forks():
    """Return a context whose processes are forked from a server that has already imported everything.

    The test process itself has started threads and must not be forked.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "iounet.commands.train"])
    return context


@pytest.fixture(scope="session")
def run_with(forks):
    """Train with a fault; return the exit code, negative if a signal ended the process."""

    def run(arguments, fault):
        another_second()
        process = forks.Process(target=train_with_faults, args=(list(map(str, arguments)), fault))
        process.start()
        process.join(300)
        return process.exitcode

    return run


@pytest.fixture
def interrupted(trained, tmp_path):
    """Return a copy of the run as it was after logging iteration 3, with the checkpoint of iteration 2."""
    output = tmp_path / "interrupted"
    shutil.copytree(trained, output)
    for name in ("model_final.pth", "evaluation.json", "detections.json", "checkpoints/iteration_0000004.pth"):
        (output / name).unlink()
    rows = (output / "metrics.json").read_text().splitlines(keepends=True)
    (output / "metrics.json").write_text("".join(rows[:3]))
    return output


@pytest.fixture(scope="session")
def run_group(forks):
    """Run ``function(*arguments)`` in processes with torchrun's environment; return their exit codes."""

    def run(count, function, *arguments):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        members = [
            forks.Process(target=as_member, args=(rank, count, port, function, *arguments)) for rank in range(count)
        ]
        for process in members:
            process.start()
        for process in members:
            process.join(100)
            process.kill()  # may still wait for a failed process
        return [process.exitcode for process in members]

    return run
