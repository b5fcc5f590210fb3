"""Smaller ONNX files: store weights in fewer bits than the computation uses."""

import numpy as np
import onnx_ir as ir

from ..errors import CheckpointError, check_choice

WEIGHT_DTYPES = ("float32", "float16", "int8")


def shrink_weights(graph: ir.Graph, dtype: str) -> None:
    """Store the weights of a graph's matrix products and convolutions in fewer bits, in place.

    The graph still computes in float32: its first nodes restore the weights, with ``Cast`` for float16, and with
    ``Cast`` and ``Mul`` by a scale for int8. Runtimes fold these nodes when they load the file, so speed and memory are
    those of float32. ``DequantizeLinear`` would be shorter than ``Mul``, but ONNX Runtime does not fold it: the node
    would run in every call, and the matrix products, which prepack constants, could not prepack its result.

    Args:
        graph: graph whose weights are float32 initializers. Biases are not changed, because they take little space.
        dtype: one of `WEIGHT_DTYPES`. "int8" rounds the weights w of each output channel (the first dimension, as in
            Gemm with transB and in Conv) to multiples of max |w| / 127.

    Raises:
        OptionError: ``dtype`` is unknown.
        CheckpointError: a weight overflows float16.
    """
    check_choice("weights_dtype", dtype, WEIGHT_DTYPES)
    if dtype == "float32":
        return
    for name, weights in [item for item in graph.initializers.items() if _is_weight(item[1])]:
        stored, nodes = _as_float16(weights) if dtype == "float16" else _as_int8(weights)
        restored = nodes[-1].outputs[0]
        ir.convenience.replace_all_uses_with(weights, restored)
        del graph.initializers[name]
        restored.name, restored.type, restored.shape = name, weights.type, weights.shape
        for value in stored:
            graph.register_initializer(value)
        graph.insert_before(graph[0], nodes)


def _is_weight(value: ir.Value) -> bool:
    assert value.shape is not None, "an initializer has a shape"
    products = ("Gemm", "MatMul", "Conv")
    return value.shape.rank() > 1 and any(node.op_type in products for node in value.consumers())


def _as_float16(weights: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    with np.errstate(over="ignore"):  # an error follows
        numbers = _numbers(weights).astype(np.float16)
    if np.isinf(numbers).any():
        raise CheckpointError(f"{weights.name} has values that overflow float16; choose int8 or float32")
    rounded = _initializer(f"{weights.name}_float16", numbers)
    return [rounded], [ir.node("Cast", [rounded], {"to": ir.DataType.FLOAT})]


def _as_int8(weights: ir.Value) -> tuple[list[ir.Value], list[ir.Node]]:
    numbers = _numbers(weights)
    scales = np.abs(numbers).max(axis=tuple(range(1, numbers.ndim)), keepdims=True) / np.float32(127)
    scales[scales == 0] = 1  # a channel of zeros
    rounded = _initializer(f"{weights.name}_int8", np.rint(numbers / scales).astype(np.int8))
    scale = _initializer(f"{weights.name}_scale", scales)
    cast = ir.node("Cast", [rounded], {"to": ir.DataType.FLOAT})
    return [rounded, scale], [cast, ir.node("Mul", [cast.outputs[0], scale])]


def _numbers(weights: ir.Value) -> np.ndarray:
    assert weights.const_value is not None, "an initializer has a value"
    return weights.const_value.numpy()


def _initializer(name: str, numbers: np.ndarray) -> ir.Value:
    return ir.val(name, const_value=ir.tensor(numbers, name=name))
