"""Tests of benchmarks/detector.py on an image of 64 x 96 pixels, and of its simulated image at full size."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torchvision.ops import box_iou

from benchmarks import detector as benchmark
from benchmarks.simulated_image import simulate_image
from iounet.evaluation import stopwatch
from iounet.postprocess import postprocessing

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[2]
CPU = torch.device("cpu")
SIZE, DETECTIONS = (64, 96), 8
STAGES = [
    "transform, back to the image",
    "backbone + FPN",
    "RPN",
    "pooling of the proposals",
    "box head",
    "scores, decoding, NMS",
    "predicted IoU of the candidates",
    "refinement",
    "whole",
    "training step",
]
OURS_ALONE = {"predicted IoU of the candidates", "refinement"}


@pytest.fixture(scope="module")
def image():
    return simulate_image(SIZE, num_proposals=40, num_candidates=24, num_objects=DETECTIONS)


@pytest.fixture(scope="module")
def cfg(image):
    return benchmark.make_config(image, cuda_graphs=False)


@pytest.fixture(scope="module")
def detectors(cfg, image):
    return benchmark.make_detectors(cfg, image, CPU)


@pytest.mark.slow
def test_both_detectors_are_measured_and_the_printed_table_is_written(tmp_path):
    output = tmp_path / "folder" / "figures.json"
    document = tmp_path / "page.md"
    marker = "<!-- detector cpu figures -->"
    document.write_text(f"above\n{marker}\nold\n{marker}\nbelow\n")
    words = "--image-size 64 96 --proposals 40 --candidates 24 --detections 8 --batch-size 1 --seconds 0".split()
    command = [sys.executable, "-m", "benchmarks.detector", *words, "--output", output, "--document", document]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr

    figures = json.loads(output.read_text())
    assert figures["image_size"] == [64, 96] and figures["batch_size"] == 1 and figures["threads"] == 1
    assert figures["cuda_graphs"] is False
    assert figures["work"] == {
        "proposals": 40,
        "candidates": 24,
        "detections": 8,
        "stock_detections": 8,
        "refinement_steps": 5,
        "boxes_that_take_all_steps": 8,
    }
    ours, stock = (figures["training_work"]["float32"][name] for name in ("IoU-Net", "Faster R-CNN"))
    # Layers of the IoU head: 256 channels in 7 x 7 bins → 1024 → 1024 → classes and background.
    iou_head = sum((inputs + 1) * outputs for inputs, outputs in ((256 * 49, 1024), (1024, 1024), (1024, 91)))
    more = ours["million_trainable_parameters"] - stock["million_trainable_parameters"]
    assert more == pytest.approx(iou_head / 1e6)
    assert ours["gflop_an_image"] > stock["gflop_an_image"]

    rows = {row["stage"]: row["seconds"] for row in figures["rows"]}
    assert list(rows) == STAGES
    for stage, seconds in rows.items():
        assert set(seconds) == {"IoU-Net"} | (set() if stage in OURS_ALONE else {"Faster R-CNN"})
        assert all(len(measured) == 3 and min(measured) > 0 for measured in seconds.values())

    table = [line for line in done.stdout.splitlines() if line.startswith("| ") and " float32 " in line]
    assert [line.split(" | ")[0].removeprefix("| ") for line in table] == STAGES
    assert re.search(r"images a second: IoU-Net \d+\.\d\d, Faster R-CNN \d+\.\d\d\.", done.stdout)
    page = document.read_text()
    assert page.startswith(f"above\n{marker}\n") and page.endswith(f"\n{marker}\nbelow\n")
    assert "\n".join(table) in page and "old" not in page


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_the_page_shows_the_figures_of_the_json_file(device):
    figures = json.loads((ROOT / "docs" / "benchmarks" / f"detector_{device}.json").read_text())
    _, shown, _ = (ROOT / "docs" / "benchmarks.md").read_text().split(f"<!-- detector {device} figures -->")
    assert shown == f"\n{benchmark.heading(figures)}\n\n{benchmark.table(figures)}\n"


def test_the_heading_mentions_cuda_graphs():
    figures = json.loads((ROOT / "docs" / "benchmarks" / "detector_cpu.json").read_text())
    assert " take all 5 steps; training " in benchmark.heading(figures)
    assert " take all 5 steps, by CUDA graphs; training " in benchmark.heading(figures | {"cuda_graphs": True})


def test_both_detectors_do_the_same_work(image, detectors):
    seen = {}
    for name, detector in detectors.named().items():
        inputs = []
        handles = [
            module.register_forward_hook(lambda _, given, output, inputs=inputs: inputs.append((given, output)))
            for module in (detector.transform, detector.backbone, detector.roi_heads.box_roi_pool)
        ]
        with torch.no_grad():
            (detections,) = detector([image.pixels])
        for handle in handles:
            handle.remove()
        (_, (batch, _)), (_, maps), ((_, proposals, _), _) = inputs
        boxes = detections["boxes"] if isinstance(detections, dict) else detections.boxes
        seen[name] = batch.tensors, maps, proposals, boxes
    (our_images, our_maps, our_proposals, our_boxes), (images, maps, proposals, boxes) = seen.values()
    assert torch.equal(our_images, images) and images.shape[2:] == SIZE
    for level in maps:
        torch.testing.assert_close(our_maps[level], maps[level], rtol=1e-4, atol=1e-4)
    assert torch.equal(our_proposals[0], proposals[0]) and torch.equal(proposals[0], image.proposals)
    assert len(our_boxes) == len(boxes) == DETECTIONS
    # Both keep one box per object, though not necessarily the same candidate.
    for found in (our_boxes, boxes):
        nearest = box_iou(found, image.boxes).argmax(1)
        assert nearest.sort().values.tolist() == list(range(DETECTIONS))


def test_heads_on_a_frozen_detector_train_on_its_real_detections(image, tmp_path):
    config = tmp_path / "energy.yaml"
    config.write_text(
        "MODEL: {STANDALONE: True, IOU_HEAD: {CANDIDATES_PER_IMAGE: 8}, ENERGY_HEAD: {LOSS: nce}}\n"
        "TEST: {REFINE: {OBJECTIVE: energy, NUM_STEPS: 2}}\n"
    )
    cfg = benchmark.make_config(image, cuda_graphs=False, config_file=config)
    detectors = benchmark.make_detectors(cfg, image, CPU)
    assert benchmark.count_work(detectors, image)["refinement_steps"] == 2
    assert detectors.ours.postprocessing.refinement.objective == "energy"
    # Training samples eight candidates. The fixed outputs for inference would have the wrong number of rows.
    losses = detectors.ours.train()(*benchmark.training_batch(image, 1))
    assert sum(losses.values()).isfinite()


def test_the_simulated_image_at_full_size():
    image = simulate_image((800, 1216), num_proposals=1000, num_candidates=400, num_objects=100)
    assert image.size == (800, 1216)
    assert len(image.boxes) == len(image.labels) == 100 and len(image.proposals) == len(image.class_logits) == 1000
    for boxes in (image.boxes, image.proposals):
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes[:, 2] <= 1216).all() and (boxes[:, 3] <= 800).all()
    above_threshold = image.class_logits.softmax(1)[:, 1:] > 0.05
    assert above_threshold.any(1).tolist() == [True] * 400 + [False] * 600
    label = above_threshold[:400].int().argmax(1) + 1
    # Candidates suppress each other if and only if they belong to the same object.
    candidates = image.proposals[:400]
    same_class = label[:, None] == label
    same_object = torch.arange(400)[:, None] % 100 == torch.arange(400) % 100
    assert torch.equal((box_iou(candidates, candidates) > 0.5) & same_class, same_object)


def test_the_times_of_the_stages_add_up_to_the_whole(monkeypatch):
    watch = stopwatch.Stopwatch(CPU)

    class Outer:
        def run(self):
            return 1 + self.step() + self.step()

        def step(self):
            return 10

    outer = Outer()
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])  # run starts; step starts and ends, twice; run ends
    monkeypatch.setattr(stopwatch, "clock", lambda device: next(ticks))
    with benchmark.decorated([(outer, "run", watch("run")), (outer, "step", watch("step"))]):
        assert outer.run() == 21
    assert watch.seconds == {"run": 1 + 3 + 5, "step": 2 + 4}
    assert outer.run() == 21 and list(ticks) == [] and vars(outer) == {}


def test_the_stopwatch_is_removed_after_the_measurement(image, detectors):
    suppress, before = postprocessing.suppress, [set(vars(module)) for module in detectors.ours.modules()]
    stages = benchmark.inference_call(detectors.ours, image, CPU)()
    assert set(stages) == set(STAGES[:-1])
    assert postprocessing.suppress is suppress
    assert [set(vars(module)) for module in detectors.ours.modules()] == before


@pytest.mark.slow
@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="takes minutes on a CPU without bfloat16 instructions"
)
def test_mixed_precision(image, cfg, detectors):
    """Both detectors run in bfloat16, which the benchmark measures only on a GPU."""
    batch = benchmark.training_batch(image, 1)
    with benchmark.computing_in(torch.bfloat16, detectors, CPU):
        assert detectors.ours.amp
        measured = benchmark.measure(detectors, image, cfg, batch, CPU, 0)
    assert not detectors.ours.amp
    assert set(measured["inference"]) == set(STAGES[:-1]) and set(measured["training"]) == {"training step"}


@pytest.mark.parametrize("counts", [("--proposals", 10), ("--candidates", 5), ("--detections", 0)])
def test_inconsistent_counts_are_refused(call, counts):
    assert call(benchmark, *counts) == (
        "--detections, --candidates and --proposals must satisfy 1 <= detections <= candidates <= proposals"
    )


def test_no_cuda_graphs_requires_cuda(call):
    assert call(benchmark, "--no-cuda-graphs") == "--no-cuda-graphs needs --device cuda"


@pytest.mark.parametrize("cuda_graphs", [False, True])
def test_the_configuration_switches_cuda_graphs(image, cuda_graphs):
    assert benchmark.make_config(image, cuda_graphs=cuda_graphs).TEST.CUDA_GRAPHS is cuda_graphs
