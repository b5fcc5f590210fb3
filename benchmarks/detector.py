"""Compare the speed of IoU-Net with torchvision's Faster R-CNN R-50-FPN, stage by stage, in one process.

    python -m benchmarks.detector --output runs/benchmark.json
    python -m benchmarks.detector --device cuda --seconds 20 --document docs/benchmarks.md
    python -m benchmarks.detector --config-file configs/coco_r50_energy.yaml --output runs/benchmark_energy.json

The Faster R-CNN is built like the pretrained `fasterrcnn_resnet50_fpn`: frozen batch norms, RoIAlign with 2 x 2 points
per bin, greedy NMS, no refinement. IoU-Net runs the whole method of the paper: PrRoI pooling, predicted IoUs of all
candidates, IoU-guided NMS and refinement. Every round runs both detectors, so that other load on the machine affects
both equally. Ratios are computed within each round; the table shows their median and quartiles.

The weights are random. Layers that both detectors have use the same weights. The amount of work after each stage
depends on the weights, so the benchmark sets it to that of a trained detector, for both alike (simulated_image.py):

- The image has 100 objects, COCO's limit of detections. Each object is found once.
- The RPN runs on random scores, but its output is replaced by fixed proposals.
- The box predictor runs, but its outputs are replaced. 400 boxes then score above the threshold, four per object, as
  many as this project's blood-cell detector finds. NMS keeps one box per object in both detectors, and refinement
  moves these boxes.
- Refinement's early stop is off. Every box takes all steps, which is the highest cost that refinement can have.

In training, nothing is fixed. Both detectors sample 512 of their RPN's proposals per image, and IoU-Net adds 512
jittered boxes. An image has seven objects, about COCO's mean. Both use `iounet.training.train_steps`.
"""

import argparse
import itertools
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.misc import FrozenBatchNorm2d
from yacs.config import CfgNode

from iounet import build_detector
from iounet.build import build_optimizer, build_schedule
from iounet.config import load_config
from iounet.evaluation.stopwatch import Stopwatch
from iounet.evaluation.tables import markdown
from iounet.modeling import IoUNet
from iounet.postprocess import Stop, postprocessing, suppress
from iounet.training import train_steps
from iounet.training.checkpoint import load_detector_weights
from prroi_pool import extension

from .simulated_image import NUM_CLASSES, SimulatedImage, simulate_image
from .timing import (
    Figures,
    add_device_argument,
    add_output_arguments,
    device_named,
    processor_name,
    spread,
    take_turns,
    timed,
    write_results,
)

OBJECTS_IN_TRAINING = 7

OURS, STOCK = "IoU-Net", "Faster R-CNN"
FRAME = "transform, back to the image"
BACKBONE = "backbone + FPN"
RPN = "RPN"
POOLING = "pooling of the proposals"
BOX_HEAD = "box head"
NMS = "scores, decoding, NMS"
CANDIDATES = "predicted IoU of the candidates"
REFINEMENT = "refinement"
WHOLE = "whole"
INFERENCE_STAGES = (FRAME, BACKBONE, RPN, POOLING, BOX_HEAD, NMS, CANDIDATES, REFINEMENT, WHOLE)
TRAINING_STEP = "training step"

Detector: TypeAlias = IoUNet | FasterRCNN
Batch = tuple[list[Tensor], list[dict[str, Tensor]]]  # images, targets
Seconds = dict[str, dict[str, list[float]]]  # stage → detector → seconds in each round


@dataclass(frozen=True)
class Detectors:
    """The two detectors to compare."""

    ours: IoUNet
    stock: FasterRCNN

    def named(self) -> dict[str, Detector]:
        return {OURS: self.ours, STOCK: self.stock}


def make_config(image: SimulatedImage, *, cuda_graphs: bool, config_file: str | None = None) -> CfgNode:
    cfg = load_config(config_file)
    cfg.defrost()
    cfg.MODEL.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RPN.POST_NMS_TEST = len(image.proposals)
    cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE = min(image.size), max(image.size)  # so that the image keeps its size
    cfg.TEST.DETECTIONS_PER_IMAGE = len(image.boxes)
    cfg.TEST.REFINE.EARLY_STOP, cfg.TEST.REFINE.DEGENERATION = 0.0, -1.0  # no change of the IoU stops a box
    cfg.TEST.CUDA_GRAPHS = cuda_graphs
    cfg.SOLVER.BASE_LR = 1e-6  # random weights on noise must not diverge
    cfg.freeze()
    return cfg


