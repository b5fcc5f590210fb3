"""Compare the speed of prroi_pool with other RoI pooling operators in one process.

    python -m benchmarks.operator --output runs/benchmark.json
    python -m benchmarks.operator --device cuda --original PreciseRoIPooling   # a checkout of the authors' repository

The other operators are:

- torchvision's roi_align, which samples each bin, with sampling_ratio 2 and with 0 (adaptive);
- reference.py of this project, in plain PyTorch;
- on a GPU with --original, the kernels of github.com/vacancy/PreciseRoIPooling.

The calls are interleaved, so that other load on the machine affects all of them equally. Times are medians.

On a GPU, every call is also timed as the replay of a CUDA graph, which excludes the host's launch time. The table then
shows replays, and for prroi_pool also calls launched from Python.

The floor is a lower bound for any implementation: the bytes that must move, divided by the bandwidth of a copy that
is measured in the same process. Depending on the operation, these bytes are the pixels that a RoI touches, the outputs
and their gradients, and the whole gradient of each map, each counted once.
"""

import argparse
import ctypes
import statistics
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from torchvision.ops import roi_align

from iounet.evaluation.tables import markdown
from prroi_pool import MultiScalePrRoIPool, extension, prroi_pool2d, reference

from .original import compile_original, prepare_original
from .timing import (
    Figures,
    add_device_argument,
    add_output_arguments,
    device_named,
    processor_name,
    readable,
    take_turns,
    timed,
    write_results,
)
from .workloads import BINS, CHANNELS, WORKLOADS, Level, Workload, make_levels

OURS, REFERENCE, ORIGINAL = "prroi_pool", "reference", "original"
PEERS = (OURS, "roi_align(2)", "roi_align(0)", REFERENCE, ORIGINAL)
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

Pool = Callable[[Tensor, Tensor, float], Tensor]
Row = dict[str, Any]


def peers(dtype: torch.dtype) -> dict[str, Pool]:
    """Return each operator as (features, rois, scale) → pooled. All but roi_align have gradients for the RoIs."""

    def aligned(sampling_ratio: int) -> Pool:
        return lambda features, rois, scale: roi_align(features, rois.to(dtype), BINS, scale, sampling_ratio)

    def in_plain_torch(features: Tensor, rois: Tensor, scale: float) -> Tensor:
        return reference.prroi_pool2d(features.float(), rois, BINS, BINS, scale).to(dtype)

    return {
        OURS: lambda features, rois, scale: prroi_pool2d(features, rois, BINS, BINS, scale),
        "roi_align(2)": aligned(2),
        "roi_align(0)": aligned(0),
        REFERENCE: in_plain_torch,
    }


def prepare(pool: Pool, operation: str, levels: list[Level]) -> Callable[[], None]:
    """Return the function to be timed, which pools from the levels one after the other."""
    if operation == "forward":

        def run() -> None:
            with torch.no_grad():
                for level in levels:
                    pool(level.features, level.rois, level.scale)

    elif operation == "forward + feature gradient":
        all_features = [level.features.detach().requires_grad_() for level in levels]

        def run() -> None:
            for level, features in zip(levels, all_features, strict=True):
                torch.autograd.grad(pool(features, level.rois, level.scale), features, level.grad_output)

    else:
        all_rois = [level.rois.detach().requires_grad_() for level in levels]
        outputs = [pool(level.features, rois, level.scale) for level, rois in zip(levels, all_rois, strict=True)]

        def run() -> None:
            for level, rois, output in zip(levels, all_rois, outputs, strict=True):
                torch.autograd.grad(output, rois, level.grad_output, retain_graph=True)

    return run


