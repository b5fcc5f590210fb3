"""Files that an evaluation writes, and the rows of its table."""

ROWS = ["greedy NMS", "soft-NMS", "IoU-guided NMS", "IoU-guided NMS + refinement"]
REPORT = {
    "table.md",
    "evaluation.json",
    "detections.json",
    "correlation.png",
    "boxes.png",
    "changes.png",
    "report.html",
}
