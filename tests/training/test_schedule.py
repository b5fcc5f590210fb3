import pytest
import torch

from iounet.training import learning_rate_schedule


def optimizer_at(learning_rate):
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=learning_rate)


def rates(num_used, *, base=1.0, **options):
    """The learning rates that a training loop's first iterations use."""
    optimizer = optimizer_at(base)
    schedule = learning_rate_schedule(optimizer, **{"decay": "step", "num_iterations": num_used} | options)
    used = []
    for _ in range(num_used):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return used


@pytest.mark.parametrize(
    ("iteration", "learning_rate"),
    [
        (0, 0.004),
        (9_999, 0.004),
        (10_000, 0.01),
        (119_999, 0.01),
        (120_000, 0.001),
        (159_999, 0.001),
    ],
)
def test_the_papers_rates(iteration, learning_rate):
    schedule = learning_rate_schedule(
        optimizer_at(0.01),
        **{"decay": "step", "num_iterations": 160_000, "steps": (120_000,), "gamma": 0.1},
        **{"warmup": "constant", "warmup_iterations": 10_000, "warmup_factor": 0.4},
    )
    assert 0.01 * schedule.lr_lambdas[0](iteration) == pytest.approx(learning_rate, rel=1e-12)


def test_the_papers_schedule_a_thousand_times_shorter():
    used = rates(160, base=0.01, steps=(120,), gamma=0.1, warmup="constant", warmup_iterations=10, warmup_factor=0.4)
    assert used == pytest.approx([0.004] * 10 + [0.01] * 110 + [0.001] * 40)


def test_linear_warm_up():
    used = rates(6, steps=(), gamma=0.1, warmup="linear", warmup_iterations=4, warmup_factor=0.2)
    assert used == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0])


def test_linear_decay():
    used = rates(4, decay="linear", steps=(1,), gamma=0.1, warmup="linear", warmup_iterations=0, warmup_factor=0.1)
    assert used == pytest.approx([1.0, 0.75, 0.5, 0.25])


def test_linear_decay_after_warm_up_and_beyond_the_last_iteration():
    options = dict(decay="linear", num_iterations=4, steps=(), gamma=0.1)
    used = rates(6, warmup="constant", warmup_iterations=2, warmup_factor=0.1, **options)
    assert used == pytest.approx([0.1, 0.075, 0.5, 0.25, 0.0, 0.0])


def test_several_steps():
    used = rates(5, steps=(1, 3), gamma=0.5, warmup="linear", warmup_iterations=0, warmup_factor=0.1)
    assert used == pytest.approx([1.0, 0.5, 0.5, 0.25, 0.25])


def test_a_step_within_the_warm_up_counts():
    used = rates(4, steps=(2,), gamma=0.1, warmup="constant", warmup_iterations=3, warmup_factor=0.5)
    assert used == pytest.approx([0.5, 0.5, 0.05, 0.1])


def test_a_restored_schedule_continues():
    options = dict(
        decay="step", num_iterations=6, steps=(4,), gamma=0.1, warmup="linear", warmup_iterations=3, warmup_factor=0.1
    )
    whole = rates(6, **options)
    optimizer = optimizer_at(1.0)
    schedule = learning_rate_schedule(optimizer, **options)
    for _ in range(3):
        optimizer.step()
        schedule.step()
    optimizer_state, state = optimizer.state_dict(), schedule.state_dict()
    optimizer = optimizer_at(1.0)
    schedule = learning_rate_schedule(optimizer, **options)
    optimizer.load_state_dict(optimizer_state)
    schedule.load_state_dict(state)
    used = []
    for _ in range(3):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert used == pytest.approx(whole[3:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"warmup": "cosine"}, "warmup must be one of constant, linear; got 'cosine'"),
        ({"decay": "cosine"}, "decay must be one of step, linear; got 'cosine'"),
        ({"steps": (5, 3)}, r"steps must be in ascending order; got \(5, 3\)"),
    ],
)
def test_errors(change, message):
    options = dict(decay="step", num_iterations=9, steps=(), gamma=0.1)
    options |= dict(warmup="constant", warmup_iterations=1, warmup_factor=0.4)
    with pytest.raises(ValueError, match=message):
        learning_rate_schedule(optimizer_at(1.0), **options | change)
