"""Print comparisons of several data sets and seeds as Markdown tables for docs/results.md.

    python tools/evidence_tables.py --set "synthetic set" docs/results/synthetic_energy_seed*.json \\
        --set BCCD docs/results/bccd_energy_seed*.json

Each input file is a comparison.json of tools/compare.py --baseline. Numbers are mean ± standard deviation over the
seeds.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iounet.evaluation.comparison import OWN
from iounet.evaluation.tables import markdown, seeds_table, spread

COLUMNS = ("AP", "AP50", "AP75", "AP90", "Loc50", "Loc75", "ms")
Runs = dict[str, list[dict[str, Any]]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", action="append", required=True, metavar=("NAME", "FILE"), dest="sets",
                        help="name of a data set and its comparisons; repeat for every data set")  # fmt: skip
    args = parser.parse_args()
    runs = {name: [json.loads(Path(file).read_text(encoding="utf-8")) for file in files] for name, *files in args.sets}
    for name, of_set in runs.items():
        print(f"{name}:\n\n{methods_table(of_set)}\n")
    print(f"{calibration_table(runs)}\n\n{basins_table(runs)}")


def methods_table(runs: list[dict[str, Any]]) -> str:
    table = seeds_table([run["table"] for run in runs], COLUMNS)
    return table.replace(f"| {OWN} |", f"| **{OWN}** |")


def calibration_table(runs: Runs) -> str:
    columns: dict[str, Callable[[dict[str, Any]], float]] = {
        "error, all candidates": lambda run: run["calibration"]["all candidates"]["error"],
        "error, true IoU ≥ 0.5": lambda run: run["calibration"]["candidates of true IoU ≥ 0.5"]["error"],
        "r, all candidates": lambda run: run["correlation"]["predicted IoU, all candidates"],
        "r, true IoU ≥ 0.5": lambda run: run["correlation"]["predicted IoU, candidates of true IoU ≥ 0.5"],
        "LaECE, class score": lambda run: run["laece"][f"{OWN}, final score class"],
        "LaECE, class score × IoU": lambda run: run["laece"][OWN],
    }
    rows = [
        [name, *(spread([value(run) for run in of_set], 3) for value in columns.values())]
        for name, of_set in runs.items()
    ]
    return markdown(["", *columns], rows)


def basins_table(runs: Runs) -> str:
    rows = []
    for name, of_set in runs.items():
        for start, steps in of_set[0]["basins"].items():
            true = [spread([run["basins"][start][step]["true"] for run in of_set], 3) for step in steps]
            predicted = spread([run["basins"][start]["10"]["predicted"] for run in of_set], 3)
            rows.append([f"{name}, from {start}", *true, predicted])
    steps = [f"{step} step{'s' if step != '1' else ''}" for step in next(iter(runs.values()))[0]["basins"]["0.75"]]
    return markdown(["", *steps, "predicted after 10"], rows)


if __name__ == "__main__":
    main()
