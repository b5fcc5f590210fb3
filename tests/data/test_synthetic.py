import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from iounet.data import CocoDataset, DataError
from iounet.data.scene import render_scene, visible_boxes
from iounet.data.shapes import CLASS_NAMES
from iounet.data.synthetic import main, make_synthetic

PARAMETERS = {"num_train": 3, "num_val": 2, "num_test": 1, "image_size": (64, 96), "seed": 5}


def hashes(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return make_synthetic(tmp_path_factory.mktemp("synthetic") / "set", **PARAMETERS)


def test_layout(made):
    assert sorted(hashes(made)) == [
        "annotations/test.json",
        "annotations/train.json",
        "annotations/val.json",
        "dataset.json",
        "test/000001.png",
        "train/000001.png",
        "train/000002.png",
        "train/000003.png",
        "val/000001.png",
        "val/000002.png",
    ]
    assert not list(made.parent.glob("*.partial"))


def test_the_same_seed_gives_the_same_files(made, tmp_path):
    assert hashes(make_synthetic(tmp_path / "set", **PARAMETERS)) == hashes(made)


def test_workers_draw_the_same(made, tmp_path):
    assert hashes(make_synthetic(tmp_path / "set", **PARAMETERS, num_workers=2)) == hashes(made)


def test_another_seed_gives_other_pictures(made, tmp_path):
    other = make_synthetic(tmp_path / "set", **PARAMETERS | {"seed": 6})
    assert hashes(other)["train/000001.png"] != hashes(made)["train/000001.png"]


def test_splits_do_not_overlap_and_more_images_keep_the_first_ones(made, tmp_path):
    pictures = [value for name, value in hashes(made).items() if name.endswith(".png")]
    assert len(set(pictures)) == len(pictures)
    more = make_synthetic(tmp_path / "set", **PARAMETERS | {"num_train": 4})
    assert hashes(more)["train/000003.png"] == hashes(made)["train/000003.png"]


def test_the_data_set_has_the_drawn_objects(made):
    dataset = CocoDataset(made / "annotations" / "train.json", made / "train")
    assert dataset.class_names == list(CLASS_NAMES)
    assert dataset.clipped == 0
    scene = render_scene(np.random.default_rng([5, 0, 2]), (64, 96))
    image, target = dataset[1]
    assert np.array_equal((image.permute(1, 2, 0) * 255).round().byte().numpy(), scene.image)
    assert np.array_equal(target["boxes"].numpy(), visible_boxes(scene.instances, len(scene.labels)))
    assert target["labels"].tolist() == scene.labels.tolist()


def test_areas_are_visible_pixels(made):
    annotations = json.loads((made / "annotations" / "test.json").read_text())["annotations"]
    scene = render_scene(np.random.default_rng([5, 2, 1]), (64, 96))
    assert [a["area"] for a in annotations] == [(scene.instances == a["id"]).sum() for a in annotations]


def test_segmentations_are_the_visible_pixels(made):
    path = made / "annotations" / "test.json"
    coco = COCO(str(path))
    scene = render_scene(np.random.default_rng([5, 2, 1]), (64, 96))
    for annotation in coco.loadAnns(coco.getAnnIds(imgIds=[1])):
        assert np.array_equal(coco.annToMask(annotation), scene.instances == annotation["id"])


def test_a_set_with_the_same_parameters_is_used_again(made):
    times = {path: path.stat().st_mtime_ns for path in made.rglob("*")}
    make_synthetic(made, **PARAMETERS)
    assert {path: path.stat().st_mtime_ns for path in made.rglob("*")} == times


def test_a_set_with_other_parameters_is_not_overwritten(made):
    before = hashes(made)
    with pytest.raises(DataError, match='set: contains a synthetic set .*"seed": 5.*"seed": 7.*choose another'):
        make_synthetic(made, **PARAMETERS | {"seed": 7})
    assert hashes(made) == before


def test_a_folder_with_other_files_is_not_touched(tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is not a synthetic set; choose another output folder"):
        make_synthetic(tmp_path, **PARAMETERS)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_partial_set_of_a_killed_run_is_replaced(tmp_path, made, monkeypatch):
    def killed(self, *args, **kwargs):
        if "000002" in str(args[0]):
            raise KeyboardInterrupt
        save(self, *args, **kwargs)

    save = Image.Image.save
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Image.Image, "save", killed)
        make_synthetic(tmp_path / "set", **PARAMETERS)
    assert not (tmp_path / "set").exists()
    assert hashes(make_synthetic(tmp_path / "set", **PARAMETERS)) == hashes(made)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_an_empty_folder_is_filled(tmp_path, made):
    assert hashes(make_synthetic(tmp_path, **PARAMETERS)) == hashes(made)


@pytest.mark.parametrize("change", [{"num_val": 0}, {"image_size": (32, 96)}, {"seed": -1}])
def test_parameters_out_of_range(tmp_path, change):
    with pytest.raises(ValueError, match="need at least 1 image"):
        make_synthetic(tmp_path / "set", **PARAMETERS | change)


def test_command_line(tmp_path, monkeypatch, capsys):
    arguments = ["synthetic", "--output", str(tmp_path / "set"), "--size", "64"]
    arguments += ["--train", "1", "--val", "1", "--test", "1"]
    monkeypatch.setattr(sys, "argv", arguments)
    main()
    assert "1 training, 1 validation and 1 test images" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "--seed", "1"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "choose another output folder" in capsys.readouterr().err
