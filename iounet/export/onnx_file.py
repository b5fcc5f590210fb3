"""Export the refiner or the detector as one ONNX file of standard operators."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
import torch
from onnx_ir.passes import common as passes

from prroi_pool.onnx import translations as pooling

from ..files import make_folder, replacing
from ..modeling import ImageTransform
from ..onnx import FORMAT, METADATA_KEY
from ..refiner import IoURefiner
from . import grouped_nms
from .detector import INPUTS as detector_inputs
from .detector import OUTPUTS as detector_outputs
from .detector import export_detector
from .graphs import hoist_invariants, merge_equal_nodes, run_in_parts
from .refiner import INPUTS as refiner_inputs
from .refiner import OUTPUTS as refiner_outputs
from .refiner import export_refiner
from .weights import shrink_weights

OPSET = 18
# Number of boxes refined together. The feature pixels under all of these boxes are in memory at once.
BOXES_AT_ONCE = 100


def export_onnx(refiner: IoURefiner, path: str | Path, *, weights_dtype: str = "float32") -> None:
    """Export a refiner to an ONNX file that computes the same as `iounet.IoURefiner.refine`.

    Inputs of the file: ``image`` float32 [1, 3, H, W], RGB in [0, 1]; ``boxes`` float32 [N, 4], xyxy in pixels of the
    image; ``labels`` int64 [N], 0 for an unknown class. The outputs are those of
    `iounet.export.refiner.ExportableRefiner`. H, W and N are dynamic, and N may be 0. All operators belong to ONNX's
    standard domain. The metadata key "iounet" contains JSON for `iounet.onnx.OnnxRefiner`.

    Args:
        refiner: the refiner to export.
        path: file to write; its folder is created if missing.
        weights_dtype: "float32", "float16" or "int8": dtype of the stored weights, see `shrink_weights`. Inputs,
            outputs and computation stay float32.

    Raises:
        OptionError: ``weights_dtype`` is unknown.
        CheckpointError: a weight overflows float16.
    """
    model = _translated(export_refiner(refiner.detector), refiner_inputs, refiner_outputs, pooling(rois_at_once=None))
    rows = [value for value in model.graph.inputs if value.name in ("boxes", "labels")]
    run_in_parts(model.graph, rows, BOXES_AT_ONCE)
    _save(model, refiner, "refiner", path, weights_dtype)


def export_detector_onnx(refiner: IoURefiner, path: str | Path, *, weights_dtype: str = "float32") -> None:
    """Export a refiner's detector to an ONNX file that detects objects in an image.

    The input of the file is ``image`` as in `export_onnx`. The outputs are those of
    `iounet.export.detector.ExportableDetector`; they have no rows if nothing is detected.

    Args:
        refiner: the refiner whose detector is exported.
        path: file to write; its folder is created if missing.
        weights_dtype: as in `export_onnx`.

    Raises:
        ConfigError: the detector uses soft-NMS.
        OptionError, CheckpointError: as in `export_onnx`.
    """
    table = pooling() | grouped_nms.translations()
    model = _translated(export_detector(refiner.detector), detector_inputs, detector_outputs, table)
    _save(model, refiner, "detector", path, weights_dtype)


def _translated(
    program: torch.export.ExportedProgram,
    inputs: Sequence[str],
    outputs: Sequence[str],
    table: dict[Callable[..., Any], Callable[..., Any]],
) -> ir.Model:
    # The optimiser warns about each node that it does not change.
    logging.getLogger("onnxscript.optimizer").setLevel(logging.ERROR)
    with torch.no_grad():
        translated = torch.onnx.export(
            program,
            dynamo=True,
            custom_translation_table=table,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            verbose=False,
        )
    assert translated is not None, "given no path, the exporter returns the model"
    return translated.model


def _save(model: ir.Model, refiner: IoURefiner, kind: str, path: str | Path, weights_dtype: str) -> None:
    """Optimise ``model``, prepend the resizing of the image, add the metadata and write the file."""
    hoist_invariants(model.graph)
    merge_equal_nodes(model.graph)
    shrink_weights(model.graph, weights_dtype)
    outputs = [str(value.name) for value in model.graph.outputs]
    # The names of the two graphs must differ.
    resizing = onnx.compose.add_prefix(
        _resizing(refiner.detector.transform, model.ir_version), "resizing_", rename_inputs=False, rename_outputs=False
    )
    between = [(name, name) for name in ("resized", "size", "resized_size")]
    proto = onnx.compose.merge_models(resizing, ir.to_proto(_tidied(model)), between, outputs=outputs)
    del proto.opset_import[1:]  # both models import the same opset
    _name_rows(proto.graph, "N" if kind == "refiner" else "D")
    onnx.helper.set_model_props(proto, {METADATA_KEY: json.dumps(_description(refiner, kind))})
    onnx.checker.check_model(proto, full_check=True)
    make_folder(Path(path).parent)
    with replacing(Path(path), "wb") as file:
        file.write(proto.SerializeToString())


def _name_rows(graph: onnx.GraphProto, name: str) -> None:
    """Name the dimension of boxes as in the documentation; the exporter generates a name such as s97."""
    del graph.value_info[:]  # contains the generated name; runtimes infer these shapes
    for value in (*graph.input, *graph.output):
        if value.name != "image":
            value.type.tensor_type.shape.dim[0].dim_param = name


def _tidied(model: ir.Model) -> ir.Model:
    """Remove unused nodes and the exporter's metadata, which takes a third of the file."""
    passes.RemoveUnusedNodesPass()(model)
    passes.ClearMetadataAndDocStringPass()(model)
    passes.NameFixPass()(model)
    return model