def make_detectors(cfg: CfgNode, image: SimulatedImage, device: torch.device) -> Detectors:
    """Return both detectors in eval mode, with the same weights and the image's proposals and box predictions."""
    torch.manual_seed(0)
    stock = FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None),
        NUM_CLASSES + 1,
        min_size=min(image.size),
        max_size=max(image.size),
        rpn_post_nms_top_n_test=len(image.proposals),
        box_detections_per_img=len(image.boxes),
    )
    for name, module in stock.backbone.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
            # If the norms were the identity, each of the 16 residual blocks would double the variance.
            module.weight.fill_(0.2)
    ours = build_detector(cfg)
    load_detector_weights(ours, stock.state_dict(), "stock", need_iou_head=False)
    detectors = Detectors(ours, stock)
    for detector in detectors.named().values():
        detector.rpn.register_forward_hook(
            lambda rpn, _, output, detector=detector: output if detector.training else ([image.proposals], output[1])
        )
        detector.roi_heads.box_predictor.register_forward_hook(
            lambda predictor, _, output, detector=detector: (
                output if detector.training else (image.class_logits, image.box_regression)
            )
        )
        detector.to(device).eval()
    return detectors


def count_work(detectors: Detectors, image: SimulatedImage) -> dict[str, int]:
    """Count the proposals, candidates, detections and refinement steps in the detectors."""
    ours = detectors.ours
    options = ours.postprocessing
    with torch.no_grad():
        features = ours.extract([image.pixels])
        proposals = ours.propose(features)
        candidates = ours.detect(features, proposals)
        kept = [suppress(of_image, options.nms) for of_image in candidates]
        (refined,) = ours.refine(features, kept, options.refinement)
        (stock_detections,) = detectors.stock([image.pixels])
    return {
        "proposals": len(proposals[0]),
        "candidates": len(candidates[0]),
        "detections": len(kept[0]),
        "stock_detections": len(stock_detections["boxes"]),
        "refinement_steps": options.refinement.num_steps,
        "boxes_that_take_all_steps": int((refined.stops == Stop.STEPS).sum()),
    }


def count_training_work(detectors: Detectors, batch: Batch, device: torch.device) -> dict[str, dict[str, float]]:
    """Return the costs of a training step that do not depend on the machine's speed.

    FLOPs are those of convolutions and linear layers. Memory is included only on a GPU.
    """
    images, targets = batch
    work = {}
    for name, detector in detectors.named().items():
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        with FlopCounterMode(display=False) as counter:
            losses = detector.train()(images, targets)
            sum(losses.values(), torch.zeros((), device=device)).backward()
        work[name] = {
            "million_trainable_parameters": sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6,
            "gflop_an_image": counter.get_total_flops() / len(images) / 1e9,
        }
        if device.type == "cuda":
            # Activations and gradients, without the weights and SGD's momentum, which has the weights' size.
            work[name]["mib_of_a_step"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        detector.zero_grad(set_to_none=True)
        detector.eval()
    return work


def training_batch(image: SimulatedImage, batch_size: int) -> Batch:
    target = {"boxes": image.boxes[:OBJECTS_IN_TRAINING], "labels": image.labels[:OBJECTS_IN_TRAINING]}
    return [image.pixels] * batch_size, [target] * batch_size


def stages_of(detector: Detector) -> list[tuple[object, str, str]]:
    """Return (owner, function, stage) of each timed function. A stage excludes timed functions called within it."""
    heads = detector.roi_heads
    shared: list[tuple[object, str, str]] = [
        (detector, "forward", FRAME),
        (detector.transform, "forward", FRAME),
        (detector.backbone, "forward", BACKBONE),
        (detector.rpn, "forward", RPN),
        (heads.box_roi_pool, "forward", POOLING),
        (heads.box_head, "forward", BOX_HEAD),
        (heads.box_predictor, "forward", BOX_HEAD),
    ]
    if isinstance(detector, FasterRCNN):
        return [*shared, (heads, "forward", NMS)]
    return [
        *shared,
        (detector, "detect", CANDIDATES),
        (heads, "candidates", NMS),
        (postprocessing, "suppress", NMS),
        (detector, "refine", REFINEMENT),
    ]


@contextmanager
def decorated(functions: Sequence[tuple[object, str, Callable[[Callable], Callable]]]) -> Iterator[None]:
    """Decorate functions, given as (owner, function, decorator), inside this context."""
    with ExitStack() as stack:
        for owner, function, decorator in functions:
            stack.enter_context(patch.object(owner, function, decorator(getattr(owner, function))))
        yield


def inference_call(detector: Detector, image: SimulatedImage, device: torch.device) -> Callable[[], dict[str, float]]:
    """Return a call that detects twice: once to time the whole, once to time the stages.

    The stopwatch synchronises with the GPU at the end of each stage, so the whole is timed without it.
    """
    whole = timed(lambda: detector([image.pixels]), device)

    @torch.no_grad()
    def call() -> dict[str, float]:
        seconds = {WHOLE: whole()}
        stopwatch = Stopwatch(device)
        with decorated([(owner, function, stopwatch(stage)) for owner, function, stage in stages_of(detector)]):
            detector([image.pixels])
        return stopwatch.seconds | seconds

    return call


def training_call(
    detector: Detector, cfg: CfgNode, batch: Batch, device: torch.device
) -> Callable[[], dict[str, float]]:
    optimizer = build_optimizer(cfg, detector)
    schedule = build_schedule(cfg, optimizer)
    steps = train_steps(detector, itertools.repeat(batch), optimizer, schedule, device=device, seed=0)
    step = timed(lambda: next(steps), device)
    return lambda: {TRAINING_STEP: step()}


@contextmanager
def computing_in(dtype: torch.dtype, detectors: Detectors, device: torch.device) -> Iterator[None]:
    """Compute in `dtype` inside this context: bfloat16 is MODEL.AMP in IoU-Net, and autocast in Faster R-CNN."""
    amp = dtype == torch.bfloat16
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=amp)
    with patch.object(detectors.ours, "amp", amp), decorated([(detectors.stock, "forward", autocast)]):
        yield


