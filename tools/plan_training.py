"""How long COCO takes on 1, 8 and 64 GPUs, and what limits it there, from what was measured on one.

    python tools/plan_training.py --benchmark docs/benchmarks/detector_cuda.json
    python tools/plan_training.py --step-seconds 0.252 --image-seconds 0.065 --document docs/coco.md

The first takes the seconds from tools/benchmark.py's figures; the second from anywhere. Bytes of gradients come from
the figures of tools/benchmark.py on any device, loading and scoring from those of tools/benchmark_coco_size.py.

The model of a step, with all GPUs computing the same number of images: a third of it is forward; during the rest, the
backward pass, DDP exchanges gradients. In a ring each of N GPUs sends 2 (N - 1) / N times all gradients to the next
one, over its slowest link. What takes longer, computing or exchanging, decides. Evaluation divides the images among the
GPUs, and their processes share the classes that are scored, which are taken to need as long as each other.
"""

import argparse
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmark_prroi import fill_document

ROOT = Path(__file__).parents[1]
IMAGES_A_GPU = 2  # in a step, as the paper's 16 on 8 GPUs
GPUS_A_NODE = 8
TRAINING_IMAGES = 160_000 * 16  # of the paper's schedule, 22 epochs
VAL_IMAGES = 5_000
EVALUATIONS = 8  # SOLVER.EVAL_PERIOD 20,000 of 160,000
TABLE_ROWS = 4  # of an evaluation, each scored once
CLASSES = 80


@dataclass(frozen=True)
class Costs:
    """What was measured.

    Attributes:
        step_seconds: of IMAGES_A_GPU images, on one GPU.
        image_seconds: of detecting and refining in one image.
        gradient_bytes: of all trainable parameters.
        load_seconds: of one training image, in one loading process.
        file_bytes: of one training image.
        score_seconds: of one table row of COCO's validation set, in one process.
    """

    step_seconds: float
    image_seconds: float
    gradient_bytes: float
    load_seconds: float
    file_bytes: float
    score_seconds: float


@dataclass(frozen=True)
class Plan:
    """A run on so many GPUs; seconds of one step, hours of the run, and what they need a second.

    Attributes:
        limits: what decides how long a step takes: "computing" or "exchanging gradients".
        enough: bytes a second over each link above which computing limits.
        loaders: loading processes for each GPU that keep up.
        images, bytes_read: of the training set, a second, over all GPUs.
        bytes_sent: of gradients, a second, by each GPU to the next.
    """

    gpus: int
    step_seconds: float
    limits: str
    enough: float
    training_hours: float
    detecting_hours: float
    scoring_hours: float
    loaders: float
    images: float
    bytes_read: float
    bytes_sent: float


def plan(costs: Costs, gpus: int, within_node: float, between_nodes: float) -> Plan:
    """``within_node`` and ``between_nodes``: bytes a second that a GPU, and a node, can send."""
    sent = 2 * (gpus - 1) / gpus * costs.gradient_bytes
    backward = 2 / 3 * costs.step_seconds
    exchange = sent / (min(within_node, between_nodes) if gpus > GPUS_A_NODE else within_node)
    step = costs.step_seconds - backward + max(backward, exchange)
    images = gpus * IMAGES_A_GPU / step
    return Plan(
        gpus=gpus,
        step_seconds=step,
        limits="computing" if exchange <= backward else "exchanging gradients",
        enough=sent / backward,
        training_hours=TRAINING_IMAGES / images / 3600,
        detecting_hours=EVALUATIONS * VAL_IMAGES * costs.image_seconds / gpus / 3600,
        scoring_hours=EVALUATIONS * TABLE_ROWS * costs.score_seconds * math.ceil(CLASSES / gpus) / CLASSES / 3600,
        loaders=images / gpus * costs.load_seconds,
        images=images,
        bytes_read=images * costs.file_bytes,
        bytes_sent=sent / step,
    )


