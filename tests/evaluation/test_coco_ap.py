import copy
import json
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iounet.errors import DataError
from iounet.evaluation.coco_ap import AP_COLUMNS, CocoEvaluator, markdown_table


def make_ground_truth(*annotations: dict, num_images: int = 1, category_ids: tuple[int, ...] = (1,)) -> dict:
    defaults = {"image_id": 1, "category_id": category_ids[0]}
    return {
        "images": [{"id": id_, "width": 400, "height": 400} for id_ in range(1, num_images + 1)],
        "categories": [{"id": id_, "name": f"class {id_}"} for id_ in category_ids],
        "annotations": [{"id": id_} | defaults | annotation for id_, annotation in enumerate(annotations)],
    }


def detection(bbox: list[float], score: float = 0.9, image_id: int = 1, category_id: int = 1) -> dict:
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


SQUARE = [10, 10, 100, 100]
FAR_AWAY = [250, 250, 100, 100]


def coco_ap(ground_truth, results, **options):
    return CocoEvaluator(ground_truth, **options)(results)


def test_perfect_boxes_score_100_in_every_column():
    # Annotation id 0, category ids with a gap, an image without objects, no 'area', no 'iscrowd'.
    ground_truth = make_ground_truth(
        {"bbox": [10, 10, 20, 20]},
        {"bbox": [50, 50, 60, 60], "category_id": 7},
        {"bbox": [0, 0, 200, 100], "image_id": 2},
        num_images=3,
        category_ids=(1, 7),
    )
    results = [
        detection(a["bbox"], image_id=a["image_id"], category_id=a["category_id"]) for a in ground_truth["annotations"]
    ]
    assert coco_ap(ground_truth, results) == pytest.approx(
        dict.fromkeys((*AP_COLUMNS, "APs", "APm", "APl", "AR100"), 100.0)
    )


@pytest.mark.parametrize("percent", [52, 62, 72, 77, 82, 92])
def test_a_box_counts_up_to_its_iou(percent):
    # The box lies inside its object, so its IoU is the share of the object that it covers.
    scores = coco_ap(make_ground_truth({"bbox": [0, 0, 100, 100]}), [detection([0, 0, percent, 100])])
    for column in AP_COLUMNS[1:]:
        assert scores[column] == pytest.approx(100.0 if percent >= int(column[2:]) else 0.0), column
    thresholds_met = sum(percent >= threshold for threshold in range(50, 100, 5))
    assert scores["AP"] == pytest.approx(10 * thresholds_met)
    assert scores["AR100"] == pytest.approx(10 * thresholds_met)


def test_one_of_two_objects_found():
    scores = coco_ap(make_ground_truth({"bbox": SQUARE}, {"bbox": FAR_AWAY}), [detection(SQUARE)])
    # Precision is 1 at the recalls 0, 0.01, ..., 0.50, which are 51 of the 101 that COCO samples, and 0 above.
    assert scores["AP"] == pytest.approx(100 * 51 / 101)
    assert scores["AR100"] == pytest.approx(50)


def test_a_false_positive_with_a_higher_score_halves_precision():
    results = [detection(SQUARE, score=0.5), detection(FAR_AWAY, score=0.6)]
    assert coco_ap(make_ground_truth({"bbox": SQUARE}), results)["AP"] == pytest.approx(50)


def test_detections_of_a_crowd_count_neither_way():
    ground_truth = make_ground_truth({"bbox": SQUARE}, {"bbox": FAR_AWAY, "iscrowd": 1})
    results = [detection(SQUARE, score=0.5), detection([260, 260, 20, 20], score=0.6)]
    assert coco_ap(ground_truth, results)["AP"] == pytest.approx(100)


def test_the_area_of_a_detection_is_the_area_of_its_box():
    results = [detection([10, 10, 20, 20]), detection(FAR_AWAY, score=1) | {"area": 10, "iscrowd": 1}]
    # The large false positive is ignored for small objects, although its 'area' is small.
    assert coco_ap(make_ground_truth({"bbox": [10, 10, 20, 20]}), results)["APs"] == pytest.approx(100)


def test_max_detections_keeps_the_highest_scores():
    ground_truth = make_ground_truth({"bbox": SQUARE})
    results = [detection(SQUARE, score=0.5), detection(FAR_AWAY, score=0.6)]
    scores = coco_ap(ground_truth, results, max_detections=1)
    assert scores["AP"] == scores["AR1"] == 0.0


