from fnmatch import fnmatch

import pytest
import torch
from torch import nn

from iounet.config import get_cfg
from iounet.engine.resuming import FIXED, FREE, compare_settings, restore_optimizer
from iounet.errors import CheckpointError
from iounet.training import learning_rate_schedule


def keys(node, prefix=""):
    for key, value in node.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]


def config(**settings):
    cfg = get_cfg()
    cfg.merge_from_list([word for key, value in settings.items() for word in (key.replace("__", "."), value)])
    return cfg.dump()


class TestChangedSettings:
    @pytest.mark.parametrize("pattern", FREE + FIXED)
    def test_every_pattern_is_of_a_key(self, pattern):
        assert [key for key in keys(get_cfg()) if fnmatch(key, pattern)]

    def test_no_key_but_one_is_both(self):
        both = [key for key in keys(get_cfg()) if all(any(fnmatch(key, p) for p in group) for group in (FREE, FIXED))]
        assert both == ["MODEL.BACKBONE.WEIGHTS"]  # which only begins a run

    def test_what_changes_the_course_or_the_evaluation_is_told_old_and_new(self):
        before = config(SOLVER__BASE_LR=0.01, SOLVER__STEPS=(3, 5))
        now = config(SOLVER__BASE_LR=0.02, SOLVER__STEPS=(4,), SEED=7, TEST__NMS_THRESHOLD=0.6)
        assert compare_settings(before, now, "a.pth") == [
            "SEED 0 → 7",
            "SOLVER.BASE_LR 0.01 → 0.02",
            "SOLVER.STEPS (3, 5) → (4,)",
            "TEST.NMS_THRESHOLD 0.5 → 0.6",
        ]

    def test_what_does_not_is_not(self):
        now = config(
            OUTPUT_DIR="elsewhere",
            MODEL__WEIGHTS="other.pth",
            MODEL__BACKBONE__WEIGHTS="moved.pth",
            DATA__NUM_WORKERS=0,
            SOLVER__EVAL_PERIOD=7,
            SOLVER__LOG_PERIOD=7,
            SOLVER__CHECKPOINT_PERIOD=7,
            TEST__CUDA_GRAPHS=False,
        )
        assert compare_settings(config(), now, "a.pth") == []

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("MODEL__RPN__ANCHOR_SIZES", (16, 32, 64, 128, 256)),  # the weights would fit
            ("MODEL__FPN__CANONICAL_SCALE", 112),
            ("MODEL__IOU_HEAD__LOSS", "bce"),
            ("MODEL__BACKBONE__NORM_EPS", 0.0),
            ("SOLVER__OPTIMIZER", "AdamW"),
        ],
    )
    def test_what_the_weights_depend_on_is_refused(self, key, value):
        name = key.replace("__", ".")
        with pytest.raises(CheckpointError, match=rf"a\.pth cannot go on with another {name} .* → .*; resume with"):
            compare_settings(config(), config(**{key: value}), "a.pth")

    @pytest.mark.parametrize("before", ["SEED: !!python/object/apply:os.mkdir [made]\n", "SEED: [1\n", "- 5\n", ""])
    def test_what_is_no_configuration_is_refused(self, before, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match=r"a\.pth: its configuration cannot be read .*damaged"):
            compare_settings(before, config(), "a.pth")
        assert not list(tmp_path.iterdir())

    def test_keys_of_another_version(self):
        """One that is no more is passed over; one that has another name is known; one that was not yet had its default.

        So a configuration of old names alone is that of the defaults.
        """
        before = "SEED: 0\nSOLVER:\n  BATCH_SIZE: 4\nTEST:\n  REFINE:\n    CUDA_GRAPHS: true\n    STEPS: 5\n"
        now = config(SEED=1, SOLVER__GLOBAL_BATCH_SIZE=4, SOLVER__DECAY="linear", TEST__REFINE__NUM_STEPS=6)
        assert compare_settings(before, now, "a.pth") == [
            "SEED 0 → 1",
            "SOLVER.DECAY step → linear",
            "TEST.REFINE.NUM_STEPS 5 → 6",
        ]


class TestRestoringTheOptimizer:
    def build(self, *, lr=0.5, weight_decay=0.25, steps=(4,)):
        weight = nn.Parameter(torch.tensor([3.0, -1.0]))
        optimizer = torch.optim.SGD([weight], lr=lr, momentum=0.5, weight_decay=weight_decay)
        schedule = learning_rate_schedule(
            optimizer,
            decay="step",
            num_iterations=9,
            steps=steps,
            gamma=0.1,
            warmup="linear",
            warmup_iterations=3,
            warmup_factor=0.3,
        )
        return weight, optimizer, schedule

    def rates(self, weight, optimizer, schedule, number):
        rates = []
        for _ in range(number):
            optimizer.zero_grad()
            weight.square().sum().backward()
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        return rates

    @pytest.mark.parametrize("stopped", range(7))
    def test_it_goes_on_as_if_it_had_not_stopped(self, stopped):
        whole = self.build()
        expected = self.rates(*whole, 7)
        first, second = self.build(), self.build()
        before = self.rates(*first, stopped)
        with torch.no_grad():
            second[0].copy_(first[0])
        restore_optimizer(*second[1:], first[1].state_dict(), stopped, "a.pth")
        assert before + self.rates(*second, 7 - stopped) == expected  # exactly
        assert torch.equal(second[0], whole[0])

    def test_options_are_those_of_now(self):
        first, second = self.build(), self.build(lr=2.0, weight_decay=0.0, steps=(2,))
        self.rates(*first, 3)
        restore_optimizer(*second[1:], first[1].state_dict(), 3, "a.pth")
        assert second[1].param_groups[0]["lr"] == pytest.approx(2.0 * 0.1)
        assert second[1].param_groups[0]["weight_decay"] == 0.0
        buffers = (optimizer.state[weight]["momentum_buffer"] for weight, optimizer, _ in (first, second))
        assert torch.equal(*buffers)

    def test_of_another_network(self):
        other = torch.optim.SGD([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))], lr=0.1)
        with pytest.raises(CheckpointError, match=r"a\.pth holds the optimizer's state of another network"):
            restore_optimizer(*self.build()[1:], other.state_dict(), 3, "a.pth")
