"""The energy head: predicts an unnormalised log density of an object's box."""

import torch
from torch import Tensor

from .box_function import BoxFunction


class EnergyHead(BoxFunction):
    """Head that predicts the energy of a box for its class.

    Given the image, the density of an object's box is proportional to exp(f), where f is the head's output; f is
    largest where the box of an object is most likely. ``forward`` returns f. Compare its values only between boxes of
    one object and class. Source: Gustafsson et al., "Energy-Based Models for Deep Probabilistic Regression", ECCV 2020
    (arXiv 1909.12297). Arguments as in `BoxFunction`.
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
        """Return the `nce_loss` of boxes sampled around objects; the first four arguments are as in `output`."""
        return nce_loss(self.output(features, boxes, labels, image_sizes), objects, log_density)


def nce_loss(output: Tensor, objects: Tensor, log_density: Tensor) -> Tensor:
    """Ranking noise contrastive estimation (NCE): distinguish each object's target from noise samples.

    The loss of an object is the cross-entropy of its target under the softmax of f_m - log q_m over its boxes m. NCE+
    is the same loss with perturbed targets. Source: Gustafsson et al., "How to Train Your Energy-Based Model for
    Regression", BMVC 2020 (arXiv 2005.01698).

    Args:
        output (Tensor[M]): f, outputs of the head for the boxes of all objects.
        objects (Tensor[M]): int64, object of each box, ascending from 0; the first box of each object is its target.
        log_density (Tensor[M]): log q, logarithm of the density of the noise at each box.

    Returns:
        Tensor[]: mean over the objects; 0, with a gradient, if there are none.
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
    """Return a mask [M] of the first occurrence of each value in a sorted Tensor[M], such as each object's target."""
    first = torch.ones_like(objects, dtype=torch.bool)
    first[1:] = objects[1:] != objects[:-1]
    return first