def markdown(plans: list[Plan]) -> str:
    rows = {
        f"a step of {IMAGES_A_GPU} images a GPU, s": [f"{one.step_seconds:.3f}" for one in plans],
        "limited by": [one.limits for one in plans],
        "training, h": [f"{one.training_hours:.1f}" for one in plans],
        f"{EVALUATIONS} evaluations: detecting, h": [f"{one.detecting_hours:.2f}" for one in plans],
        f"{EVALUATIONS} evaluations: scoring, h": [f"{one.scoring_hours:.2f}" for one in plans],
        "images a second": [f"{one.images:.0f}" for one in plans],
        "read from disk, MB/s": [f"{one.bytes_read / 1e6:.1f}" for one in plans],
        "busy loading processes a GPU": [f"{one.loaders:.2f}" for one in plans],
        "gradients sent, GB/s": [f"{one.bytes_sent / 1e9:.2f}" for one in plans],
        "computing limits above, GB/s": [f"{one.enough / 1e9:.2f}" for one in plans],
    }
    head = ["", *(f"{one.gpus} GPU{'s' if one.gpus > 1 else ''}" for one in plans)]
    lines = [head, ["---", *["---:"] * len(plans)], *([name, *cells] for name, cells in rows.items())]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    seconds = parser.add_mutually_exclusive_group(required=True)
    seconds.add_argument("--benchmark", type=Path, metavar="JSON", help="figures of tools/benchmark.py on such a GPU")
    seconds.add_argument("--step-seconds", type=float, help="of a training step of two images on one GPU")
    parser.add_argument("--image-seconds", type=float, help="of one image at inference; with --step-seconds")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16"],
        help="of --benchmark's figures (default: float32)",
    )
    parser.add_argument(
        "--within-node", type=float, default=10.0, metavar="GB/S", help="a GPU sends (default: 10, PCIe 3)"
    )
    parser.add_argument(
        "--between-nodes", type=float, default=12.5, metavar="GB/S", help="a node sends (default: 12.5, 100 Gbit/s)"
    )
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="(default: 1 8 64)")
    parser.add_argument(
        "--document", type=Path, metavar="MD", help="also put the table between this file's lines <!-- plan -->"
    )
    args = parser.parse_args()
    if (args.step_seconds is None) != (args.image_seconds is None):
        parser.error("--step-seconds and --image-seconds go together")

    figures = ROOT / "docs" / "benchmarks"
    needed = {
        args.benchmark or figures / "detector_cpu.json": "tools/benchmark.py",
        figures / "coco_size.json": "tools/benchmark_coco_size.py",
    }
    for path, tool in needed.items():
        if not path.exists():
            parser.error(f"{path} is not there: python {tool} --output {path} makes it")
    network, data = (json.loads(path.read_text()) for path in needed)
    step_seconds, image_seconds = args.step_seconds, args.image_seconds
    if args.benchmark:
        if network["batch_size"] != IMAGES_A_GPU:
            parser.error(f"{args.benchmark} is of batches of {network['batch_size']}; measure it with {IMAGES_A_GPU}")
        step_seconds, image_seconds = (seconds_of(network, stage, args.dtype) for stage in ("training step", "whole"))
    loading, scoring = (
        next(row for row in reversed(data["rows"]) if row["step"].startswith(step)) for step in ("load", "score")
    )
    costs = Costs(
        step_seconds=step_seconds,
        image_seconds=image_seconds,
        gradient_bytes=4e6 * network["training_work"]["float32"]["IoU-Net"]["million_trainable_parameters"],
        load_seconds=loading["seconds"] / loading["pieces"],
        file_bytes=1e3 * loading["kB a file"],
        score_seconds=scoring["seconds"],
    )
    table = markdown([plan(costs, gpus, 1e9 * args.within_node, 1e9 * args.between_nodes) for gpus in args.gpus])
    heading = (
        f"{step_seconds:.3f} s a step of {IMAGES_A_GPU} images, {1e3 * image_seconds:.0f} ms an image at inference, "
        f"{costs.gradient_bytes / 1e6:.0f} MB of gradients, {1e3 * costs.load_seconds:.1f} ms to load an image of "
        f"{costs.file_bytes / 1e3:.0f} kB, {costs.score_seconds:.0f} s to score a row; {args.within_node:g} GB/s "
        f"within a node of {GPUS_A_NODE}, {args.between_nodes:g} GB/s between nodes."
    )
    print(f"{heading}\n\n{table}")
    if args.document:
        fill_document(args.document, "<!-- plan -->", f"{heading}\n\n{table}")


def seconds_of(figures: dict, stage: str, dtype: str) -> float:
    return next(
        statistics.median(row["seconds"]["IoU-Net"])
        for row in figures["rows"]
        if row["stage"] == stage and row["dtype"] == dtype
    )


if __name__ == "__main__":
    main()
