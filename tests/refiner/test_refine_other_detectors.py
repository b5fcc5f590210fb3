"""The command on boxes of another detector, given as COCO results."""

import math
import random
import shutil

import pytest
import torch
from coco_results import entry, some_entries

from iounet import IoURefiner
from iounet.data import read_image


def without_bbox(result):
    return {key: value for key, value in result.items() if key != "bbox"}


def test_refined_entries_keep_their_order(refine, write, weights, dataset, tmp_path):
    given = some_entries()
    refined = refine(write(given))
    assert len(refined) == len(given)
    for before, after in zip(given, refined, strict=True):
        assert set(after) == set(before) | {"predicted_iou", "predicted_iou_before"}
        assert without_bbox({key: after[key] for key in before}) == without_bbox(before)
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


def test_the_order_does_not_matter(refine, write):
    given = some_entries()
    shuffled = list(given)
    random.Random(1).shuffle(shuffled)
    refined = {found["id"]: found for found in refine(write(given))}
    for found in refine(write(shuffled)):
        assert found["bbox"] == pytest.approx(refined[found["id"]]["bbox"], abs=1e-2)


def test_ids_of_an_annotation_file(refine, write):
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
        # ultralytics, val(save_json=True) on a custom data set: the file name without suffix
        {"image_id": "000002", "file_name": "000002.png", "category_id": 1, "bbox": [5.0, 6.0, 30.0, 40.0]},
        # detectron2, coco_instances_results.json
        {"image_id": 2, "category_id": 1, "bbox": [5.0, 6.0, 30.0, 40.0], "segmentation": {"size": [64, 64]}},
    ],
    ids=["ultralytics", "detectron2"],
)
def test_results_of_other_toolboxes(refine, write, form):
    (refined,) = refine(write([form | {"score": 0.5}]))
    (expected,) = refine(write([entry(2, [5, 6, 30, 40])], "same.json"))
    assert refined["bbox"] == expected["bbox"]
    assert without_bbox({key: refined[key] for key in form}) == without_bbox(form)


def test_no_detections(refine, write):
    assert refine(write([])) == []


def test_boxes_that_cannot_be_refined_are_unchanged(refine, write):
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
        ([entry(99, [1, 2, 3, 4])], ["1 image id matches none", "99", "--annotations"]),
        (
            [entry(1, [1, 2, 3, 4], category_id=7)],
            ["none of the classes in this file", "in the file: 7.", "1 cross", "--class-agnostic"],
        ),
        ([entry(1, [1, 2, 3])], ["entry 0 (image 1) has bbox [1, 2, 3]", "four finite numbers"]),
        ([{"image_id": 1, "bbox": [1, 2, 3, 4]}], ["entry 0 lacks category_id, score"]),
    ],
)
def test_faults(refine, write, tmp_path, entries, messages):
    message = refine(write(entries))
    assert isinstance(message, str) and message.startswith("DataError")
    for part in ["detections.json", *messages]:
        assert part in message
    assert len(message.splitlines()) == 1
    assert not (tmp_path / "out" / "detections.json").exists()


def test_rescored(refine, write):
    given = some_entries()
    plain, rescored = refine(write(given)), refine(write(given), "--rescore")
    for one, other in zip(plain, rescored, strict=True):
        assert other["score"] == pytest.approx(one["score"] * one["predicted_iou"])
        assert other["bbox"] == one["bbox"]


def test_the_batch_size_does_not_change_the_results(refine, write):
    given = some_entries()
    for one, other in zip(refine(write(given)), refine(write(given), "--batch-size", 3), strict=True):
        assert other["bbox"] == pytest.approx(one["bbox"], abs=1e-2)


def test_an_unmoved_box_keeps_its_exact_numbers(refine, write):
    bbox = [500.1, 500.1, 10.3, 10.7]
    assert refine(write([entry(1, bbox)]))[0]["bbox"] == bbox


def test_numbers_beyond_float32(refine, write):
    for number in (10**400, 1e300):
        assert "four finite numbers" in refine(write([entry(1, [0, 0, number, 5])]))


def test_any_boxes(refine, write, dataset, capsys, tmp_path):
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


def test_the_input_is_never_overwritten(refine, write):
    path = write(some_entries())
    before = path.read_text()
    message = refine(path, output=path.parent)
    assert path.read_text() == before
    assert isinstance(message, str) and "detections.json" in message


def test_a_damaged_image_is_named(refine, write, dataset, tmp_path):
    shutil.copytree(dataset / "val", tmp_path / "images")
    damaged = tmp_path / "images" / "000001.png"
    damaged.write_bytes(damaged.read_bytes()[:300])
    message = refine(write([entry(1, [1, 2, 30, 40])]), images=tmp_path / "images")
    assert message.startswith(f"DataError: {damaged}: cannot be read as an image")


CATEGORIES = [{"id": 20, "name": "Star"}, {"id": 10, "name": "cross"}, {"id": 30, "name": "zebra"}]


@pytest.fixture
def named(write):
    """An annotation file without objects; its class ids differ from the refiner's."""
    images = [{"id": 1, "file_name": "000001.png", "width": 64, "height": 64}]
    return write({"images": images, "annotations": [], "categories": CATEGORIES}, "named.json")


def test_classes_are_matched_by_name(refine, write, named, capsys):
    given = [entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (20, 30, 10)]
    star, zebra, cross = refine(write(given), "--annotations", named)
    assert zebra == given[1]  # unknown class: unchanged, without a predicted IoU
    shown = capsys.readouterr().out
    assert "matched by name: 2 boxes of 2 classes\n  matched under a different name: 20 Star as 4 star\n" in shown
    assert "unchanged, class unknown to the refiner: 1 box of 1 class: 30 zebra\n" in shown
    by_id = refine(write([entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (4, 1)]))
    assert [star["bbox"], cross["bbox"]] == [found["bbox"] for found in by_id]
    assert [star["category_id"], cross["category_id"]] == [20, 10]
    assert "matched by id" in capsys.readouterr().out


def test_a_name_instead_of_the_id(refine, write, named):
    given = [entry(1, [5, 6, 30, 40], category_id=id_) for id_ in ("star", 20)]
    by_name, by_id = refine(write(given), "--annotations", named)
    assert by_name["bbox"] == by_id["bbox"] and by_name["category_id"] == "star"
    message = refine(write([entry(1, [5, 6, 30, 40], category_id="dog")]), "--annotations", named)
    assert "Classes in the file: dog. " in message and "--class-agnostic" in message and "--annotations" not in message


def test_class_agnostic(refine, write, named, weights, dataset, capsys):
    given = [entry(1, [5, 6, 30, 40], category_id=id_) for id_ in (20, 30)]
    refined = refine(write(given), "--annotations", named, "--class-agnostic")
    assert "refined regardless of class: 2 boxes of 2 classes\n" in capsys.readouterr().out
    image = read_image(dataset / "val" / "000001.png")
    expected = IoURefiner.from_checkpoint(weights).refine(image, [[5, 6, 35, 46]])
    for found in refined:
        x, y, width, height = found["bbox"]
        assert [x, y, x + width, y + height] == pytest.approx(expected.boxes[0].tolist(), abs=1e-2)