def test_matches_the_summary_of_pycocotools(tmp_path, capsys):
    rng = np.random.default_rng(0)

    def random_boxes(count):
        return np.hstack([rng.uniform(0, 250, (count, 2)), rng.uniform(10, 150, (count, 2))])

    ground_truth = make_ground_truth(
        *(
            {
                "bbox": box.tolist(),
                "image_id": int(image),
                "category_id": int(category),
                "iscrowd": int(crowd),
            }
            for box, image, category, crowd in zip(
                random_boxes(80),
                rng.integers(1, 9, 80),
                rng.choice([2, 5, 9], 80),
                rng.random(80) < 0.1,
                strict=True,
            )
        ),
        num_images=10,
        category_ids=(2, 5, 9, 11),
    )
    for annotation in ground_truth["annotations"]:  # pycocotools requires valid ids and areas
        annotation["id"] += 1
        annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
    results = [
        detection((a["bbox"] + rng.normal(0, 5, 4)).tolist(), rng.random(), a["image_id"], a["category_id"])
        for a in ground_truth["annotations"]
    ]
    results += [
        detection(box.tolist(), rng.random(), int(image), 5)
        for box, image in zip(random_boxes(40), rng.integers(1, 11, 40), strict=True)
    ]
    path = tmp_path / "ground_truth.json"
    path.write_text(json.dumps(ground_truth))

    coco = COCO(str(path))
    evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(results)), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    capsys.readouterr()

    scores = coco_ap(path, results)
    expected = dict(zip(("AP", "AP50", "AP75", "APs", "APm", "APl"), 100 * evaluation.stats[:6], strict=True))
    expected["AR100"] = 100 * evaluation.stats[8]
    assert {column: scores[column] for column in expected} == pytest.approx(expected)
    without_sizes = CocoEvaluator(path, by_size=False)(results)
    assert without_sizes == {column: scores[column] for column in (*AP_COLUMNS, "AR100")}

    # Scoring categories separately, as several processes do, gives exactly the same result.
    evaluate = CocoEvaluator(path)
    assert len(evaluate.category_ids) > 2
    parts = [evaluate.by_category(results, [category_id]) for category_id in evaluate.category_ids]
    assert evaluate.summary([of_category for part in parts for of_category in part]) == scores
    assert evaluate.by_category(results, []) == []
    assert 0 < scores["AP90"] < scores["AP80"] < scores["AP70"] < scores["AP60"] < scores["AP50"] < 100
    assert capsys.readouterr().out == ""


def test_an_evaluator_is_reusable_and_does_not_modify_its_inputs():
    ground_truth = make_ground_truth({"bbox": SQUARE})
    results = [detection(SQUARE)]
    before = copy.deepcopy((ground_truth, results))
    evaluate = CocoEvaluator(ground_truth)
    first = evaluate(results)
    assert evaluate([detection(FAR_AWAY)])["AP"] == 0.0
    assert evaluate(results) == pytest.approx(first, nan_ok=True)
    assert (ground_truth, results) == before


def test_no_detections_score_0():
    scores = coco_ap(make_ground_truth({"bbox": SQUARE}), [])
    assert {scores[column] for column in (*AP_COLUMNS, "APl", "AR100")} == {0.0}
    assert math.isnan(scores["APs"])  # there are no small objects


def test_all_values_are_nan_without_categories():
    assert all(map(math.isnan, coco_ap({"images": [{"id": 1}], "categories": [], "annotations": []}, []).values()))


