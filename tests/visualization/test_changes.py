import weakref

import numpy as np
import pytest
import torch
from colours import CYAN, GREEN, GREY, ORANGE, WHITE, boxes, is_colour, is_like
from PIL import ImageChops

from iounet.visualization import BoxChange, changes_sheet, draw_box_change


def change(*path: list[float], image: torch.Tensor = GREY, **others) -> BoxChange:
    return BoxChange(image, boxes(*path), torch.linspace(0.5, 0.75, len(path)), **others)


def test_the_box_fills_most_of_its_tile():
    # A box of 22 x 20 pixels in a region of side 1.25 * 22 around (69, 70), magnified 240 / 27.5 times.
    tile = draw_box_change(change([60, 60, 80, 80], [58, 60, 80, 80]))
    view = tile.crop((0, 0, 240, 240))
    assert tile.width == 240
    ys, xs = is_colour(view, GREEN).nonzero()
    for found, place in ((xs.min(), 24), (xs.max(), 216), (ys.min(), 32.7), (ys.max(), 207.3)):
        assert found == pytest.approx(place, abs=2)
    left_of_before = is_colour(view, ORANGE)[36:204, 41]  # at 41.5, away from the green line
    assert 0.5 <= left_of_before.mean() <= 0.8
    assert not is_colour(view, GREEN)[40:200, 30:210].any()


def test_the_corners_are_magnified_further_and_show_arrows():
    # Each corner shows 4 x 4 pixels on 116 x 116, magnified 29 times; the top left one is centred on (59, 60).
    tile = draw_box_change(change([60, 60, 80, 80], [58, 60, 80, 80]))
    arrow = is_like(tile, CYAN)
    ys, xs = arrow.nonzero()
    assert arrow[248 + 58, 31:86].all()
    assert (xs.min(), xs.max()) == pytest.approx((29, 87), abs=3)
    assert np.abs(ys - (248 + 58)).max() < 7
    top_left, bottom_right = tile.crop((0, 248, 116, 364)), tile.crop((124, 248, 240, 364))
    assert is_colour(top_left, GREEN)[66:, 28].all() and not is_colour(top_left, GREEN)[:50].any()
    assert 0.4 <= is_colour(top_left, ORANGE)[66:, 87].mean() <= 0.9
    assert is_colour(bottom_right, GREEN)[:50, 57].any() and not is_colour(bottom_right, GREEN)[:, 62:].any()


def test_a_tile_shows_the_image_around_the_box_and_dark_grey_outside_the_image():
    image = torch.zeros(3, 160, 160, dtype=torch.uint8)
    image[0, :, :70], image[2, :, 70:] = 255, 255
    tile = draw_box_change(change([60, 60, 80, 80], image=image))
    assert tile.getpixel((110, 120)) == (255, 0, 0) and tile.getpixel((130, 120)) == (0, 0, 255)
    at_the_border = draw_box_change(change([0, 0, 20, 20], image=image))
    assert at_the_border.getpixel((5, 5)) == (40, 40, 40)
    assert at_the_border.getpixel((120, 120)) == (255, 0, 0)


def test_the_caption_is_below_the_pictures():
    path = ([60, 60, 80, 80], [58, 60, 80, 80])
    plain, named = draw_box_change(change(*path)), draw_box_change(change(*path, name="star, 000000000139.jpg"))
    differing = ImageChops.difference(plain, named).getbbox()
    assert differing is not None and differing[1] > 364
    words = np.asarray(named)[364:]
    assert (words.min(axis=(1, 2)) < 100).any()
    for colour in (ORANGE, GREEN, CYAN):
        assert not is_like(named, colour)[364:].any()
    with_truth = draw_box_change(change(*path, ground_truth=torch.tensor([60.0, 60, 80, 80])))
    assert with_truth.height == plain.height + 20  # a line for the true IoUs


def test_a_long_name_is_cut_to_the_tile():
    box = [60, 60, 80, 80]
    tile = draw_box_change(change(box, name="w" * 500))
    assert tile.size == draw_box_change(change(box)).size
    assert (np.asarray(tile)[364:388, 200:].min() < 100) and (np.asarray(tile)[364:388, 239:].min() > 100)


@pytest.mark.parametrize("value", [0, 255])
def test_lines_are_visible_on_dark_and_light_images(value):
    image = torch.full((3, 160, 160), value, dtype=torch.uint8)
    tile = draw_box_change(
        change([60, 60, 80, 80], [58, 57, 80, 80], image=image, ground_truth=torch.tensor([61.0, 61, 83, 84]))
    )
    for colour in (ORANGE, GREEN, CYAN):
        assert is_like(tile, colour).any()
    # The white line has a black halo.
    white, black = is_colour(tile, WHITE)[:240], is_colour(tile, (0, 0, 0))[:240]
    assert (white[:, 1:] & black[:, :-1]).any()


