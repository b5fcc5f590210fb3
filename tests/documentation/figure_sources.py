"""Sources of the measured numbers in the documentation: the files of docs/results/ and docs/benchmarks/."""

import json
import statistics
from pathlib import Path

from iounet.evaluation.comparison import OWN
from iounet.evaluation.predictions import REFINED
from iounet.evaluation.tables import spread

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAPER = "the paper's NMS and refinement, this IoU head"
CLASS_SCORE = f"{OWN}, final score class"


def read_file(path):
    return json.loads(path.read_text(encoding="utf-8"))


def read(name, folder="results"):
    return read_file(DOCS / folder / f"{name}.json")


def seeds(prefix, numbers=(0, 1, 2)):
    return [read(f"{prefix}_seed{seed}") for seed in numbers]


def mean(runs, value):
    return statistics.mean(value(run) for run in runs)


def gain(runs, before, after, column="AP", table="table", digits=1):
    """Mean ± standard deviation of the gain of one row over another, seed by seed."""
    return spread([run[table][after][column] - run[table][before][column] for run in runs], digits)


SYNTHETIC, BCCD, CARDS = (seeds(f"{name}_energy") for name in ("synthetic", "bccd", "cards"))
PAPER_SYNTHETIC, PAPER_BCCD = seeds("synthetic"), seeds("bccd")
SUMMARY = read("summary")
NOISE = {name: read(f"label_noise/{name}/label_noise")["mean"] for name in ("cards", "bccd")}
NEW_HEADS = read("label_noise/bccd_new_heads/heads_by_images")["images"]
SMALL = read("cards_small_test")["table"]


def of(name, key):
    return SUMMARY[name][key]["mean"]


def ap(runs, row, column="AP"):
    return mean(runs, lambda run: run["table"][row][column])


def basin(runs, start, steps="10", which="true"):
    return mean(runs, lambda run: run["basins"][start][steps][which])


def bounds(values):
    found = list(values)
    return min(found), max(found)


def bias(runs):
    """Mean amount by which the predicted IoUs of candidates with a true IoU ≥ 0.5 are too low."""
    return -mean(runs, lambda run: run["calibration"]["candidates of true IoU ≥ 0.5"]["bias"])


def too_low(runs):
    """Amount by which the predicted IoU after ten steps is too low: minimum and maximum over the initial IoUs."""
    return bounds(basin(runs, start) - basin(runs, start, which="predicted") for start in runs[0]["basins"])


def of_paper(runs, key, digits=3):
    return spread([run["correlation"][key] for run in runs], digits)


def step_sizes(runs):
    """The largest difference in AP among step sizes of 0.25 to 2."""
    tables = [run["step_size"] for run in runs]
    low, high = bounds(statistics.mean(table[size]["AP"] for table in tables) for size in ("0.25", "0.5", "1", "2"))
    return high - low


def interval(runs, others):
    """Mean loss of AP in `others` relative to `runs`, five runs each, and its 95 % confidence interval by Student's t.

    The interval is given as the largest loss and the largest gain.
    """
    lost = [b_ap(b) - b_ap(a) for a, b in zip(runs, others, strict=True)]
    half = 2.776 * statistics.stdev(lost) / len(lost) ** 0.5
    return -statistics.mean(lost), half - statistics.mean(lost), half + statistics.mean(lost)


def b_ap(run):
    return (run.get("table") or run["nms"])[REFINED]["AP"]


FLOAT32, AMP = PAPER_SYNTHETIC + seeds("synthetic_float32", (3, 4)), seeds("synthetic_amp", range(5))
FLOAT32_VAL = seeds("synthetic_val") + seeds("synthetic_float32_val", (3, 4))
LOST = sorted(b_ap(before) - b_ap(after) for before, after in zip(FLOAT32, AMP, strict=True))


def against(runs, others, row, other_row, column="AP"):
    """Mean ± standard deviation of the gain of a row in `runs` over a row in `others`, seed by seed."""
    return spread(
        [(a.get("table") or a["nms"])[row][column] - other_row(b)[column] for a, b in zip(runs, others, strict=True)],
        1,
    )


IMPROVED, IMPROVED_VAL = seeds("synthetic_improved"), seeds("synthetic_improved_val")


def nms(run, row=REFINED):
    return run["nms"][row]


def plain(run):
    return run["ablation"]["plain detector"]


def other(name, energy=True):
    table = read(f"other_{'energy_' if energy else ''}{name}")["table"]
    return table["refined"]["AP"] - table["before"]["AP"]


# Benchmarks.


def median(name, stage, dtype="float32", detector="IoU-Net"):
    """Milliseconds of a stage of the detector."""
    (row,) = (row for row in read(name, "benchmarks")["rows"] if (row["stage"], row["dtype"]) == (stage, dtype))
    return 1e3 * statistics.median(row["seconds"][detector])


