"""The tools as a user runs them, on six synthetic images, with the tiny detector."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from iounet.data.synthetic import make_synthetic

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    return make_synthetic(
        tmp_path_factory.mktemp("tools") / "set", num_train=6, num_val=5, num_test=2, image_size=(64, 64), seed=0
    )


@pytest.fixture(scope="session")
def arguments(dataset, tiny_overrides, tmp_path_factory):
    """Output folder and settings → the arguments of a training run of four iterations."""
    config = tmp_path_factory.mktemp("config") / "tiny.yaml"
    config.write_text("SOLVER:\n  MAX_ITERATIONS: 4\n")

    def make(output, settings=None):
        defaults = {
            "OUTPUT_DIR": output,
            "DATA.TRAIN_ANNOTATIONS": dataset / "annotations" / "train.json",
            "DATA.TRAIN_IMAGES": dataset / "train",
            "DATA.VAL_ANNOTATIONS": dataset / "annotations" / "val.json",
            "DATA.VAL_IMAGES": dataset / "val",
            "SOLVER.BATCH_SIZE": 2,
            "SOLVER.WARMUP_ITERATIONS": 1,
            "SOLVER.WARMUP_FACTOR": 0.5,
            "SOLVER.STEPS": "[3]",
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SOLVER.EVAL_PERIOD": 0,
            "TEST.BATCH_SIZE": 2,
            "TEST.SCORE_THRESHOLD": 0.0,  # so that every image has detections
        }
        return ["--config-file", config, *tiny_overrides(defaults | (settings or {}))]

    return make


@pytest.fixture(scope="session")
def run_tool(tmp_path_factory):
    """Runs a tool in a process of its own, from an unrelated folder."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    python_path = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []

    def run(tool, *arguments, launcher=()):
        return subprocess.run(
            [sys.executable, *launcher, str(ROOT / "tools" / tool), *map(str, arguments)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *python_path])},
            cwd=elsewhere,
            capture_output=True,
            text=True,
            timeout=400,
        )

    return run


@pytest.fixture(scope="session")
def load_tool():
    """A tool as a module."""

    if str(ROOT / "tools") not in sys.path:  # where a script's own folder is, so that one tool can import another
        sys.path.insert(0, str(ROOT / "tools"))

    def load(tool):
        spec = importlib.util.spec_from_file_location(Path(tool).stem, ROOT / "tools" / tool)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def call_tool(load_tool, monkeypatch, one_thread):
    """Runs a tool in this process, which is faster: None, or what it exits with, a message or a number."""

    def call(tool, *arguments):
        monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
        try:
            load_tool(tool).main()
        except SystemExit as stopped:
            return stopped.code
        return None

    return call


@pytest.fixture(scope="session")
def trained(run_tool, arguments, tmp_path_factory):
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("runs") / "trained"
    done = run_tool("train.py", *arguments(output))
    assert done.returncode == 0, done.stderr
    return output


@pytest.fixture(scope="session")
def read_metrics():
    def read(output):
        rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        return [row for row in rows if "loss" in row], [row for row in rows if "loss" not in row]

    return read
