"""The choices at inference."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Postprocessing:
    """What happens to the candidates of an image at inference; the defaults are the paper's.

    Attributes:
        nms: "greedy", "soft" or "iou_guided".
        nms_threshold: overlap above which a box is suppressed (greedy, iou_guided): Omega_nms.
        ranking: what iou_guided ranks by: "iou", or "score_times_iou".
        detections_per_image: boxes kept after NMS, those of highest class score.
        refinement_steps, step_size, early_stop, degeneration, coordinates, accept: of
            :func:`iounet.postprocess.refine_boxes`; with 0 steps boxes are not refined.
        refine_before_nms: refine all candidates rather than what NMS leaves.
        final_score: "class", or "class_times_iou", of the detections.
    """

    nms: str = "iou_guided"
    nms_threshold: float = 0.5
    ranking: str = "iou"
    detections_per_image: int = 100
    refinement_steps: int = 5
    step_size: float = 0.5
    early_stop: float = 1e-3
    degeneration: float = -1e-2
    coordinates: str = "pixels"
    accept: str = "every"
    refine_before_nms: bool = False
    final_score: str = "class"

    def __post_init__(self) -> None:
        for field, key, choices in (
            ("nms", "NMS", ("greedy", "soft", "iou_guided")),
            ("ranking", "RANKING", ("iou", "score_times_iou")),
            ("coordinates", "REFINE.COORDINATES", ("pixels", "relative")),
            ("accept", "REFINE.ACCEPT", ("every", "best", "rising")),
            ("final_score", "FINAL_SCORE", ("class", "class_times_iou")),
        ):
            value = getattr(self, field)
            if value not in choices:
                raise ValueError(f"unknown {field} '{value}': TEST.{key} is one of {', '.join(choices)}")
