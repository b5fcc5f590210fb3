"""Tests the CUDA emulator in cuda_on_cpu with small kernels: it runs correct kernels and reports faulty ones."""

import ctypes
import re
from pathlib import Path

import pytest
import torch
from cuda_on_cpu import EmulationError, Emulator
from torch import Tensor

SOURCE = Path(__file__).parent / "emulator_kernels.cuh"
THREADS = 64


@pytest.fixture(scope="module")
def emulator(needs_emulator, tmp_path_factory) -> Emulator:
    names = re.findall(r"__global__ void (\w+)", SOURCE.read_text())
    kernels = [f"emulated::{name}" for name in names]
    return Emulator(kernels, [SOURCE.name], tmp_path_factory.mktemp("emulator"), sources=SOURCE.parent)


def launch(
    emulator: Emulator, kernel: str, output: Tensor, input_: Tensor, *, blocks: int = 1, shared_bytes: int = 0
) -> None:
    passed = [ctypes.c_void_p(tensor.data_ptr()) for tensor in (output, input_)]
    arguments = (ctypes.c_void_p * len(passed))(*map(ctypes.addressof, passed))
    with emulator.memory(input_, writable=[output]):
        emulator.launch(f"emulated::{kernel}", (blocks, 1, 1), (THREADS, 1, 1), arguments, shared_bytes)


def run(emulator: Emulator, kernel: str, **options: int) -> Tensor:
    output = torch.zeros(THREADS)
    launch(emulator, kernel, output, torch.arange(THREADS, dtype=torch.float32), **options)
    return output


def test_dynamic_shared_memory(emulator):
    output = run(emulator, "reverse_in_dynamic_shared_memory", shared_bytes=4 * THREADS)
    assert output.tolist() == list(reversed(range(THREADS)))


def test_atomics(emulator):
    output = run(emulator, "add_atomically", blocks=3)
    assert output[:9].tolist() == [*(3 * THREADS * n for n in range(8)), 0]


def test_shuffles_of_half_warps(emulator):
    output = run(emulator, "sum_halves_of_warps")
    assert output.tolist() == [sum(range(16 * n, 16 * n + 16)) for n in range(4) for _ in range(16)]


def test_votes_and_shuffles(emulator):
    output = run(emulator, "vote_and_shuffle")
    for n, value in enumerate(output.tolist()):
        first, last = n // 32 * 32, n // 32 * 32 + 31
        votes = 1 + 2 * (first == 32) + 4 * (first == 32)
        assert value == votes + 10 * first + 100 * min(n + 1, last) + 10000 * max(n - 1, first)


def test_warp_barriers(emulator):
    assert run(emulator, "exchange_in_warp").tolist() == [(n ^ 1) + 2 for n in range(THREADS)]


@pytest.mark.parametrize(
    ("kernel", "message"),
    [
        ("miss_block_barrier", r"races: it (reads|writes) byte \d+ of values at emulator_kernels.cuh:\d+, which"),
        ("miss_warp_barrier", "races"),
        ("synchronize_half_of_warp", "races"),
        ("add_plainly", "races: it (reads|writes) element 0 of a tensor"),
        ("read_what_others_add_to", "races: it (reads|atomically adds to) element 0 of a tensor"),
        ("read_shared_memory_of_earlier_block", "which no thread of its block has written"),
        ("read_beyond_tensor", "reads 4 bytes outside all tensors"),
        ("write_beyond_tensor", "writes 4 bytes outside all tensors"),
        ("write_to_input", "writes a read-only tensor"),
        ("read_beyond_dynamic_shared_memory", "writes 4 bytes beyond the shared variables"),
        ("read_misaligned_vector", "type_mismatch"),
        ("add_to_misaligned_vector", "at an address that is not a multiple|type_mismatch"),
        ("shuffle_with_mask_of_others", "the mask 0xffff, which does not contain its lane"),
        ("shuffle_from_absent_lane", "reads from lane 16, which does not take part"),
        ("shuffle_without_some_lanes", "deadlocks after 0 of its 64 threads have ended"),
        ("synchronize_at_two_places", "the threads call it at different places"),
        ("synchronize_without_some_threads", "deadlocks after 40 of its 64 threads have ended"),
        ("use_too_much_shared_memory", "uses more than the available 49152 bytes of shared memory"),
    ],
)
def test_wrong_kernels(emulator, kernel, message):
    with pytest.raises(EmulationError, match=message):
        run(emulator, kernel, blocks=2, shared_bytes=4 * THREADS)
    # The emulator works again after a failure.
    test_dynamic_shared_memory(emulator)


@pytest.mark.parametrize(
    ("grid", "block", "shared_bytes"),
    [
        ((0, 1, 1), (32, 1, 1), 0),
        ((1, 65536, 1), (32, 1, 1), 0),
        ((1, 1, 65536), (32, 1, 1), 0),
        ((1 << 31, 1, 1), (32, 1, 1), 0),
        ((1, 1, 1), (32, 33, 1), 0),
        ((1, 1, 1), (1, 1, 65), 0),
        ((1, 1, 1), (32, 1, 1), (48 << 10) + 1),
    ],
)
def test_launches_that_a_gpu_refuses(emulator, grid, block, shared_bytes):
    with pytest.raises(EmulationError, match="too large|not allowed"):
        emulator.launch("emulated::write_to_input", grid, block, (ctypes.c_void_p * 2)(), shared_bytes)


def test_unknown_kernel(emulator):
    with pytest.raises(KeyError, match="emulated::none"):
        emulator.launch("emulated::none", (1, 1, 1), (32, 1, 1), (ctypes.c_void_p * 2)())


def test_large_shared_memory_must_be_allowed(emulator):
    with pytest.raises(EmulationError, match="not allowed"):
        run(emulator, "reverse_in_dynamic_shared_memory", shared_bytes=100 << 10)
    emulator.allow_dynamic_shared_memory("emulated::reverse_in_dynamic_shared_memory", 100 << 10)
    test_dynamic_shared_memory(emulator)
    with pytest.raises(EmulationError, match="than any GPU has"):
        emulator.allow_dynamic_shared_memory("emulated::reverse_in_dynamic_shared_memory", 1 << 20)


def test_new_tensors_are_writable_and_not_yet_written(emulator):
    with emulator.memory():
        values = torch.empty(THREADS)
    assert values.isnan().all()
