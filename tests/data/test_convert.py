"""``python -m iounet.data.convert``, and label files as data sets for training."""

import json
import shutil

import pytest

from iounet.data import CocoDataset, check_separate, open_dataset
from iounet.data.convert import main
from iounet.errors import DataError

CONVERTED = [("dog", [10, 5, 20, 10]), ("cat", [0, 0, 8, 20]), ("cat", [2, 4, 10, 10])]


def read(path):
    return json.loads(path.read_text())


class TestCommand:
    @pytest.mark.parametrize(
        ("form", "categories", "folder", "names"),
        [
            ("voc", ["cat", "dog"], "voc", ["a.png", "b.png"]),
            ("yolo", ["dog", "cat"], "yolo/images", ["a.png", "b.png"]),
        ],
    )
    def test_writes_coco_format(self, pets, tmp_path, capsys, form, categories, folder, names):
        assert main([str(pets(form)), "--output", str(tmp_path / "out.json")]) == 0
        content = read(tmp_path / "out.json")
        assert content["categories"] == [{"id": number, "name": name} for number, name in enumerate(categories, 1)]
        assert content["images"] == [
            {"id": 1, "file_name": names[0], "width": 40, "height": 20},
            {"id": 2, "file_name": names[1], "width": 20, "height": 20},
        ]
        found = [(categories[a["category_id"] - 1], pytest.approx(a["bbox"])) for a in content["annotations"]]
        assert found == CONVERTED
        assert [(a["id"], a["image_id"], a["iscrowd"]) for a in content["annotations"]] == [
            (1, 1, 0),
            (2, 1, 0),
            (3, 2, 0),
        ]
        assert [a["area"] for a in content["annotations"]] == pytest.approx([200, 160, 100])
        shown = capsys.readouterr().out
        assert f"wrote {tmp_path / 'out.json'}; its image folder (DATA.TRAIN_IMAGES" in shown
        assert shown.endswith(f" is {tmp_path / folder}\n")
        assert len(CocoDataset(tmp_path / "out.json", tmp_path / folder)) == 2

    def test_prints_a_table_and_the_faults(self, pets, capsys):
        root = pets("yolo")
        (root / "labels" / "a.txt").write_text("0 0.5 0.5 0.5 0.5\n" + "0 1 2\n" * 7 + "1 0.5 0.5 0 0.5\n")
        assert main([str(root)]) == 0
        assert capsys.readouterr().out.splitlines() == [
            str(root),
            "  class    images   objects",
            "  dog           1         1",
            "  cat           1         1",
            "  all           2         2",
            "faults: 8",
            "  line of the wrong length: 7",
            *(
                f"    labels/a.txt line {number}: 3 numbers: 0 1 2; a box has 5 (class cx cy w h), "
                "a polygon has the class and x y of at least 3 points"
                for number in range(2, 7)
            ),
            "    and 2 more",
            "  box has no area: 1",
            "    labels/a.txt line 9: box has no area; correct or remove the line",
        ]

    def test_crowds_and_images_without_objects(self, pets, capsys):
        root = pets("voc")
        text = (root / "a.xml").read_text()
        (root / "a.xml").write_text(text.replace("</name>", "</name><difficult>1</difficult>", 1))
        (root / "b.xml").write_text("<annotation/>")
        assert main([str(root)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[2:4] == ["  cat           1         1", "  dog           1         0"]
        assert "  images without objects: 1" in lines
        assert "  crowds and difficult objects, which training leaves out: 1" in lines
        assert lines[-1] == "faults: none"

    def test_coco_format_keeps_everything_but_faults(self, pets, tmp_path):
        path = pets("coco")
        before = read(path)
        assert main([str(path), "--output", str(tmp_path / "same.json")]) == 0
        assert (tmp_path / "same.json").read_text() == json.dumps(before)
        bad = json.loads(json.dumps(before))
        bad["images"] += [
            {"id": 1, "file_name": "b.png", "width": 20, "height": 20},
            {"id": 9, "file_name": "gone.png"},
        ]
        bad["annotations"] += [
            {"id": 20, "image_id": 9, "category_id": 3, "bbox": [0, 0, 5, 5]},
            {"id": 21, "image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 0]},
            {"id": 4, "image_id": 1, "category_id": 3, "bbox": [0, 0, 5, 5]},
        ]
        bad["categories"].append({"id": 3, "name": "dog again"})
        path.write_text(json.dumps(bad))
        assert main([str(path), "--output", str(tmp_path / "repaired.json")]) == 0
        assert read(tmp_path / "repaired.json") == before

    def test_a_split(self, split_pets, tmp_path, capsys):
        source = split_pets("yolo")
        for split, count in (("train", 2), ("val", 1)):
            assert main([str(source), "--split", split, "--output", str(tmp_path / f"{split}.json")]) == 0
            assert len(read(tmp_path / f"{split}.json")["annotations"]) == count
        assert read(tmp_path / "train.json")["categories"] == read(tmp_path / "val.json")["categories"]

    def test_refusals(self, pets, tmp_path, capsys):
        assert main([str(tmp_path / "nowhere")]) == 1
        assert capsys.readouterr().err == f"{tmp_path / 'nowhere'}: no such file or folder; check the path\n"
        path = pets("coco")
        before = path.read_bytes()
        assert main([str(path), "--output", str(path)]) == 1
        assert "would overwrite the label file" in capsys.readouterr().err
        assert path.read_bytes() == before
        assert main([str(path), "--output", str(path / "out.json")]) == 1
        assert "out.json: cannot be written (File exists); give another file" in capsys.readouterr().err
        with pytest.raises(SystemExit):
            main([str(pets("voc")), "--output", str(tmp_path / "voc" / "a.xml")])
        assert "give a file name that ends with .json" in capsys.readouterr().err


class TestDataSets:
    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_a_split_of_label_files(self, split_pets, form):
        source = split_pets(form)
        train, val = open_dataset(source, split="train"), open_dataset(source, split="val")
        assert (len(train), len(val)) == (1, 1)
        image, target = train[0]
        assert image.shape == (3, 20, 40)
        names = [train.class_names[label - 1] for label in target["labels"]]
        assert (names, target["boxes"].tolist()) == (["dog", "cat"], [[10, 5, 30, 15], [0, 0, 8, 20]])
        assert train.categories == val.categories
        assert (train.skipped, str(val.annotation_file)) == ({}, f"{source} (val)")
        check_separate(train, val)

    def test_left_out_labels_are_counted_and_the_command_lists_them(self, split_pets):
        source = split_pets("yolo")
        file = source.parent / "train" / "labels" / "a.txt"
        file.write_text(file.read_text() * 2 + "0 1\n0 1\n9 0.5 0.5 0.5 0.5")
        dataset = open_dataset(source, split="train")
        assert dataset.skipped == {"line of the wrong length": 2, "unknown class": 1}
        assert dataset.check_command == f"python -m iounet.data.convert {source} --split train"
        assert len(dataset[0][1]["boxes"]) == 4  # repeated boxes are kept

    def test_a_set_without_splits_cannot_serve_for_training_and_validation(self, pets):
        root = pets("voc")
        train, val = open_dataset(root, split="train"), open_dataset(root, split="val")
        assert len(train) == len(val) == 2
        with pytest.raises(DataError, match="training and validation would use the same images; put the images"):
            check_separate(train, val)

    def test_coco_format_with_and_without_its_folder(self, pets, tmp_path):
        path = pets("coco")
        for folder in (None, path.parent / "images"):
            dataset = open_dataset(path, folder, split="train")
            assert (len(dataset), dataset.class_names) == (2, ["dog", "cat"])
            check_separate(dataset, dataset)
        with pytest.raises(DataError, match="nowhere.json: no such annotation file"):
            open_dataset(tmp_path / "nowhere.json", split="train")

    @pytest.mark.parametrize("form", ["voc", "yolo"])
    def test_images_that_are_elsewhere(self, split_pets, tmp_path, form):
        source = split_pets(form)
        root = source if form == "voc" else source.parent
        ignored = shutil.ignore_patterns("*.png", "images")
        shutil.copytree(root, tmp_path / "labels", ignore=ignored)
        dataset = open_dataset(tmp_path / "labels", root, split="train")
        assert (len(dataset), len(dataset[0][1]["boxes"])) == (1, 2)
        assert dataset.check_command.endswith(f"--split train --images {root}")
