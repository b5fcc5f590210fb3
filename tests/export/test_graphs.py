"""Transformations of ONNX graphs: results are unchanged, and Loops contain fewer nodes or process rows in parts."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from onnx_ir.passes.common import NameFixPass  # noqa: E402

from iounet.export.graphs import hoist_invariants, merge_equal_nodes, run_in_parts  # noqa: E402


def read(text):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{text}'))


def run(model, **inputs):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {name: np.asarray(value) for name, value in inputs.items()})


def changed(model, change):
    model = model.clone()
    change(model.graph)
    # Nodes of different graphs may have equal names; merged graphs need unique names.
    NameFixPass()(model)
    return model


def operators(graph):
    return [node.op_type for node in graph]


def body(graph):
    (loop,) = [node for node in graph if node.op_type == "Loop"]
    return loop.attributes["body"].as_graph()


# ---- hoist_invariants

# Each step computes y = y * exp(x) + step; exp(x) of the last step is also returned.
LOOP = """
loop (float[N] x, int64 steps) => (float[N] y, float[N] last) {
    go_on = Constant <value = bool {1}> ()
    y, last = Loop (steps, go_on, x, x) <body = step
        (int64 number, bool condition, float[N] before, float[N] unused)
        => (bool same, float[N] after, float[N] factor)
    {
        same = Identity (condition)
        twice = Add (x, x)
        exponent = Sub (twice, x)
        factor = Exp (exponent)
        negative = Neg (factor)
        scaled = Mul (before, negative)
        as_float = Cast <to = 1> (number)
        after = Add (scaled, as_float)
    }>
}
"""


def expected_loop(x, steps):
    y, last = x, x
    for number in range(steps):
        last = np.exp(x)
        y = y * -last + number
    return y, last


X = np.array([0.1, -0.2, 0.3], dtype=np.float32)


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_hoisting_keeps_the_values(steps):
    model = read(LOOP)
    for tested in (model, changed(model, hoist_invariants)):
        found = run(tested, x=X, steps=np.int64(steps))
        np.testing.assert_allclose(found, expected_loop(X, steps), rtol=1e-6)


def test_invariants_are_hoisted_unless_the_body_returns_them():
    model = changed(read(LOOP), hoist_invariants)
    # The body returns `factor`, and `negative` reads it.
    assert operators(model.graph) == ["Constant", "Add", "Sub", "Loop"]
    assert operators(body(model.graph)) == ["Identity", "Exp", "Neg", "Mul", "Cast", "Add"]


# Outer and inner step both square x; only the inner step reads the number of the outer step.
NESTED = """
nested (float[N] x, int64 steps) => (float[N] y) {
    go_on = Constant <value = bool {1}> ()
    y = Loop (steps, go_on, x) <body = outer
        (int64 number, bool condition, float[N] before) => (bool same, float[N] after)
    {
        same = Identity (condition)
        squares = Mul (x, x)
        inner_y = Loop (steps, condition, before) <body = inner
            (int64 inner_number, bool inner_condition, float[N] inner_before)
            => (bool inner_same, float[N] inner_after)
        {
            inner_same = Identity (inner_condition)
            cubes = Mul (squares, x)
            as_float = Cast <to = 1> (number)
            factor = Add (cubes, as_float)
            scaled = Mul (inner_before, factor)
            inner_as_float = Cast <to = 1> (inner_number)
            inner_after = Add (scaled, inner_as_float)
        }>
        after = Add (inner_y, squares)
    }>
}
"""


def expected_nested(x, steps):
    y = x
    for number in range(steps):
        for inner_number in range(steps):
            y = y * (x**3 + number) + inner_number
        y = y + x**2
    return y


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_hoisting_out_of_nested_loops(steps):
    model = read(NESTED)
    hoisted = changed(model, hoist_invariants)
    for tested in (model, hoisted):
        np.testing.assert_allclose(run(tested, x=X, steps=np.int64(steps))[0], expected_nested(X, steps), rtol=1e-5)
    assert operators(hoisted.graph) == ["Constant", "Mul", "Mul", "Loop"]
    assert operators(body(hoisted.graph)) == ["Identity", "Cast", "Add", "Loop", "Add"]
    assert operators(body(body(hoisted.graph))) == ["Identity", "Mul", "Cast", "Add"]


def test_an_invariant_loop_is_hoisted_as_a_whole():
    model = read(
        NESTED.replace("Loop (steps, condition, before)", "Loop (steps, go_on, x)").replace("(number)", "(steps)")
    )
    hoisted = changed(model, hoist_invariants)
    assert operators(hoisted.graph)[-2:] == ["Loop", "Loop"]
    assert operators(hoisted.graph.outputs[0].producer().attributes["body"].as_graph()) == ["Identity", "Add"]
    results = [run(tested, x=X, steps=np.int64(3)) for tested in (model, hoisted)]
    np.testing.assert_array_equal(*results)


def test_a_loop_whose_body_reads_the_step_is_not_hoisted():
    model = read(NESTED.replace("Loop (steps, condition, before)", "Loop (steps, go_on, x)"))
    hoisted = changed(model, hoist_invariants)
    assert operators(body(hoisted.graph)).count("Loop") == 1
    results = [run(tested, x=X, steps=np.int64(3)) for tested in (model, hoisted)]
    np.testing.assert_allclose(*results, rtol=1e-6)


# ---- run_in_parts

# Nodes that depend on rows of both inputs, and nodes that do not; the second output is an integer.
ROWS = """
rows (float[N, 3] values, int64[N] labels, float[3] shared) => (float[N, 3] scaled, int64[N] rounded)
    <float[2] two = {1.0, 2.0}>
{
    axis = Constant <value_ints = [1]> ()
    exponential = Exp (shared)
    sums = ReduceSum <keepdims = 1> (values, axis)
    of_label = Gather (two, labels)
    of_labels = Unsqueeze (of_label, axis)
    factors = Mul (sums, of_labels)
    scaled = Mul (factors, exponential)
    flat = Squeeze (factors, axis)
    floored = Floor (flat)
    rounded = Cast <to = 7> (floored)
}
"""


def row_inputs(count):
    generator = np.random.default_rng(0)
    values = generator.normal(size=(count, 3)).astype(np.float32)
    return {"values": values, "labels": np.arange(count) % 2, "shared": X}


def expected_rows(values, labels, shared):
    factors = values.sum(1) * (labels + 1)
    return factors[:, None] * np.exp(shared), np.floor(factors).astype(np.int64)


def in_parts_of(at_once):
    def change(graph):
        run_in_parts(graph, [value for value in graph.inputs if value.name != "shared"], at_once)

    return changed(read(ROWS), change)


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 8, 9])
def test_parts_give_the_same_rows(at_once, count):
    model, inputs = in_parts_of(at_once), row_inputs(count)
    for tested in (read(ROWS), model):
        scaled, rounded = run(tested, **inputs)
        expected = expected_rows(**inputs)
        assert scaled.shape == (count, 3) and rounded.shape == (count,) and rounded.dtype == np.int64
        np.testing.assert_allclose(scaled, expected[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(rounded, expected[1])


def test_the_loop_contains_only_nodes_that_depend_on_rows_and_limits_the_rows():
    model = in_parts_of(4)
    assert operators(model.graph).count("Exp") == 1
    assert not {"Exp", "Constant"} & set(operators(body(model.graph)))
    assert [value.name for value in model.graph.outputs] == ["scaled", "rounded"]
    assert [list(map(str, value.shape)) for value in model.graph.outputs] == [["N", "3"], ["N"]]
    rows = {node.inputs[0].producer().op_type for node in body(model.graph) if node.op_type == "ReduceSum"}
    assert rows == {"Slice"}
    shapes = [value.shape for node in body(model.graph) for value in node.outputs if value.shape is not None]
    assert not any("N" in map(str, shape) for shape in shapes), "a part has not N rows"


# ---- merge_equal_nodes

TWICE = """
twice (float[N] x, int64 steps) => (float[N] y) {
    go_on = Constant <value = bool {1}> ()
    first = Exp (x)
    second = Exp (x)
    third = Neg (x)
    begin = Mul (first, second)
    y = Loop (steps, go_on, begin) <body = step
        (int64 number, bool condition, float[N] before) => (bool same, float[N] after)
    {
        same = Identity (condition)
        a = Sin (before)
        b = Sin (before)
        c = Cast <to = 1> (number)
        d = Cast <to = 1> (number)
        sum = Add (a, b)
        other = Add (c, d)
        twice_third = Add (third, other)
        after = Add (sum, twice_third)
    }>
}
"""


@pytest.mark.parametrize("steps", [0, 2])
def test_equal_nodes_are_computed_once_in_every_graph(steps):
    y = np.exp(X) ** 2
    for number in range(steps):
        y = 2 * np.sin(y) - X + 2 * number
    model = read(TWICE)
    merged = changed(model, merge_equal_nodes)
    for tested in (model, merged):
        np.testing.assert_allclose(run(tested, x=X, steps=np.int64(steps))[0], y, rtol=1e-5)
    for name in ("Exp", "Sin", "Cast"):
        counts = [
            [node.op_type for node in ir.traversal.RecursiveGraphIterator(tested.graph)].count(name)
            for tested in (model, merged)
        ]
        assert counts == [2, 1], name
    assert operators(merged.graph).count("Neg") == 1


def test_nodes_with_different_attributes_are_not_merged():
    model = read("""
        casts (float[N] x) => (int64[N] y, int32[N] z) {
            y = Cast <to = 7> (x)
            z = Cast <to = 6> (x)
        }
    """)
    y, z = run(changed(model, merge_equal_nodes), x=np.float32([1.5, -2.5]))
    assert y.tolist() == z.tolist() == [1, -2] and (y.dtype, z.dtype) == (np.int64, np.int32)


# ---- all of them, in the order of the export


@pytest.mark.parametrize("count", [0, 3, 5])
def test_a_loop_in_parts(count):
    """The nested Loop reads rows; nodes that do not depend on rows leave both Loops."""
    model = read("""
        both (float[N] x, float shared) => (float[N] y) {
            go_on = Constant <value = bool {1}> ()
            steps = Constant <value = int64 {3}> ()
            doubled = Add (x, x)
            y = Loop (steps, go_on, doubled) <body = step
                (int64 number, bool condition, float[N] before) => (bool same, float[N] after)
            {
                same = Identity (condition)
                factor = Exp (shared)
                factor_again = Exp (shared)
                of_row = Sin (x)
                product = Mul (of_row, factor)
                other = Mul (before, factor_again)
                after = Add (product, other)
            }>
        }
    """)

    def change(graph):
        run_in_parts(graph, graph.inputs[:1], 2)
        hoist_invariants(graph)
        merge_equal_nodes(graph)

    x, shared = np.arange(count, dtype=np.float32) / 7, np.float32(0.3)
    y = 2 * x
    for _ in range(3):
        y = np.sin(x) * np.exp(shared) + y * np.exp(shared)
    tested = changed(model, change)
    (found,) = run(tested, x=x, shared=shared)
    assert found.shape == (count,)
    np.testing.assert_allclose(found, y, rtol=1e-5)
    assert operators(tested.graph).count("Exp") == 1
    assert {"Sin", "Mul"} <= set(operators(body(tested.graph)))
    assert set(operators(body(body(tested.graph)))) == {"Identity", "Mul", "Add"}
