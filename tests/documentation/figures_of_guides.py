"""The measured numbers of README.md, the guides and the pages about the method; see figures_of_results.py."""

import statistics

from figure_sources import (
    AMP,
    BCCD,
    CARDS,
    CPUS,
    EXPORTED,
    FIRST,
    FLOAT32,
    FORWARD,
    LARGE_RATIOS,
    LAST,
    NEW_HEADS,
    NOISE,
    ROOT,
    SMALL,
    SYNTHETIC,
    a_piece,
    b_ap,
    basin,
    faster,
    first,
    median,
    memory,
    of,
    planned,
    ratio,
    read,
    read_file,
    seeds,
    too_low,
)

from iounet.evaluation.predictions import GREEDY, REFINED, RESCORED
from iounet.evaluation.tables import spread

LOOSE = read_file(ROOT / "weights" / "cards.json")["starts"]
WEIGHTS = read("onnx_weights")["table"]
TEN, TWENTY = NOISE["cards"]["10%"], NOISE["cards"]["20%"]
STARTS = ("0.6 to 0.7", "0.7 to 0.8", "0.8 to 0.9", "0.9 to 1")


def exported_row(runtime):
    times = [
        1e3 * statistics.median(row["seconds"])
        for boxes in (10, 100)
        for row in EXPORTED["speed"]
        if (row["runtime"], row["boxes"]) == (runtime, boxes)
    ]
    (file,) = (row for row in EXPORTED["files"] if row["runtime"] == runtime)
    return (
        "| {} | {:.0f} ms | {:.0f} ms | {:.1f} s | {:.0f} MiB |",
        runtime,
        *times,
        file["seconds_to_load"],
        file["mib_peak"],
    )


def loose_row(start):
    row = LOOSE[start]
    return (
        f"| {start} | {{}} | {{:.3f}} → {{:.3f}} | {{:.0f}} % | {{:.3f}} → {{:.3f}} |",
        *(row["boxes"], row["before"], row["after"], 100 * row["improved"]),
        *(row["predicted_before"], row["predicted_after"]),
    )


def small_row(name, row):
    return f"| {name} | {{:.1f}} | {{:.1f}} | {{:.1f}} | {{:.1f}} |", *(
        SMALL[row][c] for c in ("AP", "AP50", "AP75", "AP90")
    )


def improved_row(label):
    """AP and AP90 of a table of several seeds, mean ± standard deviation."""
    return [spread([(run.get("table") or run["nms"])[REFINED][c] for run in label], 1) for c in ("AP", "AP90")]


