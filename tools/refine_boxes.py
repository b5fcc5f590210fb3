"""Better boxes for images: IoU-Net's own detections, or those of any other detector, refined.

Detect and refine the images of a folder:

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined

Refine the boxes of another detector, given as COCO results JSON:

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined \\
        --detections detections.json --annotations instances_val.json

An image_id of theirs is looked up in the annotation file, or, without one, is the file name without suffix (as
ultralytics writes it) or the number that this name spells. Classes are matched by the names in the annotation file, or,
without one, by id; boxes of classes that the refiner was not trained on stay as they are, unless --class-agnostic.
Where the annotation file has objects, AP before and after is printed.

The output folder then holds detections.json (COCO results; with --detections the same entries in the same order with
every key kept, bbox replaced, predicted_iou and predicted_iou_before added; otherwise beside images.json, which lists
the ids given to the images), pictures/ with the boxes before and after, and report.html. A run that was stopped goes on
with --resume.
"""

import argparse
import json
import shlex
import statistics
import sys
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from iounet.build import build_device
from iounet.config import ConfigError
from iounet.data import DataError
from iounet.data.journal import Journal
from iounet.data.results import find_images
from iounet.evaluation import AP_IN_WORDS, Example, box_changes, changes_section, draw_examples, markdown_table
from iounet.html_report import Picture, Section, write_html
from iounet.refine_files import GroundTruth, OtherBoxes, OwnBoxes, Placed, refine_files, rescored, write_list
from iounet.refiner import IoURefiner
from iounet.training.checkpoint import CheckpointError
from iounet.visualization import BoxChange, changes_sheet, most_changed

SHOWN = 6  # pictures on the page; all of them lie in pictures/


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True, metavar="FILE", help="checkpoint written by tools/train.py")
    parser.add_argument("--images", required=True, nargs="+", metavar="PATH", help="image files, or folders of them")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="made if it is not there")
    parser.add_argument("--detections", metavar="JSON", help="COCO results of any detector, to be refined")
    parser.add_argument("--annotations", metavar="JSON", help="COCO-form file of the images' ids, classes and objects")
    parser.add_argument("--class-agnostic", action="store_true", help="refine every box without regard to its class")
    parser.add_argument("--rescore", action="store_true", help="multiply each score by the predicted IoU")
    parser.add_argument("--resume", action="store_true", help="go on with the run that was stopped in this folder")
    parser.add_argument("--pictures", type=int, default=20, metavar="N", help="draw the first N images (default: 20)")
    parser.add_argument("--batch-size", type=int, default=1, metavar="N", help="images at once (default: 1)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, or auto: a GPU if there is one (default)")
    args = parser.parse_args()
    try:
        if args.batch_size < 1:
            raise ConfigError(f"--batch-size must be at least 1, got {args.batch_size}")
        run(args)
    except KeyboardInterrupt:
        print(f"\nstopped; --resume goes on with what lies in {args.output}", file=sys.stderr)
        sys.exit(130)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def run(args: argparse.Namespace) -> None:
    refiner = IoURefiner.from_checkpoint(args.weights, device=build_device(args.device))
    files = find_images(args.images)
    detections_file = args.output / "detections.json"
    if args.detections:
        if detections_file.resolve() == Path(args.detections).resolve():
            raise DataError(f"{args.detections}: the result would overwrite it; give another folder with --output")
        source = OtherBoxes(refiner, files, args.detections, args.annotations, class_agnostic=args.class_agnostic)
        print(source.class_report())
    else:
        source = OwnBoxes(refiner, files, args.annotations)
    truth = GroundTruth.of(args.annotations, files) if args.annotations else None

    inputs = {"checkpoint": args.weights, "detections file": args.detections}
    of_run = {name: sha256(Path(path).read_bytes()).hexdigest() for name, path in inputs.items() if path}
    journal = Journal(
        args.output / "progress.jsonl", of_run | {"--class-agnostic": args.class_agnostic}, resume=args.resume
    )
    done = sum(1 for _ in journal)
    pictures = {
        image_id: args.output / "pictures" / f"{path.stem}.png"
        for image_id, path in islice(source.paths.items(), args.pictures)
    }
    changes: list[BoxChange] = []
    with tqdm(total=len(source.paths), initial=done, desc="refine", unit="image") as bar:

        def progress(image_id: Any, image: Tensor, placed: Placed) -> None:
            bar.update()
            if image_id in pictures:
                draw(refiner, image, placed, pictures[image_id])
            if truth is not None:
                example = truth.example(image_id, image, placed)
                changes[:] = most_changed(
                    [*changes, *box_changes(example, truth.class_names, source.paths[image_id].name)]
                )

        refine_files(source, journal, batch_size=args.batch_size, progress=progress)

    results = source.results(journal)
    count = write_list(detections_file, rescored(results) if args.rescore else results)
    if not args.detections:
        images = [
            {"id": record["image_id"], "file_name": source.paths[record["image_id"]].name}
            | {key: record[key] for key in ("height", "width")}
            for record in journal
        ]
        content = {"images": images, "annotations": [], "categories": refiner.categories}
        (args.output / "images.json").write_text(json.dumps(content))

    sections = []
    if truth is not None:
        try:
            table = {
                "before": truth.evaluate(list(source.results(journal, "before"))),
                "refined": truth.evaluate(json.loads(detections_file.read_bytes())),
            }
        except ValueError as error:  # ids that the annotation file does not list
            print(f"no AP: {error}")
        else:
            print(f"\n{markdown_table(table)}\n")
            sections.append(Section("Average precision", AP_IN_WORDS, table=table))
        sections.append(changes_section(changes_sheet(changes)))
    drawn = [path for path in islice(pictures.values(), SHOWN) if path.exists()]
    captions = "Dashed: before. Solid: refined, with the predicted IoU before and after."
    shown = [Picture(path, f"{path.stem}. {captions}", f"The boxes of {path.stem} before and after") for path in drawn]
    sections.append(Section("Boxes before and after refinement", pictures=shown))
    facts = {
        "command": shlex.join(sys.argv),
        "images": str(len(source.paths)),
        "detections": str(count),
        "mean predicted IoU": mean_ious(journal),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    if args.detections:
        facts["classes"] = source.class_report()
    write_html(args.output / "report.html", f"Refined boxes: {args.output.name}", facts=facts, sections=sections)
    journal.finish()
    print(f"{count} detections in {detections_file}, pictures and tables in {args.output / 'report.html'}")


def mean_ious(journal: Journal) -> str:
    before, after = ([iou for record in journal for iou in record[name]] for name in ("ious_before", "ious"))
    return f"{statistics.fmean(before):.3f} before, {statistics.fmean(after):.3f} refined" if after else "no boxes"


def draw(refiner: IoURefiner, image: Tensor, placed: Placed, path: Path) -> None:
    names = [category["name"] for category in refiner.categories]
    before, after = placed.before, placed.after
    drawable = (before.boxes[:, 2:] >= before.boxes[:, :2]).all(1)  # another detector may have given a negative width
    path.parent.mkdir(exist_ok=True)
    draw_examples([Example(image, before[drawable], after[drawable], None)], names).save(path)


if __name__ == "__main__":
    main()
