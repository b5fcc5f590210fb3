"""Dicts of tensors: the output of torchvision's and transformers' detectors."""

import pytest
import torch
from named_boxes import AFTER_NMS, BOXES, CLASS_NAMES, CLASSES, NAMES, SCORES
from PIL import Image
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from iounet import IoURefiner
from iounet.refiner.adapters import torchvision, transformers
from iounet.refiner.adapters.dicts import refine

pytestmark = pytest.mark.usefixtures("one_thread")


def given(**more):
    return {"boxes": BOXES.clone(), "labels": CLASSES.clone(), "scores": SCORES.clone(), **more}


def test_an_image(refiner, pixels, expected, same):
    detections = given(image_id=5)
    better = refine(refiner, pixels, detections, class_names=CLASS_NAMES)
    same(better["boxes"], expected.boxes)
    same(better["ious"], expected.ious)
    same(better["ious_before"], expected.ious_before)
    assert better["image_id"] == 5
    assert torch.equal(better["labels"], CLASSES) and torch.equal(better["scores"], SCORES)
    assert torch.equal(detections["boxes"], BOXES) and set(detections) == {"boxes", "labels", "scores", "image_id"}


def test_fields_stay_with_their_boxes(refiner, pixels, expected, same):
    masks = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 50, 80)
    detections = given(masks=masks, keypoints=masks[:, 0, :3, :3], phrases=["a", "b", "c", "d"], size=(50, 80))
    better = refine(refiner, pixels, detections, class_names=CLASS_NAMES, nms="greedy")
    same(better["boxes"], expected.boxes[AFTER_NMS])
    same(better["ious"], expected.ious[AFTER_NMS])
    assert better["scores"].tolist() == [0.875, 0.75, 0.5] and better["labels"].tolist() == [0, 2, 1]
    assert better["masks"][:, 0, 0, 0].tolist() == better["keypoints"][:, 0, 0].tolist() == AFTER_NMS
    assert better["phrases"] == ["b", "d", "c"] and better["size"] == (50, 80)


def test_several_images(refiner, pixels, expected):
    images = [Image.fromarray(pixels), Image.fromarray(pixels[:40, :44])]
    second = {"boxes": BOXES[:1], "labels": torch.tensor([2]), "scores": SCORES[:1]}
    first, second = refine(refiner, images, [given(), second], class_names=dict(enumerate(CLASS_NAMES)))
    torch.testing.assert_close(first["boxes"], expected.boxes, rtol=0, atol=1e-3)
    alone = refiner.refine(images[1], BOXES[:1], [2])
    torch.testing.assert_close(second["boxes"], alone.boxes, rtol=0, atol=1e-3)
    assert refine(refiner, [], [], class_names=CLASS_NAMES) == []


def test_a_batch_in_one_tensor(refiner, image, expected):
    batch = (image * 255).byte().repeat(2, 1, 1, 1)
    for better in refine(refiner, batch, [given(), given()], class_names=CLASS_NAMES):
        torch.testing.assert_close(better["boxes"], expected.boxes, rtol=0, atol=1e-3)


def test_a_list_of_detections_needs_a_list_of_images(refiner, pixels):
    for images in (pixels, Image.fromarray(pixels), [pixels, pixels]):
        with pytest.raises(ValueError, match="detections is a list of 1 dict; pass a list"):
            refine(refiner, images, [given()], class_names=CLASS_NAMES)


def test_no_detections(refiner, pixels):
    empty = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    for nms in (None, "greedy"):
        better = refine(refiner, pixels, empty, class_names=CLASS_NAMES, nms=nms)
        assert {key: tuple(value.shape) for key, value in better.items()} == {
            "boxes": (0, 4), "labels": (0,), "scores": (0,), "ious": (0,), "ious_before": (0,)
        }  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_dtypes_are_kept(refiner, pixels, expected, dtype):
    detections = given() | {"boxes": BOXES.to(dtype), "scores": SCORES.to(dtype)}
    better = refine(refiner, pixels, detections, class_names=CLASS_NAMES)
    assert better["boxes"].dtype == better["scores"].dtype == dtype
    torch.testing.assert_close(better["boxes"].float(), expected.boxes, rtol=1e-3, atol=1e-2)


