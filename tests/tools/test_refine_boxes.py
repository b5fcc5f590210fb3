import json
import math
import random
import shutil

import pytest
import torch
from alive import alive
from PIL import Image

from iounet import IoURefiner
from iounet.data import read_image
from iounet.evaluation import AP_COLUMNS, coco_ap


@pytest.fixture(scope="session")
def weights(trained):
    return trained / "model_final.pth"


@pytest.fixture
def write(tmp_path):
    def write(entries, name="detections.json"):
        path = tmp_path / name
        path.write_text(json.dumps(entries))
        return path

    return write


def entry(image_id, bbox, *, category_id=1, score=0.75, **more):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score, **more}


def some_entries():
    """Of the five validation images, in a mixed order, with keys of their own."""
    chance = random.Random(0)
    entries = [
        entry(
            image_id,
            [chance.uniform(0, 30), chance.uniform(0, 30), chance.uniform(8, 34), chance.uniform(8, 34)],
            category_id=chance.randint(1, 5),
            score=chance.random(),
            id=number,
            track=f"track {number}",
        )
        for number, image_id in enumerate([1, 2, 3, 4, 5] * 4, start=100)
    ]
    chance.shuffle(entries)
    return entries


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

    def test_images_and_detections_name_each_other(self, output, dataset):
        content = json.loads((output / "images.json").read_text())
        assert [image["file_name"] for image in content["images"]] == [f"00000{number}.png" for number in range(1, 6)]
        assert {(image["width"], image["height"]) for image in content["images"]} == {(64, 64)}
        annotated = json.loads((dataset / "annotations" / "val.json").read_text())
        assert content["categories"] == annotated["categories"]
        detections = json.loads((output / "detections.json").read_text())
        assert {found["image_id"] for found in detections} == {image["id"] for image in content["images"]}

    def test_detections_are_those_of_the_refiner(self, output, weights, dataset):
        refiner = IoURefiner.from_checkpoint(weights)
        image = (read_image(dataset / "val" / "000002.png").float() / 255).as_subclass(torch.Tensor)
        _, after = refiner.detect(image)
        found = [found for found in json.loads((output / "detections.json").read_text()) if found["image_id"] == 2]
        assert len(found) == len(after) > 0
        for one, expected in zip(found, after.to_coco(2, [1, 2, 3, 4, 5]), strict=True):
            assert one["category_id"] == expected["category_id"]
            assert one["bbox"] == pytest.approx(expected["bbox"], abs=1e-2)
            assert one["predicted_iou"] == pytest.approx(expected["predicted_iou"], abs=1e-3)

    def test_its_results_can_be_refined_again(self, output, weights, dataset, call_tool, tmp_path):
        message = call_tool(
            "refine_boxes.py", "--weights", weights, "--images", dataset / "val", "--output", tmp_path / "again",
            "--detections", output / "detections.json", "--annotations", output / "images.json", "--pictures", 0,
        )  # fmt: skip
        assert message is None
        first, again = (json.loads((folder / "detections.json").read_text()) for folder in (output, tmp_path / "again"))
        assert [found["category_id"] for found in again] == [found["category_id"] for found in first]
        assert not (tmp_path / "again" / "pictures").exists()


