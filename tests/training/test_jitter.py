import pytest
import torch
from scipy.stats import chisquare, kstest
from torchvision.ops import box_iou

from iounet.training import jitter_boxes, sample_iou_boxes

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGE_SIZE = (300, 400)  # height, width
BOXES = {
    "middle": (150.0, 100.0, 250.0, 180.0),
    "corner": (0.0, 0.0, 60.0, 40.0),
    "opposite corner": (330.0, 250.0, 400.0, 300.0),
    "left border": (0.0, 100.0, 50.0, 200.0),
    "near the border": (2.0, 1.0, 80.0, 60.0),
    "whole width": (0.0, 120.0, 400.0, 180.0),
    "three borders": (0.0, 0.0, 200.0, 300.0),
    "whole image": (0.0, 0.0, 400.0, 300.0),
    "all but a pixel": (1.0, 1.0, 399.0, 299.0),
    "thin": (100.0, 100.0, 102.0, 290.0),
}
SAMPLES = 20_000


def jitter(box, *, seed=0, dtype=torch.float32, samples=SAMPLES, **options):
    generator = torch.Generator().manual_seed(seed)
    jittered, ious = jitter_boxes(torch.tensor([box], dtype=dtype), samples, generator=generator, **options)
    return jittered[0], ious[0]


def assert_uniform(ious, min_iou):
    # Correct code would fail for one seed in a thousand; as the seeds are fixed, the test is not flaky. With 20,000
    # samples, it detects a distribution function that is off by 0.014 anywhere.
    assert kstest(ious.double().numpy(), "uniform", args=(min_iou, 1 - min_iou)).pvalue > 1e-3


