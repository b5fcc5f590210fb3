"""Tables of published results: several data sets, several seeds, several variants of one experiment."""

import re
from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from .coco_ap import AP_COLUMNS
from .comparison import OWN
from .comparison_report import PLAIN
from .predictions import GREEDY, GUIDED, REFINED
from .tables import markdown, seeds_table, spread

Run = Mapping[str, Any]  # content of a comparison.json, reproduction.json or evaluation.json

COMPARED_COLUMNS = ("AP", "AP50", "AP75", "AP90", "Loc50", "Loc75", "ms")
GAIN_COLUMNS = ("AP", "AP75", "AP90")


def fill_blocks(text: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """Return the text of a page with its generated tables replaced.

    A table stands between two lines ``<!-- NAME -->``. Comments that name no table are left unchanged.

    Args:
        text: Text of a page in Markdown.
        tables: Name → function that returns the table.
    """
    names = "|".join(map(re.escape, tables))
    block = re.compile(rf"^<!-- ({names}) -->\n.*?^<!-- \1 -->$", re.DOTALL | re.MULTILINE)
    return block.sub(lambda match: f"<!-- {match[1]} -->\n\n{tables[match[1]]()}\n\n<!-- {match[1]} -->", text)


# Comparisons with a plain detector (tools/compare.py).


def gains_table(sets: Mapping[str, Sequence[Run]]) -> str:
    """Format AP, calibration error and r of each set: the plain detector, this configuration, and the gain."""
    rows = []
    for name, runs in sets.items():
        plain, ours = ([run["table"][row] for run in runs] for row in (PLAIN, OWN))
        error = spread([run["calibration"]["all candidates"]["error"] for run in runs], 3)
        correlation = spread([run["correlation"]["predicted IoU, all candidates"] for run in runs], 2)
        rows += [
            [f"{name}: plain", *(spread([of[column] for of in plain], 1) for column in GAIN_COLUMNS), "", ""],
            [
                f"**{name}: this configuration**",
                *(f"**{spread([of[column] for of in ours], 1)}**" for column in GAIN_COLUMNS),
                error,
                correlation,
            ],
            [
                f"{name}: gain",
                *(
                    spread([after[column] - before[column] for before, after in zip(plain, ours, strict=True)], 1, "+")
                    for column in GAIN_COLUMNS
                ),
                "",
                "",
            ],
        ]
    return markdown(["", *GAIN_COLUMNS, "calibration error", "r"], rows)


def short_gains_table(sets: Mapping[str, Sequence[Run]]) -> str:
    """Format the means of `gains_table`, without standard deviations, gains and correlation."""
    rows = []
    for name, runs in sets.items():
        plain, ours = ([run["table"][row] for run in runs] for row in (PLAIN, OWN))
        cells = [
            f"{mean(of[column] for of in plain):.1f} → **{mean(of[column] for of in ours):.1f}**"
            for column in GAIN_COLUMNS
        ]
        error = mean(run["calibration"]["all candidates"]["error"] for run in runs)
        rows.append([name, *cells, f"{error:.3f}"])
    return markdown(["", *GAIN_COLUMNS, "calibration error"], rows)


def methods_table(runs: Sequence[Run]) -> str:
    """Format the results of all methods on one data set, with this configuration in bold."""
    table = seeds_table([run["table"] for run in runs], COMPARED_COLUMNS)
    return table.replace(f"| {OWN} |", f"| **{OWN}** |")


def calibration_table(sets: Mapping[str, Sequence[Run]]) -> str:
    """Format calibration error, correlation and LaECE, one row per data set."""
    columns: dict[str, Callable[[Run], float]] = {
        "error, all candidates": lambda run: run["calibration"]["all candidates"]["error"],
        "error, true IoU ≥ 0.5": lambda run: run["calibration"]["candidates of true IoU ≥ 0.5"]["error"],
        "r, all candidates": lambda run: run["correlation"]["predicted IoU, all candidates"],
        "r, true IoU ≥ 0.5": lambda run: run["correlation"]["predicted IoU, candidates of true IoU ≥ 0.5"],
        "LaECE, class score": lambda run: run["laece"][f"{OWN}, final score class"],
        "LaECE, class score × IoU": lambda run: run["laece"][OWN],
    }
    rows = [
        [name, *(spread([value(run) for run in runs], 3) for value in columns.values())] for name, runs in sets.items()
    ]
    return markdown(["", *columns], rows)


def basins_table(sets: Mapping[str, Sequence[Run]]) -> str:
    """Format the mean true IoU by initial IoU and number of steps, and the mean predicted IoU after ten steps."""
    rows = []
    for name, runs in sets.items():
        for start, steps in runs[0]["basins"].items():
            true = [spread([run["basins"][start][step]["true"] for run in runs], 3) for step in steps]
            predicted = spread([run["basins"][start]["10"]["predicted"] for run in runs], 3)
            rows.append([f"{name}, from {start}", *true, predicted])
    steps = [f"{step} step{'s' if step != '1' else ''}" for step in next(iter(sets.values()))[0]["basins"]["0.75"]]
    return markdown(["", *steps, "predicted after 10"], rows)


# Evaluations and reproductions (tools/train.py, tools/reproduce.py).


def shared_table(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> str:
    """Merge the tables of several seeds.

    Keeps the AP, Loc and ms columns that all rows have. If there are none, keeps all columns that all rows have.
    """
    first, *others = tables[0].values()
    shared = [column for column in first if all(column in row for row in others)]
    known = [column for column in (*AP_COLUMNS, *COMPARED_COLUMNS[4:]) if column in shared]
    return seeds_table(tables, known or shared)


def nms_rows(run: Run) -> Mapping[str, Mapping[str, float]]:
    """Return the table of an evaluation.json, or the NMS table of a reproduction.json."""
    return run.get("table") or run["nms"]


def variants_table(variants: Sequence[tuple[str, str, Sequence[Run]]]) -> str:
    """Format AP before and after IoU-guided NMS and refinement, one row per variant and split.

    Args:
        variants: For each row, (name, split, one run per seed).
    """
    rows = []
    for name, split, runs in variants:
        columns = ((GREEDY, "AP"), (REFINED, "AP"), (REFINED, "AP90"))
        cells = [spread([nms_rows(run)[row][column] for run in runs], 1) for row, column in columns]
        rows.append([name, split, *cells, spread([run["correlation"]["predicted_iou"] for run in runs], 3)])
    head = ["", "split", "greedy NMS, AP", "+ IoU-guided NMS + refinement, AP", "AP90", "r with the predicted IoU"]
    return markdown(head, rows, text_columns=2)


def seed_by_seed_table(variants: Mapping[str, Sequence[Run]]) -> str:
    """Format AP of each seed before and after IoU-guided NMS and refinement, one row per variant."""
    rows = []
    for name, runs in variants.items():
        values = {row: [nms_rows(run)[row]["AP"] for run in runs] for row in (GREEDY, REFINED)}
        cells = [", ".join(f"{value:.1f}" for value in of_seeds) for of_seeds in values.values()]
        correlation = spread([run["correlation"]["predicted_iou"] for run in runs], 3)
        rows.append([name, *cells, spread(values[REFINED], 1), correlation])
    head = ["", "AP, greedy NMS", "AP, IoU-guided NMS + refinement", "mean ± std", "r with the predicted IoU"]
    return markdown(head, rows)


def detectors_table(detectors: Mapping[str, tuple[Run, Run]]) -> str:
    """Format AP of other detectors' boxes: unrefined, refined by the IoU and refined by the energy, one row each.

    Args:
        detectors: Name → (evaluation.json of refinement by the IoU, evaluation.json of refinement by the energy).
    """
    rows = []
    for name, (by_iou, by_energy) in detectors.items():
        table = by_iou["table"]
        refined = {
            "refined by the IoU, as in the paper": table["refined"],
            "**refined by the energy**": by_energy["table"]["refined"],
        }
        for row, values in ({name: table["before"]} | refined).items():
            gains = ["" if row == name else f"{values[c] - table['before'][c]:+.1f}" for c in ("AP", "AP90")]
            rows.append([row, *(f"{values[column]:.1f}" for column in AP_COLUMNS), *gains])
    return markdown(["", *AP_COLUMNS, "ΔAP", "ΔAP90"], rows)


def short_detectors_table(detectors: Mapping[str, Run]) -> str:
    """Format AP and AP90 of other detectors' boxes before and after refinement.

    Args:
        detectors: Name → evaluation.json.
    """
    rows = []
    for name, run in detectors.items():
        before, after = run["table"]["before"], run["table"]["refined"]
        cells = [cell for c in ("AP", "AP90") for cell in (f"{before[c]:.1f}", f"**{after[c]:.1f}**")]
        rows.append([name, *cells])
    return markdown(["", "AP", "AP, refined", "AP90", "AP90, refined"], rows)


def trials_table(trials: Mapping[str, Run]) -> str:
    """Format the error of the predicted IoU, and the gains in AP and AP90 from NMS and refinement, one row per trial.

    Args:
        trials: Name → content of a file in docs/results/exploration.
    """
    rows = []
    for name, run in trials.items():
        greedy, guided, refined = (run["table"][row] for row in (GREEDY, GUIDED, REFINED))
        added = [
            " / ".join(f"{after[column] - before[column]:+.1f}" for column in ("AP", "AP90"))
            for before, after in ((greedy, guided), (guided, refined), (greedy, refined))
        ]
        error = run["error_of_predicted_iou_on_jittered_boxes"]
        rows.append([name, f"{error:.3f}", f"{greedy['AP']:.1f}", *added])
    head = ["what trained", "error of the predicted IoU", "greedy NMS, AP"]
    return markdown([*head, "IoU-guided NMS adds, AP / AP90", "refinement adds", "both add"], rows)


# New heads and exported files (tools/heads_by_images.py, tools/onnx_accuracy.py).


def new_heads_table(images: Mapping[str, Run]) -> str:
    """Format the IoU of moved labels before and after tightening and the AUROC, by number of training images.

    Args:
        images: Number of images → noise → results, as in heads_by_images.json.
    """
    rows = []
    for count, of_noise in images.items():
        moved = [of_noise[amount]["moved"] for amount in ("10%", "20%")]
        cells = [f"{of['iou_before']:.3f} → {of['iou_after']:.3f}" for of in moved]
        rows.append([count, *cells, f"{of_noise['20%']['auroc']['move']:.3f}"])
    return markdown(["images", "IoU, labels moved by up to 10 %", "by up to 20 %", "AUROC by move, 20 %"], rows)


def weights_table(files: Mapping[str, Mapping[str, float]]) -> str:
    """Format the size and accuracy of the ONNX file for each dtype of its weights.

    Args:
        files: File name → values, as in onnx_weights.json.
    """
    ious = ("IoU of loose boxes", "error of the predicted IoU")
    rows = []
    for name in ("float32", "float16", "int8"):
        of_file = files[f"{name}.onnx"]
        cells = [f"{of_file[column]:.1f}" for column in ("MB", "AP", "AP90")]
        rows.append([name, *cells, *(f"{of_file[column]:.3f}" for column in ious)])
    loose = f"{ious[0]} ({files['not refined'][ious[0]]:.3f} before)"
    return markdown(["weights", "MB", "AP", "AP90", loose, ious[1]], rows)