FIGURES = {
    "README.md": [
        ("an IoU of 0.6 to 0.7 reach {:.2f}", basin(CARDS, "0.6")),
        ("takes {:.2f}–{:.2f}× as long", *(ratio(name, "whole") for name in CPUS)),
        ("and {:.2f}× on an NVIDIA H200", ratio("detector_cuda", "whole")),
        ("from a mean IoU of {:.2f} to {:.2f}", TEN["moved"]["iou_before"], TEN["moved"]["iou_after"]),
        ("with ten steps on the energy, {:.2f}× on the H200", ratio("detector_energy_cuda", "whole")),
        (
            "is {:.0f} to {:.0f}× as fast on a CPU and {:.1f} to {:.1f}× on an NVIDIA H200",
            *(
                faster(name, layout, FORWARD, workload="512 RoIs of 14")[0]
                for name in ("cpu", "cuda")
                for layout in (FIRST, LAST)
            ),
        ),
        ("take {:.0f} to {:.0f} times as long", *LARGE_RATIOS),
    ],
    "docs/index.md": [
        (
            "raises AP by {:.0f} on a synthetic set, by {:.0f} on blood cells and by {:.0f} on playing cards",
            *(of(name, "gain_AP") for name in ("synthetic", "bccd", "cards")),
        ),
    ],
    "docs/guides/tighten.md": [
        ("a mean IoU of {:.2f} to {:.2f}", TEN["moved"]["iou_before"], TEN["moved"]["iou_after"]),
        ("not moved lose {:.2f} IoU", 1 - NOISE["bccd"]["10%"]["not_moved"]["iou_after"]),
        (
            "its AUROC is {:.2f}; cleanlab's score reaches {:.2f}",
            *(TEN["auroc"][k] for k in ("move", "cleanlab badloc")),
        ),
        (
            "up to 10 % return to a mean IoU of {:.2f} with the original labels, and labels moved by up to 20 % to "
            "{:.2f}",
            *(of_noise["moved"]["iou_after"] for of_noise in (TEN, TWENTY)),
        ),
        ("other labels lose {:.2f} IoU", 1 - TEN["not_moved"]["iou_after"]),
        (
            "lose {:.2f} IoU and the other labels {:.2f}",
            NOISE["bccd"]["5%"]["moved"]["iou_before"] - NOISE["bccd"]["5%"]["moved"]["iou_after"],
            1 - NOISE["bccd"]["5%"]["not_moved"]["iou_after"],
        ),
        ("(AUROC {:.3f})", NOISE["bccd"]["20%"]["auroc"]["move"]),
    ],
    "docs/guides/deploy.md": [
        *map(exported_row, ("PyTorch", "ONNX Runtime", "AOTInductor")),
        (
            "AP stays within {:.1f} and AP90 within {:.1f} of float32",
            *(
                max(abs(WEIGHTS[f"{dtype}.onnx"][c] - WEIGHTS["float32.onnx"][c]) for dtype in ("float16", "int8"))
                for c in ("AP", "AP90")
            ),
        ),
    ],
    "docs/guides/coco.md": [
        ("takes about {:.0f} hours on one V100 and {:.0f} hours on eight", *planned("training")[:2]),
        ("| training, h | {:.1f} | {:.1f} | {:.1f} |", *planned("training")),
        ("detection, h | {:.2f} | {:.2f} | {:.2f} |", *planned("detection")),
        ("scoring, h | {:.2f} | {:.2f} | {:.2f} |", *planned("scoring")),
        ("| images per second | {:.0f} | {:.0f} | {:.0f} |", *planned("images")),
        ("| read from disk, MB/s | {:.1f} | {:.1f} | {:.1f} |", *planned("read")),
        ("| busy loading processes per GPU | {:.2f} | {:.2f} | {:.2f} |", *planned("loading")),
        ("| gradients sent, GB/s | {:.2f} | {:.2f} | {:.2f} |", *planned("sent")),
        ("| bandwidth above which computing is the limit, GB/s | {:.2f} | {:.2f} | {:.2f} |", *planned("limit")),
        ("is measured: {:.3f} s in float32", median("detector_cuda", "training step") / 1e3),
        (
            "takes {:.0f} hours of computing, and the data loader has to deliver {:.0f} images",
            2_560_000 / 2 * median("detector_cuda", "training step") / 1e3 / 3600,
            2e3 / median("detector_cuda", "training step"),
        ),
        ("loading an image of 158 kB | {:.1f} ms", a_piece("load training images", 500)),
        ("scoring a row | {:.0f} s", a_piece("score detections, 100 an image", 5000) * 5),
        ("An IoU-Net step takes {:.2f} to {:.2f}", *(ratio(name, "training step") for name in CPUS)),
        ("but {:.2f} times as long on an H200", ratio("detector_cuda", "training step")),
        (
            "a factor of {:.2f} would make training {:.0f} % longer",
            ratio("detector_cuda", "training step"),
            100 * (ratio("detector_cuda", "training step") / 1.1 - 1),
        ),
        (
            "needed {:.1f} GB in float32 and {:.1f} GB in bfloat16",
            *(memory("IoU-Net", dtype) for dtype in ("float32", "bfloat16")),
        ),
        ("needed {:.1f} and {:.1f} GB (", *(memory("Faster R-CNN", dtype) for dtype in ("float32", "bfloat16"))),
        ("cost [{} AP]", spread([b_ap(a) - b_ap(b) for a, b in zip(FLOAT32, AMP, strict=True)], 1)),
        (
            "takes [{:.1f} ms and an image {:.1f} ms]",
            *(median("detector_cuda", stage) for stage in ("refinement", "whole")),
        ),
        (
            "they took {:.1f} and {:.1f} ms",
            *(median("detector_cuda_without_graphs", stage) for stage in ("refinement", "whole")),
        ),
    ],
    "docs/guides/operator.md": [
        (
            "takes {:.0f} ms in channels-last layout and {:.0f} ms in contiguous layout",
            *(first("cpu", layout, FORWARD) for layout in (LAST, FIRST)),
        ),
    ],
    "docs/faq.md": [
        ("to a mean IoU of {:.2f} with the original labels", NEW_HEADS["20"]["20%"]["moved"]["iou_before"]),
        (
            "raise it to {:.2f}; heads trained on 200 images raise it to {:.2f}",
            *(NEW_HEADS[images]["20%"]["moved"]["iou_after"] for images in ("20", "200")),
        ),
        ("takes {:.2f} to {:.2f} of the time", *(ratio(name, "whole") for name in CPUS)),
        ("and {:.2f} times as long on an H200", ratio("detector_cuda", "whole")),
        (
            "from {:.1f} to {:.1f} AP50, and from {:.1f} to {:.1f} AP90",
            *(SMALL[row][column] for column in ("AP50", "AP90") for row in (GREEDY, RESCORED)),
        ),
        ("from a mean of {:.3f} to {:.3f}", LOOSE["0.9 to 1"]["before"], LOOSE["0.9 to 1"]["after"]),
    ],
    "docs/method/energy.md": [
        ("{:.2f} to {:.2f} on the synthetic set", *too_low(SYNTHETIC)),
        ("{:.2f} to {:.2f} on BCCD", *too_low(BCCD)),
        ("{:.2f} to {:.2f} on cards", *too_low(CARDS)),
    ],
    "prroi_pool/README.md": [],
    "weights/README.md": [
        small_row("greedy NMS", GREEDY),
        small_row("IoU-guided NMS and refinement, class score × predicted IoU", RESCORED),
        *map(loose_row, STARTS),
    ],
    "configs/synthetic_improved.yaml": [
        (
            "AP {}, AP90 {} (synthetic.yaml: {} and {})",
            *improved_row(seeds("synthetic_improved")),
            *improved_row(seeds("synthetic")),
        ),
    ],
}

