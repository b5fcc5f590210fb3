"""Images that are damaged, rotated, too thin or in subfolders, and other files in the output folder."""

import json
import shutil

import pytest
from coco_results import entry, some_entries
from PIL import ExifTags, Image, ImageOps

from iounet.commands.refine import IMAGES_SKIPPED


@pytest.fixture
def images(dataset, tmp_path):
    """A copy of the validation images."""
    shutil.copytree(dataset / "val", tmp_path / "images")
    return tmp_path / "images"


def results_in(folder):
    return json.loads((folder / "detections.json").read_text())


class TestSkipBad:
    @pytest.fixture
    def damaged(self, images):
        path = images / "000005.png"
        path.write_bytes(path.read_bytes()[:300])
        return path

    def test_without_it_the_error_suggests_it(self, refine, write, images, damaged):
        message = refine(write(some_entries()), images=images)
        assert message.startswith(f"DataError: {damaged}: cannot be read as an image")
        assert message.endswith(", or skip such images with --skip-bad; then add --resume to continue")

    def test_given_detections_are_left_unchanged(self, refine, write, images, damaged, tmp_path, capsys):
        given = some_entries()
        path = write(given)
        assert isinstance(refine(path, images=images), str)
        (images / "000002.png").unlink()
        assert refine(path, "--skip-bad", "--resume", images=images) == IMAGES_SKIPPED == 3
        for before, after in zip(given, results_in(tmp_path / "out"), strict=True):
            assert (after == before) == (before["image_id"] in (2, 5))
        shown, page = capsys.readouterr().out, (tmp_path / "out" / "report.html").read_text()
        assert f"2 images skipped:\n  image_id 2: no such image was given\n  {damaged}: cannot be read" in shown
        assert "images skipped" in page and str(damaged) in page
        assert not (tmp_path / "out" / "progress.jsonl").exists()

    def test_own_detections(self, detect, images, damaged, tmp_path):
        assert detect(images, more=["--skip-bad", "--batch-size", 2]) == IMAGES_SKIPPED
        assert {found["image_id"] for found in results_in(tmp_path / "out")} == {1, 2, 3, 4}
        listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
        assert [image["id"] for image in listed] == [1, 2, 3, 4]
        assert not (tmp_path / "out" / "pictures" / "000005.png").exists()

    def test_nothing_to_skip(self, detect, images):
        assert isinstance(detect(images, more=["--skip-bad"]), list)

    def test_all_images_are_missing(self, refine, write, images):
        message = refine(write([entry(98, [1, 2, 3, 4]), entry(99, [1, 2, 3, 4])]), "--skip-bad", images=images)
        assert "2 image ids match none of the 5 given images: 98, 99" in message

    def test_all_are_damaged(self, detect, damaged, tmp_path):
        assert detect(damaged, more=["--skip-bad"]) == IMAGES_SKIPPED
        assert results_in(tmp_path / "out") == []


class TestExif:
    """A photograph stored on its side, an upright photograph, and upright copies of both."""

    @pytest.fixture
    def photos(self, dataset, tmp_path):
        for folder in ("stored", "shown"):
            (tmp_path / folder).mkdir()
        with Image.open(dataset / "val" / "000001.png") as photo:
            upright = photo.convert("RGB").resize((64, 48))
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 6  # viewers rotate it clockwise
        upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "stored" / "turned.png", exif=exif)
        upright.save(tmp_path / "shown" / "turned.png")
        for folder in ("stored", "shown"):
            shutil.copy(dataset / "val" / "000002.png", tmp_path / folder / "plain.png")
        with Image.open(tmp_path / "stored" / "turned.png") as stored:
            assert stored.size == (48, 64) and ImageOps.exif_transpose(stored).tobytes() == upright.tobytes()
        return tmp_path / "stored", tmp_path / "shown"

    GIVEN = (entry("turned", [5, 6, 50, 20]), entry("plain", [5, 6, 30, 40]))

    def test_the_warning_appears_once(self, refine, write, photos, capsys):
        refine(write([*self.GIVEN, *self.GIVEN]), images=photos[0])
        shown = capsys.readouterr().out
        assert shown.count("EXIF") == 1
        assert "warning: 1 of 2 images have an EXIF orientation (turned.png), which is ignored" in shown
        refine(write(self.GIVEN), images=photos[1])
        refine(write(self.GIVEN), "--exif", images=photos[0])
        assert "EXIF" not in capsys.readouterr().out

    def test_boxes_are_in_the_upright_frame_in_and_out(self, refine, write, photos, tmp_path):
        expected = refine(write(self.GIVEN), images=photos[1], output=tmp_path / "expected")
        assert refine(write(self.GIVEN), "--exif", images=photos[0]) == expected
        assert refine(write(self.GIVEN), images=photos[0], output=tmp_path / "ignored") != expected
        pictures = [(tmp_path / name / "pictures" / "turned.png").read_bytes() for name in ("out", "expected")]
        assert pictures[0] == pictures[1]

    def test_own_detections_and_the_boxes_that_changed_most(self, detect, photos, write, tmp_path):
        annotations = write(
            {
                "images": [{"id": 7, "file_name": "turned.png"}, {"id": 8, "file_name": "plain.png"}],
                "annotations": [
                    {"id": 1, "image_id": 7, "category_id": 1, "bbox": [5, 6, 50, 20], "area": 1000, "iscrowd": 0}
                ],
                "categories": [{"id": 1, "name": "cross"}],
            },
            "annotations.json",
        )
        more = ["--annotations", annotations]
        expected = detect(photos[1], more=more, output=tmp_path / "expected")
        assert detect(photos[0], more=[*more, "--exif"]) == expected
        listed = json.loads((tmp_path / "out" / "images.json").read_text())["images"]
        sizes = {image["file_name"]: (image["width"], image["height"]) for image in listed}
        assert sizes == {"turned.png": (64, 48), "plain.png": (64, 64)}