@pytest.mark.parametrize(
    "path",
    [
        [[60, 60, 60, 60]],
        [[60, 60, 61, 60.5], [60, 60, 60.1, 60.1]],
        [[0, 0, 160, 160], [-30, -20, 300, 400]],
        [[200, 200, 300, 300], [1e7, 1e7, 2e7, 2e7]],
    ],
)
def test_tiny_large_and_outside_boxes_can_be_drawn(path):
    for truth in (None, torch.tensor([10.0, 10, 150, 150]), torch.tensor([-1e7, 0, 0, 1e7])):
        assert draw_box_change(change(*path, ground_truth=truth)).width == 240


def test_gain_is_the_rise_of_the_true_iou():
    truth = torch.tensor([0.0, 0, 10, 20])
    moved = change([0, 0, 10, 10], [0, 0, 10, 15], [0, 0, 10, 20], ground_truth=truth)
    torch.testing.assert_close(moved.true_ious, torch.tensor([0.5, 0.75, 1]))
    assert moved.gain == pytest.approx(0.5)


def change_of_gain(gain: float, colour: tuple[int, int, int]) -> BoxChange:
    """A box that starts at an IoU of 0.5 with its object (40, 40, 80, 80), on an image of one colour."""
    image = torch.tensor(colour, dtype=torch.uint8)[:, None, None].repeat(1, 160, 160)
    path = [[40, 40, 80, 60], [40, 40, 80, 60 + 40 * gain]]
    return change(*path, image=image, ground_truth=torch.tensor([40.0, 40, 80, 80]))


def test_a_changes_sheet_shows_the_largest_gains_and_losses_in_order():
    gains = {
        (200, 0, 0): 0.1,
        (0, 200, 0): 0.3,
        (0, 0, 200): -0.2,
        (200, 200, 0): 0.2,
        (0, 200, 200): 0.0,
        (200, 0, 200): -0.1,
    }
    sheet = changes_sheet((change_of_gain(gain, colour) for colour, gain in gains.items()), num_boxes=2)
    tile_height = draw_box_change(change_of_gain(0.1, (0, 0, 0))).height
    assert sheet.width == 8 + 240 + 8 + 240 + 8
    shown = []
    for top in (36 + 8, 36 + 8 + tile_height + 8 + 36 + 8):
        shown.append([sheet.getpixel((left + 120, top + 60)) for left in (8, 8 + 240 + 8)])
    assert shown == [[(0, 200, 0), (200, 200, 0)], [(0, 0, 200), (200, 0, 200)]]


def test_a_changes_sheet_without_losses_has_no_row_for_them():
    only_gains = changes_sheet([change_of_gain(0.1, (200, 0, 0)), change_of_gain(0, (0, 0, 200))])
    both = changes_sheet([change_of_gain(0.1, (200, 0, 0)), change_of_gain(-0.1, (0, 0, 200))])
    assert is_colour(only_gains, (200, 0, 0)).any() and not is_colour(only_gains, (0, 0, 200)).any()
    assert only_gains.height < both.height
    assert changes_sheet([]).height < only_gains.height


def test_a_changes_sheet_keeps_only_the_images_it_draws():
    alive = []

    def changes():
        for number in range(40):
            made = change_of_gain((-1) ** number * number / 100, (number, 0, 0))
            alive.append(weakref.ref(made))
            yield made
            del made
            assert sum(reference() is not None for reference in alive) <= 2 * 2 + 1

    changes_sheet(changes(), num_boxes=2)


def test_boxes_without_ground_truth_cannot_be_compared():
    with pytest.raises(ValueError, match="'star 7' has no ground truth"):
        changes_sheet([change([0, 0, 9, 9], name="star 7")])
    with pytest.raises(ValueError, match="num_boxes of at least 1, got 0"):
        changes_sheet([], num_boxes=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image": torch.zeros(8, 8)}, r"RGB image of shape \[3, H, W\], got \[8, 8\]"),
        ({"path": torch.zeros(4)}, r"path of shape \[T \+ 1, 4\], got \[4\]"),
        ({"path": torch.zeros(0, 4)}, r"path of shape \[T \+ 1, 4\], got \[0, 4\]"),
        ({"predicted_ious": torch.zeros(5)}, r"predicted_ious of shape \[6\], got \[5\]"),
        ({"ground_truth": torch.zeros(1, 4)}, r"ground_truth of shape \[4\], got \[1, 4\]"),
    ],
)
def test_a_change_of_wrong_shapes_is_an_error(wrong, message):
    arguments = {"image": GREY, "path": torch.zeros(6, 4), "predicted_ious": torch.zeros(6)} | wrong
    with pytest.raises(ValueError, match=message):
        BoxChange(**arguments)