@pytest.mark.parametrize("annotations", [(), ({"bbox": SQUARE, "iscrowd": 1},)], ids=["none", "crowd only"])
def test_no_objects_score_nan(annotations):
    assert all(map(math.isnan, coco_ap(make_ground_truth(*annotations), [detection(SQUARE)]).values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"image_id": 42},
            r"results have 1 image_id\(s\) that the ground truth does not list: 42; evaluate them on",
        ),
        (
            {"category_id": 9},
            r"results have 1 category_id\(s\) that the ground truth does not list: 9; evaluate",
        ),
        ({"score": math.nan}, r"entry 1 of the results \(image_id 1\) has score nan"),
        ({"bbox": [0, 0, math.inf, 5]}, r"entry 1 of the results \(image_id 1\) has bbox \[0, 0, inf, 5\]"),
        ({"bbox": [20, 20, -10, 5]}, r"entry 1 of the results .* width and height of at least 0"),
        ({"bbox": [20, 20, 10]}, r"entry 1 of the results .* expected \[x, y, width, height\]"),
        ({"bbox": None}, r"entry 1 of the results .* has bbox None"),
        ({"bbox": [1, 2, 3, "4"]}, r"entry 1 of the results .* has bbox \[1, 2, 3, '4'\]"),
        ({"bbox": [1, 2, 10**400, 4]}, r"entry 1 of the results .* has bbox"),
        ({"score": "0.5"}, r"entry 1 of the results .* has score 0.5: expected a finite number"),
        ({"score": 10**400}, r"entry 1 of the results .* has score"),
        ({"category_id": [1]}, r"entry 1 of the results .* has category_id \[1\]: expected an id"),
    ],
)
def test_the_error_names_a_bad_result(change, message):
    with pytest.raises(ValueError, match=message):
        coco_ap(make_ground_truth({"bbox": SQUARE}), [detection(SQUARE), detection(SQUARE) | change])


def test_the_error_names_a_result_without_its_keys():
    evaluate = CocoEvaluator(make_ground_truth({"bbox": SQUARE}))
    with pytest.raises(ValueError, match=r"entry 0 of the results lacks category_id, bbox"):
        evaluate([{"image_id": 1, "score": 0.5}])
    with pytest.raises(ValueError, match=r"entry 0 of the results \(image_id 1\) has score None"):
        evaluate([{"image_id": 1, "category_id": 1, "bbox": SQUARE}])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"category_id": 9},
            r"annotations of .*truth.json have 1 category_id\(s\) that .*truth.json does not list: 9",
        ),
        ({"image_id": 9}, r"annotations of .*truth.json have 1 image_id\(s\)"),
        ({"bbox": [0, 0, -1, 5]}, r"entry 0 of the annotations of .*truth.json \(image_id 1\) has bbox"),
        ({"bbox": [0, 0, 10**400, 5]}, r"entry 0 of the annotations of .*truth.json \(image_id 1\) has bbox"),
        ({"area": "x"}, r"entry 0 of the annotations of .*truth.json \(image_id 1\) has area 'x' and iscrowd None"),
        ({"area": None}, r"entry 0 of the annotations .* has area None"),
        (
            {"iscrowd": "x"},
            r"entry 0 of the annotations .* has area None and iscrowd 'x': expected a number, and 0 or 1",
        ),
    ],
)
def test_the_error_names_a_bad_annotation_and_its_file(tmp_path, change, message):
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(make_ground_truth({"bbox": SQUARE} | change)))
    with pytest.raises(ValueError, match=message):
        CocoEvaluator(path)


def test_the_error_names_a_file_that_is_not_ground_truth(tmp_path):
    path = tmp_path / "truth.json"
    with pytest.raises(DataError, match=r"truth\.json: no such ground truth; check the path"):
        CocoEvaluator(path)
    path.write_text('{"images": [')
    with pytest.raises(DataError, match=r"truth\.json: not valid JSON"):
        CocoEvaluator(path)
    path.write_text(json.dumps([detection(SQUARE)]))
    with pytest.raises(ValueError, match=r"truth\.json needs the lists 'images', 'categories' and 'annotations'"):
        CocoEvaluator(path)
    path.write_text(json.dumps({"images": [{"file_name": "a.jpg"}], "categories": [], "annotations": []}))
    with pytest.raises(ValueError, match=r"entry 0 of the images of .*truth\.json has no 'id'"):
        CocoEvaluator(path)


def test_markdown_table():
    rows = {
        "greedy NMS": {"AP": 36.44, "AP50": 58.0, "APs": 1.0},
        "IoU-guided NMS": {"AP": 100.0, "AP50": math.nan, "APs": 2.0},
    }
    assert markdown_table(rows, columns=("AP", "AP50")).splitlines() == [
        "|                |    AP | AP50 |",
        "| -------------- | ----: | ---: |",
        "| greedy NMS     |  36.4 | 58.0 |",
        "| IoU-guided NMS | 100.0 |    – |",
    ]