def test_an_image_too_thin_to_be_resized(refine, write, images, tmp_path, capsys):
    Image.new("RGB", (5000, 1)).save(images / "thin.png")
    given = [entry("thin", [10, 0, 300, 1]), entry(1, [5, 6, 30, 40])]
    thin, other = refine(write(given), images=images)
    assert thin["bbox"] == [10, 0, 300, 1] and thin["predicted_iou"] == 0
    assert other["bbox"] != [5, 6, 30, 40]
    line = f"1 image too thin to be resized, boxes unchanged:\n  {images / 'thin.png'}: 5000 x 1 pixels\n"
    assert line in capsys.readouterr().out


def test_folders_in_file_names(refine, detect, write, dataset, tmp_path):
    """Images with the same name in two subfolders, which COCO's file_name distinguishes."""
    for number, folder in ((1, "train"), (2, "val")):
        (tmp_path / "set" / folder).mkdir(parents=True)
        shutil.copy(dataset / "val" / f"00000{number}.png", tmp_path / "set" / folder / "x.png")
    content = {
        "images": [{"id": 7, "file_name": "train/x.png"}, {"id": 8, "file_name": "val/x.png"}],
        "categories": [{"id": 1, "name": "cross"}],
    }
    annotations = write(content, "annotations.json")
    given = [entry(image_id, [5, 6, 30, 40]) for image_id in (7, 8)]
    refined = refine(write(given), "--annotations", annotations, images=tmp_path / "set")
    expected = refine(write([entry(image_id, [5, 6, 30, 40]) for image_id in (1, 2)]))
    assert [found["bbox"] for found in refined] == [found["bbox"] for found in expected]
    found = detect(tmp_path / "set", more=["--annotations", annotations])
    assert {of_image["image_id"] for of_image in found} == {7, 8}
    assert "images in subfolders are found only if an annotation file names them" in detect(tmp_path / "set")


class TestTheOutputFolder:
    @pytest.mark.parametrize("name", ["detections.json", "images.json", "evaluation.json", "report.html"])
    def test_files_of_other_programs_are_not_overwritten(self, detect, dataset, tmp_path, name):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / name).write_text("<title>Precious</title>")
        message = detect(dataset / "val")
        assert f"{tmp_path / 'out' / name} was not written by this command and would be overwritten" in message
        assert (tmp_path / "out" / name).read_text() == "<title>Precious</title>"
        assert len(list((tmp_path / "out").iterdir())) == 1

    def test_files_of_an_earlier_run_are_overwritten(self, detect, refine, write, dataset, tmp_path):
        detect(dataset / "val")
        assert len(refine(write([entry(1, [5, 6, 30, 40])], "given.json"))) == 1
        assert not (tmp_path / "out" / "images.json").exists()

    def test_a_file_in_place_of_the_folder(self, detect, dataset, tmp_path):
        (tmp_path / "out").write_text("")
        message = detect(dataset / "val")
        expected = f"--output {tmp_path / 'out'} cannot be created (File exists); choose another folder"
        assert message == f"ConfigError: {expected}"
