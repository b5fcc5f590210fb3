"""The image and label folders of YOLO data sets, by Ultralytics' rules."""

import shutil

import pytest

from iounet.data.label_files import list_splits, read_labels
from iounet.errors import DataError

CLASSES = ["dog", "cat", "cat"]


def keys_of(labels):
    return [label.key for label in labels.boxes]


@pytest.fixture
def in_layout(pets, tmp_path):
    """Write image a to the first, and image b to the last, of the given (image folder, label folder) pairs."""

    def write(*folders):
        source, root = pets("yolo"), tmp_path / "set"
        for name, (images, labels) in zip("ab", (folders[0], folders[-1]), strict=True):
            for kind, suffix, folder in (("images", "png", images), ("labels", "txt", labels)):
                (root / folder).mkdir(parents=True, exist_ok=True)
                shutil.copy(source / kind / f"{name}.{suffix}", root / folder)
        shutil.copy(source / "classes.txt", root)
        return root

    return write


@pytest.mark.parametrize(
    ("folders", "splits", "keys"),
    [
        ([("images", "labels")], [], ["labels/a.txt", "labels/b.txt"]),
        ([("images/deep/er", "labels/deep/er")], ["deep"], ["labels/deep/er/a.txt", "labels/deep/er/b.txt"]),
        (
            [("images/train", "labels/train"), ("images/val", "labels/val")],
            ["train", "val"],
            ["labels/train/a.txt", "labels/val/b.txt"],
        ),
        (
            [("train/images", "train/labels"), ("valid/images", "valid/labels")],
            ["train", "valid"],
            ["train/labels/a.txt", "valid/labels/b.txt"],
        ),
        ([(".", ".")], [], ["a.txt", "b.txt"]),
        ([("train", "train"), ("val", "val")], ["train", "val"], ["train/a.txt", "val/b.txt"]),
    ],
)
def test_folders_without_a_data_yaml(in_layout, folders, splits, keys):
    root = in_layout(*folders)
    assert list_splits(root) == splits
    labels = read_labels(root)
    assert keys_of(labels) == [f"{keys[0]} line 1", f"{keys[0]} line 2", f"{keys[1]} line 1"]
    assert [label.class_name for label in labels.boxes] == CLASSES
    assert labels.faults == []
    if splits:
        assert keys_of(read_labels(root, split=splits[0]))[:2] == [f"{keys[0]} line 1", f"{keys[0]} line 2"]


@pytest.mark.parametrize(
    "text",
    [
        "train: images/train\nval: images/val\n",
        "path: .\ntrain: [images/train]\nval: [images/val]\n",
        "path: {root}\ntrain: {root}/images/train\nvalidation: images/val\ntest: null\n",
        "path: /a/machine/far/away\ntrain: ../images/train\nval: ../images/val\n",
        "train: train.txt\nval: val.txt\n",
    ],
)
def test_entries_of_data_yaml(in_layout, text, monkeypatch):
    root = in_layout(("images/train", "labels/train"), ("images/val", "labels/val"))
    (root / "train.txt").write_text("./images/train/a.png\n\n")
    (root / "val.txt").write_text(f"{root}/images/val/b.png")
    (root / "data.yaml").write_text(text.format(root=root) + "names: [dog, cat]\n")
    for source in (root, root / "data.yaml"):
        assert list_splits(source) == ["train", "val"]
        labels = read_labels(source)
        assert keys_of(labels) == [f"labels/{name}" for name in ("train/a.txt line 1", "train/a.txt line 2")] + [
            "labels/val/b.txt line 1"
        ]
        assert labels.faults == []
    # A data.yaml is often given by a relative name.
    monkeypatch.chdir(root)
    assert keys_of(read_labels(root.relative_to(root))) == keys_of(labels)


