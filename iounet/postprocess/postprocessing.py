"""From candidates to detections: NMS, refinement and final scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..detections import Detections
from ..errors import check_choice
from ..nms_options import NMSOptions
from .nms import suppress
from .refinement import RefinementOptions

FINAL_SCORES = ("class", "class_times_iou")

# Refine: detections of each image, options → the same detections with refined boxes.
# Suppress: candidates of each image, options → the candidates that NMS keeps.
Refine = Callable[[Sequence[Detections], RefinementOptions], Sequence[Detections]]
Suppress = Callable[[Sequence[Detections], NMSOptions], Sequence[Detections]]


@dataclass(frozen=True)
class Postprocessing:
    """Options of NMS, refinement and final scores at inference. The defaults are the paper's.

    Attributes:
        nms: options of NMS.
        refinement: options of refinement.
        refine_before_nms: refine all candidates before NMS, not only those that NMS keeps.
        final_score: score of the detections: "class", the class score, or "class_times_iou", the class score multiplied
            by the predicted IoU.

    Raises:
        OptionError: ``final_score`` is unknown.
    """

    nms: NMSOptions = field(default_factory=NMSOptions)
    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    refine_before_nms: bool = False
    final_score: str = "class"

    def __post_init__(self) -> None:
        check_choice("final_score", self.final_score, FINAL_SCORES)

    def unrefined(self) -> "Postprocessing":
        """Return these options without refinement."""
        return replace(self, refinement=replace(self.refinement, num_steps=0))


def suppress_each(candidates: Sequence[Detections], options: NMSOptions) -> Sequence[Detections]:
    """Apply `suppress` to each image."""
    return [suppress(of_image, options) for of_image in candidates]


def postprocess(
    candidates: Sequence[Detections], options: Postprocessing, refine: Refine, suppress: Suppress = suppress_each
) -> Sequence[Detections]:
    """Turn the candidates of each image into detections, sorted by descending score.

    Args:
        candidates: for each image, scored boxes before NMS with their predicted IoUs.
        options: options of NMS, refinement and final scores.
        refine: function that refines boxes, such as `iounet.modeling.IoUNet.refine` bound to the images' features.
        suppress: function that applies NMS; replace it to record or reuse results.

    Returns:
        The detections of each image.
    """
    if options.refine_before_nms:
        detections = suppress(refine(candidates, options.refinement), options.nms)
    else:
        detections = refine(suppress(candidates, options.nms), options.refinement)
    if options.final_score == "class":
        return detections
    return [_times_iou(of_image) for of_image in detections]


def _times_iou(detections: Detections) -> Detections:
    scores = detections.scores * detections.ious.clamp(0, 1)
    order = scores.argsort(descending=True, stable=True)
    return replace(detections, scores=scores)[order]
