"""Short runs of fuzz.py. `make fuzz` runs it for longer."""

import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = Path(__file__).with_name("fuzz.py")


@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("seed", [0, 1_000_000])
def test_random_rois(device, seed):
    run("--device", device, "--rois", "20000", "--seed", str(seed))


@pytest.mark.slow
@pytest.mark.usefixtures("kernels")
@pytest.mark.parametrize("device", ["cpu"], indirect=True)
@pytest.mark.skipif(sys.platform != "linux", reason="fuzz.py finds the sanitizers' runtimes only on Linux")
def test_random_rois_with_sanitizers(device):
    run("--sanitize", "--rois", "5000")


def run(*arguments: str) -> None:
    done = subprocess.run([sys.executable, FUZZ, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
