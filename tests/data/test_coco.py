import io
from contextlib import redirect_stdout

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from iounet.data import CocoDataset, DataError, Sample, build_transforms


def test_items_of_a_hand_written_set(write_set, content):
    dataset = CocoDataset(*write_set(content))
    assert len(dataset) == 3
    assert dataset.category_ids == [0, 17, 90]
    assert dataset.class_names == ["cat", "dog", "kite"]
    assert [image["id"] for image in dataset.images] == [7, 3, 0]
    assert (dataset.clipped, dataset.skipped) == (1, {})

    image, target = dataset[0]
    assert type(image) is torch.Tensor
    torch.testing.assert_close(image, torch.full((3, 30, 40), 0.2))
    assert target["image_id"] == 7
    # The crowd is left out; the box that begins at y = -2 and ends at x = 50.5 is clipped to 40 x 30.
    assert target["boxes"].tolist() == [[10, 5, 30, 15], [30.5, 0, 40, 10]]
    assert target["labels"].tolist() == [2, 1]
    assert target["boxes"].dtype is torch.float32
    assert target["labels"].dtype is torch.int64

    image, target = dataset[-1]
    assert image.shape == (3, 24, 16)
    assert target["image_id"] == 0
    assert target["boxes"].tolist() == [[2, 4, 8, 12]]
    assert target["labels"].tolist() == [3]


def test_an_image_without_objects_is_background(write_set, content):
    _, target = CocoDataset(*write_set(content), transforms=build_transforms(True, horizontal_flip=1.0))[1]
    assert target["boxes"].shape == (0, 4)
    assert target["labels"].shape == (0,)
    assert target["labels"].dtype is torch.int64


def test_ground_truth_is_the_target_before_augmentation(write_set, content):
    dataset = CocoDataset(*write_set(content))
    for index in (0, 1, 2, -1):
        _, target = dataset[index]
        for key, value in dataset.ground_truth(index).items():
            assert torch.equal(torch.as_tensor(value), torch.as_tensor(target[key]))


