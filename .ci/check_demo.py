"""Checks a finished `make demo`: its files are there, and boxes visibly improve.

Over three seeds the last row beat the first by 13.2 to 13.7 AP and by 39 to 44 AP90 on the validation split that is
looked at here. On another machine a run takes another course, so less is demanded.
"""

import json
import sys
from pathlib import Path

folder = Path(sys.argv[1])
for name in ("config.yaml", "environment.json", "metrics.json", "model_final.pth", "table.md", "evaluation.json",
             "detections.json", "boxes.png", "correlation.png"):  # fmt: skip
    if not (folder / name).stat().st_size:
        sys.exit(f"{folder / name} is empty")
if not list((folder / "tensorboard").glob("events.*")):
    sys.exit(f"{folder / 'tensorboard'} has no logs")

evaluation = json.loads((folder / "evaluation.json").read_text())
greedy, _, guided, refined, rescored = evaluation["table"].values()
correlation, calibration = evaluation["correlation"], evaluation["calibration"]["all candidates"]
for claim, holds in {
    "the detector detects": greedy["AP50"] > 80,
    "predicted IoU tells a box's IoU better than its class score": correlation["predicted_iou"] > correlation["score"],
    "IoU-guided NMS raises AP": guided["AP"] > greedy["AP"],
    "refinement raises AP": refined["AP"] > guided["AP"],
    "class score × IoU raises AP": rescored["AP"] > refined["AP"],
    "together they raise AP by 9 or more": rescored["AP"] - greedy["AP"] >= 9,
    "together they raise AP90 by 28 or more": rescored["AP90"] - greedy["AP90"] >= 28,
    "the predicted IoU is calibrated": calibration["error"] <= 0.03,
}.items():
    print(f"{'holds' if holds else 'FAILS'}: {claim}")
    if not holds:
        sys.exit(1)
