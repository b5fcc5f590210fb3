"""The measured numbers of the pages about the method; see figures_of_results.py."""

from figure_sources import PAPER_BCCD, PAPER_SYNTHETIC

from iounet.evaluation.tables import spread


def nms_row(name, runs, kind):
    cells = [spread([run["nms"][kind][column] for run in runs], 1) for column in ("AP", "AP90")]
    return f"| {name}: {kind} | {{}} | {{}} |", *cells


FIGURES: dict = {
    "docs/method/index.md": [],
    "docs/method/pooling.md": [],
    "docs/method/jitter.md": [],
    "docs/method/nms.md": [
        nms_row(name, runs, kind)
        for name, runs in (("synthetic set", PAPER_SYNTHETIC), ("BCCD", PAPER_BCCD))
        for kind in ("greedy NMS", "soft-NMS", "IoU-guided NMS")
    ],
    "docs/method/refinement.md": [],
}
ALLOWED: dict = {
    "docs/method/index.md": [("1807.11590", "the paper"), ("from 0.5 to 1", "a range")],
    "docs/method/pooling.md": [("section 3.3", "a section")],
    "docs/method/jitter.md": [
        ("near 0.5, jittered boxes are uniform from 0.5 to 1", "what a figure shows"),
        ("up to 30 %", "a setting of a figure"),
        ("from 0.55 to 0.95", "what a figure shows"),
        ("`Ω_train` is 0.5", "a default"),
        ("section 3.1", "a section"),
    ],
    "docs/method/nms.md": [("`Ω_nms` is 0.5", "a default"), ("section 3.2", "a section")],
    "docs/method/refinement.md": [
        ("| 0.5 | `STEP_SIZE`", "a default"),
        ("| 0.001 | `EARLY_STOP`", "a default"),
        ("| −0.01 | `DEGENERATION`", "a default"),
        ("section 3.3", "a section"),
    ],
}
