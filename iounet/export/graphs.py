"""Transformations of ONNX graphs that PyTorch's exporter and its optimiser lack."""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import CommonSubexpressionEliminationPass


def merge_equal_nodes(graph: ir.Graph) -> None:
    """Merge nodes that compute the same value, in place, in a graph and in each of its subgraphs."""
    CommonSubexpressionEliminationPass()(ir.Model(graph, ir_version=10))
    for node in graph:
        for subgraph in _subgraphs(node):
            merge_equal_nodes(subgraph)


def hoist_invariants(graph: ir.Graph) -> None:
    """Move loop-invariant nodes out of the Loops of a graph, in place.

    Afterwards, several values may have the same name; onnx_ir's ``NameFixPass`` repairs the names.
    """
    for loop in [node for node in graph if node.op_type == "Loop"]:
        (body,) = _subgraphs(loop)
        hoist_invariants(body)
        inside = _defined_in(body)
        for node in list(body):
            if _read_by(node) & inside or any(value.is_graph_output() for value in node.outputs):
                continue
            body.remove(node)
            graph.insert_before(loop, node)
            inside -= set(node.outputs)


def run_in_parts(graph: ir.Graph, rows: Sequence[ir.Value], at_once: int) -> None:
    """Move the nodes that depend on ``rows`` into a Loop that processes ``at_once`` rows per iteration, in place.

    Args:
        graph: graph that processes each row independently, and whose outputs all have N rows.
        rows: inputs of the graph with N rows each.
        at_once: number of rows per iteration.
    """
    dependent = set(rows)
    nodes = []
    for node in graph:
        if _read_by(node) & dependent:
            nodes.append(node)
            dependent |= set(node.outputs)
    of_part = [ir.Value(name=f"{value.name}_of_part", type=value.type) for value in rows]
    for value, part in zip(rows, of_part, strict=True):
        ir.convenience.replace_all_uses_with(value, part)
    graph.remove(nodes)
    shapes = [value.shape for value in graph.outputs]
    for node in nodes:
        for value in node.outputs:
            value.shape = None  # N is now the number of rows of a part

    number, condition = _input("part", ir.DataType.INT64), _input("condition", ir.DataType.BOOL)
    size = _constant([at_once])
    begin = ir.node("Mul", [number, size.outputs[0]])
    end = ir.node("Add", [begin.outputs[0], size.outputs[0]])
    axis, one = _constant([0]), _constant(1)
    slices = [
        ir.Node("", "Slice", [value, begin.outputs[0], end.outputs[0], axis.outputs[0]], outputs=[part])
        for value, part in zip(rows, of_part, strict=True)
    ]
    results = list(graph.outputs)
    sequences = [ir.SequenceType(value.type) for value in results if value.type is not None]
    lists = [ir.Value(name=f"{value.name}_so_far", type=type_) for value, type_ in zip(results, sequences, strict=True)]
    longer = [ir.node("SequenceInsert", pair) for pair in zip(lists, results, strict=True)]
    still = ir.node("Identity", [condition])
    names = [value.name for value in results]
    for value, node, type_ in zip(results, longer, sequences, strict=True):
        value.name = f"{value.name}_of_part"
        node.outputs[0].type = type_
    still.outputs[0].type = condition.type
    graph.outputs.clear()
    body = ir.Graph(
        [number, condition, *lists],
        [still.outputs[0], *(node.outputs[0] for node in longer)],
        nodes=[begin, end, *slices, *nodes, *longer, still],
        name="rows",
    )

    # Without rows, the loop still processes one empty part: an empty sequence cannot be concatenated.
    count = ir.node("Shape", [rows[0]], {"start": 0, "end": 1})
    increased = ir.node("Add", [count.outputs[0], size.outputs[0]])
    rounded = ir.node("Sub", [increased.outputs[0], one.outputs[0]])
    at_least = ir.node("Max", [rounded.outputs[0], size.outputs[0]])
    num_parts = ir.node("Div", [at_least.outputs[0], size.outputs[0]])
    trips = ir.node("Squeeze", [num_parts.outputs[0]])
    empty = [ir.node("SequenceEmpty", [], {"dtype": value.dtype}) for value in results]
    starts = [node.outputs[0] for node in empty]
    always = _constant(True)  # optional in ONNX, but one runtime treats a missing condition as false
    loop = ir.node("Loop", [trips.outputs[0], always.outputs[0], *starts], {"body": body}, num_outputs=len(results))
    together = [ir.node("ConcatFromSequence", [value], {"axis": 0}) for value in loop.outputs]
    graph.extend([size, axis, one, count, increased, rounded, at_least, num_parts, trips])
    graph.extend([always, *empty, loop, *together])
    for node, value, name, shape in zip(together, results, names, shapes, strict=True):
        node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = name, value.type, shape
        graph.outputs.append(node.outputs[0])


def _subgraphs(node: ir.Node) -> list[ir.Graph]:
    return [attribute.as_graph() for attribute in node.attributes.values() if attribute.type == ir.AttributeType.GRAPH]


def _defined_in(graph: ir.Graph) -> set[ir.Value]:
    return set(graph.inputs) | {value for node in graph for value in node.outputs}


def _read_by(node: ir.Node) -> set[ir.Value]:
    """Return the inputs of a node and of the nodes of its subgraphs."""
    nodes = [node, *(inner for subgraph in _subgraphs(node) for inner in ir.traversal.RecursiveGraphIterator(subgraph))]
    return {value for each in nodes for value in each.inputs if value is not None}


def _input(name: str, dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, type=ir.TensorType(dtype), shape=ir.Shape([]))


def _constant(value: bool | int | list[int]) -> ir.Node:
    return ir.node("Constant", [], {"value": ir.tensor(np.asarray(value))})
