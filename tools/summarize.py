"""Puts the evaluations of several runs (seeds) of one experiment into tables: mean ± standard deviation.

Prints Markdown, with the differences from the first row.

    python tools/summarize.py docs/results/synthetic_seed*.json
    python tools/summarize.py --tables ablation beyond -- runs/bccd*/reproduction/reproduction.json
"""

import argparse
import json
from pathlib import Path

from iounet.evaluation import AP_COLUMNS
from iounet.evaluation.spread import spread

# Of tools/compare.py.
COMPARED_COLUMNS = ("Loc50", "Loc75", "ms")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        help="evaluation.json of tools/train.py or refine_boxes.py, reproduction.json of tools/reproduce.py, or "
        "comparison.json of tools/compare.py",
    )
    parser.add_argument("--tables", nargs="+", metavar="NAME", help="only these of reproduction.json")
    args = parser.parse_args()
    runs = [json.loads(path.read_text()) for path in args.files]
    for name in args.tables or tables_of(runs[0]):
        print(f"{name}\n\n{summary([run[name] for run in runs])}\n")
    for name, text in (("score", "class score"), ("predicted_iou", "predicted IoU")):
        if name not in runs[0].get("correlation", ()):
            continue
        values = [run["correlation"][name] for run in runs]
        print(f"correlation of the true IoU with the {text}: {spread(values, 3)}")


def tables_of(run: dict) -> list[str]:
    return [name for name, rows in run.items() if all(isinstance(row, dict) for row in rows.values())]


def summary(tables: list[dict[str, dict[str, float]]]) -> str:
    """Tables of one form as one, in Markdown. ΔAP and ΔAP90: less those of the first row, seed by seed."""
    first, *_ = tables[0]
    known = (*AP_COLUMNS, *COMPARED_COLUMNS)
    columns = [column for column in known if column in tables[0][first]] or list(tables[0][first])
    compared = [column for column in ("AP", "AP90") if column in columns]
    heads = [*columns, *(f"Δ{column}" for column in compared)]
    lines = [f"| | {' | '.join(heads)} |", "| --- |" + " ---: |" * len(heads)]
    for row in tables[0]:
        cells = [spread([table[row][column] for table in tables], 1) for column in columns]
        cells += [
            "" if row == first else spread([table[row][column] - table[first][column] for table in tables], 1, "+")
            for column in compared
        ]
        lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
