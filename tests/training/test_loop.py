import math

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from iounet.errors import NonFiniteLossError
from iounet.training import train_steps


class Detector(nn.Module):
    """A detector with two losses: one pulls a weight towards each image's mean, the other a weight towards zero."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.frozen = nn.Parameter(torch.tensor([5.0]), requires_grad=False)
        self.modes, self.targets = [], []

    def forward(self, images, targets):
        self.modes.append(self.training)
        self.targets.append(targets)
        means = torch.stack([image.mean() for image in images])
        return {
            "loss_pull": (self.weight[0] - means).square().mean(),
            "loss_small": 0.5 * self.weight[1].square(),
        }


def batch(value, image_id, *more):
    images = [torch.full((3, 2, 2), value)]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "image_id": image_id}]
    if more:
        further = batch(*more)
        return images + further[0], targets + further[1]
    return images, targets


def run(detector, batches, *, lr=0.1, rate_factor=lambda iteration: 1.0, **options):
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate_factor)
    return train_steps(detector, batches, optimizer, schedule, device=torch.device("cpu"), seed=0, **options)


def test_steps_by_hand():
    detector = Detector()
    steps = list(run(detector, [batch(0.5, 1), batch(0.5, 2)]))
    assert [step.iteration for step in steps] == [1, 2]
    # First step: losses (1 - 0.5)^2 and 0.5 * 2^2; gradients 2 * 0.5 and -2; then the weights are 0.9 and -1.8.
    assert steps[0].losses == pytest.approx({"loss_pull": 0.25, "loss_small": 2.0, "loss": 2.25})
    assert steps[1].losses == pytest.approx({"loss_pull": 0.16, "loss_small": 1.62, "loss": 1.78})
    assert detector.weight.tolist() == pytest.approx([0.9 - 0.08, -1.8 + 0.18])
    assert detector.frozen.tolist() == [5.0]


def test_iterations_are_counted_from_the_start_iteration():
    steps = list(run(Detector(), [batch(0.5, 1)] * 3, start_iteration=7))
    assert [step.iteration for step in steps] == [8, 9, 10]


def test_the_learning_rate_reported_is_the_one_used():
    detector = Detector()
    last, used = detector.weight[1].item(), []
    reported = []
    for step in run(
        detector, [batch(0.5, i) for i in range(4)], rate_factor=lambda iteration: (1, 2, 0.5, 3)[min(iteration, 3)]
    ):
        reported.append(step.learning_rate)
        used.append(1 - detector.weight[1].item() / last)  # the gradient is the weight itself
        last = detector.weight[1].item()
    assert reported == pytest.approx([0.1, 0.2, 0.05, 0.3])
    assert used == pytest.approx(reported, rel=1e-4)


def test_a_step_is_yielded_before_the_next_batch_is_taken():
    taken = []

    def batches():
        for image_id in range(3):
            taken.append(image_id)
            yield batch(0.5, image_id)

    steps = run(Detector(), batches())
    assert next(steps).iteration == 1
    assert taken == [0]


def test_every_step_sets_training_mode():
    detector = Detector()
    for _ in run(detector, [batch(0.5, 1)] * 3):
        detector.eval()
    assert detector.modes == [True, True, True]


def test_gradients_do_not_add_up_over_the_steps():
    detector = Detector()
    list(run(detector, [batch(1.0, 1)] * 2, lr=0.0))
    assert detector.weight.grad.tolist() == [0.0, -2.0]


@pytest.mark.parametrize(("clip", "norm"), [(0.0, 5.0), (0.5, 0.5), (100.0, 5.0)])
def test_the_gradient_is_clipped_to_its_norm(clip, norm):
    detector = Detector()
    with torch.no_grad():
        detector.weight.copy_(torch.tensor([2.0, 3.0]))  # gradients 2 * (2 - 0) and 3
    before = detector.weight.detach().clone()
    list(run(detector, [batch(0.0, 1)], lr=1.0, clip_gradient=clip))
    step = before - detector.weight.detach()
    assert step.norm().item() == pytest.approx(norm, rel=1e-4)
    assert (step / step.norm()).tolist() == pytest.approx([0.8, 0.6], rel=1e-4)


def test_a_batch_in_parts_gives_the_mean_of_their_gradients_and_losses():
    images_and_targets = batch(0.5, 1, 0.0, 2, 0.25, 3, 1.0, 4)
    whole, parted = Detector(), Detector()
    (expected,) = run(whole, [images_and_targets])
    (found,) = run(parted, [images_and_targets], accumulation_steps=2)
    assert [len(targets) for targets in parted.targets] == [2, 2]
    assert found.losses == pytest.approx(expected.losses)
    assert found.gradient_norm == pytest.approx(expected.gradient_norm)
    assert parted.weight.tolist() == pytest.approx(whole.weight.tolist())


def test_a_batch_without_equal_parts_is_refused():
    with pytest.raises(ValueError, match="a batch of 2 images cannot be divided into 3 equal parts"):
        list(run(Detector(), [batch(0.5, 1, 0.5, 2)], accumulation_steps=3))


def train_rank(rank, folder):
    """Train three steps with whole batches and three in parts; save the weights and the number of exchanges."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    outcomes = []
    for accumulation_steps in (1, 2):
        exchanges = []

        def counting(_, bucket, exchanges=exchanges):
            exchanges.append(1)
            return default_hooks.allreduce_hook(None, bucket)

        detector = Detector()
        parallel = DistributedDataParallel(detector)
        parallel.register_comm_hook(None, counting)
        mine = [batch(0.5, 1, 0.0, 2), batch(0.25, 3, 1.0, 4)][rank]
        list(run(parallel, [mine] * 3, accumulation_steps=accumulation_steps))
        outcomes.append((detector.weight.detach(), len(exchanges)))
    torch.save(outcomes, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_step_by_the_mean_of_their_gradients_and_exchange_it_once_a_step(tmp_path):
    torch.multiprocessing.spawn(train_rank, (str(tmp_path),), nprocs=2)
    alone = Detector()
    list(run(alone, [batch(0.5, 1, 0.0, 2, 0.25, 3, 1.0, 4)] * 3))
    for (weight, exchanges), (other, _) in zip(*(torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)), strict=True):
        assert torch.equal(weight, other)
        torch.testing.assert_close(weight, alone.weight.detach())
        assert exchanges == 3


