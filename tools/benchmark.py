"""How fast IoU-Net is, stage by stage, beside torchvision's stock Faster R-CNN R-50-FPN in one process.

    python tools/benchmark.py --output runs/benchmark.json
    python tools/benchmark.py --device cuda --seconds 20 --document docs/benchmarks.md

Stock is what `fasterrcnn_resnet50_fpn` gives with its published weights: frozen norms, RoIAlign at 2 x 2 points a bin,
greedy NMS, no refinement. IoU-Net does all of the paper: PrRoI pooling, predicted IoUs of all candidates, IoU-guided
NMS, refinement. The detectors take turns in every round, so that whatever else the machine does falls on both; a ratio
is the median over the rounds of the ratio within a round.

Weights are random, and shared where both have them. What depends on their values, which is how much is left to do after
each stage, is therefore set to what a trained detector would leave, the same for both:

- The image has a number of objects (100, COCO's limit of detections, each found once) of 20 classes, with sides from 2
  to 75 % of its short side, evenly in the logarithm; objects of a class hardly overlap.
- The RPN runs, on random scores, but then gives fixed proposals: some for each object, overlapping by more than the
  threshold of NMS, the rest elsewhere.
- The box predictor runs, but then gives fixed outputs: proposals of objects score above the threshold for the object's
  class (candidates: 400, four an object, as our detector of blood cells has), the rest as background. Both detectors'
  NMS then leaves one box an object, and refinement has as many to move.
- Refinement's early stop is off: every box takes all its steps, the most that refinement can cost.

In training nothing is fixed: both sample 512 of their RPN's proposals an image, IoU-Net jitters 512 boxes more. An
image has seven objects, about COCO's mean. A step is what `iounet.training.train_steps` does, with either detector.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from benchmark_prroi import fill_document, processor_name
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_iou
from torchvision.ops.misc import FrozenBatchNorm2d
from yacs.config import CfgNode

from iounet import build_detector, get_cfg
from iounet.boxes import box_sizes
from iounet.build import build_optimizer, build_schedule
from iounet.modeling import IoUNet
from iounet.postprocess import Stop
from iounet.training import train_steps
from iounet.training.checkpoint import load_detector_weights
from prroi_pool import extension

NUM_CLASSES = 90  # of torchvision's COCO detectors
CLASSES_IN_IMAGE = 20
OBJECTS_IN_TRAINING = 7
# Edges of an object's proposals lie within this part of its sides: two of them overlap by 0.67 at least.
JITTER = 0.05
# Objects of a class overlap by no more: with the jitter, too, that stays below the 0.5 of NMS.
LARGEST_OVERLAP = 0.3

OURS, STOCK = "IoU-Net", "Faster R-CNN"
FRAME = "transform, back to the image"
BACKBONE = "backbone + FPN"
RPN = "RPN"
POOLING = "pooling of the proposals"
BOX_HEAD = "box head"
NMS = "scores, decoding, NMS"
CANDIDATES = "predicted IoU of the candidates"
REFINEMENT = "refinement"
STAGES = (FRAME, BACKBONE, RPN, POOLING, BOX_HEAD, NMS, CANDIDATES, REFINEMENT)

Seconds = dict[str, dict[str, list[float]]]  # row → detector → seconds in each round


@dataclass(frozen=True)
class Scene:
    """An image, and what the RPN and the box predictor of a trained detector might say about it.

    Attributes:
        image (Tensor[3, H, W]): RGB in [0, 1].
        boxes (Tensor[N, 4]), labels (Tensor[N]): objects; xyxy in pixels of the image, which is not resized.
        proposals (Tensor[P, 4]): first the candidates, in turns one of each object; then the background.
        class_logits (Tensor[P, NUM_CLASSES + 1]), box_regression (Tensor[P, 4 * (NUM_CLASSES + 1)]): of the proposals.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    proposals: Tensor
    class_logits: Tensor
    box_regression: Tensor

    def to(self, device: torch.device) -> "Scene":
        return Scene(**{name: tensor.to(device) for name, tensor in vars(self).items()})


