"""Which image file an id of a results file means, and which of a refiner's classes a class of it is."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..categories import match_names
from ..errors import DataError


def match_categories(
    category_ids: Iterable[Any], names: dict[Any, str] | None, categories: list[dict[str, Any]]
) -> dict[Any, int]:
    """Finds the class that each ``category_id`` of a results file is among those of a model.

    Args:
        names: ``category_id`` → name, from an annotation file; matched as :func:`iounet.categories.match_names` does,
            whatever the ids. None: matched by id. Either way an id may also be a string that spells the number, or the
            name.
        categories: ``{"id", "name"}`` of the model's classes in label order.

    Returns:
        ``category_id`` → label, 1..C, or 0 where the model has no such class; by rising id, numbers first.
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
    """Finds the image of each ``image_id`` of a results file.

    Args:
        images: the image files there are.
        file_names: ``image_id`` → file name, as :func:`listed_ids` and an annotation file give them. None: an id is the
            name of its file, with or without suffix, or the number that this name spells (COCO's 000000000139.jpg is
            image 139). Folders in a file name tell images of one name apart; otherwise they are ignored.
        source: the results file, for messages.
        allow_missing: leave ids without an image out, unless none has one.

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
    if unknown and not (allow_missing and matched):
        listed = ", ".join(map(repr, unknown[:5])) + (", ..." if len(unknown) > 5 else "")
        cure = "name the files after their ids, or give the annotation file that lists them (--annotations)"
        if file_names is not None:
            unlisted = sum(id_ not in file_names for id_ in unknown)
            cure = (
                f"the annotation file lacks {unlisted} of them"
                if unlisted
                else "give the folder of their files, or the one from which their file names lead to them"
            )
        raise DataError(
            f"{source}: {len(unknown)} image id{'s have' if len(unknown) > 1 else ' has'} no image among the "
            f"{len(images)} given: {listed}; {cure}"
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


def _name_in(id_: Any) -> str:
    return id_ if isinstance(id_, str) else ""