def ratio(name, stage, dtype="float32"):
    """Time of IoU-Net divided by that of Faster R-CNN: median over the rounds."""
    (row,) = (row for row in read(name, "benchmarks")["rows"] if (row["stage"], row["dtype"]) == (stage, dtype))
    ours, stock = (row["seconds"][detector] for detector in ("IoU-Net", "Faster R-CNN"))
    return statistics.median(a / b for a, b in zip(ours, stock, strict=True))


def pooling(name, layout, operation, workload="", *, without=()):
    """Workload → milliseconds of each implementation."""
    rows = read(name, "benchmarks")["rows"]
    return {
        row["workload"]: row.get("graph_milliseconds") or row["milliseconds"]
        for row in rows
        if (row["dtype"], row["layout"], row["operation"]) == ("float32", layout, operation)
        and row["workload"].startswith(workload)
        and not row["workload"].startswith(tuple(without) or "-")
    }


LAST, FIRST = "channels-last", "contiguous"  # layouts: channels last or first
FORWARD, BOTH, ROIS = "forward", "forward + feature gradient", "RoI gradient"


def faster(name, layout, *operations, workload="", without=()):
    """How many times as fast as roi_align(2) prroi_pool is: minimum and maximum."""
    return bounds(
        times["roi_align(2)"] / times["prroi_pool"]
        for operation in operations
        for times in pooling(name, layout, operation, workload, without=without).values()
    )


# Time of prroi_pool for RoIs of 100 to 200 pixels, as a multiple of roi_align's: minimum and maximum.
LARGE_RATIOS = bounds(
    1 / value for layout in (LAST, FIRST) for value in faster("cuda", layout, FORWARD, BOTH, workload="large")
)


def first(name, layout, operation, peer="prroi_pool"):
    """Milliseconds of one implementation for the first workload."""
    (times,) = pooling(name, layout, operation, "512 RoIs of 14").values()
    return times[peer]


def backward(name, layout):
    """Time of the RoI gradient divided by that of the forward pass: minimum and maximum."""
    forward, rois = (pooling(name, layout, operation) for operation in (FORWARD, ROIS))
    return bounds(rois[workload]["prroi_pool"] / forward[workload]["prroi_pool"] for workload in rois)


def kernel(name, layout, operation):
    """Milliseconds of one kernel for the first workload; gradients exclude the forward pass."""
    return first(name, layout, operation) - (first(name, layout, FORWARD) if operation == BOTH else 0.0)


def kernel_row(layout, operation):
    return tuple(kernel(name, layout, operation) for name in ("cuda_nvcc_kernels", "cuda"))


KERNELS = [kernel_row(layout, operation) for layout in (LAST, FIRST) for operation in (FORWARD, BOTH, ROIS)]
CPUS = ("detector_cpu", "detector_cpu_newer")
EXPORTED = read("exported_refiner", "benchmarks")


def exported(runtime, boxes):
    times = {row["runtime"]: row["seconds"] for row in EXPORTED["speed"] if row["boxes"] == boxes}
    return statistics.median(a / b for a, b in zip(times[runtime], times["PyTorch"], strict=True))


def peak(runtime):
    (row,) = (row for row in EXPORTED["files"] if row["runtime"] == runtime)
    return row["mib_peak"]


SCALE = {(row["step"], row["pieces"]): row for row in read("coco_size", "benchmarks")["rows"]}


def a_piece(step, pieces):
    return 1e3 * SCALE[step, pieces]["seconds"] / pieces


def plan(gpus):
    """The rows of the table in docs/guides/coco.md, computed with the formulas and inputs of that page."""
    step, images = 0.252, 2_560_000
    work = read("detector_cpu", "benchmarks")["training_work"]["float32"]["IoU-Net"]
    sent = 2 * (gpus - 1) / gpus * 4e6 * work["million_trainable_parameters"]
    link = 10e9 if gpus <= 8 else 12.5e9
    slowest = step / 3 + max(2 * step / 3, sent / link)
    return {
        "training": images / (2 * gpus) * slowest / 3600,
        "detection": 8 * 5000 * 0.065 / gpus / 3600,
        "scoring": 8 * 4 * 118 * -(-80 // gpus) / 80 / 3600,
        "images": 2 * gpus / slowest,
        "read": 2 * gpus / slowest * 0.158,
        "loading": 2 / slowest * 8.2e-3,
        "sent": sent / slowest / 1e9,
        "limit": sent / (2 * slowest / 3) / 1e9,
    }


def planned(row):
    return tuple(plan(gpus)[row] for gpus in (1, 8, 64))


def memory(detector, dtype):
    """Gigabytes of a training step on the H200."""
    return read("detector_cuda", "benchmarks")["training_work"][dtype][detector]["mib_of_a_step"] * 2**20 / 1e9
