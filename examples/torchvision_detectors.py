"""Train a torchvision detector on a synthetic data set, and write its detections for tools/refine_boxes.py.

    python -m iounet.data.synthetic --output runs/synthetic
    python examples/torchvision_detectors.py retinanet --data runs/synthetic --output runs/examples/retinanet
    python tools/refine_boxes.py --weights runs/demo/model_final.pth --images runs/synthetic/test \\
        --detections runs/examples/retinanet/detections.json --annotations runs/synthetic/annotations/test.json \\
        --output runs/examples/retinanet/refined

The detectors come from torchvision.models.detection. To train on a CPU in minutes, they use ResNet-18 instead of
ResNet-50, and two-stage detectors use fewer proposals. The script does not use IoU-Net: you can replace it with any
detector that writes COCO results.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import CocoDetection, wrap_dataset_for_transforms_v2
from torchvision.models.detection import FCOS, FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import box_convert
from torchvision.ops.feature_pyramid_network import LastLevelP6P7
from torchvision.transforms import v2
from tqdm import tqdm

IMAGE_SIZE = 128  # pixels; the synthetic images have this size


def resnet18_fpn(**options) -> nn.Module:
    return resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d, **options
    )


def resnet18_fpn_of_one_stage_detectors() -> nn.Module:
    """Levels 3 to 7, as in retinanet_resnet50_fpn and fcos_resnet50_fpn."""
    return resnet18_fpn(returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))


FEWER_PROPOSALS = {
    "rpn_post_nms_top_n_train": 200,
    "rpn_post_nms_top_n_test": 200,
    "box_batch_size_per_image": 32,
}
DETECTORS: dict[str, Callable[..., nn.Module]] = {
    "fasterrcnn": lambda **options: FasterRCNN(resnet18_fpn(), **FEWER_PROPOSALS, **options),
    "maskrcnn": lambda **options: MaskRCNN(resnet18_fpn(), **FEWER_PROPOSALS, **options),
    "retinanet": lambda **options: RetinaNet(resnet18_fpn_of_one_stage_detectors(), **options),
    "fcos": lambda **options: FCOS(resnet18_fpn_of_one_stage_detectors(), **options),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("detector", choices=DETECTORS, help="detector to train")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="output of iounet.data.synthetic")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="output folder for detections.json")
    parser.add_argument("--iterations", type=int, default=600, metavar="N", help="steps of 4 images (default: 600)")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and image order (default: 0)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)

    train_set = images_and_targets(args.data, "train")
    num_classes = 1 + max(train_set.coco.getCatIds())  # category ids are the labels; 0 is the background
    detector = DETECTORS[args.detector](num_classes=num_classes, min_size=IMAGE_SIZE, max_size=IMAGE_SIZE)
    train(detector, train_set, args.iterations)
    results = list(detect(detector, images_and_targets(args.data, "test")))
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "detections.json").write_text(json.dumps(results))
    print(f"{len(results)} detections in {args.output / 'detections.json'}")


def images_and_targets(folder: Path, split: str) -> CocoDetection:
    dataset = CocoDetection(folder / split, folder / "annotations" / f"{split}.json")
    flip = [v2.RandomHorizontalFlip()] if split == "train" else []
    dataset.transforms = v2.Compose([v2.ToImage(), *flip, v2.ToDtype(torch.float32, scale=True)])
    return wrap_dataset_for_transforms_v2(dataset, target_keys=["image_id", "boxes", "labels", "masks"])


def train(detector: nn.Module, dataset: CocoDetection, iterations: int) -> None:
    # Images of a batch may differ in size, so a batch is a list instead of one tensor.
    loader = DataLoader(dataset, batch_size=4, shuffle=True, drop_last=True, collate_fn=list)
    optimizer = torch.optim.AdamW(detector.parameters(), lr=1e-3, weight_decay=0.05, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1e-3, total_steps=iterations, pct_start=0.05, anneal_strategy="linear"
    )
    detector.train()
    with tqdm(total=iterations, desc="train", unit="it") as progress:
        while progress.n < iterations:
            for batch in loader:
                images, targets = zip(*batch, strict=True)
                loss = sum(detector(list(images), list(targets)).values())
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
                optimizer.step()
                schedule.step()
                progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
                progress.update()
                if progress.n == iterations:
                    break


@torch.no_grad()
def detect(detector: nn.Module, dataset: CocoDetection) -> Iterator[dict]:
    """Yield COCO results with boxes `[x, y, width, height]` in pixels of the image."""
    detector.eval()
    for image, target in tqdm(dataset, desc="detect", unit="image"):
        (found,) = detector([image])
        boxes = box_convert(found["boxes"], "xyxy", "xywh")
        for box, label, score in zip(boxes.tolist(), found["labels"].tolist(), found["scores"].tolist(), strict=True):
            yield {"image_id": target["image_id"], "category_id": label, "bbox": box, "score": score}


if __name__ == "__main__":
    main()
