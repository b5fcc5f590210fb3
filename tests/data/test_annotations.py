"""Every fault of an annotation file; the message must name the file and the entry and say how to correct it."""

import json
import math

import pytest

from iounet.data.annotations import read_annotations
from iounet.errors import DataError, OptionError


@pytest.fixture
def fault(tmp_path):
    """Read content that must be refused; check that the message begins with the file; return the message."""

    def read(content):
        file = tmp_path / "set.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DataError) as caught:
            read_annotations(file)
        message = str(caught.value)
        assert message.startswith(f"{file}: ")
        return message

    return read


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="nowhere.json: no such annotation file; check the path"):
        read_annotations(tmp_path / "nowhere.json")


def test_not_json(fault):
    assert "truncated" in fault('{"images": [')


def test_not_an_object(fault):
    assert "found a value of type list" in fault("[]")


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
def test_lacks_a_list(fault, content, key):
    del content[key]
    assert f"no list '{key}'" in fault(content)


@pytest.mark.parametrize("key", ["images", "categories"])
def test_empty_list(fault, content, key):
    content[key] = []
    assert f"list '{key}' is empty" in fault(content)


def test_duplicate_image_id(fault, content):
    content["images"][1]["id"] = 7
    assert "image id 7 of empty.png is already used by a.png; give each image a unique id" in fault(content)


def test_duplicate_annotation_id(fault, content):
    content["annotations"][1]["id"] = 5
    assert "annotation 5 of image 7: an earlier annotation has the same id; give each" in fault(content)


def test_duplicate_category_id(fault, content):
    content["categories"][1]["id"] = 90
    assert "category id 90 of cat is already used by kite; give each category a unique id" in fault(content)


def test_unknown_image(fault, content):
    content["annotations"][0]["image_id"] = 8
    assert "annotation 5: image_id 8 is not in 'images'; add the image" in fault(content)


def test_unknown_category(fault, content):
    content["annotations"][0]["category_id"] = 1
    message = fault(content)
    assert "annotation 5 of image 0 (deep/b.png): category_id 1 is not in 'categories' (0, 17, 90); add" in message


@pytest.mark.parametrize("value", ["7", None, True, 7.0])
def test_image_id_that_is_not_an_integer(fault, content, value):
    content["images"][0]["id"] = value
    assert f"entry 0 of 'images': 'id' must be an integer, found {value!r}; correct the file" in fault(content)


def test_image_without_size(fault, content):
    del content["images"][2]["width"]
    assert "image 0 (deep/b.png): 'width' must be an integer, found None" in fault(content)
    content["images"][2]["width"] = 0
    assert "image 0 (deep/b.png): 'width' is 0; give the size" in fault(content)
    content["images"][2]["width"] = 10**400  # beyond the range of float
    assert "image 0 (deep/b.png): 'width' is 1000" in fault(content)


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "deep/../../a.png", "..\\a.png", "C:\\a.png", ""])
def test_file_name_that_leaves_the_folder(fault, content, name):
    content["images"][0]["file_name"] = name
    assert f"image 7 ({name}): file_name points outside the image folder; make it relative" in fault(content)


BAD_BBOXES = [
    ([1, 2, 0, 5], "has no area"),
    ([1, 2, 3, -5], "has no area"),
    ([1, 2, math.nan, 5], "is not finite"),
    ([1, 2, 3], "is not four numbers"),
    ([1, 2, 3, "4"], "is not four numbers"),
    (None, "is not four numbers"),
    ([16, 0, 5, 5], "lies outside its image"),
    ([0, -9, 5, 9], "lies outside its image"),
]


@pytest.mark.parametrize(("bbox", "rule"), BAD_BBOXES)
def test_bad_bbox_is_an_error(fault, content, bbox, rule):
    content["annotations"][0]["bbox"] = bbox
    message = fault(content)
    file = message.partition(": ")[0]
    assert "1 of 4 annotations cannot be used. To write a repaired copy, run " in message
    assert f"`python -m iounet.data.check {file} --fix repaired.json`; to leave it out, set DATA.BAD_ANN" in message
    assert f"annotation 5 of image 0 (deep/b.png): bbox {rule}: [x, y, w, h] = {bbox}" in message
    assert "in an image 16 wide and 24 high" in message


def test_only_the_first_bad_annotations_are_listed(fault, content):
    for id_ in range(100, 112):
        content["annotations"].append({"id": id_, "image_id": 7, "category_id": 0, "bbox": [0, 0, 0, 0]})
    message = fault(content)
    assert "12 of 16 annotations" in message
    assert "annotation 104 " in message
    assert "annotation 105 " not in message
    assert "and 7 more; to list them, run `python -m iounet.data.check " in message
    assert "to leave them out, set DATA.BAD_ANNOTATIONS to skip (in Python: bad_annotations='skip')." in message


def test_the_message_names_the_command_that_lists_all_faults(fault, content):
    content["annotations"][0]["image_id"] = 8
    assert "iounet.data.check" not in fault(content)
    content["annotations"][1]["bbox"] = None
    message = fault(content)
    file = message.partition(": ")[0]
    assert message.endswith(f"(1 of 2 faults; to list them, run `python -m iounet.data.check {file}`)")


@pytest.mark.parametrize(("bbox", "rule"), BAD_BBOXES)
def test_bad_bbox_can_be_skipped(tmp_path, content, bbox, rule):
    content["annotations"][0]["bbox"] = bbox
    file = tmp_path / "set.json"
    file.write_text(json.dumps(content))
    read = read_annotations(file, bad_annotations="skip")
    assert read.skipped == {rule: 1}
    assert len(read.bboxes) == 3


def test_unknown_value_of_bad_annotations(tmp_path):
    with pytest.raises(OptionError, match="bad_annotations must be one of error, skip; got 'ignore'"):
        read_annotations(tmp_path / "set.json", bad_annotations="ignore")


@pytest.mark.parametrize("value", ["no", 2, [], 0.5])
def test_a_crowd_is_0_or_1(fault, content, value):
    content["annotations"][0]["iscrowd"] = value
    assert f"annotation 5 of image 0: iscrowd is {value!r}; write 0, or 1 for a group of objects" in fault(content)


@pytest.mark.parametrize(("value", "crowds"), [(True, 2), (1, 2), (False, 1), (None, 1)])
def test_accepted_values_of_iscrowd(tmp_path, content, value, crowds):
    content["annotations"][0]["iscrowd"] = value
    (tmp_path / "set.json").write_text(json.dumps(content))
    assert read_annotations(tmp_path / "set.json").crowd.sum() == crowds


def test_no_annotations_at_all(tmp_path, content):
    content["annotations"] = []
    file = tmp_path / "set.json"
    file.write_text(json.dumps(content))
    read = read_annotations(file)
    assert read.bboxes.shape == (0, 4)
    assert read.first.tolist() == [0, 0, 0, 0]
