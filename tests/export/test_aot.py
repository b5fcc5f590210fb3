"""The refiner traced by torch.export, saved and compiled, against IoURefiner.refine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

from iounet import IoURefiner
from iounet.errors import CheckpointError
from iounet.export.program import ImageRefiner, compile_program, cxx, load_program, save_program
from iounet.training.checkpoint import save_checkpoint
from tools import export_torch

pytestmark = pytest.mark.usefixtures("one_thread")

CATEGORIES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}, {"id": 90, "name": "triangle"}]
# (height, width): enlarged, reduced, one that the detector keeps, a panorama, one pixel, one too thin to be resized.
SIZES = [(50, 80), (300, 171), (64, 96), (20, 400), (1, 1), (500, 1)]


@pytest.fixture(scope="module")
def checkpoint(build_tiny, tiny_cfg, tmp_path_factory):
    """A tiny detector whose class scores and predicted IoUs differ between boxes."""
    detector = build_tiny()
    with torch.no_grad():
        detector.roi_heads.box_predictor.cls_score.weight.mul_(20)
        detector.iou_head.predictor.weight.mul_(20)
    path = tmp_path_factory.mktemp("aot") / "model.pth"
    save_checkpoint(path, model=detector.state_dict(), categories=CATEGORIES, config=tiny_cfg().dump())
    return path


@pytest.fixture(scope="module")
def refiner(checkpoint):
    return IoURefiner.from_checkpoint(checkpoint)


@pytest.fixture(scope="module")
def saved(refiner, tmp_path_factory):
    path = tmp_path_factory.mktemp("aot") / "refiner.pt2"
    save_program(refiner, path)
    return path


@pytest.fixture(scope="module")
def compiled(refiner, tmp_path_factory):
    if shutil.which(cxx()) is None:
        pytest.skip("needs a C++ compiler")
    path = tmp_path_factory.mktemp("aot") / "refiner.pt2"
    compile_program(refiner, path)
    return path


def scene(size, count):
    """An image of colourful tiles, boxes and labels; some boxes cross the border, the last box lies outside."""
    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.interpolate(torch.rand(1, 3, 7, 10, generator=generator), size=size)
    ends = torch.tensor([size[1], size[0]])
    corners = torch.rand(count, 2, generator=generator) * ends * 0.8
    boxes = torch.cat([corners, corners + (0.1 + 0.4 * torch.rand(count, 2, generator=generator)) * ends], 1)
    boxes[count - 1 :] += 2 * ends.max()
    return image, boxes, torch.arange(count) % (len(CATEGORIES) + 1)


def check_agreement(program, refiner):
    moved = 0.0
    for size in SIZES:
        for count in (0, 1, 2, 9):
            image, boxes, labels = scene(size, count)
            expected = refiner.refine(image[0], boxes, labels)
            refined, ious_before, ious, stops = program(image, boxes, labels)
            torch.testing.assert_close(refined, expected.boxes, rtol=0, atol=0.05)
            torch.testing.assert_close(ious_before, expected.ious_before, rtol=0, atol=1e-3)
            torch.testing.assert_close(ious, expected.ious, rtol=0, atol=1e-3)
            assert torch.equal(stops, expected.stops)
            moved = max([moved, *(expected.boxes - boxes)[: count - 1].abs().flatten().tolist()])
    assert moved > 1, "boxes that stay where they are would agree with anything"


@pytest.mark.slow
def test_the_saved_program_agrees_with_pytorch(saved, refiner):
    check_agreement(load_program(saved), refiner)


@pytest.mark.slow
def test_the_compiled_program_agrees_with_pytorch(compiled, refiner):
    check_agreement(load_program(compiled), refiner)


@pytest.mark.slow
def test_without_registered_operators(compiled):
    """Like a C++ program, the process does not import prroi_pool."""
    code = "import sys, torch; torch._inductor.aoti_load_package(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, compiled], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "Could not find schema for prroi_pool::pyramid_pool" in done.stderr


@pytest.mark.parametrize("size", [*SIZES, (97, 61), (63, 97), (127, 193), (1000, 667)])
def test_images_are_transformed_as_by_the_detector(refiner, size):
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    traceable = ImageRefiner(refiner.detector)
    given = []
    traceable.refiner.forward = lambda *arguments: given.extend(arguments)
    traceable(image, torch.zeros(0, 4), torch.zeros(0).long())
    prepared, given_size, resized_size, *_ = given
    expected, _ = refiner.detector.transform([image[0]])
    torch.testing.assert_close(prepared, expected.tensors)
    assert given_size.tolist() == list(size)
    # torchvision would resize the thin image to a side of 0 pixels; the detector keeps 1.
    assert resized_size.tolist() == ([96, 0] if size == (500, 1) else list(expected.image_sizes[0]))


@pytest.mark.parametrize("content", [None, b"no program", b"PK\5\6" + bytes(18)])
def test_files_that_are_not_programs(tmp_path, content):
    path = tmp_path / "refiner.pt2"
    if content is not None:
        path.write_bytes(content)
    cure = "no such file; check the path" if content is None else "cannot be loaded as a torch.export program"
    with pytest.raises(CheckpointError, match=f"{path}: {cure}"):
        load_program(path)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs")
    image, *_ = scene((60, 90), 1)
    Image.fromarray((image[0] * 255).byte().permute(1, 2, 0).numpy()).save(folder / "tiles.png")
    return folder


@pytest.mark.slow
def test_the_tool_exports_and_checks(call, checkpoint, saved, photographs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export_torch, "save_program", lambda refiner, path: shutil.copy(saved, path))
    path = tmp_path / "refiner.pt2"
    assert call(export_torch, "--weights", checkpoint, "--output", path) is None
    assert capsys.readouterr().out == f"{path}: {path.stat().st_size / 1e6:.1f} MB\n"
    assert call(export_torch, "--weights", checkpoint, "--check", path, "--images", photographs) == 0
    assert "\npassed: " in capsys.readouterr().out


@pytest.mark.slow
def test_the_check_notices_another_model(call, checkpoint, saved, photographs, tmp_path, capsys):
    other = torch.load(checkpoint, weights_only=True)
    other["model"]["iou_head.predictor.weight"] *= -1
    torch.save(other, tmp_path / "other.pth")
    assert call(export_torch, "--weights", tmp_path / "other.pth", "--check", saved, "--images", photographs) == 1
    assert "\nFAILED: " in capsys.readouterr().out


def test_the_tool_names_a_missing_file(call, checkpoint, tmp_path):
    assert call(export_torch, "--weights", checkpoint, "--check", tmp_path / "x.pt2") == (
        f"CheckpointError: {tmp_path / 'x.pt2'}: no such file; check the path"
    )


def test_the_tool_requires_the_suffix_pt2(call, checkpoint, capsys):
    assert call(export_torch, "--weights", checkpoint, "--output", Path("refiner.pth")) == 2
    assert "--output refiner.pth: the file name must end in .pt2" in capsys.readouterr().err


def test_without_a_compiler(call, checkpoint, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert call(export_torch, "--weights", checkpoint, "--output", tmp_path / "refiner.pt2", "--compile") == (
        "ConfigError: AOTInductor needs a C++ compiler: `no-such-compiler` is not on PATH; install it, or set CXX "
        "to another compiler"
    )