def make_scene(image_size: tuple[int, int], num_proposals: int, num_candidates: int, num_objects: int) -> Scene:
    """The same one every time. ``image_size`` is (height, width) in pixels."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(num_objects) % CLASSES_IN_IMAGE + 1
    boxes = torch.zeros(0, 4)
    while len(boxes) < num_objects:
        box = draw_boxes(1, image_size, generator)
        of_its_class = boxes[labels[: len(boxes)] == labels[len(boxes)]]
        if (box_iou(box, of_its_class) <= LARGEST_OVERLAP).all():
            boxes = torch.cat([boxes, box])

    objects = torch.arange(num_candidates) % num_objects
    shift = JITTER * (2 * torch.rand(num_candidates, 4, generator=generator) - 1)
    candidates = boxes[objects] + shift * box_sizes(boxes[objects]).repeat(1, 2)
    end = torch.tensor(image_size).flip(0).repeat(2)
    candidates = candidates.clamp(min=0).minimum(end)
    background = draw_boxes(num_proposals - num_candidates, image_size, generator)

    scores = 0.06 + 0.9 * torch.rand(num_candidates, generator=generator)
    logits = torch.full((num_proposals, NUM_CLASSES + 1), -20.0)
    logits[:, 0] = 0
    logits[torch.arange(num_candidates), labels[objects]] = scores.logit()
    return Scene(
        image=torch.rand(3, *image_size, generator=generator),
        boxes=boxes,
        labels=labels,
        proposals=torch.cat([candidates, background]),
        class_logits=logits,
        box_regression=torch.zeros(num_proposals, 4 * (NUM_CLASSES + 1)),
    )


def draw_boxes(count: int, image_size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Tensor[count, 4] inside the image, with aspect ratios of up to 2."""
    extent = torch.tensor(image_size).flip(0)
    low, high = (torch.tensor(part * min(image_size)).log() for part in (0.02, 0.75))
    size = (low + (high - low) * torch.rand(count, 1, generator=generator)).exp()
    half_log_ratio = (torch.rand(count, 1, generator=generator) - 0.5) * torch.tensor(2.0).log()
    sides = (size * torch.cat([half_log_ratio, -half_log_ratio], 1).exp()).minimum(0.95 * extent)
    start = torch.rand(count, 2, generator=generator) * (extent - sides)
    return torch.cat([start, start + sides], 1)


def make_config(
    image_size: tuple[int, int], num_proposals: int, num_detections: int, batch_size: int, cuda_graphs: bool
) -> CfgNode:
    cfg = get_cfg()
    cfg.MODEL.NUM_CLASSES = NUM_CLASSES
    cfg.MODEL.RPN.POST_NMS_TEST = num_proposals
    cfg.INPUT.MIN_SIZE, cfg.INPUT.MAX_SIZE = min(image_size), max(image_size)  # so that the image keeps its size
    cfg.TEST.DETECTIONS_PER_IMAGE = num_detections
    cfg.TEST.REFINE.EARLY_STOP, cfg.TEST.REFINE.DEGENERATION = 0.0, -1.0  # no change of an IoU stops a box
    cfg.TEST.REFINE.CUDA_GRAPHS = cuda_graphs
    cfg.SOLVER.BATCH_SIZE = batch_size
    cfg.SOLVER.BASE_LR = 1e-6  # random weights on noise must not diverge
    cfg.freeze()
    return cfg


