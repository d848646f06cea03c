"""The peak of activations: against every order of small graphs, and against sums done by hand."""

from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from bench.errors import BenchError
from bench.measure.activations import Plan, Step, best_peak, greedy_order, peak_of, plan_of, static_memory
from bench.onnx_graph import parse_graph
from bench.protocol import Value
from bench.report import Settings

SETTINGS = Settings(threads=1, batch=None, shapes={}, runs=1, min_seconds=0.0, min_samples=1, seed=0)


def random_plan(rng: np.random.Generator, steps: int) -> Plan:
    """Step i makes storage i + 1, from one or two earlier ones; storage 0 is the input, the last is the output."""
    sizes = [int(size) for size in rng.integers(1, 6, steps + 1)]
    made = []
    for number in range(steps):
        reads = {int(read) for read in rng.integers(0, number + 1, rng.integers(1, 3))}
        over = {read for read in reads if sizes[read] == sizes[number + 1] and rng.random() < 0.7}
        after = frozenset(read - 1 for read in reads if read)
        made.append(Step(after, frozenset(reads), frozenset({number + 1}), frozenset(over)))
    return Plan(made, sizes, start={0}, kept={steps})


def orders(plan: Plan) -> Iterator[Sequence[int]]:
    for order in permutations(range(len(plan.steps))):
        if all(set(order[:place]) >= plan.steps[number].after for place, number in enumerate(order)):
            yield order


def peak_by_definition(plan: Plan, order: Sequence[int]) -> int:
    """Each step anew from what has been made, and from who still reads it."""
    peak = plan.sizes[0]
    for place, number in enumerate(order):
        made = {0} | {storage for done in order[:place] for storage in plan.steps[done].makes}
        waiting = {storage for later in order[place:] for storage in plan.steps[later].reads} | plan.kept
        live = {storage for storage in made if storage in waiting}
        step = plan.steps[number]
        last = step.reads - {storage for later in order[place + 1 :] for storage in plan.steps[later].reads} - plan.kept
        saved = max((plan.sizes[storage] for storage in step.over & last), default=0)
        peak = max(peak, sum(plan.sizes[storage] for storage in live | step.makes) - saved)
    return peak


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_best_of_all_orders(seed: int) -> None:
    plan = random_plan(np.random.default_rng(seed), steps=6)
    peaks = {order: peak_by_definition(plan, order) for order in orders(plan)}
    # Reading storage 0 keeps it from the start; one that nobody reads is there from the start to the end.
    if any(0 in step.reads for step in plan.steps):
        assert {order: peak_of(plan, order) for order in peaks} == peaks
        assert best_peak(plan) == (min(peaks.values()),) * 2
        assert peak_by_definition(plan, greedy_order(plan)) >= min(peaks.values())


def test_a_search_that_is_cut_short_gives_bounds() -> None:
    plan = random_plan(np.random.default_rng(3), steps=40)
    upper, lower = best_peak(plan, max_states=1)
    exact, same = best_peak(plan)
    assert lower <= exact == same <= upper
    assert upper <= peak_of(plan, range(40))


def plan_from(nodes: list[onnx.NodeProto], sizes: dict[str, int], weights: Sequence[str] = ()) -> Plan:
    """A plan of one graph from ``x`` to the last node's output, with the sizes given."""
    tensors = [numpy_helper.from_array(np.zeros(1, np.float32), name) for name in weights]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, None)
    output = helper.make_empty_tensor_value_info(nodes[-1].output[0])
    graph = helper.make_graph(nodes, "test", [value], [output], tensors)
    content = helper.make_model(graph).SerializeToString()
    found = {
        name: Value(name=name, dtype="tensor(float)", shape=(size,), value_bytes=size) for name, size in sizes.items()
    }
    return plan_of(parse_graph(content), found)


def test_a_residual_block_needs_what_the_sum_by_hand_says() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w"], ["c"]),
        helper.make_node("Add", ["c", "x"], ["d"]),
    ]
    plan = plan_from(nodes, {"x": 100, "a": 40, "b": 40, "c": 100, "d": 100}, ["w"])
    # x stays for the sum: 240 while c is made of b; b lies where a lay, and d where c or x lay.
    assert best_peak(plan) == (240, 240)


