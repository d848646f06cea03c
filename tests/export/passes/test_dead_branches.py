"""Branches that give the same for every input, against the graph with them."""

import numpy as np
import pytest

from export.passes.dead_branches import RemoveDeadBranches


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def zeros(*shape):
    return np.zeros(shape, np.float32)


def same(run_graph, rng, changed, model, *shape):
    x = normal(rng, *shape)
    np.testing.assert_allclose(run_graph(changed, x), run_graph(model, x), rtol=1e-6, atol=1e-6)


CONV = ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1]})
IMAGE = {"x": ("n", 4, 5, 5), "y": ("n", 4, 5, 5)}


def test_a_branch_of_zeros_leaves_nothing(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [CONV, ("Relu", ["c"], ["r"], {}), ("Add", ["r", "x"], ["s"], {}), ("Tanh", ["s"], ["y"], {})]
    model = make_graph(nodes, {"w": zeros(4, 4, 3, 3), "b": -np.abs(normal(rng, 4))}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Identity", "Tanh"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)


@pytest.mark.parametrize("join", ["Add", "Sub", "Mul", "Div"])
@pytest.mark.parametrize("dead_first", [False, True])
def test_a_constant_branch_becomes_its_constant(make_graph, run_graph, apply_pass, ops, rng, join, dead_first):
    """At the borders too: a convolution whose weights are zero gives its bias everywhere."""
    pair = ["r", "x"] if dead_first else ["x", "r"]
    nodes = [CONV, ("Sigmoid", ["c"], ["r"], {}), (join, pair, ["y"], {})]
    model = make_graph(nodes, {"w": zeros(4, 4, 3, 3), "b": normal(rng, 4)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == [join]
    same(run_graph, rng, changed, model, 3, 4, 5, 5)


def test_a_gate_that_is_zero_takes_its_branch_with_it(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        ("Mul", ["c", "gate"], ["g"], {}),
        ("Add", ["x", "g"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": normal(rng, 4, 4, 1, 1), "gate": zeros(4, 1, 1)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Identity"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)


@pytest.mark.parametrize("pool", ["GlobalAveragePool", "GlobalMaxPool"])
def test_what_differs_from_place_to_place_is_pooled(make_graph, run_graph, apply_pass, ops, rng, pool):
    nodes = [
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Add", ["c", "places"], ["p"], {}),
        (pool, ["p"], ["g"], {}),
        ("Mul", ["x", "g"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": zeros(4, 4, 3, 3), "places": normal(rng, 1, 4, 5, 5)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Mul"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)


def test_a_constant_that_is_cast_has_its_new_type(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [
        CONV,
        ("Cast", ["c"], ["i"], {"to": 7}),
        ("Cast", ["i"], ["r"], {"to": 1}),
        ("Mul", ["x", "r"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": zeros(4, 4, 3, 3), "b": 3 * normal(rng, 4)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Mul"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)


def test_linear_layers(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [
        ("Gemm", ["x", "w", "b"], ["g"], {"transB": 1, "beta": 0.5}),
        ("MatMul", ["x", "m"], ["mm"], {}),
        ("Add", ["x", "g"], ["s"], {}),
        ("Sub", ["s", "mm"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": zeros(4, 4), "b": normal(rng, 4), "m": zeros(4, 4)}, x=("n", 4), y=("n", 4))
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Add", "Identity"]
    same(run_graph, rng, changed, model, 3, 4)


def test_a_transposed_convolution_in_groups(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [
        ("ConvTranspose", ["x", "w", "b"], ["c"], {"group": 2, "pads": [1, 1, 1, 1]}),
        ("Add", ["x", "c"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": zeros(4, 2, 3, 3), "b": normal(rng, 4)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert modified
    assert ops(changed) == ["Add"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)


@pytest.mark.parametrize(
    "nodes, weights",
    [
        # Read by a convolution that pads with zeros: no constant at the border.
        ([CONV, ("Conv", ["c", "v"], ["y"], {"pads": [1, 1, 1, 1]})], {"w": zeros(4, 4, 3, 3), "v": (4, 4, 3, 3)}),
        # One weight that is not zero.
        ([CONV, ("Add", ["c", "x"], ["y"], {})], {"w": np.eye(1, 144, 7, np.float32).reshape(4, 4, 3, 3)}),
        # The graph's output itself.
        ([(*CONV[:2], ["y"], CONV[3])], {"w": zeros(4, 4, 3, 3)}),
    ],
)
def test_what_cannot_be_replaced_stays(make_graph, apply_pass, ops, rng, nodes, weights):
    filled = {name: normal(rng, *w) if isinstance(w, tuple) else w for name, w in weights.items()}
    model = make_graph(nodes, {**filled, "b": normal(rng, 4)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert not modified
    assert ops(changed) == ops(model)


def test_a_branch_that_gives_the_sum_its_shape_stays(make_graph, run_graph, apply_pass, ops, rng):
    """x is one number for each channel: the sum is as large as the branch."""
    nodes = [
        ("GlobalAveragePool", ["x"], ["p"], {}),
        ("Conv", ["x", "w", "b"], ["c"], {}),
        ("Add", ["p", "c"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": zeros(4, 4, 1, 1), "b": normal(rng, 4)}, **IMAGE)
    changed, modified = apply_pass(RemoveDeadBranches, model)
    assert not modified
    assert ops(changed) == ["GlobalAveragePool", "Conv", "Add"]
    same(run_graph, rng, changed, model, 2, 4, 5, 5)
