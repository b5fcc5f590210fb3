"""A detector small enough that a test can train it (ResNet-18, 16 channels, images of 64 pixels, three classes), the
commands as a user runs them, and a run of four iterations on six synthetic images.
"""

import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from iounet import build_detector
from iounet.commands import train
from iounet.config import load_config
from iounet.data.synthetic import make_synthetic

ROOT = Path(__file__).parents[1]

# torch.export writes gigabytes of what it does to this log, which pytest would keep for its report.
logging.getLogger("torch.__trace").propagate = False

TINY = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.NAME": "resnet18",
    "MODEL.BACKBONE.NORM": "BN",
    "MODEL.BACKBONE.TRAINABLE_LAYERS": "5",
    "MODEL.FPN.CHANNELS": "16",
    "MODEL.FPN.CANONICAL_SCALE": "32",
    "MODEL.RPN.ANCHOR_SIZES": "[8, 16, 32, 64, 128]",
    "MODEL.RPN.PRE_NMS_TRAIN": "50",
    "MODEL.RPN.PRE_NMS_TEST": "50",
    "MODEL.RPN.POST_NMS_TRAIN": "30",
    "MODEL.RPN.POST_NMS_TEST": "30",
    "MODEL.BOX_HEAD.HIDDEN_DIM": "32",
    "MODEL.BOX_HEAD.BOXES_PER_IMAGE": "16",
    "MODEL.IOU_HEAD.HIDDEN_DIM": "32",
    "MODEL.IOU_HEAD.BOXES_PER_IMAGE": "16",
    "INPUT.MIN_SIZE": "64",
    "INPUT.MAX_SIZE": "96",
    "DATA.NUM_WORKERS": "0",
}


def pairs(settings):
    return [word for key, value in settings.items() for word in (key, str(value))]


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")],
        ),
    ]
)
def device(request):
    return torch.device(request.param)


class TouchesAFile:
    """Runs code when it is unpickled by a reader that trusts its file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="session")
def start_chromium(tmp_path_factory):
    """Further arguments of Chromium → a browser without a window, driven by selenium; skips where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    programs = [shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")]
    if None in programs:
        pytest.skip("needs chromium and chromedriver")

    def start(*arguments):
        options = webdriver.ChromeOptions()
        options.binary_location = programs[0]
        for argument in (
            *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
            *("--disable-component-update", "--disable-sync", "--window-size=1300,900"),
            *(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}", *arguments),
        ):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        return webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))

    return start


@pytest.fixture(scope="session")
def touches_a_file():
    """The path of a file → an object that makes it when it is unpickled."""
    return TouchesAFile


@pytest.fixture(scope="module")
def one_thread():
    """For tests of many small operations: on a busy machine, threads that wait for each other are ten times slower."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_overrides():
    """Settings → the words of a command line that asks for the tiny detector with these settings."""
    return lambda settings=None: pairs(TINY | (settings or {}))


@pytest.fixture(scope="session")
def tiny_cfg(tiny_overrides):
    """Settings → the configuration of the tiny detector with these settings, for three classes."""
    return lambda settings=None: load_config(None, tiny_overrides({"MODEL.NUM_CLASSES": 3} | (settings or {})))


@pytest.fixture(scope="session")
def build_tiny(tiny_cfg):
    """Settings → the tiny detector in inference mode, with the same random weights every time."""

    def build(settings=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_detector(tiny_cfg(settings)).eval()

    return build


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A synthetic set of six training images."""
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
            "SOLVER.GLOBAL_BATCH_SIZE": 2,
            "SOLVER.WARMUP_ITERATIONS": 1,
            "SOLVER.WARMUP_FACTOR": 0.5,
            "SOLVER.STEPS": "[3]",
            "SOLVER.LOG_PERIOD": 1,
            "SOLVER.CHECKPOINT_PERIOD": 2,
            "SOLVER.EVAL_PERIOD": 0,
            "TEST.BATCH_SIZE_PER_DEVICE": 2,
            "TEST.SCORE_THRESHOLD": 0.0,  # so that every image has detections
        }
        return ["--config-file", config, *tiny_overrides(defaults | (settings or {}))]

    return make


@pytest.fixture(scope="session")
def run_tool(tmp_path_factory):
    """Runs a script of tools/, or of any path, in a process of its own, from an unrelated folder."""
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


@pytest.fixture
def call(monkeypatch, one_thread):
    """Runs a command's main function in this process, which is faster than a new one.

    The command and its arguments → None, or what it exits with: a message or a number.
    """

    def call(command, *arguments):
        monkeypatch.setattr(sys, "argv", [command.__name__, *map(str, arguments)])
        try:
            command.main()
        except SystemExit as stopped:
            return stopped.code
        return None

    return call


@pytest.fixture(scope="session")
def trained(arguments, tmp_path_factory):
    """The folder of a finished run."""
    output = tmp_path_factory.mktemp("runs") / "trained"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["train.py", *map(str, arguments(output))])
        train.main()
    torch.set_num_threads(threads)
    return output


@pytest.fixture(scope="session")
def read_metrics():
    """The folder of a run → its rows of training and of evaluations."""

    def read(output):
        rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        return [row for row in rows if "loss" in row], [row for row in rows if "loss" not in row]

    return read
