"""Rewrite the generated tables of README.md and docs/ from the files in docs/results/.

    python tools/results_tables.py            # rewrites the pages in place
    python tools/results_tables.py --check    # writes nothing; exit code 1 if a page is out of date

A generated table stands between two lines `<!-- NAME -->`, where NAME is a key of TABLES below. Run this command after
you add or replace a file of docs/results/.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from iounet.evaluation import results_tables
from iounet.files import write_text
from iounet.tightening.label_noise import noise_table

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"

SETS = {"Synthetic set": "synthetic", "BCCD": "bccd", "Playing cards": "cards"}
DETECTORS = {"Faster R-CNN": "fasterrcnn", "Mask R-CNN": "maskrcnn", "FCOS": "fcos", "RetinaNet": "retinanet"}
TRIALS = {
    "SGD": "sgd",
    "AdamW": "adamw",
    "AdamW, twice its rate, loss weight 5, 192 jittered boxes": "adamw_w5",
    "AdamW, larger shapes at any angle": "larger_any_angle",
    "AdamW, larger shapes, hardly turned": "larger_adamw",
    "the same, three times its rate": "larger_adamw_3e-3",
    "the same, twice its rate, loss weight 5, 192 jittered boxes": "larger_adamw_w5",
    "the same, 600 iterations, three times its rate, loss weight 5, 128 jittered boxes": "larger_adamw_600",
}


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def seeds(prefix: str) -> list[Any]:
    return [read(f"{prefix}_seed{seed}") for seed in (0, 1, 2)]


def of_sets(table: Callable[[dict[str, list[Any]]], str]) -> str:
    return table({name: seeds(f"{stem}_energy") for name, stem in SETS.items()})


def of_seeds(prefix: str, key: str) -> str:
    return results_tables.shared_table([run[key] for run in seeds(prefix)])


def cross_entropy() -> str:
    variants = []
    for name, stem in (("synthetic", "synthetic"), ("BCCD", "bccd")):
        for split, part in (("validation", "_val"), ("test", "")):
            variants.append((f"{name}, smooth-L1", split, seeds(f"{stem}{part}")))
            variants.append((f"{name}, cross-entropy", split, seeds(f"{stem}_bce{part}")))
    return results_tables.variants_table(variants)


def bfloat16() -> str:
    # Seeds 0 to 2 in float32 are the runs of the other sections.
    float32 = seeds("synthetic") + [read(f"synthetic_float32_seed{seed}") for seed in (3, 4)]
    amp = [read(f"synthetic_amp_seed{seed}") for seed in range(5)]
    return results_tables.seed_by_seed_table({"float32": float32, "bfloat16": amp})


def methods(stem: str) -> str:
    return results_tables.methods_table(seeds(f"{stem}_energy"))


def label_noise(stem: str) -> str:
    return noise_table(read(f"label_noise/{stem}/label_noise")["mean"])


def trials() -> str:
    return results_tables.trials_table(
        {f"[{name}](results/exploration/{stem}.json)": read(f"exploration/{stem}") for name, stem in TRIALS.items()}
    )


TABLES: dict[str, Callable[[], str]] = {
    "gain": partial(of_sets, results_tables.short_gains_table),
    "gains": partial(of_sets, results_tables.gains_table),
    "calibration": partial(of_sets, results_tables.calibration_table),
    "basins": partial(of_sets, results_tables.basins_table),
    "bccd standalone": partial(of_seeds, "bccd_standalone", "table"),
    "synthetic improved": partial(of_seeds, "synthetic_improved", "table"),
    "cross-entropy": cross_entropy,
    "other detectors": lambda: results_tables.detectors_table(
        {name: (read(f"other_{stem}"), read(f"other_energy_{stem}")) for name, stem in DETECTORS.items()}
    ),
    "other detectors, short": lambda: results_tables.short_detectors_table(
        {name: read(f"other_energy_{stem}") for name, stem in DETECTORS.items()}
    ),
    "trials": trials,
    "bfloat16": bfloat16,
    "new heads": lambda: results_tables.new_heads_table(read("label_noise/bccd_new_heads/heads_by_images")["images"]),
    "smaller weights": lambda: results_tables.weights_table(read("onnx_weights")["table"]),
}
TABLES |= {f"{stem} methods": partial(methods, stem) for stem in SETS.values()}
TABLES |= {f"{stem} label noise": partial(label_noise, stem) for stem in ("cards", "bccd")}
for _key in ("ablation", "nms", "surviving", "step_size", "beyond"):
    TABLES |= {f"{stem} {_key}": partial(of_seeds, stem, _key) for stem in ("bccd", "synthetic")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is out of date")
    args = parser.parse_args()
    old = []
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        filled = results_tables.fill_blocks(text, TABLES)
        if filled != text:
            old.append(page)
            if not args.check:
                write_text(page, filled)
            print(f"{page.relative_to(ROOT)}: {'out of date' if args.check else 'rewritten'}")
    sys.exit(1 if args.check and old else 0)


if __name__ == "__main__":
    main()
