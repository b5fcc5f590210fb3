"""Training runs that are killed or signalled and then resumed."""

import random
import signal

import pytest
from faults import Signal, no_fault
from same_run import assert_same_run

# The most critical moments, each at its first occurrence.
NAMED = [("half a checkpoint", 1), ("before an evaluation", 1), ("after an evaluation", 1)]


SETTINGS = {"SOLVER.MAX_ITERATIONS": 24, "SOLVER.CHECKPOINT_PERIOD": 1, "SOLVER.EVAL_PERIOD": 8}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def whole(run_with, arguments, tmp_path_factory):
    output = tmp_path_factory.mktemp("kills") / "whole"
    assert run_with(arguments(output, SETTINGS), no_fault) == 0
    return output


class TestKilled:
    @pytest.fixture
    def survives(self, run_with, arguments, whole, tmp_path):
        def check(faults):
            command = [*arguments(tmp_path / "killed", SETTINGS), "--resume"]
            for moment, count in faults:
                assert run_with(command, Signal(signal.SIGKILL, moment, count)) == -signal.SIGKILL
            assert run_with(command, no_fault) == 0
            assert_same_run(tmp_path / "killed", whole, last=24)

        return check

    def random_moments(self, number, seed):
        """Return random moments within steps, rows, checkpoints and evaluations."""
        chance = random.Random(seed)
        return [("any", chance.randint(2, 15)) for _ in range(number)]

    def test_six_times(self, survives):
        survives(NAMED + self.random_moments(3, seed=1))

    def test_twenty_times(self, survives):
        survives(NAMED + self.random_moments(17, seed=0))


class TestStopped:
    def test_by_sigterm_in_a_step_then_by_ctrl_c_in_the_evaluation(self, run_with, arguments, trained, tmp_path):
        command = [*arguments(tmp_path / "run", {"DATA.NUM_WORKERS": 1}), "--resume"]
        assert run_with(command, Signal(signal.SIGTERM, "step 1")) == 143
        checkpoints = tmp_path / "run" / "checkpoints"
        assert [path.name for path in checkpoints.iterdir()] == ["iteration_0000001.pth"]
        assert run_with(command, Signal(signal.SIGINT, "before an evaluation")) == 130
        assert sorted(path.name for path in checkpoints.iterdir()) == ["iteration_0000002.pth", "iteration_0000004.pth"]
        assert not (tmp_path / "run" / "evaluation.csv").exists()
        assert run_with(command, no_fault) == 0
        assert_same_run(tmp_path / "run", trained)
