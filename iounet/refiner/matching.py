"""Match the images and classes of a results file with image files and with the classes of a refiner."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..categories import match_names
from ..errors import DataError


def match_categories(
    category_ids: Iterable[Any], names: dict[Any, str] | None, categories: list[dict[str, Any]]
) -> dict[Any, int]:
    """Find the model's class for each ``category_id`` of a results file.

    Args:
        category_ids: ids in the results file: numbers, or strings that contain a number or a class name.
        names: ``category_id`` → name, from an annotation file. Classes are then matched by name, with
            `iounet.categories.match_names`. None matches them by id.
        categories: ``{"id", "name"}`` of the model's classes in label order.

    Returns:
        ``category_id`` → label in 1..C, or 0 if the model has no such class; sorted by id, numbers first.
    """
    used = sorted(set(category_ids), key=lambda id_: (isinstance(id_, str), id_))
    if names is not None:
        given = [names.get(id_, names.get(_number_in(id_), _name_in(id_))) for id_ in used]
        return dict(zip(used, match_names(given, categories), strict=True))
    label_of = {category["id"]: label for label, category in enumerate(categories, start=1)}
    by_name = match_names(map(_name_in, used), categories)
    return {id_: label_of.get(_number_in(id_), label) for id_, label in zip(used, by_name, strict=True)}


def match_images(
    image_ids: Iterable[Any],
    images: list[Path],
    file_names: dict[Any, str] | None,
    source: str | Path,
    *,
    allow_missing: bool = False,
) -> dict[Any, Path]:
    """Find the image file of each ``image_id`` of a results file.

    Args:
        image_ids: ids in the results file.
        images: the given image files.
        file_names: ``image_id`` → file name, from an annotation file and `listed_ids`. Folders in a file name only
            distinguish images with the same name. With None, an id is the name of its file, with or without suffix, or
            the number in that name (COCO's 000000000139.jpg is image 139).
        source: the results file, for messages.
        allow_missing: omit ids without an image, unless all ids lack one.

    Returns:
        ``image_id`` → path, in order of first appearance.

    Raises:
        DataError: an id matches no image, or several images.
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
            matches = ", ".join(map(str, found[:3]))
            raise DataError(f"{source}: image_id {image_id!r} matches {matches}; pass only one of these images")
        if found:
            matched[image_id] = found[0]
        else:
            unknown.append(image_id)
    if unknown and not (allow_missing and matched):
        listed = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        cure = "name the files after their ids, or pass the annotation file that lists them with --annotations"
        if file_names is not None:
            unlisted = sum(id_ not in file_names for id_ in unknown)
            cure = (
                f"the annotation file does not list {unlisted} of them"
                if unlisted
                else "pass the folder of their files, or the folder to which their file names are relative"
            )
        raise DataError(
            f"{source}: {len(unknown)} image id{'s match' if len(unknown) > 1 else ' matches'} none of the "
            f"{len(images)} given images: {listed}; {cure}"
        )
    return matched


def images_of(images: list[Path], file_names: dict[Any, str]) -> dict[Any, list[Path]]:
    """Find the files that match each image's file name: ``image_id`` → paths.

    Folders in a file name are compared only if several files or images have the same name.
    """
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
    """Map each ``image_id`` of a results file to the id of that image in an annotation file.

    Args:
        image_ids: ids in the results file. An id may be the annotation file's id, as number or string, or the image's
            file name with or without folders and suffix, as ultralytics writes it.
        file_names: id → file name, from the annotation file.

    Returns:
        The mapping, without ids that match no image or several images of the annotation file.
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


def _name_in(id_: Any) -> str:
    return id_ if isinstance(id_, str) else ""
