"""The command on images only: boxes of the refiner's own detector, and errors in arguments."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from iounet import IoURefiner
from iounet.commands import refine as command
from iounet.data import read_image


class TestDetect:
    @pytest.fixture(scope="class")
    @classmethod
    def output(cls, weights, dataset, run_tool, tmp_path_factory):
        output = tmp_path_factory.mktemp("refined") / "out"
        done = run_tool(
            "refine_boxes.py", "--weights", weights, "--images", dataset / "val", "--output", output, "--pictures", 3
        )
        assert done.returncode == 0, done.stderr
        return output

    def test_files(self, output):
        assert {path.name for path in output.iterdir()} == {
            "detections.json",
            "images.json",
            "pictures",
            "report.html",
        }
        assert sorted(path.name for path in (output / "pictures").iterdir()) == [
            "000001.png",
            "000002.png",
            "000003.png",
        ]
        with Image.open(output / "pictures" / "000001.png") as picture:
            assert min(picture.size) > 64

    def test_image_ids_of_images_and_detections_agree(self, output, dataset):
        content = json.loads((output / "images.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [f"00000{number}.png" for number in range(1, 6)]
        assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 64)}
        annotated = json.loads((dataset / "annotations" / "val.json").read_text())
        assert content["categories"] == annotated["categories"]
        detections = json.loads((output / "detections.json").read_text())
        assert {found["image_id"] for found in detections} == {image["id"] for image in content["images"]}

    def test_detections_agree_with_the_refiner(self, output, weights, dataset):
        refiner = IoURefiner.from_checkpoint(weights)
        image = (read_image(dataset / "val" / "000002.png").float() / 255).as_subclass(torch.Tensor)
        _, after = refiner.detect(image)
        found = [found for found in json.loads((output / "detections.json").read_text()) if found["image_id"] == 2]
        assert len(found) == len(after) > 0
        for one, expected in zip(found, after.to_coco(2, [1, 2, 3, 4, 5]), strict=True):
            assert one["category_id"] == expected["category_id"]
            assert one["bbox"] == pytest.approx(expected["bbox"], abs=1e-2)
            assert one["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-3)

    def test_the_results_can_be_refined_again(self, output, refine, tmp_path):
        again = refine(output / "detections.json", "--annotations", output / "images.json", "--pictures", 0)
        first = json.loads((output / "detections.json").read_text())
        assert [found["category_id"] for found in again] == [found["category_id"] for found in first]
        assert not (tmp_path / "out" / "pictures").exists()


class TestWithAnnotations:
    @pytest.fixture
    def folders(self, dataset, write, tmp_path):
        """Two images with the same name in two folders, and an annotation file that distinguishes them."""
        for number, name in ((1, "a"), (2, "b")):
            (tmp_path / name).mkdir()
            shutil.copy(dataset / "val" / f"00000{number}.png", tmp_path / name / "x.png")
        content = json.loads((dataset / "annotations" / "val.json").read_text())
        content["images"] = [
            content["images"][0] | {"file_name": "a/x.png"},
            content["images"][1] | {"file_name": "b/x.png"},
        ]
        content["annotations"] = [o for o in content["annotations"] if o["image_id"] < 3]
        return tmp_path / "a", tmp_path / "b", write(content, "annotations.json")

    def test_images_with_the_same_name(self, detect, folders, tmp_path, capsys):
        a, b, annotations = folders
        both = detect(a, b, output=tmp_path / "both", more=["--annotations", annotations, "--batch-size", 2])
        assert {found["image_id"] for found in both} == {1, 2}
        assert len(list((tmp_path / "both" / "pictures").iterdir())) == 2
        alone = detect(b, output=tmp_path / "alone", more=["--annotations", annotations])
        assert {found["image_id"] for found in alone} == {2}
        of_b = [found["bbox"] for found in both if found["image_id"] == 2]
        torch.testing.assert_close(torch.tensor([found["bbox"] for found in alone]), torch.tensor(of_b))
        assert capsys.readouterr().out.count("| refined") == 2

    def test_file_names_with_folders(self, detect, folders, tmp_path):
        a, b, _ = folders
        first = detect(a, b, output=tmp_path / "first")
        listed = json.loads((tmp_path / "first" / "images.json").read_text())["images"]
        assert [image["file_name"] for image in listed] == ["a/x.png", "b/x.png"]
        more = ["--annotations", tmp_path / "first" / "images.json"]
        assert detect(b, a, output=tmp_path / "second", more=more)
        assert {found["image_id"] for found in first} == {image["id"] for image in listed} == {1, 2}
        listed_again = json.loads((tmp_path / "second" / "images.json").read_text())["images"]
        assert sorted(listed_again, key=lambda image: image["id"]) == listed

    def test_an_unlisted_image(self, detect, folders, dataset):
        message = detect(dataset / "val", more=["--annotations", folders[2]])
        assert "does not list 5 of the images, such as" in message and "omit --annotations" in message


class TestErrors:
    @pytest.mark.parametrize(
        ("weights_name", "images_name", "messages"),
        [
            ("nowhere.pth", "val", ["CheckpointError", "nowhere.pth: no such weights file"]),
            ("text.pth", "val", ["CheckpointError", "text.pth"]),
            (None, "nowhere", ["DataError", "nowhere: no such image or folder; check the path"]),
            (None, "annotations", ["DataError", "no images in"]),
        ],
    )
    def test_files(self, call, weights, dataset, tmp_path, weights_name, images_name, messages):
        (tmp_path / "text.pth").write_text("hello world\n")
        chosen = tmp_path / weights_name if weights_name else weights
        message = call(command, "--weights", chosen, "--images", dataset / images_name, "--output", tmp_path / "out")
        for part in messages:
            assert part in message
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(
        ("more", "messages"),
        [
            (["--device", "abacus"], ["unknown device 'abacus'"]),
            (["--class-agnostic"], ["--class-agnostic needs detections, the boxes of another detector"]),
            (["--batch-size", 0], ["--batch-size must be at least 1; got 0"]),
        ],
    )
    def test_arguments(self, detect, dataset, tmp_path, more, messages):
        message = detect(dataset / "val", more=more)
        assert message.startswith("ConfigError: ") and len(message.splitlines()) == 1
        assert all(part in message for part in messages)
        assert not (tmp_path / "out").exists()

    def test_an_output_that_cannot_be_written(self, detect, dataset, tmp_path):
        (tmp_path / "file").write_text("")
        message = detect(dataset / "val", output=tmp_path / "file" / "out")
        assert "Not a directory" in message and "\n" not in message

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
    def test_a_disk_that_is_full(self, detect, dataset, tmp_path):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / ".detections.json.tmp").symlink_to("/dev/full")
        message = detect(dataset / "val")
        assert "No space left on device" in message
        assert message.endswith(f": free disk space for {tmp_path / 'out'}, then add --resume to continue")
