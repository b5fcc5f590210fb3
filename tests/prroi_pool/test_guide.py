"""The Python blocks of docs/guides/operator.md run in order and give the results that the page states."""

import re
from pathlib import Path

import pytest
import torch

from prroi_pool import MultiScalePrRoIPool

PAGE = (Path(__file__).parents[2] / "docs" / "guides" / "operator.md").read_text()
HEADING = re.compile(r"^##+ (.*)\n", re.MULTILINE)
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SECTIONS = HEADING.split(PAGE)
CODE_UNDER = {name: CODE.findall(text) for name, text in zip(SECTIONS[1::2], SECTIONS[2::2], strict=True)}
START = "Pool from a feature map"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a function that runs the code of the first section and of given sections, and returns its variables."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)

    def run(*headings):
        variables = {}
        for heading in (START, *headings):
            for code in CODE_UNDER[heading]:
                exec(code, variables)
        return variables

    return run


def test_pooling_and_the_gradient_of_boxes(run):
    variables = run("Differentiate with respect to boxes")
    assert variables["pooled"].shape == (2, 64, 7, 7)
    pool, features, box, gradient = (variables[name] for name in ("prroi_pool2d", "features", "box", "gradient"))
    features, box = features[:1].double(), box.detach().double()
    step = 1e-4 * torch.eye(4, dtype=torch.float64)[:, None]
    ends = [torch.stack([pool(features, [box + s], 7, 7, 1 / 16).mean() for s in sign * step]) for sign in (1, -1)]
    torch.testing.assert_close(gradient[0].double(), (ends[0] - ends[1]) / 2e-4, rtol=1e-3, atol=1e-9)


def test_torchvisions_detector(run):
    variables = run("Replace RoIAlign in torchvision's detectors")
    assert isinstance(variables["model"].roi_heads.box_roi_pool, MultiScalePrRoIPool)
    variables["model"].transform.min_size = (64,)  # the default of 800 takes half a minute
    with torch.no_grad():
        (found,) = variables["model"].eval()([torch.rand(3, 64, 96)])
    assert found["boxes"].shape[1] == 4
    assert variables["levels"].tolist() == [1]
    assert torch.autograd.grad(variables["pooled"].sum(), variables["moving"])[0].abs().min() > 0


@pytest.mark.slow
def test_compiled_and_exported(run):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pytest.importorskip("onnxscript", reason="needs onnxscript")
    variables = run("Compile and export")
    pool, features = variables["pool"], variables["features"]
    more = torch.cat([variables["rois"]] * 3)
    expected = pool(features, more)
    torch.testing.assert_close(variables["program"].module()(features, more), expected)
    session = onnxruntime.InferenceSession("pool.onnx")
    inputs = {name.name: tensor.numpy() for name, tensor in zip(session.get_inputs(), (features, more), strict=True)}
    torch.testing.assert_close(torch.from_numpy(session.run(None, inputs)[0]), expected, rtol=1e-4, atol=1e-5)


def test_no_code_is_left_out():
    with_code = {name for name, code in CODE_UNDER.items() if code}
    tested = {
        "Differentiate with respect to boxes",
        "Replace RoIAlign in torchvision's detectors",
        "Compile and export",
    }
    assert with_code == {START, *tested}
