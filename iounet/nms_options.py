"""The options of non-maximum suppression, which PyTorch's and NumPy's have in common."""

from dataclasses import dataclass

from .errors import OptionError, check_choice, check_range

KINDS = ("greedy", "soft", "iou_guided")


@dataclass(frozen=True)
class NMSOptions:
    """Which boxes of an image are kept; the defaults are the paper's.

    Attributes:
        kind: "greedy", "soft" or "iou_guided".
        threshold: Omega_nms; boxes whose IoU is above it suppress each other (greedy, iou_guided).
        ranking: what iou_guided ranks by: "iou", the predicted IoU, or "score_times_iou".
        soft_sigma: of soft-NMS, see :func:`iounet.postprocess.soft_nms`.
        max_detections: boxes kept in an image, those of highest score.

    Raises:
        OptionError: a number out of range; an unknown kind or ranking.
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
