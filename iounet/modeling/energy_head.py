"""The branch that tells where a box should lie: an unnormalised log density of boxes around an object."""

import torch
from torch import Tensor

from .box_function import BoxFunction


class EnergyHead(BoxFunction):
    """Energy of a box for its class.

    Gustafsson et al., "Energy-Based Models for Deep Probabilistic Regression", ECCV 2020 (arXiv 1909.12297): given the
    image, the density of an object's box is proportional to the exponential of the head's output f, so that its maxima
    are where f tells the object to be. ``forward`` returns f. Its values compare boxes of one object and class alone.
    """

    def loss(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: Tensor,
        image_sizes: list[tuple[int, int]],
        objects: Tensor,
        log_density: Tensor,
    ) -> Tensor:
        """:func:`nce_loss` of boxes scattered around objects; the other arguments as in ``forward``."""
        return nce_loss(self.output(features, boxes, labels, image_sizes), objects, log_density)


def nce_loss(output: Tensor, objects: Tensor, log_density: Tensor) -> Tensor:
    """Ranking noise contrastive estimation: how well f tells an object's target from its noise.

    Gustafsson et al., "How to Train Your Energy-Based Model for Regression", BMVC 2020 (arXiv 2005.01698). For each
    object the negative logarithm of softmax over its boxes m of f_m - log q_m, at its target; the mean over the
    objects. Zero (with a gradient) for none. NCE+ is the same loss of targets that have been moved.

    Args:
        output (Tensor[M]): f of the boxes of all objects.
        objects (Tensor[M]): which object each belongs to, 0, 1, ..., rising; the first box of each is its target.
        log_density (Tensor[M]): log q, q being the density of the noise around the object.
    """
    logits = output - log_density
    if not len(objects):
        return logits.sum()
    num_objects = int(objects[-1]) + 1
    highest = logits.new_full((num_objects,), -torch.inf).scatter_reduce(0, objects, logits.detach(), "amax")
    exponentials = (logits - highest[objects]).exp()
    log_normalizer = logits.new_zeros(num_objects).index_add(0, objects, exponentials).log() + highest
    return (log_normalizer - logits[first_of_each(objects)]).mean()


def first_of_each(objects: Tensor) -> Tensor:
    """Where a value of a rising Tensor[M] occurs for the first time: bool [M]; of each object's boxes, its target."""
    first = torch.ones_like(objects, dtype=torch.bool)
    first[1:] = objects[1:] != objects[:-1]
    return first
