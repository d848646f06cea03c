"""BatchNorm into the layer in front of it."""

import numpy as np
import pytest

from export.passes.batch_norm import FoldBatchNorm


def normal(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def batch_norm(rng, channels):
    return {
        "gamma": normal(rng, channels),
        "beta": normal(rng, channels),
        "mean": normal(rng, channels),
        "var": rng.uniform(0.5, 2, channels).astype(np.float32),
    }


NORM = ("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["y"], {"epsilon": 1e-3})


@pytest.mark.parametrize(
    "op, weight, y, attributes",
    [
        ("Conv", (4, 3, 3, 3), (2, 4, 6, 6), {"pads": [1, 1, 1, 1]}),
        ("Conv", (6, 1, 3, 3), (2, 6, 4, 4), {"group": 3}),
        ("ConvTranspose", (3, 4, 3, 3), (2, 4, 8, 8), {}),
    ],
)
def test_the_layer_computes_what_both_did(make_graph, run_graph, apply_pass, ops, rng, op, weight, y, attributes):
    weights = {"w": normal(rng, *weight), "b": normal(rng, y[1]), **batch_norm(rng, y[1])}
    model = make_graph([(op, ["x", "w", "b"], ["c"], attributes), NORM], weights, x=(2, 3, 6, 6), y=y)
    changed, modified = apply_pass(FoldBatchNorm, model)
    assert modified
    assert ops(changed) == [op]
    x = normal(rng, 2, 3, 6, 6)
    np.testing.assert_allclose(run_graph(changed, x), run_graph(model, x), rtol=1e-4, atol=1e-5)


def test_gemm(make_graph, run_graph, apply_pass, ops, rng):
    weights = {"w": normal(rng, 5, 3), "b": normal(rng, 5), **batch_norm(rng, 5)}
    model = make_graph([("Gemm", ["x", "w", "b"], ["c"], {"transB": 1}), NORM], weights, x=(2, 3), y=(2, 5))
    changed, modified = apply_pass(FoldBatchNorm, model)
    assert modified
    assert ops(changed) == ["Gemm"]
    x = normal(rng, 2, 3)
    np.testing.assert_allclose(run_graph(changed, x), run_graph(model, x), rtol=1e-4, atol=1e-5)


def test_a_layer_that_somebody_else_reads_stays(make_graph, apply_pass, ops, rng):
    nodes = [
        ("Conv", ["x", "w"], ["c"], {}),
        (*NORM[:2], ["n"], NORM[3]),
        ("Add", ["c", "n"], ["y"], {}),
    ]
    model = make_graph(nodes, {"w": normal(rng, 4, 3, 1, 1), **batch_norm(rng, 4)}, x=(1, 3, 5, 5), y=(1, 4, 5, 5))
    changed, modified = apply_pass(FoldBatchNorm, model)
    assert not modified
    assert ops(changed) == ["Conv", "BatchNormalization", "Add"]