def test_the_detector_gets_boxes_and_labels():
    detector = Detector()
    list(run(detector, [batch(0.5, "image seven")]))
    assert [set(target) for target in detector.targets[0]] == [{"boxes", "labels"}]


def test_random_numbers_depend_only_on_seed_and_iteration():
    def drawn(start, seed):
        numbers = []

        class Drawing(Detector):
            def forward(self, images, targets):
                numbers.append(torch.rand(()).item())
                return super().forward(images, targets)

        detector = Drawing()
        schedule = torch.optim.SGD(detector.parameters(), lr=0.1)
        torch.rand(start + seed)  # earlier draws must not matter
        rate = torch.optim.lr_scheduler.LambdaLR(schedule, lambda iteration: 1.0)
        batches = [batch(0.5, 1)] * (4 - start)
        list(
            train_steps(detector, batches, schedule, rate, device=torch.device("cpu"), seed=seed, start_iteration=start)
        )
        return numbers

    whole = drawn(0, seed=3)
    assert len(set(whole)) == 4
    assert drawn(2, seed=3) == whole[2:]
    assert not set(whole) & set(drawn(0, seed=4))


def test_a_gradient_that_is_not_finite_stops_although_the_loss_is_finite():
    class Steep(Detector):
        def forward(self, images, targets):
            return {"loss_root": (self.weight - self.weight.detach()).abs().sum().sqrt()}  # 0 with an infinite gradient

    detector = Steep()
    before = detector.weight.detach().clone()
    with pytest.raises(NonFiniteLossError, match="gradient nan.*images \\[7\\]"):
        list(run(detector, [batch(0.5, 7)]))
    assert torch.equal(detector.weight.detach(), before)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_the_images_and_leaves_the_weights(value):
    detector = Detector()
    steps = run(detector, [batch(0.5, 3), batch(0.25, 17, value, 42), batch(0.5, 4)], start_iteration=100)
    next(steps)
    before = detector.weight.detach().clone()
    with pytest.raises(NonFiniteLossError) as caught:
        next(steps)
    message = str(caught.value)
    assert "on images [17, 42]" in message
    assert f"loss_pull {value:.4g}" in message
    assert "loss_small 1.62" in message
    assert "iteration 101" in message
    assert "lower the learning rate" in message and "SOLVER" not in message
    assert torch.equal(detector.weight, before)
    assert list(steps) == []
