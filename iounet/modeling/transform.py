"""Resizing, normalising and batching of images: torchvision's transform for images of any shape."""

from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes


class ImageTransform(GeneralizedRCNNTransform):
    """torchvision's transform, with at least one pixel per side after resizing.

    torchvision would resize an image of 5000 x 1 pixels to a height of 0 and raise an error.
    """

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        height, width = image.shape[-2:]
        scale = min(self.min_size[-1] / min(height, width), self.max_size / max(height, width))
        size = int(height * scale), int(width * scale)
        if min(size) > 0:
            return super().resize(image, target)
        size = max(size[0], 1), max(size[1], 1)
        image = nn.functional.interpolate(image[None], size, mode="bilinear", align_corners=False)[0]
        if target is not None:
            target = target | {"boxes": resize_boxes(target["boxes"], (height, width), size)}
        return image, target
