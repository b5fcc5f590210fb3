"""The classification and regression branch: torchvision's RoI heads, stopped before their NMS."""

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from .precision import autocast_as, in_float32

MIN_BOX_SIZE = 1e-2  # pixels; torchvision's


class RoIHeads(TorchvisionRoIHeads):
    """Fast R-CNN's box branch. Sampling, matching, coding and parameter names are torchvision's.

    torchvision's own ``forward`` ends in greedy NMS; IoU-Net needs the boxes before it.
    """

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Cross-entropy of the class and smooth-L1 of the box offsets over sampled proposals.

        Boxes of proposals and targets are xyxy in pixels of the resized images.
        """
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        class_logits, box_regression = self._predict(features, proposals, image_sizes)
        loss_classifier, loss_box_reg = fastrcnn_loss(class_logits, box_regression, labels, regression_targets)
        return {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}

    def candidates(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Regressed boxes of every class that scores above ``score_thresh``, before any NMS.

        A proposal gives a box for each such class, placed by that class's own regressor.

        Returns:
            boxes (list of Tensor[K_i, 4]): xyxy, clipped to the resized image; those without area are left out.
            labels (list of Tensor[K_i]): 1..C.
            scores (list of Tensor[K_i]).
        """
        class_logits, decoded_boxes = self._predict_boxes(features, proposals, image_sizes)
        proposals_per_image = [len(proposals_in_image) for proposals_in_image in proposals]
        decoded = decoded_boxes.split(proposals_per_image)
        probabilities = class_logits.softmax(-1).split(proposals_per_image)

        all_boxes, all_labels, all_scores = [], [], []
        for boxes, class_scores, image_size in zip(decoded, probabilities, image_sizes, strict=True):
            proposal, label = torch.where(class_scores[:, 1:] > self.score_thresh)
            label = label + 1
            boxes = clip_boxes_to_image(boxes[proposal, label], image_size)
            keep = remove_small_boxes(boxes, min_size=MIN_BOX_SIZE)
            all_boxes.append(boxes[keep])
            all_labels.append(label[keep])
            all_scores.append(class_scores[proposal, label][keep])
        return all_boxes, all_labels, all_scores

    def sample_candidates(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[tuple[int, int]],
        num_samples: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """As :meth:`candidates` of proposals drawn at random, of one class each, drawn by its probability.

        Returns:
            boxes (list of Tensor[K_i, 4]): xyxy, clipped to the resized image; at most ``num_samples`` in each, and
                those without area are left out.
            labels (list of Tensor[K_i]): 1..C.
        """
        drawn = [of_image[torch.randperm(len(of_image))[:num_samples]] for of_image in proposals]
        class_logits, decoded = self._predict_boxes(features, drawn, image_sizes)
        labels = class_logits[:, 1:].softmax(-1).multinomial(1)[:, 0] + 1
        boxes = decoded[torch.arange(len(decoded)), labels]
        counts = [len(of_image) for of_image in drawn]
        all_boxes, all_labels = [], []
        for of_image, label, image_size in zip(boxes.split(counts), labels.split(counts), image_sizes, strict=True):
            clipped = clip_boxes_to_image(of_image, image_size)
            keep = remove_small_boxes(clipped, min_size=MIN_BOX_SIZE)
            all_boxes.append(clipped[keep])
            all_labels.append(label[keep])
        return all_boxes, all_labels

    def regress(
        self,
        features: dict[str, Tensor],
        boxes: list[Tensor],
        labels: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Tensor]:
        """Boxes moved once by the regressors of their classes: list of Tensor[K_i, 4], clipped to the resized image.

        Repeated, this is the iterative bounding-box regression that the paper compares its refinement with (figure 3).
        A box that would lose its area stays where it is.
        """
        _, decoded = self._predict_boxes(features, boxes, image_sizes)
        decoded = decoded[torch.arange(len(decoded)), torch.cat(labels)]
        moved = []
        for before, after, image_size in zip(
            boxes, decoded.split([len(boxes_in_image) for boxes_in_image in boxes]), image_sizes, strict=True
        ):
            after = clip_boxes_to_image(after, image_size)
            has_area = (after[:, 2:] > after[:, :2]).all(1)
            moved.append(torch.where(has_area[:, None], after, before))
        return moved

    def _predict_boxes(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        """Class logits [K, C + 1], and the boxes of all classes [K, C + 1, 4], not clipped."""
        class_logits, box_regression = self._predict(features, proposals, image_sizes)
        # decode leaves the box dimension out where there is no proposal.
        return class_logits, self.box_coder.decode(box_regression, proposals).reshape(*class_logits.shape, 4)

    def _predict(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, proposals, image_sizes)
        with autocast_as(pooled):
            hidden = self.box_head(pooled)
        # Boxes are decoded in the dtype of their offsets.
        class_logits, box_regression = in_float32(self.box_predictor, hidden)
        return class_logits, box_regression
