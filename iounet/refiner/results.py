"""Read the detections of any detector from COCO results, and find their images."""

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
    """The images and classes of a COCO-format annotation file.

    Attributes:
        path: path of the file.
        file_names: image id → file name.
        class_names: category id → name; empty if the file has no categories.
        content: content of the file; its objects, if any, are the ground truth.
    """

    path: str | Path
    file_names: dict[Any, str]
    class_names: dict[Any, str]
    content: dict[str, Any]

    @classmethod
    def read(cls, path: str | Path) -> "ImageIndex":
        """Read an annotation file; raise DataError if it is invalid or an image lacks its id or file name."""
        content = load_json(path, needed=("images",))
        try:
            file_names = {image["id"]: str(image["file_name"]) for image in content["images"]}
            class_names = {entry["id"]: str(entry["name"]) for entry in content.get("categories", [])}
        except (KeyError, TypeError):
            raise DataError(
                f"{path}: an image lacks its id or file_name, or a category lacks its id or name; "
                f"run python -m iounet.data.check {path} to list the problems"
            ) from None
        return cls(path, file_names, class_names, content)


@dataclass(frozen=True)
class DetectionsFile:
    """The COCO results of a detector with their images.

    Attributes:
        path: path of the file.
        results: entries of the file.
        paths: image id → image file, for images with detections.
        labels: category id → label of the refiner's class, see `match_categories`.
        class_names: category id → name, from an annotation file; empty without one.
        listed_ids: image id → the image's id in the annotation file, see `listed_ids`; empty without such a file.
    """

    path: str | Path
    results: list[dict[str, Any]]
    paths: dict[Any, Path]
    labels: dict[Any, int]
    class_names: dict[Any, str]
    listed_ids: dict[Any, Any]

    @property
    def missing(self) -> list[Any]:
        """Ids of images with detections but without an image file."""
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
        """Read a results file and match its images and classes.

        Args:
            path: the results file.
            files: the given image files.
            index: annotation file with the names of images and classes. With None, images and classes are matched as
                `match_images` and `match_categories` describe.
            categories: the refiner's categories.
            allow_missing: accept missing images, unless all are missing.

        Raises:
            DataError: the file is invalid, or an image is missing.
        """
        results = read_results(path)
        image_ids = [result["image_id"] for result in results]
        category_ids = [result["category_id"] for result in results]
        if index is None:
            paths = match_images(image_ids, files, None, path, allow_missing=allow_missing)
            return cls(path, results, paths, match_categories(category_ids, None, categories), {}, {})
        listed = listed_ids(image_ids, index.file_names)
        file_names = {image_id: index.file_names[listed_id] for image_id, listed_id in listed.items()}
        _check_file_names(results, file_names, path, index)
        paths = match_images(image_ids, files, file_names, path, allow_missing=allow_missing)
        labels = match_categories(category_ids, index.class_names or None, categories)
        return cls(path, results, paths, labels, index.class_names, listed)


def _check_file_names(
    results: list[dict[str, Any]], file_names: dict[Any, str], path: str | Path, index: ImageIndex
) -> None:
    """Raise `DataError` if an entry's own ``file_name``, which ultralytics writes, contradicts the annotation file.

    A file such as 139.jpg gets image_id 139 from ultralytics, which may be another image's id in the annotation file.
    """
    for result in results:
        image_id, own = result["image_id"], result.get("file_name")
        listed = file_names.get(image_id)
        if isinstance(own, str) and listed is not None and Path(own).name != Path(listed).name:
            raise DataError(
                f"{path}: image_id {image_id!r} is {own} by its file_name, but {listed} in {index.path}; set each "
                "image_id to the image's file name"
            )


def read_results(path: str | Path) -> list[dict[str, Any]]:
    """Read a COCO results file: a list of ``{"image_id", "category_id", "bbox": [x, y, w, h], "score", ...}``.

    ``image_id`` may be a number or a string, such as the image's file name without suffix. Other keys are kept.

    Raises:
        DataError: the file is missing or is not in this format, or a bbox is not four finite numbers. The message names
            the entry.
    """
    entries = read_json(path, "detections file")
    if not isinstance(entries, list):
        raise DataError(f"{path}: a COCO results file must be a JSON list; this one holds a {type(entries).__name__}")
    for position, entry in enumerate(entries):
        where = f"{path}: entry {position}"
        if not isinstance(entry, dict):
            raise DataError(f"{where} is {entry!r}; a detection must be a JSON object")
        missing = [key for key in ("image_id", "category_id", "bbox", "score") if key not in entry]
        if missing:
            needed = "image_id, category_id, bbox and score"
            raise DataError(f"{where} lacks {', '.join(missing)}; a detection needs {needed}")
        for key in ("image_id", "category_id"):
            if not isinstance(entry[key], (int, str)) or isinstance(entry[key], bool):
                raise DataError(f"{where} has {key} {entry[key]!r}; it must be a number or a string")
        where += f" (image {entry['image_id']})"
        bbox = entry["bbox"]
        # Boxes are refined in float32.
        if bbox_fault(bbox, _FLOAT32_MAX):
            raise DataError(f"{where} has bbox {bbox}; it must be four finite numbers [x, y, width, height] in pixels")
        if max(abs(start + size) for start, size in zip(bbox[:2], bbox[2:], strict=True)) > _FLOAT32_MAX:
            raise DataError(f"{where} has bbox {bbox}, whose lower right corner exceeds the range of float32")
        if not is_finite_number(entry["score"], _FLOAT32_MAX):
            raise DataError(f"{where} has score {entry['score']!r}; it must be a finite number")
    return entries


def find_images(paths: Iterable[str | Path], file_names: Iterable[str] = ()) -> list[Path]:
    """List image files: the given files, and the images in the given folders, sorted by name within each folder.

    Args:
        paths: image files and folders. Images directly in a folder are listed; images in its subfolders are listed only
            if ``file_names`` names them.
        file_names: file names of an annotation file, relative to a folder, such as COCO's "train/x.jpg".

    Returns:
        The files, each once.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    # `images_of` handles names that lead out of the folder: it compares only their last part.
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
            f"no images in {', '.join(map(str, paths))}; supported suffixes are {' '.join(IMAGE_SUFFIXES)}; "
            "images in subfolders are found only if an annotation file names them; otherwise, pass the subfolders"
        )
    first: dict[Path, Path] = {}
    for path in found:
        first.setdefault(path.absolute(), path)
    return list(first.values())
