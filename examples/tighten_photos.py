"""Tighten loose labels of six photographs with the model in weights/, and compare them with carefully drawn labels.

    make try

The model was not trained on these photographs. runs/try/review.html shows the boxes before and after.
"""

import json
import os
from pathlib import Path
from statistics import fmean

import torch
from torchvision.ops import box_iou

from iounet.data.label_files import read_labels
from iounet.data.labels import LabelSet
from iounet.tightening import TighteningRun

ROOT = Path(os.path.relpath(Path(__file__).resolve().parents[1]))  # a short path if run from the root
PHOTOS = ROOT / "examples" / "photos"
OUTPUT = ROOT / "runs" / "try"


def true_ious(labels: LabelSet, careful: LabelSet) -> dict[str, float]:
    """IoU of each label with the carefully drawn label of the same key."""
    boxes = {label.key: label.box for label in careful.boxes}
    return {
        label.key: float(box_iou(torch.tensor([label.box]), torch.tensor([boxes[label.key]]))) for label in labels.boxes
    }


def main() -> None:
    loose = read_labels(PHOTOS / "loose.json")
    careful = read_labels(PHOTOS / "annotations.json")
    TighteningRun(loose, str(ROOT / "weights" / "cards.pth"), OUTPUT, device="cpu").run()
    tightened = read_labels(OUTPUT / "labels" / "loose.json", images=PHOTOS)

    before, after = true_ious(loose, careful), true_ious(tightened, careful)
    rows = json.loads((OUTPUT / "boxes.json").read_text())["boxes"]
    predicted = [
        (row["predicted_iou_before"], row[f"predicted_iou_{'after' if row['decision'] == 'accept' else 'before'}"])
        for row in rows
    ]
    print(f"\n{'photo':<17}{'label':<8}{'true IoU':>13}{'predicted IoU':>18}")
    for label, of_label in zip(loose.boxes, predicted, strict=True):
        true = f"{before[label.key]:.2f} → {after[label.key]:.2f}"
        print(
            f"{loose.images[label.image].path.name:<17}{label.class_name:<8}{true:>13}"
            f"{of_label[0]:>11.2f} → {of_label[1]:.2f}"
        )
    better = sum(after[key] > before[key] for key in before)
    means = [fmean(values) for values in (before.values(), after.values(), *zip(*predicted, strict=True))]
    print(
        f"{f'mean ({better} of {len(rows)} better)':<25}{means[0]:>6.2f} → {means[1]:.2f}"
        f"{means[2]:>11.2f} → {means[3]:.2f}"
    )


if __name__ == "__main__":
    main()
