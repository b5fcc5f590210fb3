"""Options of non-maximum suppression, shared by the PyTorch and the NumPy implementation."""

from dataclasses import dataclass

from .errors import OptionError, check_choice, check_range

KINDS = ("greedy", "soft", "iou_guided")


@dataclass(frozen=True)
class NMSOptions:
    """How duplicate boxes are suppressed; the defaults are the paper's.

    Attributes:
        kind: "greedy", "soft" or "iou_guided".
        threshold: Omega_nms: boxes with a higher IoU suppress each other (greedy and IoU-guided NMS).
        ranking: what IoU-guided NMS ranks boxes by: "iou" (predicted IoU) or "score_times_iou".
        soft_sigma: ``sigma`` of `iounet.postprocess.soft_nms`.
        max_detections: maximum number of boxes kept per image, those with the highest scores.

    Raises:
        OptionError: a number is out of range, or ``kind`` or ``ranking`` is unknown.
    """

    kind: str = "iou_guided"
    threshold: float = 0.5
    ranking: str = "iou"
    soft_sigma: float = 0.5
    max_detections: int = 100

    def __post_init__(self) -> None:
        check_range("threshold", self.threshold, 0, 1)
        if not self.soft_sigma > 0:
            raise OptionError("soft_sigma", f"must be positive; got {self.soft_sigma}")
        check_range("max_detections", self.max_detections, 1)
        check_choice("kind", self.kind, KINDS)
        check_choice("ranking", self.ranking, ("iou", "score_times_iou"))