@pytest.mark.parametrize("min_iou", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_iou_is_uniform(min_iou, dtype):
    jittered, ious = jitter(BOXES["middle"], dtype=dtype, min_iou=min_iou)
    assert jittered.dtype == ious.dtype == dtype
    assert_uniform(ious, min_iou)


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
def test_the_iou_is_uniform_in_an_image(box, min_iou=0.4):
    jittered, ious = jitter(box, min_iou=min_iou, image_size=IMAGE_SIZE, seed=1)
    assert_uniform(ious, min_iou)
    assert ((ious >= min_iou) & (ious <= 1)).all()
    height, width = IMAGE_SIZE
    x1, y1, x2, y2 = jittered.unbind(1)
    assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
    assert (x1 < x2).all() and (y1 < y2).all()
    torch.testing.assert_close(box_iou(torch.tensor([box]), jittered)[0], ious, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [
        (0.0, 0.0, 0.01, 0.01),
        (100.0, 100.0, 100.5, 100.5),
        (5000.0, 5000.0, 5002.0, 5003.0),
        (0.0, 0.0, 1e6, 1e6),
        (3.0, 7.0, 3.5, 9000.0),
    ],
)
def test_tiny_and_huge_boxes_in_float32(box):
    jittered, ious = jitter(box, seed=2)
    assert_uniform(ious, 0.5)
    assert (ious >= 0.5).all()
    torch.testing.assert_close(box_iou(torch.tensor([box]), jittered)[0], ious, rtol=0, atol=1e-6)


def test_each_box_has_its_own_draws():
    boxes = torch.tensor(list(BOXES.values()))
    jittered, ious = jitter_boxes(boxes, 3000, image_size=IMAGE_SIZE, generator=torch.Generator().manual_seed(3))
    assert jittered.shape == (len(boxes), 3000, 4)
    assert ious.shape == (len(boxes), 3000)
    for box, jittered_box, iou in zip(boxes, jittered, ious, strict=True):
        torch.testing.assert_close(box_iou(box[None], jittered_box)[0], iou, rtol=0, atol=1e-6)
        assert_uniform(iou, 0.5)
    correlations = ious.corrcoef() - torch.eye(len(boxes))
    assert correlations.abs().max() < 0.1  # 5 standard deviations of independent draws: 5 / sqrt(3000)


class TestDirections:
    """Directions of boxes far from any border, which must be mirror-symmetric.

    Outward displacements are correctly longer than inward ones: a box scaled by 1 + a has the IoU 1 / (1 + a), a box
    scaled by 1 - a has the IoU 1 - a.
    """

    @pytest.fixture(scope="class")
    @classmethod
    def outward(cls):
        """Outward displacement of each edge, in units of the box's width and height: Tensor[S, 4]."""
        box = torch.tensor(BOXES["middle"], dtype=torch.float64)
        jittered, _ = jitter(box.tolist(), dtype=torch.float64, samples=40_000)
        width, height = (box[2:] - box[:2]).tolist()
        return (jittered - box) / torch.tensor([-width, -height, width, height], dtype=torch.float64)

    def test_the_centre_stays_on_average(self, outward):
        shift = outward[:, 2:] - outward[:, :2]
        assert (shift.mean(0).abs() < 4 * shift.std(0) / len(shift) ** 0.5).all()

    def test_all_four_edges_are_treated_alike(self, outward):
        for other in range(1, 4):
            difference = outward[:, 0] - outward[:, other]
            assert difference.mean().abs() < 4 * difference.std() / len(difference) ** 0.5
            spread = outward[:, 0].abs() - outward[:, other].abs()
            assert spread.mean().abs() < 4 * spread.std() / len(spread) ** 0.5

    def test_combinations_of_inward_and_outward_are_equally_likely(self, outward):
        combination = (outward > 0).long() @ torch.tensor([1, 2, 4, 8])
        assert chisquare(combination.bincount(minlength=16).numpy()).pvalue > 1e-3

    def test_each_edge_is_equally_likely_to_move_most(self, outward):
        most = outward.abs().argmax(1)
        assert chisquare(most.bincount(minlength=4).numpy()).pvalue > 1e-3

    def test_low_ious_move_further(self):
        jittered, ious = jitter(BOXES["middle"])
        moved = (jittered - torch.tensor(BOXES["middle"])).abs().mean(1)
        assert moved[ious < 0.55].mean() > 3 * moved[ious > 0.95].mean()


def test_the_border_does_not_affect_a_box_in_the_middle():
    free, free_ious = jitter((190.0, 140.0, 210.0, 160.0), seed=4, samples=2000)
    clipped, ious = jitter((190.0, 140.0, 210.0, 160.0), seed=4, samples=2000, image_size=IMAGE_SIZE)
    assert torch.equal(free, clipped) and torch.equal(free_ious, ious)


def test_a_generator_determines_the_draws_and_leaves_the_global_one():
    state = torch.get_rng_state()
    first = jitter(BOXES["middle"], seed=5, samples=100, image_size=IMAGE_SIZE)
    again = jitter(BOXES["middle"], seed=5, samples=100, image_size=IMAGE_SIZE)
    other = jitter(BOXES["middle"], seed=6, samples=100, image_size=IMAGE_SIZE)
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_without_a_generator_the_global_one_is_used():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        first = jitter_boxes(torch.tensor([BOXES["middle"]]), 10)[0]
        torch.manual_seed(7)
        assert torch.equal(jitter_boxes(torch.tensor([BOXES["middle"]]), 10)[0], first)


def test_min_iou_1_gives_the_boxes_themselves():
    jittered, ious = jitter(BOXES["near the border"], samples=10, min_iou=1.0, image_size=IMAGE_SIZE)
    assert (jittered == torch.tensor(BOXES["near the border"])).all()
    assert (ious == 1).all()


def test_the_input_is_unchanged_and_the_output_has_no_gradient():
    boxes = torch.tensor([BOXES["middle"]], requires_grad=True)
    jittered, ious = jitter_boxes(boxes, 5, image_size=(120, 160))
    assert not jittered.requires_grad and not ious.requires_grad
    assert boxes.tolist() == [list(BOXES["middle"])]


@pytest.mark.parametrize("image_size", [None, IMAGE_SIZE])
def test_no_boxes(image_size):
    jittered, ious = jitter_boxes(torch.zeros(0, 4), 7, image_size=image_size)
    assert jittered.shape == (0, 7, 4)
    assert ious.shape == (0, 7)


@pytest.mark.parametrize("min_iou", [0, -0.5, 1.5])
def test_min_iou_out_of_range(min_iou):
    with pytest.raises(ValueError, match=rf"min_iou must lie in \(0, 1\], got {min_iou}"):
        jitter_boxes(torch.tensor([BOXES["middle"]]), 1, min_iou=min_iou)


@pytest.mark.parametrize("bad", [(5.0, 5.0, 5.0, 9.0), (5.0, 5.0, 9.0, 4.0), (5.0, 5.0, float("nan"), 9.0)])
def test_a_box_without_area_is_named(bad):
    with pytest.raises(ValueError, match=r"box 1 has no area: \[5\.0, 5\.0, .*\]; remove such boxes"):
        jitter_boxes(torch.tensor([BOXES["middle"], bad]), 1)


def test_each_box_may_have_its_own_image_size():
    boxes = torch.tensor([BOXES["corner"], BOXES["corner"], BOXES["middle"]])
    image_sizes = torch.tensor([(40, 60), (300, 60), (180, 400)])
    jittered, ious = jitter_boxes(boxes, 3000, image_size=image_sizes, generator=torch.Generator().manual_seed(9))
    for box, (height, width), jittered_box, iou in zip(boxes, image_sizes, jittered, ious, strict=True):
        furthest = jittered_box.amax(0)
        assert (jittered_box >= 0).all() and (furthest <= torch.stack([width, height, width, height])).all()
        torch.testing.assert_close(box_iou(box[None], jittered_box)[0], iou, rtol=0, atol=1e-6)
        assert_uniform(iou, 0.5)
    assert (jittered[0, :, 2:].amax(0) == torch.tensor([60, 40])).all()  # that box fills its image
    assert (jittered[1, :, 3] > 40).any()


def test_sample_shares_each_images_boxes_among_its_objects():
    all_boxes = torch.tensor(list(BOXES.values()))
    boxes = [all_boxes[:1], all_boxes[:0], all_boxes[1:4], all_boxes[4:]]
    jittered, ious, ground_truth = sample_iou_boxes(boxes, [IMAGE_SIZE] * 4, num_boxes=5, min_iou=0.6)
    assert [len(jittered_in_image) for jittered_in_image in jittered] == [
        5,
        0,
        3,
        6,
    ]  # 5 // 1, none, 3 * (5 // 3), 6 * 1
    assert ground_truth.tolist() == [0] * 5 + [1, 2, 3] + [4, 5, 6, 7, 8, 9]
    expected = box_iou(torch.cat(jittered), all_boxes).gather(1, ground_truth[:, None])[:, 0]
    torch.testing.assert_close(expected, ious, rtol=0, atol=1e-6)
    assert (ious >= 0.6).all()


def test_sample_clips_to_each_image():
    boxes = [torch.tensor([BOXES["corner"]])] * 2
    jittered, _, _ = sample_iou_boxes(boxes, [(40, 60), (300, 400)], num_boxes=500, min_iou=0.5)
    assert (jittered[0] >= 0).all() and (jittered[0].amax(0)[2:] == torch.tensor([60, 40])).all()
    assert jittered[1][:, 2].max() > 60 and jittered[1][:, 3].max() > 40


def test_sample_of_images_without_objects():
    jittered, ious, ground_truth = sample_iou_boxes([torch.zeros(0, 4)] * 2, [IMAGE_SIZE] * 2, num_boxes=8, min_iou=0.5)
    assert [tuple(jittered_in_image.shape) for jittered_in_image in jittered] == [(0, 4), (0, 4)]
    assert (ious.shape, ground_truth.shape) == ((0,), (0,))
    assert ground_truth.dtype == torch.int64


def test_on_every_device(device):
    generator = torch.Generator(device).manual_seed(8)
    boxes = torch.tensor([BOXES["near the border"], BOXES["middle"]], device=device)
    jittered, ious = jitter_boxes(boxes, 5000, image_size=IMAGE_SIZE, generator=generator)
    assert jittered.device.type == ious.device.type == device.type
    for box, jittered_box, iou in zip(boxes.cpu(), jittered.cpu(), ious.cpu(), strict=True):
        assert_uniform(iou, 0.5)
        torch.testing.assert_close(box_iou(box[None], jittered_box)[0], iou, rtol=0, atol=1e-6)
