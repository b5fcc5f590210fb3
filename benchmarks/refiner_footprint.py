"""Measure loading time and memory of one runtime of the refiner. Run it in a new process.

    python -m benchmarks.refiner_footprint "ONNX Runtime" refiner.onnx boxes.npz

Prints JSON. This is a separate module because the process that runs ONNX Runtime must not import torch.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

PYTORCH, ONNX, AOT = "PyTorch", "ONNX Runtime", "AOTInductor"

# Image uint8 [H, W, 3], boxes float32 [N, 4] → refined boxes [N, 4].
Refine = Callable[[np.ndarray, np.ndarray], np.ndarray]


def load_pytorch(path: Path) -> Refine:
    from iounet import IoURefiner

    refiner = IoURefiner.from_checkpoint(path)
    return lambda image, boxes: refiner.refine(image, boxes).boxes.numpy()


def load_onnx(path: Path) -> Refine:
    from iounet.onnx import OnnxRefiner

    # By default, ONNX Runtime uses all cores, but PyTorch uses as many threads as OMP_NUM_THREADS.
    refiner = OnnxRefiner(path, threads=num_threads())
    return lambda image, boxes: refiner.refine(image, boxes).boxes


def load_aot(path: Path) -> Refine:
    import torch

    from iounet.export.program import load_program
    from iounet.refiner.inputs import as_tensor

    program = load_program(path)

    def refine(image: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        labels = torch.zeros(len(boxes), dtype=torch.int64)
        return program(as_tensor(image)[None], torch.from_numpy(boxes), labels)[0].numpy()

    return refine


LOADERS: dict[str, Callable[[Path], Refine]] = {PYTORCH: load_pytorch, ONNX: load_onnx, AOT: load_aot}


def num_threads() -> int:
    """Return the number of threads for every runtime."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)


def peak_mib() -> float | None:
    """Return the peak memory of this process in MiB, or None if the system does not report it.

    The peak that `getrusage` reports is inherited from the parent process.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), None)


def footprint(name: str, file: Path, work: Path) -> dict[str, float | None]:
    """Load a runtime and refine once.

    Args:
        name: key of `LOADERS`.
        file: checkpoint or exported refiner.
        work: .npz file with "image" and "boxes".

    Returns:
        Seconds to import and load, and the peak memory in MiB after loading and after refining.
    """
    start = time.perf_counter()
    refine = LOADERS[name](file)
    seconds = time.perf_counter() - start
    loaded = peak_mib()
    with np.load(work) as arrays:
        refine(arrays["image"], arrays["boxes"])
    return {"seconds_to_load": seconds, "mib_loaded": loaded, "mib_peak": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(footprint(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))))
