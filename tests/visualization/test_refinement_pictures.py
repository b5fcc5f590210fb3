import numpy as np
import pytest
import torch
from colours import CYAN, GREEN, GREY, ORANGE, WHITE, boxes, is_colour, is_like
from PIL import Image, ImageChops

from iounet.visualization import contact_sheet, draw_refinement

NO_BOXES = torch.zeros(0, 4)


def distances(points: np.ndarray, corners: list[tuple[float, float]]) -> np.ndarray:
    """Distances of points [K, 2] (x, y) from a polyline, approximated by a thousand points per segment."""
    samples = np.concatenate([np.linspace(a, b, 1000) for a, b in zip(corners, corners[1:], strict=False)])
    return np.sqrt(((points[:, None] - samples) ** 2).sum(2)).min(1)


def test_each_outline_lies_on_its_box_in_its_colour():
    picture = draw_refinement(GREY, boxes([10, 20, 50, 60]), boxes([70, 20, 110, 60]), boxes([20, 90, 100, 130]))
    for (x1, y1, x2, y2), colour, inked in (
        ((40, 80, 200, 240), ORANGE, (0.5, 0.8)),  # dashed, so only partly inked
        ((280, 80, 440, 240), GREEN, (1, 1)),
        ((80, 360, 400, 520), WHITE, (1, 1)),
    ):
        mask = is_colour(picture, colour)[:640]
        ys, xs = mask.nonzero()
        # Lines are two pixels wide and centred on the edge: one pixel on each side.
        assert (xs.min(), ys.min(), xs.max(), ys.max()) == (x1 - 1, y1 - 1, x2, y2)
        for edge in (mask[y1, x1:x2], mask[y2, x1:x2], mask[y1:y2, x1], mask[y1:y2, x2]):
            assert inked[0] <= edge.mean() <= inked[1]
            assert edge[0] and edge[-1]  # the corners are inked
        assert not mask[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].any()


@pytest.mark.parametrize(("height", "width", "factor"), [(160, 120, 4), (300, 400, 2), (640, 480, 1), (480, 1333, 1)])
def test_small_images_are_enlarged_by_an_integer_factor_and_a_legend_is_added(height, width, factor):
    picture = draw_refinement(torch.zeros(3, height, width), NO_BOXES, NO_BOXES)
    assert picture.mode == "RGB"
    assert picture.width == factor * width
    assert not np.asarray(picture)[: factor * height].any()
    legend = picture.crop((0, factor * height, *picture.size))
    assert is_colour(legend, ORANGE).any() and is_colour(legend, GREEN).any()


def test_the_legend_has_only_the_drawn_styles():
    without = draw_refinement(GREY, NO_BOXES, NO_BOXES)
    with_truth = draw_refinement(GREY, NO_BOXES, NO_BOXES, NO_BOXES)
    assert is_colour(with_truth, WHITE).sum() > is_colour(without, WHITE).sum()


def test_a_narrow_picture_is_widened_to_its_legend():
    picture = draw_refinement(torch.ones(3, 640, 30), NO_BOXES, NO_BOXES, NO_BOXES)
    assert picture.width > 30
    assert (np.asarray(picture)[:640, :30] == 255).all()
    legend = is_colour(picture.crop((0, 640, *picture.size)), WHITE)
    assert legend.any() and not legend[:, -2:].any()  # the names end inside the picture


def test_uint8_and_float_images_give_the_same_picture():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    of_uint8 = draw_refinement(image, NO_BOXES, NO_BOXES)
    of_float = draw_refinement(image.float() / 255, NO_BOXES, NO_BOXES)
    assert ImageChops.difference(of_uint8, of_float).getbbox() is None


@pytest.mark.parametrize(
    "box", [[60, 60, 63, 62], [60, 60, 60, 60], [0, 0, 160, 160], [-30, -20, 300, 400], [200, 200, 300, 300]]
)
def test_tiny_large_and_outside_boxes_are_drawn(box):
    texts = {
        "labels": torch.tensor([1]),
        "before_ious": torch.tensor([0.5]),
        "after_ious": torch.tensor([0.75]),
    }
    picture = draw_refinement(GREY, boxes(box), boxes(box), boxes(box), **texts)
    assert is_colour(picture, WHITE)[:640].any()  # the text is inside the picture for any box


