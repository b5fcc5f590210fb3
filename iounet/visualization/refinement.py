"""Draw whole images with their boxes before and after refinement."""

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

# Smaller pictures are enlarged, because lines and text would hide their boxes.
_MIN_SIDE = 640

# Minimum length of an arrow in pixels of the picture per pixel of movement. Most boxes move by a pixel or two, and an
# arrow of that length would be a dot.
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
    """Draw boxes before (dashed, orange) and after refinement (solid, green), each with its predicted IoUs.

    A text that would cover the text of an earlier box is left out, so give the most important boxes first. The
    arguments are not modified.

    Args:
        image: RGB [3, H, W], uint8, or float in [0, 1].
        before: float [N, 4], xyxy in pixels of `image`.
        after: float [N, 4], the same boxes in the same order.
        ground_truth: float [M, 4], drawn in white.
        labels: int [N], written as names if `class_names` is given, otherwise as numbers.
        class_names: The name of label l is `class_names[l]`.
        before_ious: float [N], predicted IoUs of `before`.
        after_ious: float [N], predicted IoUs of `after`.
        paths: float [T + 1, N, 4], the boxes after 0 to T steps. An arrow shows the path of the top right and of the
            bottom left corner of each box, which together have all four coordinates. Arrows are lengthened to at least
            8 pixels of the picture per pixel of `image`, and the legend gives the factor. Paths too short for an arrow
            are not drawn.

    Returns:
        An RGB picture of the image above a legend. The image is enlarged by an integer factor if its longer side is
        shorter than 640 pixels.

    Raises:
        ValueError: A shape is not as above.
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

    # The dashed box goes on top, so that the green of an unmoved box shows between the dashes.
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
        # The top left corner is not used, because the texts are there.
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
            raise ValueError(f"expected {name} with {len(before)} entries, one per box in `before`, got {len(values)}")
    if paths is not None and (paths.ndim != 3 or not len(paths) or paths.shape[1:] != before.shape):
        raise ValueError(f"expected paths of shape [T + 1, {len(before)}, 4], got {list(paths.shape)}")


def _near(boxes: Tensor, image: Tensor) -> Tensor:
    """Clip boxes [..., 4] to within one image size of the image, because the time to draw a box grows with its size."""
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
    """Isolate a name that is written from right to left, which would otherwise reverse the numbers after it."""
    right_to_left = any(unicodedata.bidirectional(character) in ("R", "AL") for character in name)
    if not right_to_left or not features.check("fribidi"):  # without FriBiDi, Pillow draws all text from left to right
        return name
    return f"\N{FIRST STRONG ISOLATE}{name}\N{POP DIRECTIONAL ISOLATE}"