def measure(
    detectors: Detectors, image: SimulatedImage, cfg: CfgNode, batch: Batch, device: torch.device, seconds: float
) -> dict[str, Seconds]:
    """Return the seconds of the stages of "inference" and "training", spending about `seconds` on each."""
    named = detectors.named()
    for detector in named.values():
        detector.eval()
    inference = {name: inference_call(detector, image, device) for name, detector in named.items()}
    measured = {"inference": by_stage(take_turns(inference, seconds, alternating=True))}
    training = {name: training_call(detector, cfg, batch, device) for name, detector in named.items()}
    return measured | {"training": by_stage(take_turns(training, seconds, alternating=True))}


def by_stage(turns: dict[str, list[dict[str, float]]]) -> Seconds:
    seconds: Seconds = {}
    for name, rounds in turns.items():
        for stages in rounds:
            for stage, measured in stages.items():
                seconds.setdefault(stage, {}).setdefault(name, []).append(measured)
    return seconds


def heading(figures: Figures) -> str:
    height, width = figures["image_size"]
    work = figures["work"]
    config_file = figures.get("config_file")
    return (
        f"{figures['device']}, {figures['threads']} threads, torch {figures['torch']}, torchvision "
        f"{figures['torchvision']}; image of {height} x {width}, {work['proposals']} proposals, "
        f"{work['candidates']} candidates, {work['detections']} detections ({STOCK}: {work['stock_detections']}), of "
        f"which {work['boxes_that_take_all_steps']} take all {work['refinement_steps']} steps"
        f"{', by CUDA graphs' if figures['cuda_graphs'] else ''}; training with batches of {figures['batch_size']}"
        f"{', ' + config_file if config_file else ''}."
    )


def table(figures: Figures) -> str:
    """Return a table of milliseconds and ratios, as medians with quartiles, and sentences on the training work."""
    cells = []
    for row in figures["rows"]:
        seconds = row["seconds"]
        times = [
            spread([1e3 * value for value in seconds[name]], ".1f") if name in seconds else "" for name in (OURS, STOCK)
        ]
        both = STOCK in seconds
        ratio = spread([a / b for a, b in zip(seconds[OURS], seconds[STOCK], strict=True)], ".2f") if both else ""
        cells.append([row["stage"], row["dtype"], *times, ratio])
    head = ["", "dtype", f"{OURS}, ms", f"{STOCK}, ms", "ratio"]
    rates = images_a_second(figures["rows"], figures["batch_size"])
    return f"{markdown(head, cells, text_columns=2)}\n\n{rates}\n\n{in_words(figures['training_work'])}"


