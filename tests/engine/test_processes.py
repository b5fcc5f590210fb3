"""The processes of a distributed run: sharing, gathering and joining the process group."""

import json

import pytest
import torch
import torch.distributed as dist

from iounet.build import build_training
from iounet.config import load_config
from iounet.engine import Process, init_process
from iounet.engine.processes import _in_turns
from iounet.errors import ConfigError

CPU = torch.device("cpu")
ITEMS = list("abcdefg")


class TestInTurns:
    @pytest.mark.parametrize(
        ("parts", "expected"),
        [
            ([], []),
            ([[]], []),
            ([["a", "b"]], ["a", "b"]),
            ([["a", "c"], ["b", "d"]], ["a", "b", "c", "d"]),
            ([["a", "d"], ["b"], ["c"]], ["a", "b", "c", "d"]),
            ([["a"], [], ["b"]], ["a", "b"]),
            ([[None, False], [0]], [None, 0, False]),  # None and False are valid items
        ],
    )
    def test_the_first_of_each_then_the_second(self, parts, expected):
        assert _in_turns(parts) == expected

    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    def test_it_inverts_sharing(self, world_size):
        shares = [Process(CPU, rank, world_size).share(ITEMS) for rank in range(world_size)]
        assert _in_turns(shares) == ITEMS
        assert max(map(len, shares)) - min(map(len, shares)) <= 1


class TestSingleProcess:
    def test_it_is_the_main_process_and_has_all_items(self):
        process = Process(CPU)
        assert process.is_main and (process.rank, process.world_size) == (0, 1)
        assert process.share(ITEMS) == process.gather(ITEMS) == process.all_gather(ITEMS) == ITEMS
        assert process.maximum(-3) == -3

    def test_without_torchrun(self, monkeypatch):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        assert init_process(CPU) == Process(CPU)
        assert not dist.is_initialized()


def test_torchrun_chooses_the_gpus(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"MODEL\.DEVICE cuda:1 is a specific GPU, but with torchrun each process"):
        init_process(torch.device("cuda:1"))


def exchange(folder):
    process = init_process(CPU)
    share = process.share(ITEMS)
    found = {
        "process": [process.rank, process.world_size, process.is_main],
        "share": share,
        "gather": process.gather(share),
        "all_gather": process.all_gather(share),
        "maximum": process.maximum(10 - process.rank),
    }
    (folder / f"{process.rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_two_processes_exchange_items(run_group, tmp_path):
    assert run_group(2, exchange, tmp_path) == [0, 0]
    main, other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert main["process"] == [0, 2, True] and other["process"] == [1, 2, False]
    assert main["share"] == ["a", "c", "e", "g"] and other["share"] == ["b", "d", "f"]
    assert main["gather"] == ITEMS and other["gather"] == []
    assert main["all_gather"] == other["all_gather"] == ITEMS
    assert main["maximum"] == other["maximum"] == 10


class TestRefusedSettings:
    @pytest.fixture
    def build_for_two(self, arguments, tmp_path):
        def build(settings):
            config, *overrides = map(str, arguments(tmp_path / "run", settings)[1:])
            return build_training(load_config(config, overrides), device=CPU, num_processes=2)

        return build

    def test_sync_batch_norm_on_cpus(self, build_for_two):
        with pytest.raises(ConfigError, match="SyncBN under torchrun needs GPUs"):
            build_for_two({"MODEL.BACKBONE.NORM": "SyncBN"})

    def test_an_odd_batch_for_two(self, build_for_two):
        with pytest.raises(
            ConfigError, match=r"SOLVER\.GLOBAL_BATCH_SIZE 3 cannot be divided equally among 2 processes"
        ):
            build_for_two({"SOLVER.GLOBAL_BATCH_SIZE": 3})

    def test_the_batch_is_divided_by_the_processes(self, build_for_two):
        assert build_for_two({"SOLVER.GLOBAL_BATCH_SIZE": 6}).batch_size == 3
