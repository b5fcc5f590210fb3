"""Summarise the evaluations of several runs (seeds) of one experiment as tables: mean ± standard deviation.

    python tools/summarize.py docs/results/synthetic_seed*.json
    python tools/summarize.py --tables ablation beyond -- runs/bccd*/reproduction/reproduction.json

Prints Markdown with the differences from the first row.
"""

import argparse
import json
from pathlib import Path

from iounet.evaluation.results_tables import shared_table
from iounet.evaluation.tables import spread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="evaluation.json of tools/train.py or refine_boxes.py, reproduction.json of tools/reproduce.py, or "
        "comparison.json of tools/compare.py",
    )
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="print only these tables of reproduction.json")
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.files]
    for name in args.tables or tables_of(runs[0]):
        print(f"{name}\n\n{shared_table([run[name] for run in runs])}\n")
    for name, text in (("score", "class score"), ("predicted_iou", "predicted IoU")):
        if name not in runs[0].get("correlation", ()):
            continue
        values = [run["correlation"][name] for run in runs]
        print(f"correlation of the true IoU with the {text}: {spread(values, 3)}")


def tables_of(run: dict) -> list[str]:
    """Names of the tables: entries with rows of values; basins are nested one level deeper."""
    return [
        name for name, rows in run.items() if name != "basins" and all(isinstance(row, dict) for row in rows.values())
    ]


if __name__ == "__main__":
    main()