def images_a_second(rows: list[dict[str, Any]], batch_size: int) -> str:
    sentences = []
    for row in rows:
        if row["part"] == "training":
            rates = [f"{name} {batch_size / statistics.median(row['seconds'][name]):.2f}" for name in (OURS, STOCK)]
            sentences.append(f"Training in {row['dtype']}, images a second: {', '.join(rates)}.")
    return " ".join(sentences)


def in_words(training_work: dict[str, dict[str, dict[str, float]]]) -> str:
    sentences = []
    for dtype_name, detectors in training_work.items():
        parts = [
            f"{name} {work['gflop_an_image']:.0f} GFLOP of convolutions and linear layers an image, "
            f"{work['million_trainable_parameters']:.1f} million trainable parameters"
            + (f", {work['mib_of_a_step']:.0f} MiB for maps and gradients" if "mib_of_a_step" in work else "")
            for name, work in detectors.items()
        ]
        sentences.append(f"A training step in {dtype_name}: {'; '.join(parts)}.")
    return " ".join(sentences)


def main() -> None:
    args = parse_arguments()
    device = device_named(args.device)
    if args.no_cuda_graphs and device.type != "cuda":
        sys.exit("--no-cuda-graphs needs --device cuda")
    if not 1 <= args.detections <= args.candidates <= args.proposals:
        sys.exit("--detections, --candidates and --proposals must satisfy 1 <= detections <= candidates <= proposals")
    extension.load(device.type)

    height, width = args.image_size
    image = simulate_image(
        (height, width),
        num_proposals=args.proposals,
        num_candidates=args.candidates,
        num_objects=args.detections,
    ).to(device)
    cuda_graphs = device.type == "cuda" and not args.no_cuda_graphs
    cfg = make_config(image, cuda_graphs=cuda_graphs, config_file=args.config_file)
    detectors = make_detectors(cfg, image, device)
    batch = training_batch(image, args.batch_size)
    training_work: dict[str, dict[str, dict[str, float]]] = {}
    rows: list[dict[str, Any]] = []
    figures: Figures = {
        "device": processor_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "image_size": image.size,
        "config_file": args.config_file,
        "cuda_graphs": cuda_graphs,
        "batch_size": args.batch_size,
        "work": count_work(detectors, image),
        "training_work": training_work,
        "rows": rows,
    }
    print(heading(figures), flush=True)
    # On most CPUs bfloat16 is slower.
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        dtype_name = str(dtype).removeprefix("torch.")
        with computing_in(dtype, detectors, device):
            training_work[dtype_name] = count_training_work(detectors, batch, device)
            measured = measure(detectors, image, cfg, batch, device, args.seconds)
        for part, stages in (("inference", INFERENCE_STAGES), ("training", (TRAINING_STEP,))):
            rows += [
                {"part": part, "stage": stage, "dtype": dtype_name, "seconds": measured[part][stage]}
                for stage in stages
            ]
    write_results(args, figures, heading(figures), table(figures), f"<!-- detector {args.device} figures -->")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_device_argument(parser)
    parser.add_argument(
        "--config-file", help="IoU-Net configuration; the backbone must be a ResNet-50-FPN (default: iounet/config.py)"
    )
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(800, 1216),
        metavar=("HEIGHT", "WIDTH"),
        help="size of the image in pixels (default: 800 1216)",
    )
    parser.add_argument("--proposals", type=int, default=1000, metavar="N", help="proposals of the RPN (default: 1000)")
    parser.add_argument(
        "--candidates", type=int, default=400, metavar="N", help="boxes with scores above the threshold (default: 400)"
    )
    parser.add_argument("--detections", type=int, default=100, metavar="N", help="boxes that NMS keeps (default: 100)")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N", help="images per training step (default: 2)")
    parser.add_argument("--no-cuda-graphs", action="store_true", help="run IoU-Net's refinement without CUDA graphs")
    parser.add_argument(
        "--seconds", type=float, default=120.0, help="seconds to spend on each of inference and training (default: 120)"
    )
    add_output_arguments(parser, "<!-- detector DEVICE figures -->")
    return parser.parse_args()


if __name__ == "__main__":
    main()
