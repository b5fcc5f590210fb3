"""Pictures of whole images with their boxes before and after refinement."""

import math
import unicodedata
from collections.abc import Mapping, Sequence

from PIL import Image, ImageDraw, features
from torch import Tensor

from .drawing import (
    AFTER,
    BEFORE,
    GROUND_TRUTH,
    PATH,
    check_image,
    draw_box,
    draw_paths,
    draw_texts,
    legend,
    to_pil,
)
from .fonts import scalable_font

# Smaller pictures are enlarged: on them, lines and text would hide the boxes they mark.
_MIN_SIDE = 640

# Boxes move by a pixel or two, of which an arrow would be a dot: it gets so many pixels of the picture a pixel.
_ARROW_SCALE = 8


def draw_refinement(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None = None,
    *,
    labels: Tensor | None = None,
    class_names: Sequence[str] | Mapping[int, str] | None = None,
    before_ious: Tensor | None = None,
    after_ious: Tensor | None = None,
    paths: Tensor | None = None,
) -> Image.Image:
    """Boxes before (dashed, orange) and after refinement (solid, green), each with its predicted IoUs.

    A text that would cover that of an earlier box is left out, so give the most important boxes first.

    Args:
        image: RGB [3, H, W], uint8, or float in [0, 1].
        before: float [N, 4], xyxy in pixels of ``image``.
        after: float [N, 4], the same boxes, in the same order.
        ground_truth: float [M, 4], drawn in white.
        labels: int [N], written by name where there are ``class_names``, else as numbers.
        class_names: the name of each label, ``class_names[label]``.
        before_ious: float [N], the predicted IoUs of ``before``.
        after_ious: float [N], the predicted IoUs of ``after``.
        paths: float [T + 1, N, 4], the boxes after 0 to T steps. The path of each box's top right and bottom left
            corner (which hold all four coordinates) is drawn as an arrow from where it began, lengthened to at
            least 8 pixels of the picture a pixel of ``image``; the legend says how many times. A path too short for
            an arrow has none.

    Returns:
        An RGB picture: above a legend, the image, enlarged by a whole factor if its longer side is below 640
        pixels. The arguments are left as they were.

    Raises:
        ValueError: a shape is not as above.
    """
    _check_shapes(image, before, after, ground_truth, labels, before_ious, after_ious, paths)
    before, after = _near(before, image), _near(after, image)
    ground_truth = None if ground_truth is None else _near(ground_truth, image)
    paths = None if paths is None else _near(paths, image)
    factor = max(1, math.ceil(_MIN_SIDE / max(image.shape[1:])))
    photo = to_pil(image)
    photo = photo.resize((photo.width * factor, photo.height * factor), Image.Resampling.BICUBIC)
    line_width = max(2, round(max(photo.size) / 320))
    texts = _texts(len(after), labels, class_names, before_ious, after_ious)
    font = scalable_font(max(14, max(photo.size) // 45), "".join(texts))

    # The dashes go on top: where a box stayed in place, its green shows between them.
    layers = [(AFTER, after), (BEFORE, before)]
    if ground_truth is not None:
        layers.insert(0, (GROUND_TRUTH, ground_truth))
    styles = [style for style, _ in reversed(layers)]
    draw = ImageDraw.Draw(photo)
    for style, boxes in layers:
        for box in (boxes * factor).tolist():
            draw_box(draw, box, style, line_width)
    if paths is not None:
        times = math.ceil(_ARROW_SCALE / factor)
        # Not the top left corner: the texts stand there.
        corners = (paths * factor)[..., [[2, 1], [0, 3]]].flatten(1, 2).transpose(0, 1)  # [2 N, T + 1, xy]
        draw_paths(photo, (corners[:, :1] + times * (corners - corners[:, :1])).tolist(), line_width)
        styles.append(PATH if times == 1 else PATH._replace(name=f"{PATH.name}, {times} times as long"))
    draw_texts(draw, photo.size, (after * factor).tolist(), texts, font, line_width)

    strip = legend(photo.width, styles, font, line_width)
    picture = Image.new("RGB", (strip.width, photo.height + strip.height))
    picture.paste(photo, (0, 0))
    picture.paste(strip, (0, photo.height))
    return picture


def _check_shapes(
    image: Tensor,
    before: Tensor,
    after: Tensor,
    ground_truth: Tensor | None,
    labels: Tensor | None,
    before_ious: Tensor | None,
    after_ious: Tensor | None,
    paths: Tensor | None,
) -> None:
    check_image(image)
    for name, boxes in {"before": before, "after": after, "ground_truth": ground_truth}.items():
        if boxes is not None and (boxes.ndim != 2 or boxes.shape[1] != 4):
            raise ValueError(f"expected {name} of shape [N, 4], got {list(boxes.shape)}")
    per_box = {"after": after, "labels": labels, "before_ious": before_ious, "after_ious": after_ious}
    for name, values in per_box.items():
        if values is not None and len(values) != len(before):
            raise ValueError(f"{name} has {len(values)} entries for the {len(before)} boxes of before")
    if paths is not None and (paths.ndim != 3 or not len(paths) or paths.shape[1:] != before.shape):
        raise ValueError(f"expected paths of shape [T + 1, {len(before)}, 4], got {list(paths.shape)}")


def _near(boxes: Tensor, image: Tensor) -> Tensor:
    """Boxes [..., 4] cut off an image's size away from it: drawing a box takes as long as it is wide."""
    reach = boxes.new_tensor(image.shape[:0:-1]).repeat(2)
    return boxes.detach().clamp(-reach, 2 * reach)


def _texts(
    count: int,
    labels: Tensor | None,
    class_names: Sequence[str] | Mapping[int, str] | None,
    before_ious: Tensor | None,
    after_ious: Tensor | None,
) -> list[str]:
    names = [""] * count
    if labels is not None:
        names = [_isolated(str(label) if class_names is None else class_names[label]) for label in labels.tolist()]
    ious = [[f"{iou:.2f}" for iou in values.tolist()] for values in (before_ious, after_ious) if values is not None]
    changes = [" → ".join(change) for change in zip(*ious, strict=True)] or [""] * count
    return [f"{name} {change}".strip() for name, change in zip(names, changes, strict=True)]


def _isolated(name: str) -> str:
    """A name written from right to left would turn round the numbers behind it, were it not isolated from them."""
    from_the_right = any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    if not from_the_right or not features.check("fribidi"):  # without FriBiDi, Pillow draws all from the left
        return name
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
