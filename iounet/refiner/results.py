"""Detections of any detector as files: COCO results and the images they belong to."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.annotations import load_json
from ..data.bbox import bbox_fault, is_finite_number
from ..data.images import IMAGE_SUFFIXES
from ..errors import DataError
from ..files import read_json
from .matching import listed_ids, match_categories, match_images

_FLOAT32_MAX = 3.4e38


@dataclass(frozen=True)
class ImageIndex:
    """The images and classes that a COCO-form annotation file lists, and the file's content.

    Attributes:
        path: of the file.
        file_names: image id → file name.
        class_names: category id → name; empty if the file has no categories.
        content: all of it; objects, if it has any, are the ground truth.
    """

    path: str | Path
    file_names: dict[Any, str]
    class_names: dict[Any, str]
    content: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "ImageIndex":
        """Raises DataError if the file cannot be read, or an image lacks its id or file name."""
        content = load_json(path, needed=("images",))
        try:
            file_names = {image["id"]: str(image["file_name"]) for image in content["images"]}
            class_names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        except (KeyError, TypeError):
            raise DataError(
                f"{path}: an image lacks its id or file_name, or a category its id or name; "
                f"python -m iounet.data.check {path} lists what is wrong"
            ) from None
        return cls(path, file_names, class_names, content)


@dataclass(frozen=True)
class DetectionsFile:
    """The COCO results of a detector, and the images they belong to.

    Attributes:
        path: of the file.
        results: its entries.
        paths: image id → file, of the images that have detections.
        labels: category id → label of its class among those of a refiner, see :func:`match_categories`.
        class_names: category id → name, as an annotation file gives them; empty without one.
        listed_ids: image id → the annotation file's id of that image, see :func:`listed_ids`; empty without one.
    """

    path: str | Path
    results: list[dict[str, Any]]
    paths: dict[Any, Path]
    labels: dict[Any, int]
    class_names: dict[Any, str]
    listed_ids: dict[Any, Any]

    @property
    def missing(self) -> list[Any]:
        """Ids of images that have detections, but no file."""
        return [id_ for id_ in dict.fromkeys(result["image_id"] for result in self.results) if id_ not in self.paths]

    @classmethod
    def read(
        cls,
        path: str | Path,
        files: list[Path],
        index: ImageIndex | None,
        categories: list[dict[str, Any]],
        *,
        allow_missing: bool = False,
    ) -> "DetectionsFile":
        """Reads a results file and finds its images and classes.

        Args:
            files: the images.
            categories: of the refiner.
            index: for the names of images and classes; None: see :func:`match_images` and :func:`match_categories`.
            allow_missing: some images may be missing, but not all.

        Raises:
            DataError: the file cannot be used, or an image is missing.
        """
        results = read_results(path)
        image_ids = [result["image_id"] for result in results]
        category_ids = [result["category_id"] for result in results]
        if index is None:
            paths = match_images(image_ids, files, None, path, allow_missing=allow_missing)
            return cls(path, results, paths, match_categories(category_ids, None, categories), {}, {})
        listed = listed_ids(image_ids, index.file_names)
        file_names = {image_id: index.file_names[listed_id] for image_id, listed_id in listed.items()}
        paths = match_images(image_ids, files, file_names, path, allow_missing=allow_missing)
        labels = match_categories(category_ids, index.class_names or None, categories)
        return cls(path, results, paths, labels, index.class_names, listed)


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Reads a COCO results file: a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score", ...}``.

    ``image_id`` may be a number or a string, such as the image's file name without suffix. Other keys are kept.

    Raises:
        DataError: no such file, not of that form, or a bbox that is not four finite numbers; the entry is named.
    """
    entries = read_json(path, "detections file")
    if not isinstance(entries, list):
        raise DataError(
            f"{path}: is not a COCO results file, which is a list; it holds a JSON {type(entries).__name__}"
        )
    for position, entry in enumerate(entries):
        where = f"{path}: entry {position}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {entry!r}; a detection is a JSON object")
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
        if missing:
            raise DataError(f"{where} lacks {', '.join(missing)}; a detection needs all four keys")
        for key in ("image_id", "category_id"):
            if not isinstance(entry[key], (int, str)) or isinstance(entry[key], bool):
                raise DataError(f"{where} has {key} {entry[key]!r}; it must be a number or a string")
        where += f" (image {entry['image_id']})"
        bbox = entry["bbox"]
        # Boxes are refined in float32.
        if bbox_fault(bbox, _FLOAT32_MAX):
            raise DataError(f"{where} has bbox {bbox}; it must be four finite numbers [x, y, width, height] in pixels")
        if max(abs(start + size) for start, size in zip(bbox[:2], bbox[2:], strict=True)) > _FLOAT32_MAX:
            raise DataError(f"{where} has bbox {bbox}, whose far corner is beyond all numbers of 32 bits")
        if not is_finite_number(entry["score"], _FLOAT32_MAX):
            raise DataError(f"{where} has score {entry['score']!r}; it must be a finite number")
    return entries


def find_images(paths: Iterable[str | Path], file_names: Iterable[str] = ()) -> list[Path]:
    """Image files: those given, and those of the folders given, sorted by name within each; each file once.

    Args:
        paths: of a folder, the images directly in it count, and those that ``file_names`` lead to.
        file_names: of an annotation file, such as COCO's "train/x.jpg", relative to a folder.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    # A name that leads out of the folder is left to `images_of`, which goes by the last part alone.
    inner = [name for name in map(Path, file_names) if len(name.parts) > 1 and not {"..", name.anchor} & {*name.parts}]
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            direct = {file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES}
            found += sorted(direct.union(file for name in inner if (file := path / name).is_file()))
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such image or folder; check the path")
    if not found:
        raise DataError(
            f"no images in {', '.join(map(str, paths))}; known suffixes are {' '.join(IMAGE_SUFFIXES)}; in folders "
            "within it, only the images that an annotation file names are looked for: give those folders instead"
        )
    first: dict[Path, Path] = {}
    for path in found:
        first.setdefault(path.absolute(), path)
    return list(first.values())
