"""Compare the kernels' values and gradients with the reference on random RoIs.

    python tests/prroi_pool/fuzz.py --rois 1000000                  # the kernels as built for normal use
    python tests/prroi_pool/fuzz.py --rois 1000000 --sanitize       # with address and UB sanitizers
    compute-sanitizer python tests/prroi_pool/fuzz.py --device cuda --rois 100000

Sizes range from 0 to 1e9 pixels. Coordinates may be off the map, on pixel centres, reversed, denormal, infinite or NaN.
The script prints the seed of each failing batch. Repeat a batch with --seed.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from raw_kernels import pool_with

from prroi_pool import extension, reference

SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
SPECIAL = [
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-38,
    1e-6,
    0.5,
    1e9,
    -1e9,
    3e38,
    -3e38,
    float("inf"),
    -float("inf"),
    float("nan"),
]
ROIS_PER_BATCH = 500


def random_rois(generator: torch.Generator, num_images: int, extent: float) -> Tensor:
    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    def choose(probability: float, *shape: int) -> Tensor:
        return torch.rand(shape, generator=generator) < probability

    count = ROIS_PER_BATCH
    start = uniform(-0.5 * extent, 1.5 * extent, count, 2)
    far = torch.sign(uniform(-1, 1, count, 2)) * 10 ** uniform(0, 9, count, 2)
    start = torch.where(choose(0.1, count, 1), far, start)
    ordinary, any_size = uniform(0, extent, count, 2), 10 ** uniform(-9, 9, count, 2)
    size = torch.where(choose(0.3, count, 1), any_size, ordinary)
    size = torch.where(choose(0.05, count, 2), -size, size)
    corners = torch.cat([start, start + size], 1)
    corners = torch.where(choose(0.2, count, 1), corners.round(), corners)
    special = torch.tensor(SPECIAL, dtype=torch.float64)[torch.randint(len(SPECIAL), (count, 4), generator=generator)]
    corners = torch.where(choose(0.03, count, 4), special, corners)
    image = torch.randint(num_images, (count, 1), generator=generator).double()
    wrong = torch.tensor([-1.0, num_images, 1e20, float("nan"), -float("inf")], dtype=torch.float64)
    wrong = wrong[torch.randint(len(wrong), (count, 1), generator=generator)]
    image = torch.where(choose(0.02, count, 1), wrong, image)
    return torch.cat([image, corners], 1)


def check_batch(seed: int, device: str, kernels, *, half_types: bool) -> str | None:
    """Return a description of the first difference between kernels and reference, or None.

    Args:
        kernels: `CudaKernels`, or an object with the functions of csrc/prroi_pool.h.
        half_types: whether the kernels accept float16 and bfloat16 features. The CPU kernels do not.
    """
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    num_images, channels, height, width = integer(1, 3), integer(1, 9), integer(1, 24), integer(1, 24)
    if integer(0, 3) == 0:  # enough for several channels per lane of a warp, in all lanes or only in some
        channels = [64, 130, 264][integer(0, 2)]
    bins = integer(1, 8), integer(1, 8)
    scale = [1.0, 0.5, 1 / 16, 0.3][integer(0, 3)]
    rois_dtype = [torch.float32, torch.float64][integer(0, 1)]
    halves = [torch.float16, torch.bfloat16] if rois_dtype == torch.float32 and half_types else []
    dtype = [rois_dtype, *halves][integer(0, len(halves))]
    memory_format = [torch.contiguous_format, torch.channels_last][integer(0, 1)]
    features = torch.randn(num_images, channels, height, width, generator=generator, dtype=torch.float64)
    features = features.to(device, dtype).to(memory_format=memory_format).requires_grad_()
    rois = random_rois(generator, num_images, max(height, width) / scale)
    rois = rois.to(device, rois_dtype).requires_grad_()
    grad_output = torch.randn(len(rois), channels, *bins, generator=generator, dtype=torch.float64).to(device, dtype)

    results = []
    # The kernels also compute half types in float32.
    for pool, computed in ((pool_with(kernels), dtype), (reference.prroi_pool2d, rois_dtype)):
        output = pool(features.to(computed), rois, *bins, scale)
        results.append([output, *torch.autograd.grad(output, (features, rois), grad_output.to(computed))])
    # Values are means of the features, and gradients are means of their slopes, so both are bounded by the features.
    # Only sums over many terms grow.
    eps = torch.finfo(rois_dtype).eps
    grad_tolerance = 200 * eps * channels * bins[0] * bins[1]
    tolerances = (200 * eps, 200 * eps * len(rois), grad_tolerance * scale)
    for name, tolerance, ours, expected in zip(
        ("values", "gradient of the features", "gradient of the RoIs"), tolerances, *results, strict=True
    ):
        if not ours.isfinite().all():
            return f"{name}: not finite"
        difference = (ours.to(rois_dtype) - expected).abs().max().item() if ours.numel() else 0.0
        if name != "gradient of the RoIs" and dtype != rois_dtype and ours.numel():
            tolerance += torch.finfo(dtype).eps * expected.abs().max().item()  # rounding of the result
        if not difference <= tolerance:
            worst = int((ours.to(rois_dtype) - expected).abs().flatten(1).amax(1).argmax())
            roi = "" if name == "gradient of the features" else f" at RoI {rois[worst].tolist()}"
            setting = f"features {list(features.shape)}, bins {bins}, scale {scale}, {dtype}, {memory_format}"
            return f"{name}: off by {difference:.3g}, more than {tolerance:.3g}{roi}; {setting}"
    return None


def run_sanitized(arguments: list[str]) -> int:
    """Run this script again with the sanitizers' runtimes, which must be loaded before Python."""
    compiler = extension.find_compiler()
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    environment = os.environ | {
        "LD_PRELOAD": ":".join(libraries),
        "ASAN_OPTIONS": "detect_leaks=0",  # Python itself leaks
        "PRROI_POOL_FUZZ_SANITIZED": "1",
    }
    return subprocess.run([sys.executable, __file__, *arguments], env=environment, check=False).returncode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rois", type=int, default=100_000, metavar="N", help="number of RoIs (default: 100000)")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="kernels to test (default: cpu)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first batch (default: 0)")
    parser.add_argument("--sanitize", action="store_true", help="build the CPU kernels with ASan and UBSan")
    args = parser.parse_args()
    if args.sanitize and "PRROI_POOL_FUZZ_SANITIZED" not in os.environ:
        sys.exit(run_sanitized(sys.argv[1:]))
    if args.sanitize:
        flags = [flag for flag in extension.compile_flags() if flag != "-O3"]
        extension.compile_flags = lambda: [*flags, "-O1", *SANITIZERS]
    kernels = extension.load(args.device)
    failures = 0
    batches = -(-args.rois // ROIS_PER_BATCH)
    for seed in range(args.seed, args.seed + batches):
        if message := check_batch(seed, args.device, kernels, half_types=args.device == "cuda"):
            failures += 1
            print(f"seed {seed}: {message}", flush=True)
    print(f"{batches * ROIS_PER_BATCH} RoIs, {failures} of {batches} batches failed")
    sys.exit(failures > 0)


if __name__ == "__main__":
    main()
