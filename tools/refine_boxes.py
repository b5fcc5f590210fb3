"""Better boxes for images: IoU-Net's own detections, or those of any other detector, refined.

Detect and refine the images of a folder:

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined

Refine the boxes of another detector, given as COCO results JSON (its image ids are file names without suffix, or ids of
the annotation file given):

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined \\
        --detections detections.json --annotations instances_val.json

The output folder then holds detections.json (COCO results; with --detections the same entries in the same order with
every key kept, bbox replaced and predicted_iou added; otherwise beside images.json, which lists the ids given to the
images) and pictures/ with the boxes before and after.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from torchvision.transforms.v2.functional import to_dtype
from tqdm import tqdm

from iounet.build import build_device
from iounet.config import ConfigError
from iounet.data import DataError, read_image
from iounet.data.annotations import read_image_list
from iounet.data.results import find_images, match_images, read_results
from iounet.detections import Detections
from iounet.evaluation import Example, draw_examples
from iounet.refiner import IoURefiner
from iounet.training.checkpoint import CheckpointError


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="image files, or folders of them")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="made if it is not there")
    parser.add_argument("--detections", metavar="JSON", help="COCO results of any detector, to be refined")
    parser.add_argument("--annotations", metavar="JSON", help="COCO-form file whose 'images' give the ids")
    parser.add_argument("--pictures", type=int, default=20, metavar="N", help="draw the first N images (default: 20)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: a GPU if there is one (default)")
    args = parser.parse_args()
    try:
        refiner = IoURefiner.from_checkpoint(args.weights, device=build_device(args.device))
        images = find_images(args.images)
        if args.detections:
            results = refine_detections(refiner, images, args)
        else:
            results = detect_and_refine(refiner, images, args)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    (args.output / "detections.json").write_text(json.dumps(results))
    print(f"{len(results)} detections in {args.output / 'detections.json'}")


def detect_and_refine(refiner: IoURefiner, images: list[Path], args: argparse.Namespace) -> list[dict]:
    ids = {path: image_id for image_id, path in enumerate(images, start=1)}
    if args.annotations:
        listed_ids = {Path(image["file_name"]).name: image["id"] for image in read_image_list(args.annotations)}
        unlisted = [path.name for path in images if path.name not in listed_ids]
        if unlisted:
            raise DataError(
                f"{args.annotations} does not list {len(unlisted)} of the images, such as {unlisted[0]}; "
                "leave --annotations out to have the images numbered"
            )
        ids = {path: listed_ids[path.name] for path in images}
    args.output.mkdir(parents=True, exist_ok=True)
    category_ids = [category["id"] for category in refiner.categories]
    results, listed = [], []
    for count, path in enumerate(tqdm(images, desc="refine", unit="image"), start=1):
        image_id = ids[path]
        image = read_image_as_float(path)
        before, after = refiner.detect(image)
        height, width = image.shape[-2:]
        listed.append({"id": image_id, "file_name": path.name, "width": width, "height": height})
        results += after.to_coco(image_id, category_ids)
        if count <= args.pictures:
            draw(refiner, image, before, after, args.output, path)
    content = {"images": listed, "annotations": [], "categories": refiner.categories}
    (args.output / "images.json").write_text(json.dumps(content))
    return results


def refine_detections(refiner: IoURefiner, images: list[Path], args: argparse.Namespace) -> list[dict]:
    if (args.output / "detections.json").resolve() == Path(args.detections).resolve():
        raise DataError(f"{args.detections}: the result would overwrite it; give another folder with --output")
    results = read_results(args.detections)
    label_of = {category["id"]: label for label, category in enumerate(refiner.categories, start=1)}
    unknown = sorted({result["category_id"] for result in results} - label_of.keys())
    if unknown:
        names = ", ".join(f"{category['id']} {category['name']}" for category in refiner.categories)
        raise DataError(
            f"{args.detections}: category ids {unknown[:5]} are not among those the refiner was trained on ({names}); "
            "leave those detections out, or give them the ids of its categories"
        )
    file_names = None
    if args.annotations:
        file_names = {image["id"]: image["file_name"] for image in read_image_list(args.annotations)}
    paths = match_images(results, images, file_names, args.detections)

    args.output.mkdir(parents=True, exist_ok=True)
    positions_of: dict = {image_id: [] for image_id in paths}
    for position, result in enumerate(results):
        positions_of[result["image_id"]].append(position)
    refined = [dict(result) for result in results]
    for count, (image_id, path) in enumerate(tqdm(paths.items(), desc="refine", unit="image"), start=1):
        entries = [refined[position] for position in positions_of[image_id]]
        boxes = torch.tensor([entry["bbox"] for entry in entries], dtype=torch.float32)
        boxes[:, 2:] += boxes[:, :2]
        labels = torch.tensor([label_of[entry["category_id"]] for entry in entries])
        scores = torch.tensor([entry["score"] for entry in entries], dtype=torch.float32)
        image = read_image_as_float(path)
        after = refiner.refine(image, boxes, labels, scores)
        for entry, (x1, y1, x2, y2), iou in zip(entries, after.boxes.tolist(), after.ious.tolist(), strict=True):
            entry["bbox"] = [x1, y1, x2 - x1, y2 - y1]
            entry["predicted_iou"] = iou
        if count <= args.pictures:
            draw(refiner, image, after.with_boxes(boxes, refiner.score(image, boxes, labels)), after, args.output, path)
    return refined


def read_image_as_float(path: Path) -> torch.Tensor:
    return to_dtype(read_image(path), torch.float32, scale=True).as_subclass(torch.Tensor)


def draw(
    refiner: IoURefiner, image: torch.Tensor, before: Detections, after: Detections, output: Path, path: Path
) -> None:
    class_names = [category["name"] for category in refiner.categories]
    drawable = (before.boxes[:, 2:] >= before.boxes[:, :2]).all(1)  # another detector may have given a negative width
    before, after = before[drawable], after[drawable]
    (output / "pictures").mkdir(exist_ok=True)
    draw_examples([Example(image, before, after, None)], class_names).save(output / "pictures" / f"{path.stem}.png")


if __name__ == "__main__":
    main()
