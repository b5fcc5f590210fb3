import torch
from colours import GREEN, GREY, ORANGE, boxes, is_colour
from PIL import Image

from iounet.visualization import BoxChange, animation, before_and_after, save_animation


def loose(left):
    path = boxes([left, 40, 90, 90], [50, 45, 85, 85], [60, 50, 80, 80])
    return BoxChange(GREY, path, torch.tensor([0.4, 0.6, 0.9]), boxes([60, 50, 80, 80])[0], "card")


def test_boxes_before_are_above_boxes_after():
    sheet = before_and_after([loose(40), loose(45), loose(50)], tile=120)
    assert sheet.width == 3 * 120 + 4 * 8
    upper = sheet.crop((0, 0, sheet.width, sheet.height // 2))
    lower = sheet.crop((0, sheet.height // 2, sheet.width, sheet.height))
    assert is_colour(upper, ORANGE).any() and not is_colour(upper, GREEN).any()
    assert is_colour(lower, GREEN).any() and not is_colour(lower, ORANGE).any()


def test_the_box_shrinks_from_picture_to_picture(tmp_path):
    frames = animation([loose(40)], tile=160)
    assert len(frames) == 3
    widths = []
    for frame, colour in zip(frames, (ORANGE, GREEN, GREEN), strict=True):
        _, xs = is_colour(frame, colour).nonzero()
        widths.append(xs.max() - xs.min())
    assert widths[0] > widths[1] > widths[2] > 0
    save_animation(frames, str(tmp_path / "steps.gif"))
    with Image.open(tmp_path / "steps.gif") as picture:
        assert picture.n_frames == 3 and picture.info["loop"] == 0
        assert picture.size == frames[0].size