def test_coordinates_far_outside_take_no_time_and_change_nothing():
    near = boxes([-20, 30, 180, 100])  # its vertical edges are outside the picture
    far = boxes([-1e30, 30, 3e38, 100])
    outlines = [is_colour(draw_refinement(GREY, NO_BOXES, NO_BOXES, given), WHITE) for given in (near, far)]
    assert outlines[0].any() and (outlines[0] == outlines[1]).all()
    for box in ([-1e10, -1e10, 1e10, 1e10], [1e30, 1e30, 2e30, 2e30], [0, 0, 3e38, 3e38]):
        picture = draw_refinement(GREY, boxes(box), boxes(box), after_ious=torch.ones(1))
        assert picture.height < 1000


def test_texts_are_beside_their_boxes_and_do_not_overlap():
    box = boxes([60, 60, 100, 100], [60, 60, 100, 100])
    arguments = {"labels": torch.tensor([1, 1]), "after_ious": torch.tensor([0.75, 0.75])}
    picture = draw_refinement(GREY, box, box, class_names=["background", "star"], **arguments)
    text = is_colour(picture, WHITE)[:640]
    above, below = text[:239], text[402:]
    assert above.sum() == below.sum() > 0
    assert text.sum() == above.sum() + below.sum()
    assert text.any(axis=0).nonzero()[0].min() >= 238  # starts at the left edge of the box


@pytest.mark.parametrize("name", ["star", "кошка", "خانه"])
def test_the_iou_before_is_on_the_left_in_any_language(name):
    """The last 20 columns of the text show digits of the IoU after refinement, and change only with it."""
    box = boxes([10, 60, 100, 100])

    def end_of_text(before, after):
        ious = {"before_ious": torch.tensor([before]), "after_ious": torch.tensor([after])}
        picture = draw_refinement(GREY, box, box, labels=torch.tensor([7]), class_names={7: name}, **ious)
        text = is_like(picture, WHITE)[:640]
        return text[:, : text.any(axis=0).nonzero()[0].max() + 1][:, -20:]

    shown = end_of_text(0.88, 0.44)
    assert (end_of_text(0.44, 0.44) == shown).all() and not (end_of_text(0.88, 0.88) == shown).all()


def test_texts_without_room_are_left_out():
    """Twelve boxes in the same place have room for at most seven texts that do not overlap."""
    box = boxes(*[[60, 60, 100, 100]] * 12)
    alone = is_colour(draw_refinement(GREY, box[:1], box[:1], after_ious=torch.full((1,), 0.75)), WHITE)[:640].sum()
    texts = is_colour(draw_refinement(GREY, box, box, after_ious=torch.full((12,), 0.75)), WHITE)[:640].sum()
    assert texts % alone == 0 and 4 <= texts // alone <= 7


def test_class_names_may_be_a_mapping_and_either_iou_may_be_missing():
    box = boxes([60, 60, 100, 100])
    label, iou = torch.tensor([7]), torch.tensor([0.5])
    by_name = draw_refinement(GREY, box, box, labels=label, class_names={7: "star"}, before_ious=iou)
    by_number = draw_refinement(GREY, box, box, labels=label, before_ious=iou)
    assert ImageChops.difference(by_name, by_number).getbbox() is not None


def test_arrows_follow_the_corners_and_are_lengthened():
    # Top right (80, 40), (86, 38), (92, 40); bottom left (40, 80), (40, 90), (34, 90).
    paths = boxes([40, 40, 80, 80], [40, 38, 86, 90], [34, 40, 92, 90])[:, None]
    picture = draw_refinement(GREY, paths[0], paths[-1], paths=paths)
    arrows = is_like(picture, CYAN)[:640]
    ys, xs = arrows.nonzero()
    pixels = np.stack([xs, ys], 1) + 0.5
    # The picture is enlarged 4 times, and each step is drawn 8 times as long.
    top_right = [(320, 160), (368, 144), (416, 160)]
    bottom_left = [(160, 320), (160, 400), (112, 400)]
    near = np.minimum(distances(pixels, top_right), distances(pixels, bottom_left))
    assert near.max() < 7  # half the width of an arrow head with its halo
    for corners in (top_right, bottom_left):
        along = np.concatenate([np.linspace(a, b, 20) for a, b in zip(corners, corners[1:], strict=False)])
        assert np.sqrt(((along[:, None] - pixels) ** 2).sum(2)).min(1).max() < 2  # no gaps, including bend and tip


