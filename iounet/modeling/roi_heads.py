"""The box branch for classification and regression: torchvision's RoI heads without their NMS."""

import torch
from torch import Tensor
from torchvision.models.detection.roi_heads import RoIHeads as TorchvisionRoIHeads
from torchvision.models.detection.roi_heads import fastrcnn_loss
from torchvision.ops import clip_boxes_to_image, remove_small_boxes

from .precision import autocast_as, in_float32

MIN_BOX_SIZE = 1e-2  # pixels, as in torchvision


class RoIHeads(TorchvisionRoIHeads):
    """Box branch of Fast R-CNN, with torchvision's sampling, matching, box coding and parameter names.

    torchvision's ``forward`` ends with greedy NMS. IoU-Net needs the boxes before NMS, which `candidates` returns.
    """

    def losses(
        self,
        features: dict[str, Tensor],
        proposals: list[Tensor],
        image_sizes: list[tuple[int, int]],
        targets: list[dict[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Return the losses of sampled proposals: cross-entropy of the class and smooth-L1 of the box offsets.

        Boxes of proposals and targets are xyxy in pixels of the resized images.
        """
        proposals, _, labels, regression_targets = self.select_training_samples(proposals, targets)
        class_logits, box_regression = self._predict(features, proposals, image_sizes)
        loss_classifier, loss_box_reg = fastrcnn_loss(class_logits, box_regression, labels, regression_targets)
        return {"loss_classifier": loss_classifier, "loss_box_reg": loss_box_reg}

    def candidates(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Return the regressed boxes of every class that scores above ``score_thresh``, before NMS.

        A proposal yields one box per such class, regressed for that class.

        Args:
            features: feature maps, level name → Tensor[B, C, H, W].
            proposals (list of B Tensor[P_i, 4]): xyxy in pixels of the resized images.
            image_sizes: (height, width) of each resized image in pixels.

        Returns:
            boxes (list of B Tensor[K_i, 4]): xyxy, clipped to the resized image; boxes without area are dropped.
            labels (list of B Tensor[K_i]): int64 in 1..C.
            scores (list of B Tensor[K_i]): class scores.
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
        """Draw random proposals and a class for each, and return the regressed boxes, for training the IoU head.

        Args:
            features: as in `candidates`.
            proposals: as in `candidates`; drawn uniformly.
            image_sizes: as in `candidates`.
            num_samples: maximum number of boxes per image.

        Returns:
            boxes (list of B Tensor[K_i, 4]): xyxy, clipped to the resized image; boxes without area are dropped.
            labels (list of B Tensor[K_i]): int64 in 1..C, drawn according to the predicted class probabilities.
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
        """Regress boxes once more, each for its class: list of B Tensor[K_i, 4], clipped to the resized image.

        Repeated calls implement the iterative bounding-box regression with which the paper compares its refinement
        (figure 3). A box that would lose its area stays unchanged.
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
        """Return class logits [K, C + 1] and the unclipped boxes of all classes [K, C + 1, 4]."""
        class_logits, box_regression = self._predict(features, proposals, image_sizes)
        # Without proposals, decode returns no dimension for classes.
        return class_logits, self.box_coder.decode(box_regression, proposals).reshape(*class_logits.shape, 4)

    def _predict(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> tuple[Tensor, Tensor]:
        pooled = self.box_roi_pool(features, proposals, image_sizes)
        with autocast_as(pooled):
            hidden = self.box_head(pooled)
        # Boxes are decoded in the dtype of their offsets, which must not be bfloat16.
        class_logits, box_regression = in_float32(self.box_predictor, hidden)
        return class_logits, box_regression
