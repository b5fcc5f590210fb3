"""Checks a finished `make demo`: everything promised is in the run folder, and the last row beats the first."""

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
first, *_, last = evaluation["table"].values()
gains = {column: last[column] - first[column] for column in ("AP", "AP90")}
print(f"gain of IoU-guided NMS + refinement over greedy NMS: AP {gains['AP']:+.1f}, AP90 {gains['AP90']:+.1f}")
if gains["AP"] < 1.0 or gains["AP90"] < 3.0:
    sys.exit("the demo promises at least AP +1.0 and AP90 +3.0")
