"""Augmentation of images and their boxes."""

import torch
from torchvision.transforms import v2


def build_transforms(
    train: bool, *, horizontal_flip: float = 0.5, vertical_flip: float = 0.0, color_jitter: float = 0.0
) -> v2.Compose:
    """Build transforms ``(image, target) -> (image, target)`` from a uint8 `tv_tensors.Image` to float32 in [0, 1].

    The transforms neither resize nor normalise: torchvision's `GeneralizedRCNNTransform` does both inside the model,
    which therefore takes images of any size and returns boxes in their pixels.

    Args:
        train: whether to augment; if False, the image is only converted to float.
        horizontal_flip: probability of mirroring an image left-right.
        vertical_flip: probability of mirroring an image top-bottom.
        color_jitter: brightness, contrast and saturation are each multiplied by a factor uniform in
            [1 - color_jitter, 1 + color_jitter]; 0, as in the paper, disables it.
    """
    steps: list[torch.nn.Module] = []
    if train and horizontal_flip > 0:
        steps.append(v2.RandomHorizontalFlip(horizontal_flip))
    if train and vertical_flip > 0:
        steps.append(v2.RandomVerticalFlip(vertical_flip))
    if train and color_jitter > 0:
        steps.append(v2.ColorJitter(brightness=color_jitter, contrast=color_jitter, saturation=color_jitter))
    return v2.Compose([*steps, v2.ToDtype(torch.float32, scale=True)])