ALLOWED = {
    "docs/index.md": [("from 0.76 to 0.93", "what the example prints")],
    "docs/get_started.md": [
        ("from 0.76 to 0.93", "what the example prints"),
        ("up to 7 GB", "the size of an installation, rounded up"),
    ],
    "docs/guides/train.md": [("`INPUT.VERTICAL_FLIP` | 0.5", "a probability to set")],
    "docs/guides/operator.md": [("costs about 0.05 ms of Python", "by hand, as docs/benchmarks.md says")],
    "docs/faq.md": [
        ("moved by up to 20 %", "how far the labels were moved"),
        ("so moving a box from an IoU of 0.7 to 0.9", "an example"),
        ("compute capability 7.0", "a version"),
    ],
    "README.md": [
        ("0.6 to 0.7", "where the boxes start"),
        ("up to 7 GB", "the size of an installation, rounded up"),
        ("up to 10 %", "how far the labels were moved"),
        ("up to 5 %", "how far the labels were moved"),
    ],
    "docs/guides/tighten.md": [
        ("`--min-iou` | 0.5", "a default"),
        ("`--min-gain` | 0.02", "a default"),
        ("`--max-move` | 0.5", "a default"),
        ("by up to 5 %", "how far the labels were moved"),
        ("by up to 10 %", "how far the labels were moved"),
        ("by up to 20 %", "how far the labels were moved"),
        ("10 or 20 %", "how far the labels were moved"),
        ("0.5 is chance", "a definition"),
    ],
    "docs/guides/deploy.md": [
        ("the library of 1.30", "a version"),
    ],
    "docs/guides/coco.md": [
        ("38.1 (FPN alone: 36.4)", "the paper"),
        ("39.3 (FPN alone: 37.6) in 12 epochs", "the reproduction"),
        ("40.0 | that reproduction", "the reproduction"),
        ("Faster R-CNN (37.0)", "torchvision"),
        ("39.4, AP75 42.6 (their detector: 36.8)", "their README"),
        ("| 0.252 | 0.252 | 0.252 |", "an input of the estimate"),
        ("2.56 million images", "160,000 steps of 16 images"),
        ("The factor 1.1", "an allowance"),
        ("(1.25 GB/s)", "10 Gbit/s"),
        ("(3.1 GB/s)", "25 Gbit/s"),
        ("a learning rate of 0.08", "eight times the base rate"),
        ("publishes 5.2 GB", "torchvision"),
        ("adds about 0.3 GB", "computed from the sizes in its sentence"),
        ("(0.4 GB)", "55.5 million parameters, 8 bytes each"),
    ],
    "prroi_pool/README.md": [
        ("in about 3 seconds, the CPU kernels in 10 to 60 seconds", "depends on the machine"),
        ("Waited 600 s", "a setting"),
        ("Versions 12.1, 12.4, 12.8, 13.0 and 13.2", "versions"),
        ("PyTorch before 2.15", "a version"),
        ("all versions since 2.10", "a version"),
        ("(6.4 and 6.5 µs on one machine)", "by hand, as docs/benchmarks.md says"),
        ("section 3.3", "a section"),
    ],
    "weights/README.md": [
        ("6 MB in half precision", "the size of the file"),
        ("uniform over [0.6, 1]", "a setting"),
        *((f"| {start} |", "where the boxes start") for start in STARTS),
    ],
}

# Pages whose other numbers are settings, or come from the trials of docs/results/exploration/energy_trials.md.
NOT_SEARCHED = ["docs/method/energy.md", "configs/synthetic_improved.yaml"]