def prepare_pyramid(operation: str, levels: list[Level]) -> Callable[[], None]:
    """Return the function to be timed, which pools from all levels at once, as a detector does."""
    maps = {str(n): level.features for n, level in enumerate(levels)}
    height, width = (round(side / levels[0].scale) for side in levels[0].features.shape[2:])
    image_shapes = [(height, width)] * len(levels[0].features)
    rois = torch.cat([level.rois for level in levels])
    order = rois[:, 0].argsort(stable=True)
    boxes = [rois[rois[:, 0] == image, 1:] for image in range(len(image_shapes))]
    level_of_roi = torch.cat([torch.full((len(level.rois),), n) for n, level in enumerate(levels)]).to(rois.device)[
        order
    ]
    grad_output = torch.cat([level.grad_output for level in levels])[order].contiguous()
    pool = MultiScalePrRoIPool(list(maps), BINS)
    if operation == "forward":

        def run() -> None:
            with torch.no_grad():
                pool(maps, boxes, image_shapes, level_of_roi)

    elif operation == "forward + feature gradient":
        leaves = {name: features.detach().requires_grad_() for name, features in maps.items()}

        def run() -> None:
            torch.autograd.grad(pool(leaves, boxes, image_shapes, level_of_roi), list(leaves.values()), grad_output)

    else:
        for of_image in boxes:
            of_image.requires_grad_()
        output = pool(maps, boxes, image_shapes, level_of_roi)

        def run() -> None:
            torch.autograd.grad(output, boxes, grad_output, retain_graph=True)

    return run


def recorded(call: Callable[[], None]) -> Callable[[], None]:
    """Return the replay of a CUDA graph of the call. The call must not synchronise, which rules out reference.py."""
    call()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        call()
    return graph.replay


def median_milliseconds(
    calls: Mapping[str, Callable[[], object]], device: torch.device, seconds: float
) -> dict[str, float]:
    """Return the median time of each call, with the calls interleaved.

    On a GPU, ten consecutive calls are timed together. Timing a single call would measure its launch, not the kernel.
    """
    in_a_row = 10 if device.type == "cuda" else 1
    turns = take_turns({name: timed(call, device, in_a_row) for name, call in calls.items()}, seconds)
    return {name: 1e3 * statistics.median(measured) for name, measured in turns.items()}


def copy_bandwidth(device: torch.device) -> float:
    """Return the bytes per second that a copy of 256 MiB reads and writes."""
    source = torch.zeros(1 << 26, device=device)
    target = torch.empty_like(source)
    milliseconds = median_milliseconds({"copy": lambda: target.copy_(source)}, device, 1.0)["copy"]
    return 2e3 * source.numel() * source.element_size() / milliseconds


