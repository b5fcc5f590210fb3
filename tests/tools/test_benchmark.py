import json
import re

import pytest
import torch
from torchvision.ops import box_iou

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {"image_size": (64, 96), "num_proposals": 40, "num_candidates": 24, "num_detections": 8}
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
def tool(load_tool):
    return load_tool("benchmark.py")


@pytest.fixture(scope="module")
def small(tool):
    """A scene and both detectors."""
    scene = tool.make_scene(SMALL["image_size"], *(SMALL[f"num_{what}"] for what in ("proposals", "candidates")), 8)
    cfg = tool.make_config(SMALL["image_size"], SMALL["num_proposals"], SMALL["num_detections"], 1, False)
    return scene, tool.make_detectors(cfg, scene, torch.device("cpu"))


def test_measures_both_and_writes_what_it_prints(run_tool, tmp_path):
    output = tmp_path / "folder" / "figures.json"
    document = tmp_path / "page.md"
    marker = "<!-- detector cpu figures -->"
    document.write_text(f"above\n{marker}\nold\n{marker}\nbelow\n")
    words = "--image-size 64 96 --proposals 40 --candidates 24 --detections 8 --batch-size 1 --seconds 0".split()
    done = run_tool("benchmark.py", *words, "--output", output, "--document", document)
    assert done.returncode == 0, done.stderr

    figures = json.loads(output.read_text())
    assert figures["image_size"] == [64, 96] and figures["batch_size"] == 1 and figures["threads"] == 1
    assert figures["work"] == {
        "proposals": 40,
        "candidates": 24,
        "detections": 8,
        "stock_detections": 8,
        "refinement_steps": 5,
        "boxes_that_take_all_steps": 8,
    }
    ours, stock = (figures["training_work"]["float32"][name] for name in ("IoU-Net", "Faster R-CNN"))
    # The IoU head's layers: from 256 channels in 7 x 7 bins, then 1024, to each class and the background.
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


def test_both_detectors_have_the_same_to_do(small):
    scene, detectors = small
    seen = {}
    for name, detector in detectors.items():
        inputs = []
        handles = [
            module.register_forward_hook(lambda _, given, output, inputs=inputs: inputs.append((given, output)))
            for module in (detector.transform, detector.backbone, detector.roi_heads.box_roi_pool)
        ]
        with torch.no_grad():
            (detections,) = detector([scene.image])
        for handle in handles:
            handle.remove()
        (_, (batch, _)), (_, maps), ((_, proposals, _), _) = inputs
        boxes = detections["boxes"] if isinstance(detections, dict) else detections.boxes
        seen[name] = batch.tensors, maps, proposals, boxes
    (our_images, our_maps, our_proposals, our_boxes), (images, maps, proposals, boxes) = seen.values()
    assert torch.equal(our_images, images) and images.shape[2:] == SMALL["image_size"]
    for level in maps:
        torch.testing.assert_close(our_maps[level], maps[level], rtol=1e-4, atol=1e-4)
    assert torch.equal(our_proposals[0], proposals[0]) and torch.equal(proposals[0], scene.proposals)
    assert len(our_boxes) == len(boxes) == SMALL["num_detections"]
    # One box an object in both, though not the same of its candidates.
    for found in (our_boxes, boxes):
        nearest = box_iou(found, scene.boxes).argmax(1)
        assert nearest.sort().values.tolist() == list(range(SMALL["num_detections"]))


def test_the_scene_at_its_full_size(tool):
    scene = tool.make_scene((800, 1216), 1000, 400, 100)
    assert len(scene.boxes) == len(scene.labels) == 100 and len(scene.proposals) == len(scene.class_logits) == 1000
    for boxes in (scene.boxes, scene.proposals):
        assert (boxes[:, 2:] > boxes[:, :2]).all() and (boxes >= 0).all()
        assert (boxes[:, 2] <= 1216).all() and (boxes[:, 3] <= 800).all()
    above_threshold = scene.class_logits.softmax(1)[:, 1:] > 0.05
    assert above_threshold.any(1).tolist() == [True] * 400 + [False] * 600
    label = above_threshold[:400].int().argmax(1) + 1
    # Candidates suppress each other exactly if they are of one object.
    candidates = scene.proposals[:400]
    same_class = label[:, None] == label
    same_object = torch.arange(400)[:, None] % 100 == torch.arange(400) % 100
    assert torch.equal((box_iou(candidates, candidates) > 0.5) & same_class, same_object)


def test_the_stages_make_up_the_whole(tool):
    stopwatch = tool.Stopwatch(torch.device("cpu"))

    class Outer:
        def run(self):
            return 1 + self.step() + self.step()

        def step(self):
            return 10

    outer = Outer()
    ticks = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0])  # run, step, its end, step, its end, the end
    tool.clock, original = lambda device: next(ticks), tool.clock
    try:
        with tool.decorated([(outer, "run", stopwatch.timing("run")), (outer, "step", stopwatch.timing("step"))]):
            assert outer.run() == 21
    finally:
        tool.clock = original
    assert stopwatch.seconds == {"run": 1 + 3 + 5, "step": 2 + 4}
    assert outer.run() == 21 and list(ticks) == []


def test_mixed_precision(tool, small):
    """On a GPU the tool measures it, too; here only that both detectors work in it."""
    scene, detectors = small
    cfg = tool.make_config(SMALL["image_size"], SMALL["num_proposals"], SMALL["num_detections"], 1, False)
    device = torch.device("cpu")
    with tool.computing_in(torch.bfloat16, detectors, device):
        measured = tool.measure(detectors, scene, cfg, device, 0)
    assert set(measured["inference"]) == set(STAGES[:-1]) and set(measured["training"]) == {"training step"}


@pytest.mark.parametrize("counts", [("--proposals", 10), ("--candidates", 5), ("--detections", 0)])
def test_more_of_what_follows_than_of_what_goes_before(call_tool, counts):
    assert call_tool("benchmark.py", *counts) == (
        "--detections, --candidates and --proposals must rise: a detection is a candidate, a proposal too"
    )


def test_cuda_graphs_without_cuda(call_tool):
    assert call_tool("benchmark.py", "--cuda-graphs") == "--cuda-graphs needs --device cuda"