def test_branches_are_done_one_after_the_other() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Conv", ["x", "w"], ["b"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("GlobalAveragePool", ["b"], ["q"]),
        helper.make_node("Concat", ["p", "q"], ["y"]),
    ]
    plan = plan_from(nodes, {"x": 10, "a": 100, "b": 100, "p": 1, "q": 1, "y": 2}, ["w"])
    assert peak_of(plan, range(5)) == 10 + 100 + 100  # both large ones at once
    assert best_peak(plan) == (10 + 100 + 1, 10 + 100 + 1)


def test_new_names_take_nothing_and_constants_are_weights() -> None:
    nodes = [
        helper.make_node("Mul", ["w", "w"], ["v"]),
        helper.make_node("Conv", ["x", "v"], ["a"]),
        helper.make_node("Flatten", ["a"], ["b"]),
        helper.make_node("Identity", ["b"], ["c"]),
        helper.make_node("Gemm", ["c", "w"], ["y"]),
    ]
    plan = plan_from(nodes, {"x": 7, "a": 30, "b": 30, "c": 30, "y": 5}, ["w"])
    assert best_peak(plan) == (37, 37)
    assert sorted(plan.sizes) == [5, 7, 30]


def test_what_others_still_read_is_not_written_over() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("Sigmoid", ["a"], ["s"]),
        helper.make_node("Mul", ["a", "s"], ["y"]),
    ]
    plan = plan_from(nodes, {"x": 1, "a": 50, "s": 50, "y": 50}, ["w"])
    assert best_peak(plan) == (100, 100)


def test_quantised_graphs_count_what_integer_kernels_hold() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "w", "w"], ["x8"]),
        helper.make_node("DequantizeLinear", ["x8", "w", "w"], ["xf"]),
        helper.make_node("Conv", ["xf", "w"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("QuantizeLinear", ["r", "w", "w"], ["r8"]),
        helper.make_node("DequantizeLinear", ["r8", "w", "w"], ["y"]),
    ]
    plan = plan_from(nodes, {"x": 40, "x8": 10, "xf": 40, "a": 80, "r": 80, "r8": 20, "y": 80}, ["w"])
    assert best_peak(plan) == (40 + 10, 40 + 10)  # while the input is quantised; then 10 + 20


def test_what_cannot_be_planned_is_named() -> None:
    inner = helper.make_graph([helper.make_node("Identity", ["x"], ["z"])], "body", [], [])
    branch = helper.make_node("If", ["x"], ["y"], name="choice", then_branch=inner, else_branch=inner)
    with pytest.raises(BenchError, match=r"node choice \(If\) computes graphs of its own"):
        plan_from([branch], {"x": 1, "y": 1})
    with pytest.raises(BenchError, match="the size of value y is not known"):
        plan_from([helper.make_node("Conv", ["x", "w"], ["y"])], {"x": 1}, ["w"])


def test_a_model_file_is_measured_whole(make_convs, tmp_path: Path) -> None:
    path = make_convs("a.onnx", width=8, depth=3, size=16)
    found = static_memory(path, SETTINGS, 60.0)
    value = 8 * 16 * 16 * 4
    assert (found.peak_activation_bytes, found.lower_bound_bytes, found.file_order_bytes) == (2 * value,) * 3
    assert found.peak_is_exact is True
    assert found.weight_bytes == 4 * (8 * 9 + 2 * 8 * 8 * 9)
    larger = static_memory(path, Settings(**{**vars(SETTINGS), "batch": 3}), 60.0)
    assert larger.peak_activation_bytes == 3 * found.peak_activation_bytes

    # The same weights in a file beside the model.
    model = onnx.load(path)
    outside = tmp_path / "outside.onnx"
    onnx.save(model, outside, save_as_external_data=True, location="weights.bin", size_threshold=0)
    assert static_memory(outside, SETTINGS, 60.0) == found
