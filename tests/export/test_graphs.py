"""Changes of graphs: what ONNX Runtime computes stays the same, and what runs in a Loop is less, or in parts."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
ir = pytest.importorskip("onnx_ir")
ort = pytest.importorskip("onnxruntime")

from onnx_ir.passes.common import NameFixPass  # noqa: E402

from iounet.export.graphs import all_nodes, hoist_invariants, merge_equal_nodes, run_in_parts  # noqa: E402


def read(text):
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]>\n{text}'))


def run(model, **inputs):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, inputs)


def changed(model, change):
    model = model.clone()
    change(model.graph)
    # Names of two graphs may be equal, until they are one graph.
    NameFixPass()(model)
    return model


def operators(graph):
    return [node.op_type for node in graph]


def body(graph):
    (loop,) = [node for node in graph if node.op_type == "Loop"]
    return loop.attributes["body"].as_graph()


# ---- hoist_invariants

# In each step: y = y * exp(x) + step, and the last step's exp(x) is returned, too.
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


def test_what_is_the_same_in_each_step_is_hoisted_but_not_what_the_body_returns():
    model = changed(read(LOOP), hoist_invariants)
    # `factor` is returned by the body, and `negative` reads it.
    assert operators(model.graph) == ["Constant", "Add", "Sub", "Loop"]
    assert operators(body(model.graph)) == ["Identity", "Exp", "Neg", "Mul", "Cast", "Add"]


# The outer step squares x as the inner one does; only the inner one reads the outer's number.
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


def test_a_loop_that_is_the_same_in_each_step_is_hoisted_whole():
    model = read(NESTED.replace("Loop (steps, condition, before)", "Loop (steps, go_on, x)").replace("(number)", "(steps)"))
    hoisted = changed(model, hoist_invariants)
    assert operators(body(hoisted.graph)) == ["Identity"], "the sum is returned, and reads the loop alone"
