"""Checkpoints after a process is killed or on a full disk."""

import itertools
import multiprocessing
import random
import time

import pytest
import torch

from iounet.training.checkpoint import (
    CheckpointError,
    checkpoint_path,
    load_checkpoint,
    prune_checkpoints,
    resumable_checkpoints,
    save_checkpoint,
)


def save_without_end(folder, first):
    for iteration in itertools.count(first):
        save_checkpoint(checkpoint_path(folder, iteration), **numbered(iteration))
        prune_checkpoints(folder, keep=2)


def numbered(iteration):
    return {"model": {"weight": torch.full((300_000,), float(iteration))}, "iteration": iteration}


def newest_two(folder):
    """Check that the two newest checkpoints are complete, and return their iterations."""
    found = [load_checkpoint(path) for path in resumable_checkpoints(folder)[-2:]]
    for content in found:
        assert torch.equal(content["model"]["weight"], numbered(content["iteration"])["model"]["weight"])
    return [content["iteration"] for content in found]


class TestInterruptedWriting:
    """Whatever happens while a checkpoint is written, the two before it stay complete."""

    @pytest.mark.slow
    def test_killed(self, tmp_path):
        # The processes are forked from a server that has already imported torch, so one starts every 0.1 s. The test
        # process itself has started threads and must not be forked.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "iounet.training.checkpoint"])
        for iteration in (1, 2):
            save_checkpoint(checkpoint_path(tmp_path, iteration), **numbered(iteration))
        generator = random.Random(0)
        newest, halves = 2, 0
        for _ in range(50):
            process = context.Process(target=save_without_end, args=(tmp_path, newest + 1), daemon=True)
            process.start()
            deadline = time.monotonic() + 60
            while not checkpoint_path(tmp_path, newest + 1).exists() and time.monotonic() < deadline:
                time.sleep(0.005)
            time.sleep(generator.uniform(0, 0.02))
            process.kill()
            process.join()
            before, last = newest_two(tmp_path)
            assert last == before + 1 and last > newest
            newest = last
            halves += len(list(tmp_path.glob(".*.tmp")))
        assert halves  # some processes were killed while they wrote
        prune_checkpoints(tmp_path, keep=2)
        assert len(list(tmp_path.iterdir())) == 2

    def test_a_full_disk(self, tmp_path):
        resource = pytest.importorskip("resource")
        for iteration in (1, 2):
            save_checkpoint(checkpoint_path(tmp_path, iteration), **numbered(iteration))
        size = checkpoint_path(tmp_path, 2).stat().st_size
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        generator = random.Random(0)
        for _ in range(50):
            resource.setrlimit(resource.RLIMIT_FSIZE, (generator.randrange(size), hard))
            try:
                with pytest.raises(CheckpointError, match="could not be written"):
                    save_checkpoint(checkpoint_path(tmp_path, 3), **numbered(3))
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            assert newest_two(tmp_path) == [1, 2]
        assert len(list(tmp_path.iterdir())) == 2
