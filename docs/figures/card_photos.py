"""The photographs in examples/ and the detector in weights/, from which the figures of the method pages are drawn."""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou

from iounet import IoURefiner
from iounet.boxes import best_iou
from iounet.data import CocoDataset
from iounet.detections import Detections
from iounet.postprocess import greedy_nms, iou_guided_nms

ROOT = Path(__file__).resolve().parents[2]
PHOTOS = ROOT / "examples" / "photos"
NMS_THRESHOLD = 0.5


@cache
def refiner() -> IoURefiner:
    return IoURefiner.from_checkpoint(ROOT / "weights" / "cards.pth", "cpu")


@cache
def photographs(annotations: str = "annotations.json") -> CocoDataset:
    """Return the six photographs with their annotated boxes, or with the loose boxes of ``loose.json``."""
    return CocoDataset(str(PHOTOS / annotations), str(PHOTOS))


@cache
@torch.no_grad()
def candidates(row: int) -> tuple[Detections, Tensor]:
    """Return the boxes of a photograph before NMS, in pixels of the photograph, and their true IoUs."""
    image, target = photographs()[row]
    detector = refiner().detector
    features = detector.extract([image])
    (found,) = features.to_original(detector.detect(features, detector.propose(features)))
    return found, best_iou(found.boxes, found.labels, target["boxes"], target["labels"])


class Card(NamedTuple):
    """An annotated card, and the candidates around it, of which NMS keeps one.

    Attributes:
        image: photograph, Tensor[3, H, W].
        truth: annotated box of the card, Tensor[4].
        found: all N candidates of the photograph.
        true_ious: true IoU of each candidate, Tensor[N].
        of_card: mask of the candidates that have the class of the card and overlap it, bool Tensor[N].
        greedy: index of the candidate that greedy NMS keeps.
        guided: index of the candidate that IoU-guided NMS keeps.
        inherited: class score of the candidate ``guided`` after NMS.
    """

    image: Tensor
    truth: Tensor
    found: Detections
    true_ious: Tensor
    of_card: Tensor
    greedy: Tensor
    guided: Tensor
    inherited: float


@cache
def card_with_two_candidates(row: int, card: int) -> Card:
    """Return a card of a photograph, for which greedy NMS and IoU-guided NMS should keep different boxes."""
    image, target = photographs()[row]
    truth, label = target["boxes"][card], target["labels"][card]
    found, true_ious = candidates(row)
    of_card = (box_iou(truth[None], found.boxes)[0] > NMS_THRESHOLD) & (found.labels == label)
    greedy, _ = greedy_nms(found.boxes, found.scores, found.labels, NMS_THRESHOLD)
    guided, scores = iou_guided_nms(found.boxes, found.scores, found.ious, found.labels, NMS_THRESHOLD)
    place = int(of_card[guided].nonzero()[0, 0])
    first = greedy[of_card[greedy]][0]
    return Card(image, truth, found, true_ious, of_card, first, guided[place], float(scores[place]))