def test_devices_are_kept(checkpoint, pixels, device):
    detections = {key: value.to(device) for key, value in given().items()} | {"masks": torch.zeros(4, 1, 50, 80)}
    for refiner_on in ("cpu", device):
        refiner = IoURefiner.from_checkpoint(checkpoint, device=refiner_on)
        better = refine(refiner, pixels, detections, class_names=CLASS_NAMES, nms="greedy")
        assert {key: value.device.type for key, value in better.items()} == dict.fromkeys(
            ("boxes", "labels", "scores", "ious", "ious_before"), device.type
        ) | {"masks": "cpu"}


def test_in_inference_mode(refiner, pixels, expected, same):
    with torch.inference_mode():
        better = refine(refiner, pixels, given(), class_names=CLASS_NAMES)
    same(better["boxes"].clone(), expected.boxes)


def test_class_agnostic(refiner, pixels, without_classes, same):
    same(refine(refiner, pixels, given(), class_agnostic=True)["boxes"], without_classes.boxes)


def test_text_labels(refiner, pixels, expected, same):
    better = refine(refiner, pixels, given(text_labels=NAMES), nms="greedy")
    same(better["boxes"], expected.boxes[AFTER_NMS])
    assert better["text_labels"] == ["cross", "Star", "zebra"]


def test_mask_rcnn_of_torchvision(refiner, image, same):
    torch.manual_seed(0)
    detector = MaskRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        num_classes=4, min_size=64, max_size=96, box_score_thresh=0.0, box_detections_per_img=5,
    ).eval()  # fmt: skip
    with torch.inference_mode():
        detections = detector([image, image[:, :40]])
    names = ["__background__", "star", "star", "zebra"]
    better = torchvision.refine(refiner, [image, image[:, :40]], detections, class_names=names)
    assert [len(of_image["boxes"]) for of_image in better] == [5, 5]
    for of_image, before, picture in zip(better, detections, [image, image[:, :40]], strict=True):
        stars = before["labels"] < 3
        refined = refiner.refine(picture, before["boxes"][stars], [2] * int(stars.sum()))
        same(of_image["boxes"][stars], refined.boxes)
        same(of_image["boxes"][~stars], before["boxes"][~stars])
        assert torch.equal(of_image["masks"], before["masks"])


def test_yolos_of_transformers(refiner, pixels, same):
    library = pytest.importorskip("transformers", reason="transformers is not installed")
    torch.manual_seed(0)
    config = library.YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[64, 64],
        num_detection_tokens=6, id2label={0: "star", 1: "cross", 2: "zebra"},
    )  # fmt: skip
    model = library.YolosForObjectDetection(config).eval()
    processor = library.YolosImageProcessor(size={"height": 64, "width": 64})
    images = [Image.fromarray(pixels), Image.fromarray(pixels[:40, :44])]
    with torch.no_grad():
        outputs = model(**processor(images=images, return_tensors="pt"))
    detections = processor.post_process_object_detection(
        outputs, threshold=0.0, target_sizes=[image.size[::-1] for image in images]
    )
    assert [len(of_image["boxes"]) for of_image in detections] == [6, 6]
    better = transformers.refine(refiner, images, detections, class_names=model.config.id2label)
    for of_image, before, picture in zip(better, detections, images, strict=True):
        known = before["labels"] < 2
        refined = refiner.refine(picture, before["boxes"][known], torch.tensor([2, 1])[before["labels"][known]])
        same(of_image["boxes"][known], refined.boxes)
        same(of_image["boxes"][~known], before["boxes"][~known])
