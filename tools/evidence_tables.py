"""The comparisons of several data sets and seeds as tables in Markdown, for docs/results.md.

    python tools/evidence_tables.py --set "synthetic set" docs/results/synthetic_energy_seed*.json \\
        --set BCCD docs/results/bccd_energy_seed*.json

Each file is the comparison.json of tools/compare.py with --baseline. Mean ± standard deviation over the seeds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iounet.evaluation.comparison import OWN
from iounet.evaluation.comparison_report import PLAIN
from iounet.evaluation.spread import spread

COLUMNS = ("AP", "AP50", "AP75", "AP90", "Loc50", "Loc75", "ms")
Runs = dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", action="append", required=True, metavar=("NAME", "FILE"), dest="sets")
    args = parser.parse_args()
    runs = {name: [json.loads(Path(file).read_text(encoding="utf-8")) for file in files] for name, *files in args.sets}
    for name, of_set in runs.items():
        print(f"{name}:\n\n{methods_table(of_set)}\n")
    print(f"{calibration_table(runs)}\n\n{basins_table(runs)}")


def methods_table(runs: list[dict[str, Any]]) -> str:
    tables = [run["table"] for run in runs]
    rows = {}
    for row in tables[0]:
        cells = [spread([table[row][column] for table in tables], 1) for column in COLUMNS]
        gains = [
            "" if row == PLAIN else spread([table[row][c] - table[PLAIN][c] for table in tables], 1, "+")
            for c in ("AP", "AP90")
        ]
        rows[f"**{row}**" if row == OWN else row] = cells + gains
    return markdown([*COLUMNS, "ΔAP", "ΔAP90"], rows)


def calibration_table(runs: Runs) -> str:
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "error, all candidates": lambda run: run["calibration"]["all candidates"]["error"],
        "error, true IoU ≥ 0.5": lambda run: run["calibration"]["candidates of true IoU ≥ 0.5"]["error"],
        "r, all candidates": lambda run: run["correlation"]["predicted IoU, all candidates"],
        "r, true IoU ≥ 0.5": lambda run: run["correlation"]["predicted IoU, candidates of true IoU ≥ 0.5"],
        "LaECE, class score": lambda run: run["laece"][f"{OWN}, final score class"],
        "LaECE, class score × IoU": lambda run: run["laece"][OWN],
    }
    rows = {
        name: [spread([value(run) for run in of_set], 3) for value in columns.values()] for name, of_set in runs.items()
    }
    return markdown(list(columns), rows)


def basins_table(runs: Runs) -> str:
    rows = {}
    for name, of_set in runs.items():
        for start, steps in of_set[0]["basins"].items():
            true = [spread([run["basins"][start][step]["true"] for run in of_set], 3) for step in steps]
            predicted = spread([run["basins"][start]["10"]["predicted"] for run in of_set], 3)
            rows[f"{name}, from {start}"] = [*true, predicted]
    steps = [f"{step} step{'s' if step != '1' else ''}" for step in next(iter(runs.values()))[0]["basins"]["0.75"]]
    return markdown([*steps, "predicted after 10"], rows)


def markdown(columns: list[str], rows: dict[str, list[str]]) -> str:
    lines = [f"| | {' | '.join(columns)} |", "| --- |" + " ---: |" * len(columns)]
    return "\n".join([*lines, *(f"| {row} | {' | '.join(cells)} |" for row, cells in rows.items())])


if __name__ == "__main__":
    main()
