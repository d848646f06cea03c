"""What needs no input is computed once; what changes nothing goes."""

import numpy as np

from export.passes.constants import FoldConstants
from export.passes.identities import RemoveIdentities


def test_constants_are_computed_once(make_graph, run_graph, apply_pass, ops, rng):
    a, b = (rng.normal(size=(3, 1, 1)).astype(np.float32) for _ in range(2))
    nodes = [("Mul", ["a", "b"], ["ab"], {}), ("Sqrt", ["ab2"], ["root"], {}), ("Add", ["x", "sum"], ["y"], {})]
    nodes[1:2] = [("Mul", ["ab", "ab"], ["ab2"], {}), nodes[1], ("Add", ["root", "a"], ["sum"], {})]
    model = make_graph(nodes, {"a": a, "b": b}, x=(1, 3, 4, 4), y=(1, 3, 4, 4))
    changed, modified = apply_pass(FoldConstants, model)
    assert modified
    assert ops(changed)[-1] == "Add"
    assert [op for op in ops(changed) if op not in ("Constant", "Add")] == []
    x = rng.normal(size=(1, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(run_graph(changed, x), x + np.abs(a * b) + a, rtol=1e-6)


def test_shapes_of_an_open_batch_stay_open(make_graph, run_graph, apply_pass, rng):
    nodes = [("Shape", ["x"], ["s"], {}), ("Expand", ["c", "s"], ["e"], {}), ("Add", ["x", "e"], ["y"], {})]
    model = make_graph(nodes, {"c": np.float32([2])}, x=("n", 3), y=("n", 3))
    changed, _ = apply_pass(FoldConstants, model)
    for n in (1, 4):
        x = rng.normal(size=(n, 3)).astype(np.float32)
        np.testing.assert_array_equal(run_graph(changed, x), x + 2)


def test_what_changes_nothing_goes(make_graph, run_graph, apply_pass, ops, rng):
    nodes = [
        ("Identity", ["x"], ["i"], {}),
        ("Mul", ["i", "one"], ["m"], {}),
        ("Add", ["m", "zero"], ["a"], {}),
        ("Relu", ["a"], ["y"], {}),
        ("Sigmoid", ["a"], ["nobody"], {}),
    ]
    model = make_graph(nodes, {"one": np.float32(1), "zero": np.float32(0)}, x=(2, 3), y=(2, 3))
    changed, modified = apply_pass(RemoveIdentities, model)
    assert modified
    assert ops(changed) == ["Relu"]
    x = rng.normal(size=(2, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_graph(changed, x), np.maximum(x, 0))


def test_what_only_looks_so_stays(make_graph, run_graph, apply_pass, ops, rng):
    """Times 1 that makes the value larger, and plus next to nothing."""
    nodes = [("Mul", ["x", "ones"], ["m"], {}), ("Add", ["m", "almost"], ["y"], {})]
    model = make_graph(nodes, {"ones": np.ones((4, 1), np.float32), "almost": np.float32(1e-3)}, x=(1, 3), y=(4, 3))
    changed, _ = apply_pass(RemoveIdentities, model)
    assert ops(changed) == ["Mul", "Add"]
    x = rng.normal(size=(1, 3)).astype(np.float32)
    np.testing.assert_array_equal(run_graph(changed, x), run_graph(model, x))