class TestRefineOthers:
    @pytest.fixture
    def refine(self, call_tool, weights, dataset, tmp_path):
        """Runs the tool on results: the message it exits with, or the refined results."""

        def refine(path, *more, images=None):
            output = tmp_path / "out"
            message = call_tool(
                "refine_boxes.py", "--weights", weights, "--images", images or dataset / "val", "--output", output,
                "--detections", path, *more,
            )  # fmt: skip
            return message if message is not None else json.loads((output / "detections.json").read_text())

        return refine

    def test_same_entries_in_the_same_order_with_better_boxes(self, refine, write, weights, dataset, tmp_path):
        given = some_entries()
        refined = refine(write(given))
        assert len(refined) == len(given)
        for before, after in zip(given, refined, strict=True):
            assert set(after) == set(before) | {"predicted_iou", "predicted_iou_before"}
            assert {key: after[key] for key in before if key != "bbox"} == {
                k: v for k, v in before.items() if k != "bbox"
            }
        assert sum(before["bbox"] != after["bbox"] for before, after in zip(given, refined, strict=True)) > 10
        assert len(list((tmp_path / "out" / "pictures").iterdir())) == 5

        refiner = IoURefiner.from_checkpoint(weights)
        rows = [row for row, before in enumerate(given) if before["image_id"] == 3]
        corners = torch.tensor([given[row]["bbox"] for row in rows])
        corners[:, 2:] += corners[:, :2]
        labels = torch.tensor([given[row]["category_id"] for row in rows])
        image = (read_image(dataset / "val" / "000003.png").float() / 255).as_subclass(torch.Tensor)
        expected = refiner.refine(image, corners, labels, torch.ones(len(rows)))
        ious = zip(expected.ious_before.tolist(), expected.ious.tolist(), strict=True)
        for row, (x1, y1, x2, y2), (before, after) in zip(rows, expected.boxes.tolist(), ious, strict=True):
            assert refined[row]["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=1e-2)
            assert refined[row]["predicted_iou_before"] == pytest.approx(before, abs=1e-3)
            assert refined[row]["predicted_iou"] == pytest.approx(after, abs=1e-3)

    def test_the_order_does_not_matter(self, refine, write):
        given = some_entries()
        shuffled = list(given)
        random.Random(1).shuffle(shuffled)
        refined = {found["id"]: found for found in refine(write(given))}
        for found in refine(write(shuffled)):
            assert found["bbox"] == pytest.approx(refined[found["id"]]["bbox"], abs=1e-2)

    def test_ids_of_an_annotation_file(self, refine, write, tmp_path):
        content = {
            "images": [{"id": 77, "file_name": "000002.png", "width": 64, "height": 64}],
            "annotations": [],
            "categories": [{"id": 1, "name": "cross"}],
        }
        by_name = refine(write([entry("000002", [5, 6, 30, 40])]))
        by_id = refine(write([entry(77, [5, 6, 30, 40])]), "--annotations", write(content, "annotations.json"))
        assert by_id[0]["bbox"] == by_name[0]["bbox"]
        assert by_id[0]["image_id"] == 77

    @pytest.mark.parametrize(
        "form",
        [
            # ultralytics, val(save_json=True) on a set of one's own: the name of the file without suffix
            {"image_id": "000002", "file_name": "000002.png", "category_id": 1, "bbox": [5.0, 6.0, 30.0, 40.0]},
            # detectron2, coco_instances_results.json
            {"image_id": 2, "category_id": 1, "bbox": [5.0, 6.0, 30.0, 40.0], "segmentation": {"size": [64, 64]}},
        ],
        ids=["ultralytics", "detectron2"],
    )
    def test_results_of_other_toolboxes(self, refine, write, form):
        (refined,) = refine(write([form | {"score": 0.5}]))
        (expected,) = refine(write([entry(2, [5, 6, 30, 40])], "same.json"))
        assert refined["bbox"] == expected["bbox"]
        assert {key: refined[key] for key in form if key != "bbox"} == {k: v for k, v in form.items() if k != "bbox"}

    def test_no_detections(self, refine, write):
        assert refine(write([])) == []

    def test_boxes_that_cannot_be_refined_stay(self, refine, write):
        given = [
            entry(1, [500.0, 500.0, 10.0, 10.0]),
            entry(1, [40.0, 40.0, -30.0, -20.0]),
            entry(1, [10.0, 10.0, 0.0, 20.0]),
            entry(1, [5.0, 6.0, 30.0, 40.0]),
        ]
        refined = refine(write(given))
        assert isinstance(refined, list), refined
        assert [after["bbox"] for after in refined[:3]] == [before["bbox"] for before in given[:3]]
        assert [after["predicted_iou"] for after in refined[:3]] == [0.0] * 3
        assert refined[3]["predicted_iou"] != 0

    @pytest.mark.parametrize(
        ("entries", "messages"),
        [
            ([entry(99, [1, 2, 3, 4])], ["1 image ids have no image", "99", "--annotations"]),
            ([entry(1, [1, 2, 3, 4], category_id=7)], ["none of its classes (7)", "1 cross", "--class-agnostic"]),
            ([entry(1, [1, 2, 3])], ["entry 0 (image 1) has bbox [1, 2, 3]", "four finite numbers"]),
            ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], ["entry 0 lacks category_id, score"]),
        ],
    )
    def test_errors(self, refine, write, tmp_path, entries, messages):
        message = refine(write(entries))
        assert isinstance(message, str) and message.startswith("DataError")
        for part in ["detections.json", *messages]:
            assert part in message
        assert len(message.splitlines()) == 1
        assert not (tmp_path / "out" / "detections.json").exists()

    CATEGORIES = [{"id": 20, "name": "Star"}, {"id": 10, "name": "cross"}, {"id": 30, "name": "zebra"}]

    @pytest.fixture
    def named(self, write):
        """An annotation file with classes of other ids, without objects."""
        images = [{"id": 1, "file_name": "000001.png", "width": 64, "height": 64}]
        return write({"images": images, "annotations": [], "categories": self.CATEGORIES}, "named.json")

    def test_classes_are_matched_by_name(self, refine, write, named, capsys):
        given = [entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (20, 30, 10)]
        star, zebra, cross = refine(write(given), "--annotations", named)
        assert zebra == given[1]  # unknown: left as it is, without a predicted IoU
        shown = capsys.readouterr().out
        assert "matched by name" in shown
        assert "1 boxes of 20 Star: refined as 4 star" in shown
        assert "1 boxes of 30 zebra: left as they are, unknown to the refiner" in shown
        by_id = refine(write([entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (4, 1)]))
        assert [star["bbox"], cross["bbox"]] == [found["bbox"] for found in by_id]
        assert [star["category_id"], cross["category_id"]] == [20, 10]
        assert "matched by id" in capsys.readouterr().out

    def test_class_agnostic(self, refine, write, named, weights, dataset, capsys):
        given = [entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (20, 30)]
        refined = refine(write(given), "--annotations", named, "--class-agnostic")
        assert capsys.readouterr().out.count("refined without regard to the class") == 2
        image = read_image(dataset / "val" / "000001.png")
        expected = IoURefiner.from_checkpoint(weights).refine(image, [[5, 6, 35, 46]])
        for found in refined:
            x, y, width, height = found["bbox"]
            assert [x, y, x + width, y + height] == pytest.approx(expected.boxes[0].tolist(), abs=1e-2)

    def test_rescored(self, refine, write):
        given = some_entries()
        plain, rescored = refine(write(given)), refine(write(given), "--rescore")
        for one, other in zip(plain, rescored, strict=True):
            assert other["score"] == pytest.approx(one["score"] * one["predicted_iou"])
            assert other["bbox"] == one["bbox"]

    def test_batches_change_nothing_that_shows(self, refine, write):
        given = some_entries()
        for one, other in zip(refine(write(given)), refine(write(given), "--batch-size", 3), strict=True):
            assert other["bbox"] == pytest.approx(one["bbox"], abs=1e-2)

    def test_ap_before_and_after(self, refine, write, dataset, capsys, tmp_path):
        annotations = json.loads((dataset / "annotations" / "val.json").read_text())
        perfect = [
            entry(object_["image_id"], object_["bbox"], category_id=object_["category_id"])
            for object_ in annotations["annotations"]
        ]
        refined = refine(write(perfect), "--annotations", dataset / "annotations" / "val.json")
        lines = capsys.readouterr().out.splitlines()
        before, after = (next(line for line in lines if line.startswith(f"| {row}")) for row in ("before", "refined"))
        assert before.split("|")[1].strip() == "before" and set(before.split("|")[2:-1]) == {" 100.0 "}
        expected = coco_ap(annotations, refined)
        columns = [f"{expected[column]:.1f}" for column in AP_COLUMNS]
        assert [cell.strip() for cell in after.split("|")[1:-1]] == ["refined", *columns]
        table = json.loads((tmp_path / "out" / "evaluation.json").read_text())["table"]
        assert table["before"]["AP"] == pytest.approx(100) and table["refined"]["AP"] == pytest.approx(expected["AP"])
        page = (tmp_path / "out" / "report.html").read_text()
        assert ">100.0<" in page
        assert page.count("data:image/") == 1 + 5  # the sheet of changes, and each image

    def test_ultralytics_with_an_annotation_file(self, refine, write, dataset, capsys):
        """Images by the stem of the file, where the annotation file has numbers: classes by name, and AP."""
        path = dataset / "annotations" / "val.json"
        annotations = json.loads(path.read_text())
        objects = annotations["annotations"]
        by_stem = [entry(f"{o['image_id']:06d}", o["bbox"], category_id=o["category_id"]) for o in objects]
        refined = refine(write(by_stem), "--annotations", path)
        assert [found["image_id"] for found in refined] == [given["image_id"] for given in by_stem]
        shown = capsys.readouterr().out
        assert "matched by name" in shown and "| before  | 100.0 |" in shown
        by_id = refine(write([found | {"image_id": int(found["image_id"])} for found in by_stem], "ids.json"))
        assert [found["bbox"] for found in refined] == [found["bbox"] for found in by_id]

    def test_detections_that_cannot_be_scored_are_counted(self, refine, write, dataset, capsys):
        path = dataset / "annotations" / "val.json"
        annotations = json.loads(path.read_text())
        given = [entry(o["image_id"], o["bbox"], category_id=o["category_id"]) for o in annotations["annotations"]]
        given += [entry(1, [30.0, 30.0, -5.0, 4.0]), entry(1, [1.0, 2.0, 3.0, 4.0], category_id=99)]
        assert isinstance(refine(write(given), "--annotations", path), list)
        shown = capsys.readouterr().out
        assert "2 detections are not scored" in shown and "| before  | 100.0 |" in shown

    @pytest.mark.parametrize(
        "fault", [{"annotations": [{"image_id": 1, "category_id": 1}]}, {"categories": []}, {"annotations": [5]}]
    )
    def test_objects_that_cannot_be_used_cost_the_ap_alone(self, refine, write, dataset, capsys, fault):
        content = json.loads((dataset / "annotations" / "val.json").read_text()) | fault
        refined = refine(write([entry(1, [5, 6, 30, 40])]), "--annotations", write(content, "bad.json"))
        assert refined[0]["predicted_iou"] != 0
        assert "no AP: the objects of" in capsys.readouterr().out

    def test_a_box_that_does_not_move_is_written_as_it_was(self, refine, write):
        bbox = [500.1, 500.1, 10.3, 10.7]
        assert refine(write([entry(1, bbox)]))[0]["bbox"] == bbox

    def test_numbers_beyond_float32(self, refine, write):
        for number in (10**400, 1e300):
            assert "four finite numbers" in refine(write([entry(1, [0, 0, number, 5])]))

    def test_any_boxes(self, refine, write, dataset, capsys, tmp_path):
        chance = random.Random(3)
        sizes = [0.0, 1e-30, 1e-5, 0.3, 20.0, 64.0, 1e4, 1e30]
        corners = [-1e30, -1e4, -5.0, 0.0, 31.7, 63.999, 64.0, 1e30]
        given = [
            entry(
                chance.randint(1, 5),
                [chance.choice(corners), chance.choice(corners), chance.choice(sizes), chance.choice(sizes)],
                category_id=chance.randint(1, 5),
                score=chance.random(),
            )
            for _ in range(300)
        ]
        refined = refine(write(given), "--annotations", dataset / "annotations" / "val.json")
        assert len(refined) == len(given)
        moved = 0
        for before, after in zip(given, refined, strict=True):
            assert all(before[key] == after[key] for key in ("image_id", "category_id", "score"))
            assert all(map(math.isfinite, after["bbox"])) and math.isfinite(after["predicted_iou"])
            if after["bbox"] != before["bbox"]:
                moved += 1
                x, y, width, height = after["bbox"]
                assert min(x, y) >= 0 and max(x + width, y + height) <= 64 + 1e-4 and min(width, height) > 0
        assert moved > 20
        assert len(list((tmp_path / "out" / "pictures").iterdir())) == 5
        assert "| refined" in capsys.readouterr().out

    def test_the_ap_of_no_detections_is_0(self, refine, write, dataset, capsys):
        assert refine(write([]), "--annotations", dataset / "annotations" / "val.json") == []
        rows = [line.split("|")[2:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
        assert [[cell.strip() for cell in row] for row in rows[2:]] == [["0.0"] * len(AP_COLUMNS)] * 2

    def test_a_run_that_was_stopped_goes_on(self, refine, write, dataset, tmp_path, monkeypatch):
        path = write(some_entries())
        whole = refine(path)
        shutil.rmtree(tmp_path / "out")
        shutil.copytree(dataset / "val", tmp_path / "images")
        damaged = tmp_path / "images" / "000004.png"
        content = damaged.read_bytes()
        damaged.write_bytes(content[:300])
        assert "000004.png: cannot be read" in refine(path, images=tmp_path / "images")
        progress = tmp_path / "out" / "progress.jsonl"
        done = [json.loads(line).get("image_id") for line in progress.read_text().splitlines()]
        assert 0 < len(done) - 1 < 5 and 4 not in done
        with open(progress, "a") as file:
            file.write('{"image_id": 5, "aft')  # as a kill leaves it

        damaged.write_bytes(content)
        message = refine(path, images=tmp_path / "images")
        assert "progress.jsonl is left of a run that was stopped: give --resume" in message
        message = refine(write(some_entries()[1:], "other.json"), "--resume", images=tmp_path / "images")
        assert "a run with another detections file" in message
        message = refine(path, "--resume", images=dataset / "val")
        assert "a run with another list of images" in message
        message = refine(path, "--resume", "--class-agnostic", images=tmp_path / "images")
        assert "a run with another --class-agnostic" in message

        seen = []
        refine_batch = IoURefiner.refine_batch
        monkeypatch.setattr(
            IoURefiner, "refine_batch", lambda *given: seen.append(len(given[1])) or refine_batch(*given)
        )
        assert refine(path, "--resume", images=tmp_path / "images") == whole
        assert sum(seen) == 5 - (len(done) - 1)
        assert not progress.exists()

    def test_the_input_is_never_overwritten(self, call_tool, write, weights, dataset):
        path = write(some_entries())
        before = path.read_text()
        message = call_tool(
            "refine_boxes.py",
            "--weights",
            weights,
            "--images",
            dataset / "val",
            "--output",
            path.parent,
            "--detections",
            path,
        )
        assert path.read_text() == before
        assert isinstance(message, str) and "detections.json" in message

    def test_a_damaged_image_is_named(self, refine, write, dataset, tmp_path):
        shutil.copytree(dataset / "val", tmp_path / "images")
        damaged = tmp_path / "images" / "000001.png"
        damaged.write_bytes(damaged.read_bytes()[:300])
        message = refine(write([entry(1, [1, 2, 30, 40])]), images=tmp_path / "images")
        assert message.startswith(f"DataError: {damaged}: cannot be read as an image")


class TestDetectWithAnnotations:
    @pytest.fixture
    def folders(self, dataset, tmp_path):
        """Two images of one name in two folders, and an annotation file that tells them apart."""
        for number, name in ((1, "a"), (2, "b")):
            (tmp_path / name).mkdir()
            shutil.copy(dataset / "val" / f"00000{number}.png", tmp_path / name / "x.png")
        content = json.loads((dataset / "annotations" / "val.json").read_text())
        content["images"] = [
            content["images"][0] | {"file_name": "a/x.png"},
            content["images"][1] | {"file_name": "b/x.png"},
        ]
        content["annotations"] = [o for o in content["annotations"] if o["image_id"] < 3]
        path = tmp_path / "annotations.json"
        path.write_text(json.dumps(content))
        return tmp_path / "a", tmp_path / "b", path

    def detect(self, call_tool, weights, output, *more):
        message = call_tool("refine_boxes.py", "--weights", weights, "--output", output, *more)
        return message if message is not None else json.loads((output / "detections.json").read_text())

    def test_images_of_one_name(self, call_tool, weights, folders, tmp_path, capsys):
        a, b, annotations = folders
        both = self.detect(
            call_tool, weights, tmp_path / "both", "--images", a, b, "--annotations", annotations, "--batch-size", 2
        )
        assert {found["image_id"] for found in both} == {1, 2}
        assert len(list((tmp_path / "both" / "pictures").iterdir())) == 2
        alone = self.detect(call_tool, weights, tmp_path / "alone", "--images", b, "--annotations", annotations)
        assert {found["image_id"] for found in alone} == {2}
        of_b = [found["bbox"] for found in both if found["image_id"] == 2]
        torch.testing.assert_close(torch.tensor([found["bbox"] for found in alone]), torch.tensor(of_b))
        assert capsys.readouterr().out.count("| refined") == 2

    def test_an_image_that_is_not_listed(self, call_tool, weights, folders, dataset, tmp_path):
        message = self.detect(
            call_tool, weights, tmp_path / "out", "--images", dataset / "val", "--annotations", folders[2]
        )
        assert "does not list 5 of the images, such as" in message and "leave --annotations out" in message

    def test_class_agnostic_is_for_other_detectors(self, call_tool, weights, dataset, tmp_path):
        message = self.detect(call_tool, weights, tmp_path / "out", "--images", dataset / "val", "--class-agnostic")
        assert message.startswith("ConfigError") and "--detections" in message

    def test_an_output_that_cannot_be_written(self, call_tool, weights, dataset, tmp_path):
        (tmp_path / "file").write_text("")
        message = self.detect(call_tool, weights, tmp_path / "file" / "out", "--images", dataset / "val")
        assert "Not a directory" in message and "\n" not in message


@pytest.mark.parametrize(
    ("weights_name", "images_name", "messages"),
    [
        ("nowhere.pth", "val", ["CheckpointError", "nowhere.pth: no such weights file"]),
        ("text.pth", "val", ["CheckpointError", "text.pth"]),
        (None, "nowhere", ["DataError", "nowhere: no such image or folder; check the path"]),
        (None, "annotations", ["DataError", "no images in"]),
    ],
)
def test_errors(call_tool, weights, dataset, tmp_path, weights_name, images_name, messages):
    (tmp_path / "text.pth").write_text("hello world\n")
    chosen = tmp_path / weights_name if weights_name else weights
    message = call_tool(
        "refine_boxes.py", "--weights", chosen, "--images", dataset / images_name, "--output", tmp_path / "out"
    )
    for part in messages:
        assert part in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_device(call_tool, weights, dataset, tmp_path):
    message = call_tool(
        *("refine_boxes.py", "--weights", weights, "--images", dataset / "val", "--output", tmp_path / "out"),
        *("--device", "abacus"),
    )
    assert message.startswith("ConfigError: unknown device 'abacus'") and len(message.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_help_shows_how(call_tool, capsys):
    assert call_tool("refine_boxes.py", "--help") == 0
    text = capsys.readouterr().out
    assert "python tools/refine_boxes.py --weights" in text
    for option in (
        "--weights",
        "--images",
        "--output",
        "--detections",
        "--annotations",
        "--class-agnostic",
        "--resume",
    ):
        assert option in text


def test_nothing_piles_up_over_images(call_tool, weights, dataset, write, tmp_path, monkeypatch):
    """Over 10,000 images resident memory stays as it is: docs/benchmarks.md."""
    images = tmp_path / "images"
    images.mkdir()
    for number in range(160):
        (images / f"{number:06d}.png").symlink_to(dataset / "val" / f"{number % 5 + 1:06d}.png")
    refine_batch, held = IoURefiner.refine_batch, []

    def watched(*given):
        held.append(alive() if len(held) in (20, 90, 150) else None)
        return refine_batch(*given)

    monkeypatch.setattr(IoURefiner, "refine_batch", watched)
    detections = write([entry(number, [5, 6, 30, 40]) for number in range(160)])
    words = ["--weights", weights, "--images", images, "--detections", detections, "--output", tmp_path / "out"]
    assert call_tool("refine_boxes.py", *words, "--pictures", 0) is None
    (tensors, _), *later = filter(None, held)
    assert len(held) == 160 and len(later) == 2
    assert all(tensors_then < tensors + 10 for tensors_then, _ in later)  # what is read ahead comes and goes
    assert len({files for _, files in filter(None, held)}) == 1


def test_ctrl_c_and_on(call_tool, weights, dataset, write, tmp_path, monkeypatch, capsys):
    words = ["--weights", weights, "--images", dataset / "val", "--detections", write(some_entries())]
    assert call_tool("refine_boxes.py", *words, "--output", tmp_path / "whole") is None
    refine_batch, calls = IoURefiner.refine_batch, []

    def interrupted(*given):
        calls.append(given)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return refine_batch(*given)

    with monkeypatch.context() as patch:
        patch.setattr(IoURefiner, "refine_batch", interrupted)
        assert call_tool("refine_boxes.py", *words, "--output", tmp_path / "out") == 130
    assert "stopped; --resume goes on" in capsys.readouterr().err
    assert call_tool("refine_boxes.py", *words, "--output", tmp_path / "out", "--resume") is None
    whole, resumed = (tmp_path / name / "detections.json" for name in ("whole", "out"))
    assert resumed.read_bytes() == whole.read_bytes()
