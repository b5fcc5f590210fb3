"""A detector small enough that a test can train it: ResNet-18, 16 channels, images of 64 pixels, three classes."""

from pathlib import Path

import pytest
import torch

from iounet import build_detector
from iounet.config import load_config

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