def make_detectors(cfg: CfgNode, scene: Scene, device: torch.device) -> dict[str, nn.Module]:
    """Both, in inference mode, with the same weights, and with the scene's proposals and box predictions."""
    torch.manual_seed(0)
    stock = FasterRCNN(
        resnet_fpn_backbone(backbone_name="resnet50", weights=None),
        NUM_CLASSES + 1,
        min_size=cfg.INPUT.MIN_SIZE,
        max_size=cfg.INPUT.MAX_SIZE,
        rpn_post_nms_top_n_test=cfg.MODEL.RPN.POST_NMS_TEST,
        box_detections_per_img=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    for name, module in stock.backbone.named_modules():
        if isinstance(module, FrozenBatchNorm2d) and name.endswith("bn3"):
            # With norms that do nothing, each of the 16 residual blocks would double the variance.
            module.weight.fill_(0.2)
    ours = build_detector(cfg)
    load_detector_weights(ours, stock.state_dict(), "stock", need_iou_head=False)
    detectors = {OURS: ours, STOCK: stock}
    for detector in detectors.values():
        detector.rpn.register_forward_hook(
            lambda rpn, _, output: output if rpn.training else ([scene.proposals], output[1])
        )
        detector.roi_heads.box_predictor.register_forward_hook(
            lambda predictor, _, output: output if predictor.training else (scene.class_logits, scene.box_regression)
        )
        detector.to(device).eval()
    return detectors


def count_work(detector: IoUNet, stock: FasterRCNN, scene: Scene) -> dict[str, int]:
    """What the detectors have to do, as counted in them."""
    with torch.no_grad():
        features = detector.extract([scene.image])
        proposals = detector.propose(features)
        candidates = detector.detect(features, proposals)
        kept = [detector.suppress(of_image) for of_image in candidates]
        *_, [(_, stops)] = detector.refinement_path(features, kept)
        (stock_detections,) = stock([scene.image])
    return {
        "proposals": len(proposals[0]),
        "candidates": len(candidates[0]),
        "detections": len(kept[0]),
        "stock_detections": len(stock_detections["boxes"]),
        "refinement_steps": detector.postprocessing.refinement_steps,
        "boxes_that_take_all_steps": int((stops == Stop.STEPS).sum()),
    }


def count_training_work(
    detectors: dict[str, nn.Module], scene: Scene, cfg: CfgNode, device: torch.device
) -> dict[str, dict[str, float]]:
    """What a training step costs that does not depend on the machine's speed; memory only where a GPU tells it.

    The arithmetic is that of convolutions and linear layers.
    """
    work = {}
    for name, detector in detectors.items():
        images, targets = training_batch(scene, cfg)
        before = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
        with FlopCounterMode(display=False) as counter:
            sum(detector.train()(images, targets).values()).backward()
        work[name] = {
            "million_trainable_parameters": sum(p.numel() for p in detector.parameters() if p.requires_grad) / 1e6,
            "gflop_an_image": counter.get_total_flops() / len(images) / 1e9,
        }
        if device.type == "cuda":
            # Maps and gradients; the weights and SGD's momentum of the same size come on top.
            work[name]["mib_of_a_step"] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
        detector.zero_grad(set_to_none=True)
        detector.eval()
    return work


def training_batch(scene: Scene, cfg: CfgNode) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    target = {"boxes": scene.boxes[:OBJECTS_IN_TRAINING], "labels": scene.labels[:OBJECTS_IN_TRAINING]}
    return [scene.image] * cfg.SOLVER.BATCH_SIZE, [target] * cfg.SOLVER.BATCH_SIZE


class Stopwatch:
    """Seconds spent in each stage, leaving out the stages that are called within it."""

    def __init__(self, device: torch.device):
        self.seconds: dict[str, float] = defaultdict(float)
        self._device = device
        self._running: list[str] = []
        self._since = 0.0

    def timing(self, stage: str) -> Callable[[Callable], Callable]:
        """A decorator: the calls belong to the stage."""

        def decorate(function: Callable) -> Callable:
            def timed(*args, **kwargs):
                self._lap()
                self._running.append(stage)
                try:
                    return function(*args, **kwargs)
                finally:
                    self._lap()
                    self._running.pop()

            return timed

        return decorate

    def _lap(self) -> None:
        now = clock(self._device)
        if self._running:
            self.seconds[self._running[-1]] += now - self._since
        self._since = now


def stages_of(name: str, detector: nn.Module) -> list[tuple[object, str, str]]:
    """(object, method, stage) of every method whose own time, without that of those nested in it, is the stage's."""
    heads = detector.roi_heads
    shared = [
        (detector, "forward", FRAME),
        (detector.transform, "forward", FRAME),
        (detector.backbone, "forward", BACKBONE),
        (detector.rpn, "forward", RPN),
        (heads.box_roi_pool, "forward", POOLING),
        (heads.box_head, "forward", BOX_HEAD),
        (heads.box_predictor, "forward", BOX_HEAD),
    ]
    if name == STOCK:
        return [*shared, (heads, "forward", NMS)]
    return [
        *shared,
        (detector, "detect", CANDIDATES),
        (heads, "candidates", NMS),
        (detector, "suppress", NMS),
        (detector, "refine", REFINEMENT),
    ]


@contextmanager
def decorated(methods: list[tuple[object, str, Callable[[Callable], Callable]]]) -> Iterator[None]:
    """(object, method, decorator): for a while the method, of this object alone, is the decorated one."""
    with ExitStack() as stack:
        for owner, method, decorator in methods:
            original = getattr(owner, method)
            setattr(owner, method, decorator(original))
            stack.callback(setattr, owner, method, original)
        yield


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def take_turns(calls: dict[str, Callable[[], dict[str, float]]], seconds: float) -> Seconds:
    """The rows that the detectors' calls return, of rounds of about ``seconds`` in all but at least three.

    Which detector begins changes from round to round. The first round, in which memory is taken and algorithms are
    chosen, does not count.
    """
    for call in calls.values():
        call()
    rows: Seconds = defaultdict(lambda: defaultdict(list))
    order = list(calls)
    end = time.perf_counter() + seconds
    for rounds in itertools.count():
        if rounds >= 3 and time.perf_counter() > end:
            break
        for name in order:
            for row, measured in calls[name]().items():
                rows[row][name].append(measured)
        order.reverse()
    return rows


def inference_call(
    name: str, detector: nn.Module, scene: Scene, device: torch.device
) -> Callable[[], dict[str, float]]:
    """Detects twice: the whole is measured without the stopwatch, which makes a GPU wait at each stage's end."""

    @torch.no_grad()
    def call() -> dict[str, float]:
        start = clock(device)
        detector([scene.image])
        whole = clock(device) - start
        stopwatch = Stopwatch(device)
        with decorated(
            [(owner, method, stopwatch.timing(stage)) for owner, method, stage in stages_of(name, detector)]
        ):
            detector([scene.image])
        return stopwatch.seconds | {"whole": whole}

    return call


def training_call(
    detector: nn.Module, scene: Scene, cfg: CfgNode, device: torch.device
) -> Callable[[], dict[str, float]]:
    batches = itertools.repeat(training_batch(scene, cfg))
    optimizer = build_optimizer(cfg, detector)
    steps = train_steps(detector, batches, optimizer, build_schedule(cfg, optimizer), device=device, seed=0)

    def call() -> dict[str, float]:
        start = clock(device)
        next(steps)
        return {"training step": clock(device) - start}

    return call


@contextmanager
def computing_in(dtype: torch.dtype, detectors: dict[str, nn.Module], device: torch.device) -> Iterator[None]:
    """bfloat16 is MODEL.AMP of ours, and autocast of stock's whole forward pass."""
    detectors[OURS].amp = dtype == torch.bfloat16
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
    with decorated([(detectors[STOCK], "forward", autocast)]):
        yield
    detectors[OURS].amp = False


def measure(
    detectors: dict[str, nn.Module], scene: Scene, cfg: CfgNode, device: torch.device, seconds: float
) -> dict[str, Seconds]:
    """Rows of "inference" and of "training"; ``seconds`` are for each."""
    for detector in detectors.values():
        detector.eval()
    inference = take_turns(
        {name: inference_call(name, detector, scene, device) for name, detector in detectors.items()}, seconds
    )
    training = take_turns(
        {name: training_call(detector, scene, cfg, device) for name, detector in detectors.items()}, seconds
    )
    return {"inference": inference, "training": training}


def markdown(rows: list[dict]) -> str:
    """A table of milliseconds and of ratios, each a median and, in brackets, the quartiles."""
    lines = [f"| | dtype | {OURS}, ms | {STOCK}, ms | ratio |", "| --- | --- | ---: | ---: | ---: |"]
    for row in rows:
        seconds = row["seconds"]
        cells = [
            spread([1e3 * value for value in seconds[name]], ".1f") if name in seconds else "" for name in (OURS, STOCK)
        ]
        both = STOCK in seconds
        ratio = spread([a / b for a, b in zip(seconds[OURS], seconds[STOCK], strict=True)], ".2f") if both else ""
        lines.append(f"| {' | '.join([row['stage'], row['dtype'], *cells, ratio])} |")
    return "\n".join(lines)


def spread(values: list[float], form: str) -> str:
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def images_a_second(rows: list[dict], batch_size: int) -> str:
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="where to measure (default: cpu)")
    parser.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        default=(800, 1216),
        metavar=("HEIGHT", "WIDTH"),
        help="in pixels (default: 800 1216)",
    )
    parser.add_argument("--proposals", type=int, default=1000, metavar="N", help="of the RPN (default: 1000)")
    parser.add_argument(
        "--candidates", type=int, default=400, metavar="N", help="boxes that score above the threshold (default: 400)"
    )
    parser.add_argument("--detections", type=int, default=100, metavar="N", help="boxes that NMS leaves (default: 100)")
    parser.add_argument("--batch-size", type=int, default=2, metavar="N", help="images in a training step (default: 2)")
    parser.add_argument("--cuda-graphs", action="store_true", help="IoU-Net refines by CUDA graphs")
    parser.add_argument("--seconds", type=float, default=120.0, help="for inference, and for training (default: 120)")
    parser.add_argument("--output", type=Path, metavar="JSON", help="also write the figures to this file")
    parser.add_argument(
        "--document",
        type=Path,
        metavar="MD",
        help="also put the table between this file's lines <!-- detector DEVICE figures -->",
    )
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("torch sees no GPU: leave --device cuda away")
    if args.cuda_graphs and device.type != "cuda":
        sys.exit("--cuda-graphs needs --device cuda")
    if not 1 <= args.detections <= args.candidates <= args.proposals:
        sys.exit("--detections, --candidates and --proposals must rise: a detection is a candidate, a proposal too")
    extension.load(device.type)

    image_size = tuple(args.image_size)
    cfg = make_config(image_size, args.proposals, args.detections, args.batch_size, args.cuda_graphs)
    scene = make_scene(image_size, args.proposals, args.candidates, args.detections).to(device)
    detectors = make_detectors(cfg, scene, device)
    work = count_work(detectors[OURS], detectors[STOCK], scene)
    heading = (
        f"{processor_name(device)}, {torch.get_num_threads()} threads, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}; image of {image_size[0]} x {image_size[1]}, {work['proposals']} proposals, "
        f"{work['candidates']} candidates, {work['detections']} detections ({STOCK}: {work['stock_detections']}), of "
        f"which {work['boxes_that_take_all_steps']} take all {work['refinement_steps']} steps"
        f"{', by CUDA graphs' if args.cuda_graphs else ''}; training with batches of {args.batch_size}."
    )
    print(heading)

    rows, training_work = [], {}
    # Most CPUs only lose by bfloat16.
    for dtype in (torch.float32, torch.bfloat16) if device.type == "cuda" else (torch.float32,):
        dtype_name = str(dtype).removeprefix("torch.")
        with computing_in(dtype, detectors, device):
            training_work[dtype_name] = count_training_work(detectors, scene, cfg, device)
            measured = measure(detectors, scene, cfg, device, args.seconds)
        for part, stages in (("inference", (*STAGES, "whole")), ("training", ("training step",))):
            rows += [
                {"part": part, "stage": stage, "dtype": dtype_name, "seconds": measured[part][stage]}
                for stage in stages
            ]
    table = f"{markdown(rows)}\n\n{images_a_second(rows, args.batch_size)}\n\n{in_words(training_work)}"
    print(table)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        content = {
            "device": processor_name(device),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "image_size": image_size,
            "cuda_graphs": args.cuda_graphs,
            "batch_size": args.batch_size,
            "work": work,
            "training_work": training_work,
            "rows": rows,
        }
        args.output.write_text(json.dumps(content, indent=1) + "\n")
    if args.document:
        fill_document(args.document, f"<!-- detector {args.device} figures -->", f"{heading}\n\n{table}")


if __name__ == "__main__":
    main()
