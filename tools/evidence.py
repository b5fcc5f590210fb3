"""Summarise comparisons for several data sets and seeds in one file: mean and standard deviation over the seeds.

    python tools/evidence.py --output docs/results/summary.json \\
        --set synthetic docs/results/synthetic_energy_seed*.json --set bccd docs/results/bccd_energy_seed*.json

Each input file is a comparison.json written by tools/compare.py --baseline, renamed to end in _seed<N>.json. A gain is
the difference between the configuration's method and greedy NMS of the plain detector with the same seed.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

from iounet.evaluation.comparison import OWN
from iounet.evaluation.comparison_report import PLAIN
from iounet.files import write_text

COLUMNS = ("AP", "AP75", "AP90")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", nargs="+", action="append", required=True, metavar=("NAME", "FILE"), dest="sets",
                        help="name of a data set and its comparisons; repeat for every data set")  # fmt: skip
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="JSON file for the summary")
    args = parser.parse_args()
    summary = {}
    for name, *files in args.sets:
        if not files:
            parser.error(f"--set {name} has no files; give NAME FILE ...")
        summary[name] = of_seeds([Path(file) for file in files])
    write_text(args.output, json.dumps(summary, indent=1) + "\n")
    for name, values in summary.items():
        cells = [f"{key} {value['mean']:.3f} ± {value['std']:.3f}" for key, value in values.items() if key != "seeds"]
        print(f"{name}, seeds {values['seeds']}: {', '.join(cells)}")


def of_seeds(files: list[Path]) -> dict:
    runs = {seed_of(file): json.loads(file.read_text(encoding="utf-8")) for file in files}
    values: dict[str, list[float]] = {}
    for run in runs.values():
        table = run["table"]
        for column in COLUMNS:
            values.setdefault(column, []).append(table[OWN][column])
        for column in COLUMNS:
            values.setdefault(f"gain_{column}", []).append(table[OWN][column] - table[PLAIN][column])
        for key, value in {
            "calibration_error_all": run["calibration"]["all candidates"]["error"],
            "calibration_error_matched": run["calibration"]["candidates of true IoU ≥ 0.5"]["error"],
            "correlation_all": run["correlation"]["predicted IoU, all candidates"],
            "correlation_matched": run["correlation"]["predicted IoU, candidates of true IoU ≥ 0.5"],
            "laece": run["laece"][OWN],
            # Boxes with an initial IoU of 0.725 to 0.775, after ten steps.
            "basin_0.75": run["basins"]["0.75"]["10"]["true"],
            "basin_0.75_predicted": run["basins"]["0.75"]["10"]["predicted"],
        }.items():
            values.setdefault(key, []).append(value)
    spread = {
        key: {"mean": statistics.mean(of_key), "std": statistics.stdev(of_key) if len(of_key) > 1 else 0.0}
        for key, of_key in values.items()
    }
    return {"seeds": list(runs)} | spread


def seed_of(file: Path) -> int:
    match = re.search(r"_seed(\d+)\.json$", file.name)
    if not match:
        sys.exit(f"{file}: the file name must end in _seed<N>.json, such as _seed0.json")
    return int(match[1])


if __name__ == "__main__":
    main()
