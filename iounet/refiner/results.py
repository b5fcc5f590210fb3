"""Detections of any detector as files: COCO results and the images they belong to."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.annotations import load_json
from ..data.bbox import bbox_fault, is_finite_number
from ..errors import DataError
from ..files import read_json

_FLOAT32_MAX = 3.4e38
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


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
        class_names: category id → name, as an annotation file gives them; empty without one.
        listed_ids: image id → the annotation file's id of that image, see :func:`listed_ids`; empty without one.
    """

    path: str | Path
    results: list[dict[str, Any]]
    paths: dict[Any, Path]
    class_names: dict[Any, str]
    listed_ids: dict[Any, Any]

    @classmethod
    def read(cls, path: str | Path, files: list[Path], index: ImageIndex | None) -> "DetectionsFile":
        """Reads a results file and finds its images.

        Args:
            files: the images.
            index: for the names of images and classes; None: see :func:`match_images` and :func:`match_categories`.

        Raises:
            DataError: the file cannot be used, or an image is missing.
        """
        results = read_results(path)
        image_ids = [result["image_id"] for result in results]
        if index is None:
            return cls(path, results, match_images(image_ids, files, None, path), {}, {})
        listed = listed_ids(image_ids, index.file_names)
        file_names = {image_id: index.file_names[listed_id] for image_id, listed_id in listed.items()}
        return cls(path, results, match_images(image_ids, files, file_names, path), index.class_names, listed)

    def labels(self, categories: list[dict[str, Any]]) -> dict[Any, int]:
        """Category id → label of the class among ``categories``, see :func:`match_categories`."""
        return match_categories(self.results, self.class_names or None, categories)


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


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Image files: those given, and those directly in the folders given, sorted by name within each; each file once.

    Raises:
        DataError: a path does not exist, or there is no image at all.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            found += sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        elif path.exists():
            found.append(path)
        else:
            raise DataError(f"{path}: no such image or folder; check the path")
    if not found:
        raise DataError(f"no images in {', '.join(map(str, paths))}; known suffixes are {' '.join(IMAGE_SUFFIXES)}")
    first: dict[Path, Path] = {}
    for path in found:
        first.setdefault(path.absolute(), path)
    return list(first.values())


def match_categories(
    results: list[dict[str, Any]], names: dict[Any, str] | None, categories: list[dict[str, Any]]
) -> dict[Any, int]:
    """Finds the class that each ``category_id`` of a results file is among those of a model.

    Args:
        names: ``category_id`` → name, from an annotation file; matched as in :func:`match_names`, whatever the ids.
            None: matched by id, which may also be a string that spells the number, or the name.
        categories: ``{"id", "name"}`` of the model's classes in label order.

    Returns:
        ``category_id`` → label, 1..C, or 0 where the model has no such class; by rising id, numbers first.
    """
    used = sorted({result["category_id"] for result in results}, key=lambda id_: (isinstance(id_, str), id_))
    if names is not None:
        return dict(zip(used, match_names([names.get(id_, "") for id_ in used], categories), strict=True))
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    by_name = match_names([id_ if isinstance(id_, str) else "" for id_ in used], categories)
    return {id_: label_of.get(_number_in(id_), label) for id_, label in zip(used, by_name, strict=True)}


def match_names(names: Iterable[str], categories: list[dict[str, Any]]) -> list[int]:
    """The label of the class of each name, 1..C, or 0 where there is none; case, spaces, "-" and "_" do not matter."""

    def plain(name: str) -> str:
        return "".join(character for character in name.casefold() if character not in " -_")

    label_of = {plain(category["name"]): label for label, category in enumerate(categories, start=1)}
    return [label_of.get(plain(name), 0) for name in names]


def match_images(
    image_ids: Iterable[Any], images: list[Path], file_names: dict[Any, str] | None, source: str | Path
) -> dict[Any, Path]:
    """Finds the image of each ``image_id`` of a results file.

    Args:
        images: the image files there are.
        file_names: ``image_id`` → file name, as :func:`listed_ids` and an annotation file give them. None: an id is the
            name of its file, with or without suffix, or the number that this name spells (COCO's 000000000139.jpg is
            image 139). Folders in a file name tell images of one name apart; otherwise they need not be those that the
            images lie in.
        source: the results file, for messages.

    Returns:
        ``image_id`` → path, in order of first appearance.

    Raises:
        DataError: ids without an image, or with two.
    """
    image_ids = list(dict.fromkeys(image_ids))
    if file_names is not None:
        candidates = images_of(images, file_names)
    else:
        by_key: dict[Any, list[Path]] = {}
        for path in images:
            for key in {
                path.name,
                path.stem,
                *([int(path.stem), str(int(path.stem))] if path.stem.isdecimal() else []),
            }:
                by_key.setdefault(key, []).append(path)
        candidates = {id_: by_key.get(id_, []) for id_ in image_ids}

    matched: dict[Any, Path] = {}
    unknown = []
    for image_id in image_ids:
        found = candidates.get(image_id, [])
        if len(found) > 1:
            raise DataError(f"{source}: image_id {image_id!r} fits {', '.join(map(str, found[:3]))}; give one folder")
        if found:
            matched[image_id] = found[0]
        else:
            unknown.append(image_id)
    if unknown:
        listed = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        cure = "name the files after their ids, or give the annotation file that lists them (--annotations)"
        if file_names is not None:
            unlisted = sum(id_ not in file_names for id_ in unknown)
            cure = (
                f"{unlisted} of them are not in the annotation file" if unlisted else "give the folder of their files"
            )
        raise DataError(
            f"{source}: {len(unknown)} image ids have no image among the {len(images)} given: {listed}; {cure}"
        )
    return matched


def images_of(images: list[Path], file_names: dict[Any, str]) -> dict[Any, list[Path]]:
    """``image_id`` → the files its file name may mean: of that name, and in its folders if several have that name."""
    by_name: dict[str, list[Path]] = {}
    for path in images:
        by_name.setdefault(path.name, []).append(path)
    num_named = Counter(Path(name).name for name in file_names.values())
    candidates = {}
    for image_id, file_name in file_names.items():
        wanted = Path(file_name)
        found = by_name.get(wanted.name, [])
        if max(len(found), num_named[wanted.name]) > 1:
            found = [path for path in found if path.absolute().parts[-len(wanted.parts) :] == wanted.parts]
        candidates[image_id] = found
    return candidates


def listed_ids(image_ids: Iterable[Any], file_names: dict[Any, str]) -> dict[Any, Any]:
    """``image_id`` of a results file → that of an annotation file, which it may name in another way.

    Args:
        file_names: of the annotation file, id → file name. A results file may name an image by this id, as number or
            string, or, as ultralytics does, by the file name, with or without folders and suffix.

    Returns:
        Without those that the annotation file does not list, or lists twice.
    """
    by_key: dict[Any, set[Any]] = {}
    for id_, name in file_names.items():
        path = Path(name)
        for key in {str(id_), name, path.name, path.stem}:
            by_key.setdefault(key, set()).add(id_)
    found = {}
    for image_id in dict.fromkeys(image_ids):
        meant = {image_id} if image_id in file_names else by_key.get(str(image_id), set())
        if len(meant) == 1:
            (found[image_id],) = meant
    return found


def _number_in(id_: Any) -> Any:
    return int(id_) if isinstance(id_, str) and id_.isdecimal() else id_
