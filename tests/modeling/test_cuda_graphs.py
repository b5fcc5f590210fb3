"""CUDA graphs: with function calls in place of replays, and on a GPU with real graphs."""

import copy
import threading

import pytest
import torch
from repeated import Repeated

from iounet.modeling import cuda_graphs
from iounet.modeling.cuda_graphs import CudaGraphs


def weighted(tensors, factor=1.0):
    maps, vector = tensors
    return maps.mean((0, 2, 3)) * factor, vector.cumsum(0) * factor


def tensors(height, length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(2, 3, height, 5, generator=generator), torch.rand(length, generator=generator)]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_agrees_with_the_function_after_any_earlier_calls(layout):
    graphs = Repeated(weighted)
    for seed, (height, length, factor) in enumerate(
        [(4, 6, 1.0), (4, 6, 2.0), (2, 3, 1.0), (8, 3, 1.0), (4, 6, 1.0), (8, 3, 1.0), (4, 9, 2.0), (4, 6, 2.0)]
    ):
        maps, vector = tensors(height, length, seed)
        given = [maps.contiguous(memory_format=layout), vector]
        assert_same(graphs(given, factor), weighted(given, factor))


def test_records_once_for_each_shape_dtype_and_constant():
    graphs = Repeated(weighted)
    largest, smaller = tensors(8, 9), tensors(4, 6)
    for given in ([largest], [smaller], [largest, 2.0], [largest], [smaller], [largest, 2.0]):
        graphs(*given)
    assert graphs.recordings == 3
    graphs([largest[0], largest[1].double()])
    assert graphs.recordings == 4


def test_results_are_not_overwritten_by_the_next_call():
    graphs = Repeated(weighted)
    first = graphs(tensors(4, 6, seed=0))
    graphs(tensors(4, 6, seed=1))
    assert_same(first, weighted(tensors(4, 6, seed=0)))


def test_all_shapes_share_memory_until_a_larger_one_comes():
    places = []

    def note(given):
        places.append([tensor.data_ptr() for tensor in given])
        assert given[0].is_contiguous(memory_format=torch.channels_last)
        return weighted(given)

    graphs = Repeated(note)
    for height, length in ((8, 6), (4, 3), (2, 6)):
        graphs(tensors(height, length))
    assert all(place == places[0] for place in places)
    graphs(tensors(9, 6))  # larger than the shared memory
    recordings = graphs.recordings
    graphs(tensors(8, 6))
    assert graphs.recordings == recordings + 1


def test_the_number_of_graphs_is_limited(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_GRAPHS", 2)
    graphs = Repeated(weighted)
    for height in (4, 3, 2):
        assert_same(graphs(tensors(height, 6)), weighted(tensors(height, 6)))
        assert len(graphs._recorded) <= 2


def test_a_copy_starts_without_graphs():
    graphs = Repeated(weighted)
    graphs(tensors(4, 6))
    twin = copy.deepcopy(graphs)
    assert not twin._recorded and not twin._inputs
    assert_same(twin(tensors(4, 6)), weighted(tensors(4, 6)))


def test_inputs_are_not_kept_after_a_call():
    graphs = Repeated(weighted)
    maps, vector = tensors(4, 6)
    graphs([maps.requires_grad_(), vector])
    assert not any(memory.requires_grad for memory in graphs._inputs.values())


def test_changed_weights_are_used_and_moved_weights_are_recorded_again():
    weights = [torch.tensor(2.0)]
    graphs = Repeated(lambda given: [given[1] * weights[0]], weights=lambda: weights)
    given = tensors(4, 6)
    assert_same(graphs(given), [given[1] * 2])
    weights[0].fill_(3.0)
    assert_same(graphs(given), [given[1] * 3])
    assert graphs.recordings == 1
    weights[0] = torch.tensor(4.0)
    assert_same(graphs(given), [given[1] * 4])
    assert graphs.recordings == 2


def in_four_threads(work):
    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_threads_may_call_at_the_same_time():
    graphs = Repeated(weighted)
    wrong = []

    def work(seed):
        for repetition in range(20):
            given = tensors(4 + repetition % 3, 6, seed)
            found = graphs(given, float(seed))
            if not all(torch.allclose(a, b) for a, b in zip(found, weighted(given, float(seed)), strict=True)):
                wrong.append(seed)

    in_four_threads(work)
    assert not wrong


def test_gradients_can_be_computed_in_inference_mode():
    def slope(given):
        with torch.enable_grad():
            vector = given[1].detach().requires_grad_()
            return torch.autograd.grad(vector.square().sum(), vector)

    graphs = Repeated(slope)
    with torch.inference_mode():
        given = tensors(4, 6)
        assert_same(graphs(given), [2 * given[1]])
    assert_same(graphs(tensors(4, 6, seed=1)), [2 * tensors(4, 6, seed=1)[1]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_on_a_gpu():
    graphs = CudaGraphs(weighted)
    for seed, (height, length) in enumerate([(8, 9), (4, 6), (8, 9), (4, 6), (16, 9), (8, 9)]):
        given = [tensor.cuda() for tensor in tensors(height, length, seed)]
        assert_same(graphs(given, 3.0), weighted(given, 3.0))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_threads_with_separate_streams_on_a_gpu():
    graphs = CudaGraphs(weighted)
    wrong = []

    def work(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            for _ in range(50):
                given = [tensor.cuda() for tensor in tensors(64, 6, seed)]
                found, expected = graphs(given, float(seed)), weighted(given, float(seed))
                if not all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True)):
                    wrong.append(seed)

    in_four_threads(work)
    assert not wrong