def floor_bytes(operation: str, levels: list[Level]) -> int:
    """Return the number of bytes that any implementation must read or write."""
    total = 0
    for level in levels:
        touched = torch.zeros(level.features.shape[0], *level.features.shape[2:], dtype=torch.bool)
        for image, *corners in level.rois.cpu().tolist():
            x1, y1, x2, y2 = (corner * level.scale for corner in corners)
            touched[int(image), int(y1) : int(-(-y2 // 1)) + 1, int(x1) : int(-(-x2 // 1)) + 1] = True
        pixels = int(touched.sum()) * CHANNELS
        outputs = level.grad_output.numel()
        elements = {
            "forward": pixels + outputs,
            "forward + feature gradient": pixels + 2 * outputs + level.features.numel(),
            "RoI gradient": pixels + outputs,
        }[operation]
        total += elements * level.features.element_size()
    return total


def measure(
    workload: Workload, device: torch.device, seconds: float, bandwidth: float, original: ctypes.CDLL | None
) -> Iterator[Row]:
    """Yield a row for each dtype, layout and operation, spending about `seconds` on each."""
    for dtype_name in DTYPES if device.type == "cuda" else ("float32",):
        dtype = DTYPES[dtype_name]
        for layout in ("channels-last", "contiguous"):
            levels = make_levels(workload, dtype, layout == "channels-last", device)
            for operation in workload.operations:
                # roi_align has no gradient for the RoIs, and does not support bfloat16 on any device.
                calls = {
                    name: prepare(pool, operation, levels)
                    for name, pool in peers(dtype).items()
                    if not (name.startswith("roi_align") and (operation == "RoI gradient" or dtype_name == "bfloat16"))
                }
                if device.type == "cuda" and len(levels) > 1:
                    calls[OURS] = prepare_pyramid(operation, levels)
                if original and (dtype_name, layout) == ("float32", "contiguous"):
                    calls[ORIGINAL] = prepare_original(original, operation, levels)
                row = {
                    "workload": workload.name,
                    "dtype": dtype_name,
                    "layout": layout,
                    "operation": operation,
                    "floor_milliseconds": 1e3 * floor_bytes(operation, levels) / bandwidth,
                    "milliseconds": median_milliseconds(calls, device, seconds),
                }
                if device.type == "cuda":
                    graphs = {name: recorded(call) for name, call in calls.items() if name != REFERENCE}
                    row["graph_milliseconds"] = median_milliseconds(graphs, device, seconds)
                yield row
                print(f"{workload.name}, {dtype_name}, {layout}, {operation}: done", file=sys.stderr)


def heading(figures: Figures) -> str:
    bandwidth = figures["copy_gigabytes_per_second"]
    return f"{figures['device']}, torch {figures['torch']}, copy {bandwidth:.1f} GB/s."


def table(figures: Figures) -> str:
    """Return the table: the floor, and milliseconds of each operator with their ratio to prroi_pool's.

    On a GPU the times are those of replays, and the last column shows prroi_pool launched from Python.
    """
    rows: list[Row] = figures["rows"]
    replayed = "graph_milliseconds" in rows[0]
    times = "graph_milliseconds" if replayed else "milliseconds"
    names = [name for name in PEERS if any(name in row[times] for row in rows)]
    head = ["workload", "dtype, layout", "operation", "floor", *names]
    head += [f"{OURS}, launched from Python"] if replayed else []
    lines = []
    for row in rows:
        setting = [row["workload"], f"{row['dtype']}, {row['layout']}", row["operation"]]
        compared = [with_ratio(row[times], name) for name in names]
        launched = [readable(row["milliseconds"][OURS])] if replayed else []
        lines.append([*setting, readable(row["floor_milliseconds"]), *compared, *launched])
    return markdown(head, lines, text_columns=4)


def with_ratio(milliseconds: dict[str, float], name: str) -> str:
    if name not in milliseconds:
        return ""
    ratio = "" if name == OURS else f" ({milliseconds[name] / milliseconds[OURS]:.1f}x)"
    return f"{readable(milliseconds[name])}{ratio}"


def device_name(device: torch.device) -> str:
    name = processor_name(device)
    return name if device.type == "cuda" else f"{name}, {torch.get_num_threads()} threads"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_argument(parser)
    parser.add_argument(
        "--original",
        type=Path,
        metavar="DIR",
        help="checkout of vacancy/PreciseRoIPooling to compare with; needs --device cuda",
    )
    parser.add_argument(
        "--workloads", nargs="*", metavar="TEXT", help="measure only workloads whose name contains one of these texts"
    )
    parser.add_argument("--seconds", type=float, default=4.0, help="seconds to spend on each row (default: 4)")
    add_output_arguments(parser, "<!-- DEVICE figures -->")
    args = parser.parse_args()
    device = device_named(args.device)
    if args.original and device.type != "cuda":
        sys.exit("--original needs --device cuda: the authors' kernels run only on CUDA")
    original = compile_original(args.original) if args.original else None
    workloads = [w for w in WORKLOADS if not args.workloads or any(text in w.name for text in args.workloads)]
    if not workloads:
        known = "\n  ".join(workload.name for workload in WORKLOADS)
        sys.exit(f"--workloads: no name contains {' or '.join(args.workloads)}. Available workloads:\n  {known}")
    extension.load(device.type)
    if device.type == "cuda":
        # Graphs cannot be recorded on the default stream, and a backward pass runs on the stream of its forward pass.
        torch.cuda.set_stream(torch.cuda.Stream())
    bandwidth = copy_bandwidth(device)
    figures: Figures = {
        "device": device_name(device),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "copy_gigabytes_per_second": bandwidth / 1e9,
    }
    print(heading(figures), flush=True)
    figures["rows"] = [
        row for workload in workloads for row in measure(workload, device, args.seconds, bandwidth, original)
    ]
    write_results(args, figures, heading(figures), table(figures), f"<!-- {args.device} figures -->")


if __name__ == "__main__":
    main()
