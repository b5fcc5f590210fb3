"""Shared fixtures: a tiny detector that tests can train (ResNet-18, 16 channels, images of 64 pixels, three classes),
functions to run commands as users do, and a finished run of four iterations on six synthetic images.
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

# torch.export writes gigabytes to this log, which pytest would capture.
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
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.fixture(scope="session")
def start_chromium(tmp_path_factory):
    """Start a headless Chromium with extra arguments, driven by selenium; skip if Chromium is missing."""
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
    """Map a path to an object that creates this file when it is unpickled."""
    return TouchesAFile


@pytest.fixture(scope="module")
def one_thread():
    """Use one thread: on a busy machine, many small operations are ten times slower with several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def tiny_overrides():
    """Map settings to command-line overrides that configure the tiny detector."""
    return lambda settings=None: pairs(TINY | (settings or {}))


@pytest.fixture(scope="session")
def tiny_cfg(tiny_overrides):
    """Map settings to a configuration of the tiny detector for three classes."""
    return lambda settings=None: load_config(None, tiny_overrides({"MODEL.NUM_CLASSES": 3} | (settings or {})))


@pytest.fixture(scope="session")
def build_tiny(tiny_cfg):
    """Map settings to the tiny detector in eval mode, always with the same random weights."""

    def build(settings=None):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return build_detector(tiny_cfg(settings)).eval()

    return build


@pytest.fixture(scope="session")
def dataset(tmp_path_factory):
    """A synthetic data set with six training images."""
    return make_synthetic(
        tmp_path_factory.mktemp("tools") / "set", num_train=6, num_val=5, num_test=2, image_size=(64, 64), seed=0
    )


@pytest.fixture(scope="session")
def arguments(dataset, tiny_overrides, tmp_path_factory):
    """Map an output folder and settings to the arguments of a training run of four iterations."""
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
    """Run a script in tools/, or at any other path, in a new process that starts in an unrelated folder."""
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
    """Run a command's main function in this process, which is faster than starting a new one.

    The fixture maps the command and its arguments to None, or to the exit message or exit code.
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
    """The run folder of a finished training run."""
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
    """Map a run folder to its training rows and its evaluation rows."""

    def read(output):
        rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
        return [row for row in rows if "loss" in row], [row for row in rows if "loss" not in row]

    return read
