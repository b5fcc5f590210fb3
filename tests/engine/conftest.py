"""Runs in processes of their own, for what must not happen to that of the tests: kills, signals, process groups."""

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
    """Makes processes, by a server with everything imported. This one has run threads, and must not be forked."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "iounet.commands.train"])
    return context


@pytest.fixture(scope="session")
def run_with(forks):
    """Trains with a fault: the exit code, negative for a signal that ended the process."""

    def run(arguments, fault):
        another_second()
        process = forks.Process(target=train_with_faults, args=(list(map(str, arguments)), fault))
        process.start()
        process.join(300)
        return process.exitcode

    return run


@pytest.fixture
def interrupted(trained, tmp_path):
    """The run as it was when it had written the checkpoint of its second iteration and logged the third."""
    output = tmp_path / "interrupted"
    shutil.copytree(trained, output)
    for name in ("model_final.pth", "evaluation.json", "detections.json", "checkpoints/iteration_0000004.pth"):
        (output / name).unlink()
    rows = (output / "metrics.json").read_text().splitlines(keepends=True)
    (output / "metrics.json").write_text("".join(rows[:3]))
    return output


@pytest.fixture(scope="session")
def run_group(forks):
    """Runs ``function(*arguments)`` in processes that join each other as torchrun's do: their exit codes."""

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
            process.kill()  # one that waits for another that failed
        return [process.exitcode for process in members]

    return run
