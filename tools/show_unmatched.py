"""Draw confident detections where nothing is annotated: objects without annotation, or false positives.

    python tools/show_unmatched.py --weights runs/bccd_energy/model_final.pth --annotations runs/bccd/data/test.json \\
        --images BCCD_Dataset/BCCD/JPEGImages --output docs/pictures/bccd_unmatched.png

Draws detections (green) with a score of at least 0.5 whose IoU with every annotated object (white), of any class, is
below 0.3, and prints their number. Where annotations are incomplete, detections of unannotated objects count as wrong,
and even a perfect box on such an object has an expected IoU of 0.
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torchvision.ops import box_iou

from iounet import IoURefiner
from iounet.data import CocoDataset
from iounet.errors import UserError
from iounet.visualization import contact_sheet
from iounet.visualization.crops import magnified, region_around
from iounet.visualization.drawing import AFTER, GROUND_TRUTH, draw_box, to_pil

MIN_SCORE = 0.5
MAX_IOU = 0.3
TILE = 180  # pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--annotations", required=True, metavar="FILE", help="annotation file in COCO format")
    parser.add_argument("--images", required=True, metavar="DIR", help="image folder")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="picture to write")
    parser.add_argument("--tiles", type=int, default=16, metavar="N", help="draw the first N detections (default: 16)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 or auto (default: a GPU if available)")
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights, args.device)
        dataset = CocoDataset(args.annotations, args.images)
        tiles: list[Image.Image] = []
        num_detections = num_unmatched = 0
        for image, target in (dataset[index] for index in range(len(dataset))):
            _, found = refiner.detect(image)
            boxes = found.boxes[found.scores >= MIN_SCORE]
            objects = target["boxes"]
            overlap = box_iou(boxes, objects).amax(1) if len(objects) else torch.zeros(len(boxes))
            unmatched = boxes[overlap < MAX_IOU]
            num_detections += len(boxes)
            num_unmatched += len(unmatched)
            tiles += [tile(image, box, objects) for box in unmatched[: args.tiles - len(tiles)]]
    except UserError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    share = 100 * num_unmatched / max(num_detections, 1)
    print(f"{num_unmatched} of {num_detections} detections ({share:.0f} %) overlap no annotated object")
    if tiles:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        contact_sheet(tiles, columns=8).save(args.output)


def tile(image: Tensor, box: Tensor, objects: Tensor) -> Image.Image:
    region = region_around(box.view(2, 2), margin=2.5)
    view = magnified(to_pil(image), region, TILE)
    offset = box.new_tensor([region.left, region.top] * 2)
    for style, shown in (*((GROUND_TRUTH, of_object) for of_object in objects), (AFTER, box)):
        draw_box(ImageDraw.Draw(view), ((shown - offset) * TILE / region.side).tolist(), style, 2)
    return view


if __name__ == "__main__":
    main()