def test_the_arrow_head_is_at_the_end_of_the_path():
    paths = torch.stack([boxes([20, 80, 60, 120]), boxes([20, 60, 80, 120])])
    picture = draw_refinement(GREY, paths[0], paths[-1], paths=paths)
    arrow = is_like(picture, CYAN)[:640]
    # The top right corner moves from (60, 80) to (80, 60), which is (240, 320) to (400, 160) in the picture.
    near_tip, near_start = arrow[160:175, 385:400].sum(), arrow[305:320, 240:255].sum()
    assert near_tip > 1.5 * near_start > 0


def test_an_unmoved_box_has_no_arrow_but_the_legend_shows_one():
    box = boxes([40, 40, 80, 80])
    paths = torch.stack([box, box + 0.1])
    picture = draw_refinement(GREY, box, box, paths=paths)
    assert not is_like(picture, CYAN)[:640].any()
    assert is_like(picture, CYAN)[640:].any()
    assert not is_like(draw_refinement(GREY, box, box), CYAN).any()
    assert draw_refinement(GREY, NO_BOXES, NO_BOXES, paths=torch.zeros(6, 0, 4)).size == picture.size


def test_arguments_are_not_modified():
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    arguments = [image, boxes([1, 2, 20, 20]), boxes([2, 2, 22, 20]), boxes([3, 2, 23, 20])]
    copies = [argument.clone() for argument in arguments]
    draw_refinement(*arguments)
    assert all(map(torch.equal, arguments, copies))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": torch.zeros(1, 8, 8)}, r"RGB image of shape \[3, H, W\], got \[1, 8, 8\]"),
        ({"after": torch.zeros(3, 4)}, "expected after with 2 entries, one per box in `before`, got 3"),
        ({"before": torch.zeros(4)}, r"before of shape \[N, 4\], got \[4\]"),
        ({"labels": torch.zeros(1)}, "expected labels with 2 entries, one per box in `before`, got 1"),
        ({"paths": torch.zeros(6, 3, 4)}, r"paths of shape \[T \+ 1, 2, 4\], got \[6, 3, 4\]"),
        ({"paths": torch.zeros(0, 2, 4)}, r"paths of shape \[T \+ 1, 2, 4\], got \[0, 2, 4\]"),
    ],
)
def test_wrong_shapes_are_errors(change, message):
    arguments = {"image": GREY, "before": torch.zeros(2, 4), "after": torch.zeros(2, 4)} | change
    with pytest.raises(ValueError, match=message):
        draw_refinement(**arguments)


def test_contact_sheet_places_pictures_by_row():
    colours = ["red", "lime", "blue"]
    sizes = [(20, 10), (30, 10), (20, 40)]
    pictures = [Image.new("RGB", size, colour) for size, colour in zip(sizes, colours, strict=True)]
    sheet = contact_sheet(pictures, columns=2)
    assert sheet.size == (8 + 20 + 8 + 30 + 8, 8 + 10 + 8 + 40 + 8)
    assert sheet.getpixel((8, 8)) == (255, 0, 0)
    assert sheet.getpixel((36, 8)) == (0, 255, 0)
    assert sheet.getpixel((8, 26)) == (0, 0, 255)
    assert sheet.getpixel((36, 26)) == WHITE
    assert contact_sheet(pictures[:1], columns=3).size == (36, 26)


def test_contact_sheet_of_nothing_is_an_error():
    with pytest.raises(ValueError, match="got 0 and 2"):
        contact_sheet([], columns=2)
    with pytest.raises(ValueError, match="got 1 and 0"):
        contact_sheet([Image.new("RGB", (1, 1))], columns=0)
