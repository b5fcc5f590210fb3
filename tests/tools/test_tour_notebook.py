"""examples/tour.ipynb runs outside the repository, and its outputs agree with its text."""

import json
import os
import shutil
import sys
from pathlib import Path

import pytest

from iounet.files import write_text

nbformat = pytest.importorskip("nbformat", reason="needs nbformat")

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "tour.ipynb"

# A cell that prints the results of the other cells by reading their variables.
RESULTS = """
import json
print(json.dumps({
    "iou": [iou_before.mean().item(), iou_after.mean().item()],
    "path": [true[0].item(), true[-1].item()],
    "gradient": [analytic[0, 1:].tolist(), numerical[0, 1:].tolist()],
    "hidden": iou_with_hidden(paths[-1]).tolist(),
    "contrast": elementwise_iou(climbed, truth).tolist(),
    "start": iou_before.tolist(),
    "survivors": [true_ious[first_by_score].item(), true_ious[first_by_iou].item()],
    "all_survivors": list(ious.values()),
}))
"""


def outputs_of(notebook):
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


@pytest.fixture
def kernels(tmp_path):
    """A kernel manager that uses this Python, whatever kernels are installed."""
    client = pytest.importorskip("jupyter_client", reason="needs jupyter_client")
    pytest.importorskip("ipykernel", reason="needs ipykernel")
    from jupyter_client.kernelspec import KernelSpecManager

    arguments = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    specification = {"argv": arguments, "display_name": "this Python", "language": "python"}
    write_text(tmp_path / "kernels" / "this" / "kernel.json", json.dumps(specification))
    specifications = KernelSpecManager(kernel_dirs=[str(tmp_path / "kernels")], ensure_native_kernel=False)
    return client.AsyncKernelManager(kernel_name="this", kernel_spec_manager=specifications)


@pytest.mark.slow
def test_the_tour_shows_what_it_says(kernels, tmp_path):
    nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
    folder = tmp_path / "examples"  # the notebook sees only this folder and weights/ next to it
    shutil.copytree(ROOT / "examples" / "photos", folder / "photos")
    (tmp_path / "weights").mkdir()
    shutil.copy(ROOT / "weights" / "cards.pth", tmp_path / "weights")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell(RESULTS))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, km=kernels, timeout=300, resources=resources).execute(env=environment)

    results = json.loads(notebook.cells[-1].outputs[0].text)
    before, after = results["iou"]
    assert before < 0.75 and after > 0.94
    assert results["path"][0] < 0.65 and results["path"][1] > 0.9
    assert results["gradient"][0] == pytest.approx(results["gradient"][1], abs=1e-7)
    assert min(map(abs, results["gradient"][0])) > 0.1
    assert min(results["hidden"]) > 0.99
    assert all(end > start for start, end in zip(results["start"], results["contrast"], strict=True))
    assert sum(results["contrast"]) / 4 > 0.85
    by_score, by_iou = results["survivors"]
    assert by_iou > by_score + 0.05
    greedy, guided = results["all_survivors"]
    assert len(greedy) == len(guided) == 23 and sum(guided) > sum(greedy)
    pictures = [output for output in outputs_of(notebook) if "image/jpeg" in output.get("data", {})]
    assert len(pictures) == 6


def test_the_tour_is_committed_with_its_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert NOTEBOOK.stat().st_size < 600_000
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = outputs_of(notebook)
    assert {output.output_type for output in outputs} <= {"stream", "display_data"}  # no errors
    assert {output.name for output in outputs if output.output_type == "stream"} == {"stdout"}
    assert sum("image/jpeg" in output.get("data", {}) for output in outputs) == 6
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "mean      0.72 → 0.96" in text and "23 cards" in text


def test_the_tour_links_to_pages_that_exist():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    links = [part.split(")")[0] for part in text.split("](")[1:]]
    pages = [link for link in links if not link.startswith("http")]
    assert len(pages) >= 5
    assert [link for link in pages if not (NOTEBOOK.parent / link).exists()] == []
