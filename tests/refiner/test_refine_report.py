"""The report page of a run, and AP if the ground truth is known."""

import json
from pathlib import Path

import pytest
from coco_results import perfect_entries
from PIL import Image

from iounet.refiner.ground_truth import GroundTruth
from iounet.refiner.pictures import Pictures
from iounet.refiner.report import SHOWN, is_report, write_report
from iounet.refiner.results import ImageIndex, find_images


class Given:
    """A source whose results are the same before and after refinement."""

    def __init__(self, entries, paths):
        self.entries, self.paths = entries, paths

    def listed_id(self, image_id):
        return image_id

    def results(self, records, which, *, rescore=False):
        yield from self.entries


@pytest.fixture
def pictures(tmp_path):
    """Pictures of ten images, of which the second is not drawn."""
    pictures = Pictures(tmp_path / "pictures", {id_: Path(f"image_{id_}.jpg") for id_ in range(10)}, 10, [])
    (tmp_path / "pictures").mkdir()
    for id_, path in pictures.paths.items():
        if id_ != 1:
            Image.new("RGB", (8, 8), (id_, 0, 0)).save(path)
    return pictures


def test_the_page_shows_the_first_existing_pictures(pictures, tmp_path, capsys):
    assert not is_report(tmp_path / "report.html")
    write_report(tmp_path, 4321, [], Given([], {}), {"classes": "a star and a cross"}, None, pictures)
    assert is_report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/") == SHOWN == 6
    assert [f">image_{id_}<" in page for id_ in range(10)] == [id_ != 1 and id_ <= 6 for id_ in range(10)]
    assert f"Refined boxes: {tmp_path.name}" in page
    assert all(text in page for text in (">4321<", "no boxes", "a star and a cross"))
    assert "Average precision" not in page and not (tmp_path / "evaluation.json").exists()
    assert capsys.readouterr().out == ""


def test_with_ground_truth_it_compares_ap(pictures, dataset, tmp_path, capsys):
    index, files = ImageIndex.read(dataset / "annotations" / "val.json"), find_images([dataset / "val"])
    perfect = perfect_entries(index.content)
    source = Given([*perfect, perfect[0] | {"category_id": 99}], {})
    (tmp_path / "detections.json").write_text("[]")  # results after refinement are read from this file
    write_report(tmp_path, 0, [], source, {}, GroundTruth(index, files, source), pictures)
    table = json.loads((tmp_path / "evaluation.json").read_text())["table"]
    assert table["before"]["AP"] == pytest.approx(100) and table["refined"]["AP"] == 0
    shown, page = capsys.readouterr().out, (tmp_path / "report.html").read_text()
    for text in (shown, page):
        assert "AP leaves out 1 of the detections: their image or class is not in the annotation file" in text
        assert "Refinement lowered AP: the refiner has probably seen too few objects of this kind." in text
    assert "| before  | 100.0 |" in shown and "Average precision" in page and "Boxes that changed most" in page


def test_no_advice_if_ap_does_not_fall(pictures, dataset, tmp_path, capsys):
    index, files = ImageIndex.read(dataset / "annotations" / "val.json"), find_images([dataset / "val"])
    perfect = perfect_entries(index.content)
    source = Given(perfect, {})
    (tmp_path / "detections.json").write_text(json.dumps(perfect))
    write_report(tmp_path, 0, [], source, {}, GroundTruth(index, files, source), pictures)
    assert "Refinement lowered AP" not in capsys.readouterr().out + (tmp_path / "report.html").read_text()
