"""Draw loose boxes as they are refined: before and after, and as an animation."""

from collections.abc import Sequence

from PIL import Image, ImageDraw
from torchvision.ops import clip_boxes_to_image

from .changes import BoxChange
from .crops import magnified, region_around
from .drawing import AFTER, BEFORE, contact_sheet, draw_box, draw_paths, stacked, to_pil
from .fonts import scalable_font

_LINE_WIDTH = 3
_CAPTION = 44  # pixels high


def before_and_after(changes: Sequence[BoxChange], tile: int = 280) -> Image.Image:
    """Draw boxes before refinement in a row, and after refinement below, with IoUs and arrows along the corners' paths.

    Args:
        changes: Boxes with ground truth.
        tile: Side of each picture in pixels.
    """
    rows = []
    for step in (0, -1):
        rows += [_tile(change, step, tile) for change in changes]
    return contact_sheet(rows, columns=len(changes))


def animation(changes: Sequence[BoxChange], tile: int = 220) -> list[Image.Image]:
    """Draw the boxes in a row, one picture per step.

    Args:
        changes: Boxes with ground truth and with paths of the same length.
        tile: Side of each box's picture in pixels.
    """
    steps = len(changes[0].path)
    return [
        contact_sheet([_tile(change, step, tile) for change in changes], columns=len(changes)) for step in range(steps)
    ]


def save_animation(frames: Sequence[Image.Image], path: str, milliseconds: int = 250) -> None:
    """Write a looping GIF that pauses on its first and last picture.

    Args:
        frames: The pictures.
        path: The file to write.
        milliseconds: Time per picture. The first takes 4 times and the last 8 times as long.
    """
    palette = frames[-1].quantize(128, method=Image.Quantize.MEDIANCUT)
    reduced = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [4 * milliseconds, *[milliseconds] * (len(frames) - 2), 8 * milliseconds]
    reduced[0].save(path, save_all=True, append_images=reduced[1:], duration=durations, loop=0, optimize=True)


def _tile(change: BoxChange, step: int, side: int) -> Image.Image:
    height, width = change.image.shape[1:]
    path = clip_boxes_to_image(change.path.detach().float().cpu(), (height, width))
    assert change.ground_truth is not None
    corners = path.unflatten(1, (2, 2)).flatten(0, 1)
    region = region_around(corners, margin=1.25)
    scale = side / region.side
    offset = path.new_tensor([region.left, region.top])
    view = magnified(to_pil(change.image), region, side)
    style = BEFORE if step == 0 else AFTER
    draw_box(ImageDraw.Draw(view), ((path[step] - offset.repeat(2)) * scale).tolist(), style, _LINE_WIDTH)
    if step:
        moved = path[: step + 1] if step > 0 else path
        draw_paths(view, [((moved[:, end] - offset) * scale).tolist() for end in (slice(0, 2), slice(2, 4))], 2)
    true, predicted = float(change.true_ious[step]), float(change.predicted_ious[step])
    caption = Image.new("RGB", (side, _CAPTION), "white")
    draw, font = ImageDraw.Draw(caption), scalable_font(17)
    draw.text((2, 12), f"IoU {true:.2f}", fill="black", font=font, anchor="lm")
    draw.text((2, 33), f"predicted {predicted:.2f}", fill=(90, 90, 90), font=font, anchor="lm")
    return stacked([view, caption])