def test_as_coco_is_scored_in_full_by_pycocotools(write_set, content):
    coco = COCO()
    coco.dataset = CocoDataset(*write_set(content)).as_coco()
    assert [(a["image_id"], a["category_id"]) for a in coco.dataset["annotations"]] == [
        (7, 17),
        (7, 0),
        (7, 90),
        (0, 90),
    ]
    assert [a["area"] for a in coco.dataset["annotations"]] == [200, 240, 900, 30.5]
    with redirect_stdout(io.StringIO()):
        coco.createIndex()
        results = coco.loadRes([{**a, "score": 0.9} for a in coco.dataset["annotations"] if not a["iscrowd"]])
        evaluation = COCOeval(coco, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # With the original ids, annotation 0 would have counted as missed.
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_skipping_leaves_the_bad_box_out_everywhere(write_set, content):
    content["annotations"][0]["bbox"] = [2, 4, 0, 8]
    dataset = CocoDataset(*write_set(content), bad_annotations="skip")
    assert dataset.skipped == {"has no area": 1}
    assert dataset[2][1]["boxes"].shape == (0, 4)
    assert len(dataset.as_coco()["annotations"]) == 3


def test_a_sliver_at_the_edge_keeps_an_area_in_float32(write_set, content):
    # Clipped to the image, which is 40 wide, the box is 0.011 wide: just above MIN_BOX_SIDE.
    content["annotations"][1]["bbox"] = [39.989, 5, 5, 10]
    _, target = CocoDataset(*write_set(content))[0]
    assert (target["boxes"][:, 2:] > target["boxes"][:, :2]).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_image_mode_becomes_rgb(write_set, content, mode):
    files = write_set(content)
    gray = Image.fromarray(np.full((30, 40), 255, dtype=np.uint8)).convert("RGB")
    gray = gray.convert("L").convert(mode) if mode == "LA" else gray.convert(mode)
    gray.save(files[1] / "a.png", format="TIFF" if mode == "CMYK" else "PNG")
    image, _ = CocoDataset(*files)[0]
    torch.testing.assert_close(image, torch.ones(3, 30, 40))


class TestFaultsOfImages:
    def test_missing_folder(self, write_set, content, tmp_path):
        with pytest.raises(DataError, match="nowhere: no such image folder .*set.json.*check the path"):
            CocoDataset(write_set(content)[0], tmp_path / "nowhere")

    def test_wrong_folder_is_found_at_once(self, write_set, content, tmp_path):
        with pytest.raises(
            DataError, match="a.png: no such image, but it is the first one in .*set.json; give the folder"
        ):
            CocoDataset(write_set(content)[0], tmp_path)

    def test_missing_image(self, write_set, content):
        dataset = CocoDataset(*write_set(content))
        (dataset.image_folder / "empty.png").unlink()
        with pytest.raises(DataError, match="empty.png: no such image; restore it"):
            dataset[1]

    def test_truncated_image(self, write_set, content):
        dataset = CocoDataset(*write_set(content))
        path = dataset.image_folder / "a.png"
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:-2000])
        with pytest.raises(DataError, match="a.png: cannot be read as an image .*truncated. Copy or download it again"):
            dataset[0]

    def test_file_that_is_not_an_image(self, write_set, content):
        dataset = CocoDataset(*write_set(content))
        (dataset.image_folder / "a.png").write_text("not a picture")
        with pytest.raises(DataError, match="a.png: cannot be read as an image"):
            dataset[0]

    def test_image_of_another_size(self, write_set, content):
        content["images"][0].update(width=41)
        dataset = CocoDataset(*write_set(content))
        with pytest.raises(
            DataError, match="a.png: the image is 40 wide and 30 high, .*set.json says 41 wide"
        ) as caught:
            dataset[0]
        assert "(image 7)" in str(caught.value)
        assert "restore the image" in str(caught.value)

    def test_a_link_out_of_the_folder_is_refused(self, write_set, content, tmp_path):
        annotation_file, folder = write_set(content)
        (folder / "empty.png").rename(tmp_path / "outside.png")
        (folder / "empty.png").symlink_to("../outside.png")
        dataset = CocoDataset(annotation_file, folder)
        message = "empty.png: a link points outside the image folder, to .*outside.png; copy"
        with pytest.raises(DataError, match=message):
            dataset[1]
        # The first image is checked on construction.
        (folder / "a.png").unlink()
        (folder / "a.png").symlink_to(tmp_path / "outside.png")
        with pytest.raises(DataError, match="a.png: a link points outside the image folder"):
            CocoDataset(annotation_file, folder)

    def test_a_linked_subfolder_outside_the_folder_is_refused(self, write_set, content, tmp_path):
        annotation_file, folder = write_set(content)
        (folder / "deep").rename(tmp_path / "elsewhere")
        (folder / "deep").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(DataError, match="b.png: a link points outside the image folder"):
            CocoDataset(annotation_file, folder)[2]

    def test_links_to_and_within_the_folder_are_followed(self, write_set, content, tmp_path):
        annotation_file, folder = write_set(content)
        (folder / "a.png").rename(folder / "deep" / "real.png")
        (folder / "a.png").symlink_to(folder / "deep" / "real.png")
        (tmp_path / "linked").symlink_to(folder, target_is_directory=True)
        assert len([*CocoDataset(annotation_file, tmp_path / "linked")]) == 3

    def test_sixteen_bits_are_refused_not_clamped(self, write_set, content):
        dataset = CocoDataset(*write_set(content))
        Image.fromarray(np.full((30, 40), 30000, dtype=np.uint16)).save(dataset.image_folder / "a.png")
        with pytest.raises(DataError, match="a.png: the image has more than 8 bits per channel .*convert it"):
            dataset[0]


def test_augmentation_depends_only_on_the_seed(write_set, content):
    dataset = CocoDataset(*write_set(content), transforms=build_transforms(True))
    before = torch.random.get_rng_state()
    boxes = [dataset[Sample(0, seed)][1]["boxes"] for seed in range(20)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(5)
    for seed in reversed(range(20)):
        assert torch.equal(dataset[Sample(0, seed)][1]["boxes"], boxes[seed])
    assert 0 < sum(torch.equal(b, boxes[0]) for b in boxes) < 20  # some are flipped, some are not
