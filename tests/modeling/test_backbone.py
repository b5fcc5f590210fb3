import pytest
import torch
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.misc import FrozenBatchNorm2d

from iounet.errors import OptionError
from iounet.modeling import fpn_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": torch.nn.BatchNorm2d, "SyncBN": torch.nn.SyncBatchNorm}


def torchvisions(name, norm, trainable_layers=3):
    """The backbone in fasterrcnn_resnet50_fpn (frozen norms, none in the pyramid) or in fasterrcnn_resnet50_fpn_v2."""
    body = getattr(resnet, name)(weights=None, norm_layer=NORMS[norm])
    return _resnet_fpn_extractor(body, trainable_layers, norm_layer=None if norm == "FrozenBN" else NORMS[norm])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101"])
@pytest.mark.parametrize("norm", NORMS)
def test_parameter_names_and_shapes_are_torchvisions(name, norm):
    with torch.device("meta"):
        ours = fpn_backbone(name, norm=norm)
        theirs = torchvisions(name, norm)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }


@pytest.mark.parametrize("trainable_layers", range(6))
@pytest.mark.parametrize("norm", NORMS)
def test_the_same_parameters_train_as_in_torchvision(trainable_layers, norm):
    with torch.device("meta"):
        ours = fpn_backbone("resnet18", norm=norm, trainable_layers=trainable_layers)
        theirs = torchvisions("resnet18", norm, trainable_layers)
    assert {name for name, parameter in ours.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in theirs.named_parameters() if parameter.requires_grad
    }


@pytest.mark.parametrize(("trainable_layers", "first_frozen"), [(0, 5), (1, 4), (3, 2), (5, 0)])
def test_frozen_stages_are_those_next_to_the_image(trainable_layers, first_frozen):
    with torch.device("meta"):
        body = fpn_backbone("resnet18", trainable_layers=trainable_layers).body
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    for position, stage in enumerate(stages):
        trains = {parameter.requires_grad for parameter in body[stage].parameters()}
        assert trains == {position >= first_frozen}, stage


@pytest.mark.parametrize("norm", NORMS)
def test_loads_the_state_dict_of_torchvisions_classifier(norm):
    torch.manual_seed(0)
    weights = resnet.resnet18(weights=None).state_dict()
    for key, value in weights.items():
        if value.is_floating_point():
            weights[key] = torch.rand_like(value)  # including the norms, which are initialised to 0 and 1
    loaded = fpn_backbone("resnet18", norm=norm, weights=weights).body.state_dict()
    assert "layer4.1.bn2.running_var" in loaded and "fc.weight" not in loaded
    for key, value in loaded.items():
        assert torch.equal(value, weights[key]), key


@pytest.mark.parametrize(
    ("given", "expected"), [("resnet34", "resnet18"), ("resnet50", "resnet18"), ("resnet18", "resnet50")]
)
def test_weights_of_another_resnet_are_rejected(given, expected):
    weights = getattr(resnet, given)(weights=None).state_dict()
    with pytest.raises(OptionError, match=rf"weights do not fit {expected}: .*torchvision\.models\.{expected}"):
        fpn_backbone(expected, weights=weights)


def test_weights_without_a_stage_are_rejected():
    weights = {key: value for key, value in resnet.resnet18().state_dict().items() if not key.startswith("layer3")}
    with pytest.raises(OptionError, match=r"\d+ missing \(layer3\.0\.conv1\.weight, "):
        fpn_backbone("resnet18", weights=weights)


def test_levels_and_strides():
    maps = fpn_backbone("resnet18", out_channels=24, norm="BN").eval()(torch.zeros(2, 3, 128, 192))
    assert {name: tuple(features.shape) for name, features in maps.items()} == {
        "0": (2, 24, 32, 48),
        "1": (2, 24, 16, 24),
        "2": (2, 24, 8, 12),
        "3": (2, 24, 4, 6),
        "pool": (2, 24, 2, 3),
    }


def test_blocks_start_as_the_identity_unless_norms_are_frozen():
    assert (fpn_backbone("resnet18", norm="BN").body.state_dict()["layer1.0.bn2.weight"] == 0).all()
    assert (fpn_backbone("resnet18", norm="FrozenBN").body.state_dict()["layer1.0.bn2.weight"] == 1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wants_gradient", [False, True])
def test_a_frozen_norm_agrees_with_torchvisions(dtype, wants_gradient):
    torch.manual_seed(0)
    ours, theirs = (norm(5, eps=1e-3) for norm in (type(fpn_backbone("resnet18").body.bn1), FrozenBatchNorm2d))
    state = {key: torch.rand_like(value) + 0.5 for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state), theirs.load_state_dict(state)
    maps = torch.randn(2, 5, 4, 3).to(dtype)
    given = maps.clone().requires_grad_(wants_gradient)
    kept = []  # tensors saved for the backward pass
    with torch.autograd.graph.saved_tensors_hooks(lambda saved: kept.append(saved.shape) or saved, lambda saved: saved):
        found = ours(given)
    expected = theirs(maps.float())
    assert found.dtype == dtype and found.requires_grad == wants_gradient
    rounding = 1e-6 if dtype == torch.float32 else 2**-7
    torch.testing.assert_close(found.float(), expected, rtol=rounding, atol=rounding)
    assert maps.shape not in kept  # the backward pass does not need the map
    if wants_gradient:
        found.sum().backward()
        scale = state["weight"] / (state["running_var"] + 1e-3).sqrt()
        torch.testing.assert_close(given.grad, scale[:, None, None].expand(2, 5, 4, 3).to(dtype))


def test_a_frozen_norm_never_passes_eps_0_to_torch(monkeypatch):
    batch_norm = torch.nn.functional.batch_norm

    def of_torch_2_11(*args, eps, **kwargs):
        if eps <= 0:
            raise ValueError(f"batch_norm eps must be positive, but got {eps}")
        return batch_norm(*args, eps=eps, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "batch_norm", of_torch_2_11)
    ours, theirs = (norm(3, eps=0.0) for norm in (type(fpn_backbone("resnet18").body.bn1), FrozenBatchNorm2d))
    variances = torch.tensor([1e-12, 1e-5, 1.0])
    ours.running_var.copy_(variances), theirs.running_var.copy_(variances)
    maps = torch.randn(1, 3, 4, 4)
    torch.testing.assert_close(ours(maps), theirs(maps), rtol=1e-6, atol=0)


def test_syncbn_is_batch_norm_in_a_single_process():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 64, 64)
    outputs = []
    for norm in ("BN", "SyncBN"):
        torch.manual_seed(1)
        outputs.append(fpn_backbone("resnet18", norm=norm, trainable_layers=5)(images))
    assert isinstance(fpn_backbone("resnet18", norm="SyncBN").fpn.inner_blocks[0][1], torch.nn.SyncBatchNorm)
    for name, maps in outputs[0].items():
        assert torch.equal(maps, outputs[1][name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "resnet20"}, "name must be one of resnet18, .*, efficientnet_lite0; got 'resnet20'"),
        ({"norm": "GN"}, "norm must be one of FrozenBN, BN, SyncBN; got 'GN'"),
        ({"trainable_layers": 6}, r"trainable_layers must lie in 0\.\.5, got 6"),
        ({"trainable_layers": -1}, r"trainable_layers must lie in 0\.\.5, got -1"),
    ],
)
def test_errors(options, message):
    with pytest.raises(OptionError, match=message):
        fpn_backbone(**{"name": "resnet18"} | options)