@pytest.mark.parametrize(
    ("names", "class_names", "found"),
    [
        ("names: [dog, cat]", ["dog", "cat"], CLASSES),
        ("names: {0: dog, 1: cat, 5: cow}", ["dog", "cat", "cow"], CLASSES),
        ("names: [1, 2]", ["1", "2"], ["1", "2", "2"]),
        ("names: [pet, pet]", ["pet"], ["pet"] * 3),
        ("nc: 3", ["0", "1", "2"], ["0", "1", "1"]),
        ("", ["0", "1"], ["0", "1", "1"]),
    ],
)
def test_names_of_classes(in_layout, names, class_names, found):
    root = in_layout(("images", "labels"))
    (root / "data.yaml").write_text(f"train: images\n{names}\n")
    labels = read_labels(root)
    assert labels.class_names == class_names
    assert [label.class_name for label in labels.boxes] == found


def test_missing_entries_of_data_yaml_and_its_lists(in_layout):
    root = in_layout(("images", "labels"))
    (root / "list.txt").write_text("./images/a.png\n./images/gone.png\n")
    (root / "data.yaml").write_text("train: list.txt\ntest: test/images\nnames: [dog, cat]\n")
    labels = read_labels(root)
    assert keys_of(labels) == ["labels/a.txt line 1", "labels/a.txt line 2"]
    assert [(fault.where, fault.rule) for fault in labels.faults] == [
        ("list.txt line 2", "missing image"),
        ("data.yaml test", "missing split"),
    ]
    assert [fault.rule for fault in read_labels(root, split="train").faults] == ["missing image"]
    with pytest.raises(DataError, match="has no split 'tran', only train$"):
        read_labels(root, split="tran")
    with pytest.raises(DataError, match="has no split 'test', only train; .*test/images: no such image fold"):
        read_labels(root, split="test")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: [", "not valid YAML"),
        ("when: 2026-13-01", "not valid YAML"),
        ("names: [dog]", "has no train, val or test"),
        ("- train", "has no train, val or test"),
        ("train: images\nnames: dog", "names must be a list or a mapping of index to name; found 'dog'"),
        ("train: images\nnc: 99999999999", "nc must be the number of classes, 1 to 100,000; found '99999999999'"),
        ("train: images\nkpt_shape: [17, 3]", "has kpt_shape; pose labels are not supported"),
        ("train: gone", "no usable label: data.yaml train: .*gone: no such image folder"),
    ],
)
def test_an_unusable_data_yaml(in_layout, text, message):
    root = in_layout(("images", "labels"))
    (root / "data.yaml").write_text(text)
    with pytest.raises(DataError, match=message):
        read_labels(root / "data.yaml")


def test_a_flat_set_in_a_folder_named_images(in_layout, tmp_path):
    root = in_layout((".", "."))
    (tmp_path / "images").mkdir()
    shutil.move(root, tmp_path / "images" / "set")
    assert len(read_labels(tmp_path / "images" / "set").boxes) == 3


def test_images_outside_of_the_folder(in_layout, tmp_path):
    root = in_layout(("images", "labels"))
    (tmp_path / "yaml").mkdir()
    (tmp_path / "yaml" / "data.yaml").write_text("path: .\ntrain: ../set/images\nnames: [dog, cat]\n")
    labels = read_labels(tmp_path / "yaml" / "data.yaml")
    assert keys_of(labels)[0] == "set/labels/a.txt line 1"
    assert [image.key for image in labels.images] == ["set/images/a.png", "set/images/b.png"]
    labels.write_copy(tmp_path / "copy", {})
    shutil.copytree(root / "images", tmp_path / "copy" / "set" / "images")
    assert keys_of(read_labels(tmp_path / "copy")) == keys_of(labels)


def test_labels_whose_images_are_elsewhere(in_layout, tmp_path):
    root = in_layout(("images/train", "labels/train"), ("images/val", "labels/val"))
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [dog, cat]\n")
    labels = read_labels(root)
    labels.write_copy(tmp_path / "copy", {})
    again = read_labels(tmp_path / "copy", images=root)
    assert keys_of(again) == keys_of(labels)
    assert [image.path for image in again.images] == [image.path for image in labels.images]
