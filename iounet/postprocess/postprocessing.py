"""From candidates to detections: suppression, refinement and final scores, in the order that the options ask for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..detections import Detections
from ..errors import check_choice
from ..nms_options import NMSOptions
from .nms import suppress
from .refinement import RefinementOptions

FINAL_SCORES = ("class", "class_times_iou")

# Detections of each image, options → the same detections with refined boxes, and those that NMS keeps.
Refine = Callable[[Sequence[Detections], RefinementOptions], Sequence[Detections]]
Suppress = Callable[[Sequence[Detections], NMSOptions], Sequence[Detections]]


@dataclass(frozen=True)
class Postprocessing:
    """What happens to the candidates of an image at inference; the defaults are the paper's.

    Attributes:
        nms: which candidates are kept.
        refinement: how boxes are refined.
        refine_before_nms: refine all candidates, not only those that NMS keeps.
        final_score: of the detections: "class", the class score, or "class_times_iou".

    Raises:
        OptionError: an unknown final score.
    """

    nms: NMSOptions = field(default_factory=NMSOptions)
    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    refine_before_nms: bool = False
    final_score: str = "class"

    def __post_init__(self) -> None:
        check_choice("final_score", self.final_score, FINAL_SCORES)

    def unrefined(self) -> "Postprocessing":
        """The same without refinement."""
        return replace(self, refinement=replace(self.refinement, num_steps=0))


def suppress_each(candidates: Sequence[Detections], options: NMSOptions) -> Sequence[Detections]:
    """:func:`suppress` for several images."""
    return [suppress(of_image, options) for of_image in candidates]


def postprocess(
    candidates: Sequence[Detections], options: Postprocessing, refine: Refine, suppress: Suppress = suppress_each
) -> Sequence[Detections]:
    """Detections of each image, by falling score.

    Args:
        candidates: scored boxes of each image before NMS, with their predicted IoUs.
        refine: the detector's :meth:`iounet.modeling.IoUNet.refine`, with the images' features.
        suppress: to look on, or to reuse results.
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
