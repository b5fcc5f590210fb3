"""Better boxes for images: IoU-Net's own detections, or those of any other detector, refined.

Detect and refine the images of a folder:

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined

Refine the boxes of another detector, given as COCO results JSON:

    python tools/refine_boxes.py --weights runs/bccd/model_final.pth --images photos/ --output runs/refined \\
        --detections detections.json --annotations instances_val.json

An image_id of theirs is one of the annotation file, or the name of the file, with or without suffix (as ultralytics
writes it), or, without an annotation file, the number that this name spells. Classes are matched by the names in the
annotation file, or, without one, by id; boxes of classes that the refiner was not trained on stay as they are, unless
--class-agnostic. Where the annotation file has objects, AP before and after is printed.

The output folder then holds detections.json (COCO results; with --detections the same entries in the same order with
every key kept, bbox replaced, predicted_iou and predicted_iou_before added; otherwise beside images.json, which lists
the ids given to the images), pictures/ with the boxes before and after, report.html, and with ground truth
evaluation.json, the AP. A run that was stopped goes on with --resume.
"""

import argparse
import json
import shlex
import statistics
import sys
from collections import Counter
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor
from tqdm import tqdm

from iounet.config import ConfigError
from iounet.data import DataError
from iounet.data.journal import Journal
from iounet.data.results import find_images
from iounet.evaluation import (
    AP_IN_WORDS,
    DRAWN_SCORE,
    Example,
    changes_section,
    draw_examples,
    markdown_table,
    without_nan,
)
from iounet.html_report import Picture, Section, write_html
from iounet.refine_files import (
    AnnotationFile,
    GroundTruth,
    OtherBoxes,
    OwnBoxes,
    Placed,
    refine_files,
    write_list,
)
from iounet.refiner import IoURefiner
from iounet.training.checkpoint import CheckpointError
from iounet.visualization import changes_sheet

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
        if args.class_agnostic and not args.detections:
            raise ConfigError("--class-agnostic is for the boxes of another detector, which --detections gives")
        run(args)
    except KeyboardInterrupt:
        print(f"\nstopped; --resume goes on with what lies in {args.output}", file=sys.stderr)
        sys.exit(130)
    except (ConfigError, DataError, CheckpointError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    except OSError as error:
        sys.exit(f"{error}; where the output folder has room and may be written to, --resume goes on")


def run(args: argparse.Namespace) -> None:
    refiner = IoURefiner.from_checkpoint(args.weights, device=args.device)
    files = find_images(args.images)
    detections_file = args.output / "detections.json"
    annotations = AnnotationFile(args.annotations) if args.annotations else None
    if args.detections:
        if detections_file.resolve() == Path(args.detections).resolve():
            raise DataError(f"{args.detections}: the result would overwrite it; give another folder with --output")
        source = OtherBoxes(refiner, files, args.detections, annotations, class_agnostic=args.class_agnostic)
        print(source.class_report())
    else:
        source = OwnBoxes(refiner, files, annotations)
    truth = ground_truth(annotations, files, source)

    journal = Journal(args.output / "progress.jsonl", identity(args, source), resume=args.resume)
    done = {record["image_id"] for record in journal}
    pictures = picture_paths(source.paths, args.output / "pictures", args.pictures)
    with tqdm(total=len(source.paths), initial=len(done), desc="refine", unit="image") as bar:
        for record, image, placed in refine_files(source, done, args.batch_size):
            if record["image_id"] in pictures:
                draw(refiner, image, placed, pictures[record["image_id"]])
            journal.append(record)
            bar.update()

    count = write_list(detections_file, source.results(journal, rescore=args.rescore))
    if not args.detections:
        images = [
            {"id": record["image_id"], "file_name": source.paths[record["image_id"]].name}
            | {key: record[key] for key in ("height", "width")}
            for record in journal
        ]
        content = {"images": images, "annotations": [], "categories": refiner.categories}
        (args.output / "images.json").write_text(json.dumps(content))
    facts = {
        "command": shlex.join(sys.argv),
        "images": str(len(source.paths)),
        "detections": str(count),
        "mean predicted IoU": mean_ious(journal),
        "versions": f"torch {torch.__version__}, torchvision {torchvision.__version__}",
    }
    if args.detections:
        facts["classes"] = source.class_report()
    sections = []
    if truth is not None:
        sections += [precision_section(truth, source, journal, detections_file), changes(truth, journal)]
    sections.append(pictures_section(list(pictures.values())))
    write_html(args.output / "report.html", f"Refined boxes: {args.output.name}", facts=facts, sections=sections)
    journal.finish()
    print(f"{count} detections in {detections_file}, pictures and tables in {args.output / 'report.html'}")


def ground_truth(
    annotations: AnnotationFile | None, files: list[Path], source: OwnBoxes | OtherBoxes
) -> GroundTruth | None:
    if annotations is None or not annotations.content.get("annotations"):
        return None
    try:
        return GroundTruth(annotations, files, source)
    except (ValueError, KeyError, TypeError) as error:  # boxes can be refined all the same
        print(
            f"no AP: the objects of {annotations.path} cannot be used ({error}); "
            f"python -m iounet.data.check {annotations.path} lists what is wrong"
        )
        return None


def identity(args: argparse.Namespace, source: OwnBoxes | OtherBoxes) -> dict[str, Any]:
    """What the boxes of a run depend on."""
    inputs = {"checkpoint": args.weights, "detections file": args.detections, "annotation file": args.annotations}
    digests = {name: sha256(Path(path).read_bytes()).hexdigest() if path else None for name, path in inputs.items()}
    images = "\n".join(f"{image_id!r} {path.absolute()}" for image_id, path in source.paths.items())
    return digests | {
        "list of images": sha256(images.encode()).hexdigest(),
        "--class-agnostic": args.class_agnostic,
    }


def picture_paths(images: dict[Any, Path], folder: Path, number: int) -> dict[Any, Path]:
    """Where the picture of each of the first images goes; by its name, and its number where names are doubled."""
    num_named = Counter(path.stem for path in images.values())
    return {
        image_id: folder / (f"{path.stem}.png" if num_named[path.stem] == 1 else f"{path.stem}_{count}.png")
        for count, (image_id, path) in enumerate(islice(images.items(), max(number, 0)), start=1)
    }


def draw(refiner: IoURefiner, image: Tensor, placed: Placed, path: Path) -> None:
    names = [category["name"] for category in refiner.categories]
    before, after = placed.before, placed.after
    drawable = (before.boxes[:, 2:] >= before.boxes[:, :2]).all(1)  # another detector may have given a negative width
    path.parent.mkdir(exist_ok=True)
    draw_examples([Example(image, before[drawable], after[drawable], None)], names).save(path)


def mean_ious(journal: Journal) -> str:
    before, after = ([iou for record in journal for iou in record[name]] for name in ("ious_before", "ious"))
    return f"{statistics.fmean(before):.3f} before, {statistics.fmean(after):.3f} refined" if after else "no boxes"


def precision_section(
    truth: GroundTruth, source: OwnBoxes | OtherBoxes, journal: Journal, detections_file: Path
) -> Section:
    """AP before and after, which is printed, too, and written to evaluation.json."""
    before, left_out = truth.ap(source.results(journal, "before"))
    refined, _ = truth.ap(json.loads(detections_file.read_bytes()))
    table = {"before": before, "refined": refined}
    print(f"\n{markdown_table(table)}\n")
    (detections_file.parent / "evaluation.json").write_text(json.dumps(without_nan({"table": table}), indent=1) + "\n")
    text = AP_IN_WORDS
    if left_out:
        note = (
            f"{left_out} detections are not scored: their image or class is not in the annotation file, or their width "
            "or height is negative."
        )
        print(f"{note}\n")
        text = f"{text}\n\n{note}"
    return Section("Average precision", text, table=table)


def changes(truth: GroundTruth, journal: Journal) -> Section:
    sheet = changes_sheet(truth.most_changed(journal))
    return changes_section(sheet, "Of the boxes that overlapped an object of their class by an IoU of at least 0.5.")


def pictures_section(paths: list[Path]) -> Section:
    """The first pictures that lie in the folder: a resumed run may have had another --pictures."""
    text = (
        f"Dashed: before. Solid: refined, with the predicted IoU before » after. Boxes of a score below {DRAWN_SCORE} "
        "are not drawn."
    )
    shown = [
        Picture(path, path.stem, f"The boxes of {path.stem} before and after refinement")
        for path in islice(filter(Path.exists, paths), SHOWN)
    ]
    return Section("Boxes before and after refinement", text, pictures=shown)


if __name__ == "__main__":
    main()
