"""Write a reproduction: tables as CSV and Markdown, figures as PNG, all numbers as JSON."""

import csv
import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from ..files import replacing, write_text
from ..html_report import Picture, Section, write_html
from ..postprocess import Postprocessing
from .calibration import calibration_figure, calibration_summary, calibrations_of
from .coco_ap import AP_COLUMNS, CocoEvaluator, markdown_table
from .correlation import correlation_figure
from .figures import new_figure
from .predictions import GREEDY, GUIDED, REFINED, RESCORED, SOFT, Found, as_results
from .report import without_nan
from .reproduction import BEFORE_NMS, Reproduction

# Thresholds of the figure of surviving boxes.
IOU_THRESHOLDS = tuple(n / 20 for n in range(10, 20))
BASELINE = "plain detector"
UNUSED = "IoU branch trained, but unused"

TITLES = {
    "nms": "NMS",
    "ablation": "Ablation",
    "step_size": "Step size of the refinement",
    "beyond": "Beyond the paper: single changes, and two combined",
}

Table = dict[str, dict[str, float]]


class ReproductionReport:
    """Writes a folder of tables and figures.

    README.md and report.html show all tables and figures. reproduction.json has all numbers.

    Args:
        folder: Where the files go. It is created if needed.
        evaluator: Evaluator of the data set.
        category_ids: The category of label l is `category_ids[l - 1]`.
    """

    def __init__(self, folder: Path, evaluator: CocoEvaluator, category_ids: list[int]):
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._evaluator = evaluator
        self._category_ids = category_ids
        self._sections: list[Section] = []
        self._content: dict[str, dict] = {}

    def write(
        self,
        measured: Reproduction,
        tables: dict[str, dict[str, Postprocessing]],
        baseline: Found | None,
        facts: Mapping[str, str],
    ) -> None:
        """Write all files.

        Args:
            measured: Measurements of `reproduce` for all variants in `tables`.
            tables: A name in `TITLES` → row → variant of postprocessing.
            baseline: Detections of a detector trained without the IoU branch. None leaves its row out.
            facts: Facts of the page, as in `iounet.html_report.write_html`.
        """
        scored = {variant: self._ap(found) for variant, found in measured.found.items()}
        for name, variants in tables.items():
            rows = {row: scored[variant] for row, variant in variants.items()}
            if name == "ablation" and baseline is not None:
                rows = {BASELINE: self._ap(baseline)} | rows
            self._table(name, TITLES[name], rows)
            if name == "step_size":
                self._curves(name, TITLES[name], "lambda", {"": rows})
        self._steps(measured)
        self._surviving(measured.surviving)
        self._correlation(measured)
        self._calibration(measured)
        self._latency(measured.seconds)
        write_text(self._folder / "reproduction.json", json.dumps(without_nan(self._content), indent=1) + "\n")
        write_text(self._folder / "README.md", "\n\n".join(map(_markdown, self._sections)) + "\n")
        title = f"Reproduction: {self._folder.name}"
        write_html(self._folder / "report.html", title, facts=facts, sections=self._sections)

    def _ap(self, found: Found) -> dict[str, float]:
        scores = self._evaluator(as_results(found, self._category_ids))
        return {column: scores[column] for column in AP_COLUMNS}

    def _table(self, name: str, title: str, rows: Table, *, compared: bool = True) -> None:
        self._content[name] = rows
        columns = list(next(iter(rows.values())))
        with replacing(self._folder / f"{name}.csv") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["", *columns])
            writer.writerows([row, *(f"{values[column]:.6g}" for column in columns)] for row, values in rows.items())
        write_text(self._folder / f"{name}.md", markdown_table(rows, columns) + "\n")
        self._sections.append(Section(title, table=rows, compared=compared))

    def _curves(self, name: str, title: str, x_label: str, curves: dict[str, Table]) -> None:
        """Plot AP and AP90 side by side. The rows of a curve run from left to right."""
        figure, canvas = new_figure((7, 3.2))
        for axes, column in zip(figure.subplots(1, 2), ("AP", "AP90"), strict=True):
            for label, rows in curves.items():
                axes.plot(
                    list(rows), [values[column] for values in rows.values()], marker="o", markersize=3, label=label
                )
            axes.set_xlabel(x_label)
            axes.set_ylabel(f"{column}, percent")
            axes.grid(alpha=0.25)
        if len(curves) > 1:
            axes.legend(fontsize="small")
        canvas.print_png(self._folder / f"{name}.png")
        self._show(name, title)

    def _steps(self, measured: Reproduction) -> None:
        curves = {
            label: {str(step): self._ap(found) for step, found in enumerate(path)}
            for label, path in (
                ("gradient ascent", measured.optimized),
                ("repeated box regression", measured.regressed),
            )
        }
        title = "AP by number of refinement steps (without early stopping)"
        self._table(
            "steps",
            title,
            {f"{label}, {step}": values for label, rows in curves.items() for step, values in rows.items()},
        )
        self._curves("steps", title, "steps", curves)

    def _surviving(self, surviving: dict[str, Tensor]) -> None:
        rows = {
            row: {f"{threshold:.2f}": 100 * (ious >= threshold).double().mean().item() for threshold in IOU_THRESHOLDS}
            for row, ious in surviving.items()
        }
        num_objects = len(surviving[BEFORE_NMS])
        title = f"Percentage of the {num_objects} objects with a box of their class at IoU ≥ t, by threshold t"
        self._table("surviving", title, rows)
        figure, canvas = new_figure((4.5, 3.2))
        axes = figure.subplots()
        for row, style in ((BEFORE_NMS, "--"), (GREEDY, "-"), (SOFT, "-"), (GUIDED, "-")):
            axes.plot(IOU_THRESHOLDS, list(rows[row].values()), style, marker="o", markersize=3, label=row)
        axes.set_xlabel("IoU threshold t")
        axes.set_ylabel("objects with a box at IoU ≥ t, percent")
        axes.legend(fontsize="small")
        axes.grid(alpha=0.25)
        canvas.print_png(self._folder / "surviving.png")
        self._show("surviving", title)

    def _correlation(self, measured: Reproduction) -> None:
        self._content["correlation"] = correlation_figure(
            measured.ious, measured.scores, measured.predicted_ious, self._folder / "correlation.png"
        )
        self._sections.append(Section("Correlation with the true IoU (candidates before NMS with IoU ≥ 0.5)"))
        self._show("correlation", "Class score and predicted IoU against the true IoU")

    def _calibration(self, measured: Reproduction) -> None:
        calibrations = calibrations_of(measured.predicted_ious, measured.ious)
        calibration_figure(calibrations, self._folder / "calibration.png")
        self._content["calibration"] = calibration_summary(calibrations)
        lines = [
            f"{name} ({row['num_boxes']} boxes): calibration error {row['error']:.3f}, bias {row['bias']:+.3f}."
            for name, row in self._content["calibration"].items()
        ]
        definition = (
            "Boxes are grouped into ten equal ranges of the predicted IoU. The calibration error is the mean, over all "
            "boxes, of the distance between the mean predicted IoU and the mean true IoU of a box's group. The bias is "
            "the mean predicted IoU minus the mean true IoU."
        )
        self._sections.append(Section("Calibration of the predicted IoU", "\n\n".join([definition, *lines])))
        self._show("calibration", "Mean true IoU against mean predicted IoU")

    def _show(self, name: str, caption: str) -> None:
        """Add a figure to the latest section."""
        section = self._sections[-1]
        picture = Picture(self._folder / f"{name}.png", caption, caption)
        self._sections[-1] = replace(section, pictures=(*section.pictures, picture))

    def _latency(self, seconds: dict[str, list[float]]) -> None:
        rows = {stage: {"ms per image": 1e3 * statistics.median(values)} for stage, values in seconds.items()}
        self._table("latency", "Latency of each stage, median over the batches", rows, compared=False)


def _markdown(section: Section) -> str:
    parts = [f"## {section.title}"]
    parts += [section.text] if section.text else []
    parts += [markdown_table(section.table, list(next(iter(section.table.values()))))] if section.table else []
    parts += [f"![{p.caption}]({p.image.name})" for p in section.pictures if isinstance(p.image, Path)]
    return "\n\n".join(parts)


def paper_tables(variants: dict[str, Postprocessing]) -> dict[str, dict[str, Postprocessing]]:
    """Return the NMS table and the ablation, made from the rows of `table_rows`."""
    return {
        "nms": variants,
        "ablation": {
            UNUSED: variants[GREEDY],
            "+ IoU-guided NMS": variants[GUIDED],
            "+ refinement": variants[REFINED],
            **({"+ class score × IoU": variants[RESCORED]} if RESCORED in variants else {}),
        },
    }
