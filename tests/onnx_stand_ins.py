"""Stand-ins for tests of OnnxRefiner: an ONNX model, and an equivalent detector in torch."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from iounet.detections import RefinedDetections
from iounet.modeling import IoUNet
from iounet.postprocess import NMSOptions, Postprocessing, Stop

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CATEGORIES = [{"id": 3, "name": "cross"}, {"id": 7, "name": "star"}, {"id": 90, "name": "triangle"}]
METADATA = {
    "format": 1,
    "kind": "refiner",
    "categories": CATEGORIES,
    "min_size": 96,
    "max_size": 96,
    "nms": {"threshold": 0.5, "ranking": "iou", "soft_sigma": 0.5},
    "objective": "iou",
    "num_steps": 5,
}

# Behaviour of the stand-ins: a box of a known class moves by SHIFT pixels and is clipped to the image; others stay. The
# predicted IoU is the red value of the last pixel in the first row minus 1/256 of the box's height. After refinement it
# is SUM minus this value, so the best box before refinement becomes the worst.
SHIFT = [3.0, -2.0, 3.0, -2.0]
SUM = 1.25


def write_model(path, metadata):
    """Write the stand-in as an ONNX file."""
    float32, int64 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
    constants = {
        "zero": np.zeros(4, np.float32), "shift": np.array(SHIFT, np.float32), "sum": np.float32(SUM),
        "unknown": np.int64(0), "per_pixel": np.float32(1 / 256), "as_column": np.array([-1, 1]),
        "flat": np.array([-1]),
        "sides": np.array([3, 2, 3, 2]), "y1": np.int64(1), "y2": np.int64(3),
        "first": np.array([0, 0, 0, -1]), "behind": np.array([1, 1, 1, 2**31]),
        "moved_stop": np.int64(Stop.STEPS), "other_stop": np.int64(Stop.CONVERGED),
    }  # fmt: skip
    nodes = [
        (["image"], "Shape", "shape"),
        (["shape", "sides"], "Gather", "ends_int"),
        (["ends_int"], "Cast", "ends"),
        (["labels", "unknown"], "Greater", "known"),
        (["known", "as_column"], "Reshape", "known_column"),
        (["boxes", "shift"], "Add", "shifted"),
        (["shifted", "zero"], "Max", "not_below"),
        (["not_below", "ends"], "Min", "inside"),
        (["known_column", "inside", "boxes"], "Where", "refined_boxes"),
        (["known", "moved_stop", "other_stop"], "Where", "stops"),
        (["image", "first", "behind"], "Slice", "pixel"),
        (["pixel", "flat"], "Reshape", "red"),
        (["boxes", "y1"], "Gather", "top"),
        (["boxes", "y2"], "Gather", "bottom"),
        (["bottom", "top"], "Sub", "height"),
        (["height", "per_pixel"], "Mul", "part"),
        (["red", "part"], "Sub", "ious_before"),
        (["sum", "ious_before"], "Sub", "ious"),
    ]
    attributes = {"Cast": {"to": float32}}
    one_column = {"top": {"axis": 1}, "bottom": {"axis": 1}}
    value = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, inputs, [output], **attributes.get(op, {}), **one_column.get(output, {}))
         for inputs, op, output in nodes],
        "stand-in",
        [value("image", float32, [1, 3, "H", "W"]), value("boxes", float32, ["N", 4]), value("labels", int64, ["N"])],
        [value("refined_boxes", float32, ["N", 4]), value("ious_before", float32, ["N"]), value("ious", float32, ["N"]),
         value("stops", int64, ["N"])],
        [onnx.numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


class StandInDetector(nn.Module):
    """The stand-in as a detector that resizes images to twice their size."""

    can_resize = IoUNet.can_resize

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.transform = SimpleNamespace(min_size=(96,), max_size=96)
        self.postprocessing = Postprocessing(nms=NMSOptions(**METADATA["nms"]))

    def extract(self, images):
        (image,) = images
        size = height, width = tuple(image.shape[1:])
        resized = (2 * height, 2 * width)

        def to_original(detections):
            return [of_image.rescaled(resized, size) for of_image in detections]

        return SimpleNamespace(sizes=[resized], red=image[0, 0, -1], to_original=to_original)

    def predict_ious(self, features, detections):
        (given,) = detections
        heights = (given.boxes[:, 3] - given.boxes[:, 1]) / 2
        return [replace(given, ious=features.red - heights / 256)]

    def refine(self, features, detections, options):
        (before,) = self.predict_ious(features, detections)
        (height, width), known = features.sizes[0], before.labels > 0
        shifted = before.boxes + 2 * torch.tensor(SHIFT)
        inside = shifted.clamp(torch.zeros(4), torch.tensor([width, height, width, height]))
        refined = replace(
            RefinedDetections.unmoved(before),
            boxes=torch.where(known[:, None], inside, before.boxes),
            ious=SUM - before.ious,
            stops=torch.where(known, int(Stop.STEPS), int(Stop.CONVERGED)),
        )
        return [refined]