def _resizing(transform: ImageTransform, ir_version: int) -> onnx.ModelProto:
    """Build the graph of `iounet.modeling.ImageTransform`: normalise, resize, and pad to multiples of 32."""
    numbers = [", ".join(map(str, values)) for values in (transform.image_mean, transform.image_std)]
    mean, std = (f"float[1, 3, 1, 1] {{{values}}}" for values in numbers)
    divisor = transform.size_divisible
    # Sizes are computed in double precision as in Python, because rounding could lose a pixel.
    return onnx.parser.parse_model(f"""
        <ir_version: {ir_version}, opset_import: ["": {OPSET}]>
        resizing (float[1, 3, H, W] image)
            => (float[1, 3, padded_H, padded_W] resized, float[2] size, float[2] resized_size)
        {{
            sides = Shape <start = 2> (image)
            size = Cast <to = 1> (sides)
            sides_as_double = Cast <to = 11> (sides)
            shorter = ReduceMin <keepdims = 0> (sides_as_double)
            longer = ReduceMax <keepdims = 0> (sides_as_double)
            min_size = Constant <value = double {{{transform.min_size[-1]}}}> ()
            max_size = Constant <value = double {{{transform.max_size}}}> ()
            enlarged = Div (min_size, shorter)
            at_most = Div (max_size, longer)
            factor = Min (enlarged, at_most)
            exact_sides = Mul (sides_as_double, factor)
            whole_sides = Floor (exact_sides)
            resized_size = Cast <to = 1> (whole_sides)
            new_sides = Cast <to = 7> (whole_sides)
            one = Constant <value_int = 1> ()
            visible_sides = Max (new_sides, one)
            mean = Constant <value = {mean}> ()
            std = Constant <value = {std}> ()
            centered = Sub (image, mean)
            normalized = Div (centered, std)
            image_and_channels = Constant <value_ints = [1, 3]> ()
            new_shape = Concat <axis = 0> (image_and_channels, visible_sides)
            small = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel">
                (normalized, "", "", new_shape)
            divisor = Constant <value_int = {divisor}> ()
            almost = Constant <value_int = {divisor - 1}> ()
            increased = Add (visible_sides, almost)
            times = Div (increased, divisor)
            padded_sides = Mul (times, divisor)
            missing = Sub (padded_sides, visible_sides)
            before = Constant <value_ints = [0, 0, 0, 0, 0, 0]> ()
            pads = Concat <axis = 0> (before, missing)
            resized = Pad (small, pads)
        }}
    """)


def _description(refiner: IoURefiner, kind: str) -> dict[str, Any]:
    """Return the metadata for `iounet.onnx.OnnxRefiner`."""
    detector = refiner.detector
    nms, refinement = detector.postprocessing.nms, detector.postprocessing.refinement
    return {
        "format": FORMAT,
        "kind": kind,
        "categories": refiner.categories,
        "min_size": detector.transform.min_size[-1],
        "max_size": detector.transform.max_size,
        "nms": {"threshold": nms.threshold, "ranking": nms.ranking, "soft_sigma": nms.soft_sigma},
        "objective": refinement.objective,
        "num_steps": refinement.num_steps,
    }
