"""The measured numbers of the results pages and of README.md, each computed from its file.

FIGURES: page → (template, value, ...). The page must contain the template with its values filled in. Numbers that a
template writes out itself are not covered; they need ALLOWED if they look measured.

ALLOWED: page → (text, reason), for numbers that no file of this repository holds.
"""

from figure_sources import (
    AMP,
    BCCD,
    CARDS,
    CLASS_SCORE,
    FLOAT32,
    FLOAT32_VAL,
    IMPROVED,
    IMPROVED_VAL,
    LOST,
    PAPER,
    PAPER_BCCD,
    PAPER_SYNTHETIC,
    SYNTHETIC,
    against,
    ap,
    basin,
    bias,
    bounds,
    gain,
    interval,
    mean,
    nms,
    of,
    of_paper,
    other,
    plain,
    read,
    seeds,
    step_sizes,
)

from iounet.evaluation.comparison import OWN
from iounet.evaluation.comparison_report import PLAIN
from iounet.evaluation.predictions import GREEDY, GUIDED, REFINED
from iounet.evaluation.tables import spread

FIGURES = {
    "docs/results.md": [
        (
            "raise AP by {:.0f} points on the synthetic set, by {:.0f} on BCCD and by {:.0f} on playing cards",
            *(of(name, "gain_AP") for name in ("synthetic", "bccd", "cards")),
        ),
        (
            "AP90 rises by {:.0f} and {:.0f}; on BCCD, AP90 rises by {:.0f}",
            *(of(n, "gain_AP90") for n in ("synthetic", "cards", "bccd")),
        ),
        (
            "with {:.1f} and {:.1f} AP90; this configuration reaches {:.1f} and {:.1f}",
            *(ap(runs, row, "AP90") for row in (PAPER, OWN) for runs in (SYNTHETIC, CARDS)),
        ),
        (
            "with {:.1f} AP90; this configuration reaches {:.1f}",
            *(ap(BCCD, row, "AP90") for row in ("soft-NMS", OWN)),
        ),
        (
            "reaches {:.1f} AP on the synthetic set and {:.1f} AP on BCCD",
            *(mean(runs, lambda run: nms(run)["AP"]) for runs in (PAPER_SYNTHETIC, PAPER_BCCD)),
        ),
        (
            "{} of the {:.0f} AP come from the final score",
            gain(CARDS, CLASS_SCORE, OWN, digits=0),
            of("cards", "gain_AP"),
        ),
        ("scores {} AP less than the plain one", gain(CARDS, GREEDY, PLAIN)),
        (
            "the calibration error is {:.3f} on the synthetic set, {:.3f} on BCCD and {:.3f} on the cards",
            *(of(name, "calibration_error_all") for name in ("synthetic", "bccd", "cards")),
        ),
        (
            "falls by {:.0f} to {:.0f} %",
            *bounds(100 - 100 * run["laece"][OWN] / run["laece"][CLASS_SCORE] for run in (*SYNTHETIC, *BCCD, *CARDS)),
        ),
        (
            "too low: by {:.2f} on the synthetic set, {:.2f} on BCCD and {:.2f} on the cards",
            *map(bias, (SYNTHETIC, BCCD, CARDS)),
        ),
        (
            "stays at {:.2f}, and at {:.2f} over candidates",
            of("bccd", "correlation_all"),
            of("bccd", "correlation_matched"),
        ),
        ("reaches {:.2f} over such candidates", mean(PAPER_BCCD, lambda run: run["correlation"]["predicted_iou"])),
        (
            "predicts {:.2f} to {:.2f} for boxes on a cell",
            *bounds(basin(BCCD, start, which="predicted") for start in BCCD[0]["basins"]),
        ),
        ("The correlation stays at {:.2f}: about half", of("cards", "correlation_all")),
        (
            "start at an IoU of 0.7 to 0.8 with their object reach {:.2f} to {:.2f} in ten steps",
            *bounds(basin(runs, "0.7") for runs in (SYNTHETIC, BCCD, CARDS)),
        ),
        (
            "start at 0.5 to 0.6 reach {:.2f} to {:.2f}",
            *bounds(basin(runs, "0.5") for runs in (SYNTHETIC, BCCD, CARDS)),
        ),
    ],
    "docs/results_variants.md": [
        (
            "gains {} AP on BCCD and {} AP on the synthetic set",
            *(gain(runs, "plain detector", "+ refinement", table="ablation") for runs in (PAPER_BCCD, PAPER_SYNTHETIC)),
        ),
        (
            "gains {} AP over the plain detector. Training",
            gain(PAPER_BCCD, "plain detector", "+ refinement", table="ablation"),
        ),
        ("refinement adds another {:.1f} AP", mean(PAPER_BCCD, lambda run: nms(run)["AP"] - nms(run, GUIDED)["AP"])),
        (
            "Before NMS, {:.1f} % of the objects have a box at an IoU of 0.9",
            mean(PAPER_BCCD, lambda run: run["surviving"]["before NMS"]["0.90"]),
        ),
        ("{} and {}, over candidates", of_paper(PAPER_BCCD, "predicted_iou"), of_paper(PAPER_BCCD, "score")),
        (
            "by {} over these candidates and by {} over all",
            *(
                spread([run["calibration"][which]["error"] for run in PAPER_BCCD], 3)
                for which in ("those of true IoU ≥ 0.5", "all candidates")
            ),
        ),
        ("differ by at most {:.1f} AP", step_sizes(PAPER_BCCD)),
        ("differ by at most {:.1f} AP", step_sizes(PAPER_SYNTHETIC)),
        (
            "highest of all rows, {} above the paper's",
            gain(seeds("bccd_val"), "the paper's", list(PAPER_BCCD[0]["beyond"])[-1], table="beyond"),
        ),
        (
            "the head gains {} AP over greedy NMS, as much as after joint training",
            gain(seeds("bccd_standalone"), GREEDY, REFINED),
        ),
        ("predicted IoU is {}.", of_paper(seeds("bccd_standalone"), "predicted_iou")),
        (
            "gains {} AP and {} AP90 over the plain detector.",
            *(
                gain(PAPER_SYNTHETIC, "plain detector", "+ refinement", column, table="ablation")
                for column in ("AP", "AP90")
            ),
        ),
        (
            "is {} for the class score and {} for the predicted IoU",
            of_paper(PAPER_SYNTHETIC, "score"),
            of_paper(PAPER_SYNTHETIC, "predicted_iou"),
        ),
        (
            "share its AP of {:.1f}",
            mean(seeds("synthetic_val"), lambda run: run["beyond"][list(run["beyond"])[-1]]["AP"]),
        ),
        (
            "by {} (validation) and {} (test)",
            against(seeds("synthetic_bce_val"), seeds("synthetic_val"), REFINED, nms),
            against(seeds("synthetic_bce"), PAPER_SYNTHETIC, REFINED, nms),
        ),
        (
            "it gains {} AP and {} AP90 over the plain detector, which is {} AP and {} AP90 more",
            *(
                against(IMPROVED, PAPER_SYNTHETIC, REFINED, row, column)
                for row in (plain, nms)
                for column in ("AP", "AP90")
            ),
        ),
        ("it gains {} AP over the paper's settings", against(IMPROVED_VAL, seeds("synthetic_val"), REFINED, nms)),
        (
            "bfloat16 is {:.1f} AP lower on the test split, with a 95 % interval from {:.1f} lower to {:.1f} higher",
            *interval(FLOAT32, AMP),
        ),
        (
            "it is {:.1f} lower, from {:.1f} lower to {:.1f} higher",
            *interval(FLOAT32_VAL, seeds("synthetic_amp_val", range(5))),
        ),
        ("Two seeds lost {:.1f} and {:.1f} AP", LOST[-1], LOST[-2]),
        (
            "AP rises by {:.1f} for Faster R-CNN and Mask R-CNN, by {:.1f} for FCOS and by {:.1f} for RetinaNet",
            *(other(name) for name in ("fasterrcnn", "fcos", "retinanet")),
        ),
    ],
    "docs/results_notes.md": [
        ("reaches {:.1f} AP with greedy NMS", read("exploration/adamw")["table"][GREEDY]["AP"]),
    ],
}

ALLOWED = {
    "docs/results.md": [
        ("20 to 60 minutes", "depends on the machine"),
        ("(21 %)", "printed by the command beside it"),
        ("0.7 to 0.8 with their object", "where the boxes start"),
        ("start at 0.5 to 0.6", "where the boxes start"),
        ('("0.5" stands for 0.5 to 0.6, and so on; "0.75" for 0.725 to 0.775)', "where the boxes start"),
    ],
    "docs/results_variants.md": [
        ("36.4, 37.0, 37.6 and 38.1 AP for these rows", "the paper"),
        ("the paper reports 0.617 and 0.217", "the paper"),
        ("a box at an IoU of 0.9.", "a threshold"),
        ("an IoU below 0.5, so", "a setting"),
        ("predicts 0.6 or more", "read off bccd_calibration.png"),
        ("(lambda) of 0.25 to 2", "a setting"),
        ("95 % interval", "a definition"),
    ],
}
