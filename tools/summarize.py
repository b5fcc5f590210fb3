"""Puts the evaluations of several runs (seeds) of one experiment into one table: mean ± standard deviation.

python tools/summarize.py docs/results/synthetic_seed*.json
"""

import argparse
import json
import statistics
from pathlib import Path

from iounet.evaluation import AP_COLUMNS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("evaluations", nargs="+", type=Path, metavar="evaluation.json", help="of tools/train.py")
    evaluations = [json.loads(path.read_text()) for path in parser.parse_args().evaluations]

    def cell(values: list[float], digits: int) -> str:
        spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
        return f"{statistics.mean(values):.{digits}f}{spread}"

    print(f"| | {' | '.join(AP_COLUMNS)} |\n|{' --- |' * (len(AP_COLUMNS) + 1)}")
    rows = list(evaluations[0]["table"])
    for row in rows:
        print("|", row, *(f"| {cell([run['table'][row][c] for run in evaluations], 1)}" for c in AP_COLUMNS), "|")
    gains = [
        [run["table"][rows[-1]][column] - run["table"][rows[0]][column] for run in evaluations] for column in AP_COLUMNS
    ]
    print(f"| *{rows[-1]}* less *{rows[0]}*", *(f"| {cell(values, 1)}" for values in gains), "|\n")
    for name, text in (("score", "class score"), ("predicted_iou", "predicted IoU")):
        print(
            f"correlation of the true IoU with the {text}:", cell([run["correlation"][name] for run in evaluations], 3)
        )


if __name__ == "__main__":
    main()
