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
    def test_every_pattern_matches_a_key(self, pattern):
        assert [key for key in keys(get_cfg()) if fnmatch(key, pattern)]

    def test_only_one_key_is_in_both_lists(self):
        both = [key for key in keys(get_cfg()) if all(any(fnmatch(key, p) for p in group) for group in (FREE, FIXED))]
        assert both == ["MODEL.BACKBONE.WEIGHTS"]  # only used at the start of a run

    def test_changes_of_training_or_evaluation_are_listed(self):
        before = config(SOLVER__BASE_LR=0.01, SOLVER__STEPS=(3, 5))
        now = config(SOLVER__BASE_LR=0.02, SOLVER__STEPS=(4,), SEED=7, TEST__NMS_THRESHOLD=0.6)
        assert compare_settings(before, now, "a.pth") == [
            "SEED 0 → 7",
            "SOLVER.BASE_LR 0.01 → 0.02",
            "SOLVER.STEPS (3, 5) → (4,)",
            "TEST.NMS_THRESHOLD 0.5 → 0.6",
        ]

    def test_other_changes_are_not_listed(self):
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
            ("MODEL__RPN__ANCHOR_SIZES", (16, 32, 64, 128, 256)),  # the shapes of the weights would fit
            ("MODEL__FPN__CANONICAL_SCALE", 112),
            ("MODEL__IOU_HEAD__LOSS", "bce"),
            ("MODEL__BACKBONE__NORM_EPS", 0.0),
            ("SOLVER__OPTIMIZER", "AdamW"),
        ],
    )
    def test_changes_of_settings_that_the_weights_depend_on_are_refused(self, key, value):
        name = key.replace("__", ".")
        with pytest.raises(CheckpointError, match=rf"a\.pth cannot be resumed with changed settings: {name} .* → .*;"):
            compare_settings(config(), config(**{key: value}), "a.pth")

    @pytest.mark.parametrize("before", ["SEED: !!python/object/apply:os.mkdir [made]\n", "SEED: [1\n", "- 5\n", ""])
    def test_an_invalid_configuration_is_refused(self, before, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(CheckpointError, match=r"a\.pth: the configuration in this checkpoint cannot .*damaged"):
            compare_settings(before, config(), "a.pth")
        assert not list(tmp_path.iterdir())

    def test_keys_of_another_version(self):
        """Removed keys are ignored, renamed keys are recognised, and missing keys count as their defaults.

        A configuration that has only old names is therefore equal to the defaults.
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
    def test_it_continues_like_an_uninterrupted_run(self, stopped):
        whole = self.build()
        expected = self.rates(*whole, 7)
        first, second = self.build(), self.build()
        before = self.rates(*first, stopped)
        with torch.no_grad():
            second[0].copy_(first[0])
        restore_optimizer(*second[1:], first[1].state_dict(), stopped, "a.pth")
        assert before + self.rates(*second, 7 - stopped) == expected  # exactly
        assert torch.equal(second[0], whole[0])

    def test_options_are_those_of_the_current_configuration(self):
        first, second = self.build(), self.build(lr=2.0, weight_decay=0.0, steps=(2,))
        self.rates(*first, 3)
        restore_optimizer(*second[1:], first[1].state_dict(), 3, "a.pth")
        assert second[1].param_groups[0]["lr"] == pytest.approx(2.0 * 0.1)
        assert second[1].param_groups[0]["weight_decay"] == 0.0
        buffers = (optimizer.state[weight]["momentum_buffer"] for weight, optimizer, _ in (first, second))
        assert torch.equal(*buffers)

    def test_of_another_network(self):
        other = torch.optim.SGD([nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))], lr=0.1)
        with pytest.raises(CheckpointError, match=r"a\.pth has the optimizer state of another network"):
            restore_optimizer(*self.build()[1:], other.state_dict(), 3, "a.pth")
