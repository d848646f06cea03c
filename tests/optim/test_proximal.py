"""The group operators, against minimisers that know nothing but the objective."""

from dataclasses import dataclass
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor, nn

from compress.groups import Groups, GroupSlice
from compress.optim.blocks import Layout
from compress.optim.importance import importance
from compress.optim.metric import Step
from compress.optim.proximal import prox_groups_, prox_weights_
from compress.penalties import (
    L0,
    L1,
    MCP,
    PENALTIES,
    SCAD,
    GroupLasso,
    Hoyer,
    L1OverL2,
    LayerwisePenalty,
    Penalty,
    SeparablePenalty,
    SparseGroupLasso,
)

SEPARABLE = {name: cls for name, cls in PENALTIES.items() if issubclass(cls, SeparablePenalty)}

OPTIMALITY_TOLERANCE = 1e-12
"""Relative residual of the optimality condition in float64."""

MINIMISER_TOLERANCE = 1e-7
"""Relative excess over what scipy's quasi-Newton method reaches without derivatives of the kink."""

SINGLE_TOLERANCE = 1e-5
"""Relative excess of the objective of float32 results over that of float64 results."""


Eta = float | Tensor


def step_of(eta: Eta) -> Step:
    """The step of an optimiser with this ``eta``."""
    return Step(eta) if isinstance(eta, float) else Step(1.0, eta.reciprocal().square())


@dataclass
class Problem:
    """Random groups over several parameters, with the metric of a step that has just been taken."""

    groups: Groups
    steps: list[Eta]
    weights: Tensor
    before: list[Tensor]

    def vectors(self, g: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(w before, x now, eta) of group ``g`` as flat float64 arrays."""
        w: list[Tensor] = []
        x: list[Tensor] = []
        eta: list[Tensor] = []
        for part, before, step in zip(self.groups.slices, self.before, self.steps, strict=True):
            full = torch.as_tensor(step, dtype=before.dtype).expand_as(before)
            at = part.groups == g
            for found, values in ((w, before), (x, part.parameter.detach()), (eta, full)):
                found.append(values.movedim(part.dim, 0)[at].reshape(-1).double())
        return torch.cat(w).numpy(), torch.cat(x).numpy(), torch.cat(eta).numpy()


def problem(
    seed: int,
    *,
    dtype: torch.dtype = torch.float64,
    eta_exponents: tuple[float, float] = (-3, 1),
    unmoved: bool = False,
    zeros: bool = True,
) -> Problem:
    random = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=random, dtype=torch.float64)

    count = 4
    slices: list[GroupSlice] = []
    steps: list[Eta] = []
    for name, shape, dim in (("conv", (5, 2, 3), 0), ("scale", (6,), 0), ("columns", (2, 7), 1)):
        w = uniform(-1, 1, *shape) * 10 ** uniform(-3, 2, *shape)
        eta = 10 ** uniform(*eta_exponents, *shape)
        if zeros:
            w *= uniform(0, 1, *shape) > 0.2
        ids = torch.randint(0, count + 1, (shape[dim],), generator=random)  # `count` is in no group
        if zeros:
            w.movedim(dim, 0)[ids == 0] = 0.0
        slices.append(GroupSlice(name, nn.Parameter(w.to(dtype)), dim, ids, layer=False))
        steps.append(0.0 if unmoved and bool(uniform(0, 1) > 0.6) else eta.to(dtype))
    groups = Groups(count, tuple(slices))
    return Problem(groups, steps, groups.sizes().sqrt(), [part.parameter.detach().clone() for part in slices])


def apply(p: Problem, penalty: Penalty) -> None:
    with torch.no_grad():
        prox_groups_(Layout(p.groups), penalty, p.weights, [step_of(eta) for eta in p.steps])


def distance(w: np.ndarray, x: np.ndarray, eta: np.ndarray) -> float:
    """``sum (x - w)^2 / (2 eta)``; infinite where a coordinate without a step has moved."""
    moved = x != w
    with np.errstate(divide="ignore"):
        return float(((x - w)[moved] ** 2 / (2 * eta[moved])).sum())


def untouched_stay(p: Problem) -> bool:
    return all(
        torch.equal(
            part.parameter.detach().movedim(part.dim, 0)[part.groups == p.groups.count],
            before.movedim(part.dim, 0)[part.groups == p.groups.count],
        )
        for part, before in zip(p.groups.slices, p.before, strict=True)
    )


cases = settings(max_examples=80, deadline=None)
few = settings(max_examples=30, deadline=None)
seeds = st.integers(0, 10**6)
strengths = st.one_of(st.just(0.0), st.floats(-6, 2).map(lambda e: 10.0**e))


# --- a step for each coordinate: l1 on norms -----------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=seeds, strength=st.floats(-3, 1).map(lambda e: 10.0**e))
def test_l1_reaches_the_numerical_minimum(seed: int, strength: float) -> None:
    p = problem(seed, eta_exponents=(-1, 1))
    apply(p, GroupLasso(strength))
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        s, root = strength * float(p.weights[g]), np.sqrt(eta)

        def objective(y: np.ndarray, w: np.ndarray = w, root: np.ndarray = root, s: float = s) -> float:
            return float(((y - w / root) ** 2).sum() / 2 + s * np.linalg.norm(root * y))

        if not w.size:
            continue
        starts = [w / root, 0.5 * w / root, np.zeros_like(w)]
        best = min(objective(minimize(objective, y, method="L-BFGS-B").x) for y in starts)
        best = min(best, objective(np.zeros_like(w)))
        assert objective(x / root) <= best * (1 + MINIMISER_TOLERANCE)


@cases
@given(seed=seeds, strength=strengths, unmoved=st.booleans())
def test_l1_is_optimal_for_hugely_different_steps(seed: int, strength: float, unmoved: bool) -> None:
    p = problem(seed, eta_exponents=(-8, 3), unmoved=unmoved)
    apply(p, L1(strength))
    assert untouched_stay(p)
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        s, norm = strength * float(p.weights[g]), np.linalg.norm(x)
        assert np.isfinite(x).all()
        assert (x[(eta == 0) | (w == 0)] == w[(eta == 0) | (w == 0)]).all()
        if norm > 0:  # x - w + eta s x / ||x|| = 0
            residual = x - w + eta * s * x / norm
            assert (np.abs(residual) <= OPTIMALITY_TOLERANCE * np.abs(w)).all()
        elif (w != 0).any():  # ||w / eta|| <= s
            assert (eta[w != 0] > 0).all()
            assert np.linalg.norm(w[w != 0] / eta[w != 0]) <= s * (1 + OPTIMALITY_TOLERANCE)


@cases
@given(seed=seeds, strength=strengths, unmoved=st.booleans())
def test_l1_in_float32_is_as_good_as_in_float64(seed: int, strength: float, unmoved: bool) -> None:
    single = problem(seed, dtype=torch.float32, eta_exponents=(-8, 3), unmoved=unmoved)
    double = problem(seed, dtype=torch.float64, eta_exponents=(-8, 3), unmoved=unmoved)
    for part, before in zip(double.groups.slices, single.before, strict=True):
        part.parameter.data.copy_(before)
    double.steps = [eta if isinstance(eta, float) else eta.double() for eta in single.steps]
    double.before = [before.double() for before in single.before]
    apply(single, L1(strength))
    apply(double, L1(strength))
    for g in range(single.groups.count):
        w, x, eta = single.vectors(g)
        _, exact, _ = double.vectors(g)
        s = strength * float(double.weights[g])
        moving = eta > 0
        rounding = float(((1e-7 * w[moving]) ** 2 / eta[moving]).sum()) + s * 1e-7 * np.linalg.norm(w)
        best = distance(w, exact, eta) + s * np.linalg.norm(exact)
        assert distance(w, x, eta) + s * np.linalg.norm(x) <= best * (1 + SINGLE_TOLERANCE) + rounding


def test_l1_does_not_overflow_where_steps_are_tiny() -> None:
    # f(0) is some 1e32 here and its derivative beyond float32
    w = nn.Parameter(torch.tensor([1.0, -2.0]))
    groups = Groups(1, (GroupSlice("w", w, 0, torch.zeros(2, dtype=torch.int64), layer=True),))
    with torch.no_grad():
        prox_groups_(Layout(groups), L1(1e-8), torch.ones(1), [step_of(torch.tensor([1e-8, 1e-7]))])
    assert w.tolist() == [1.0, -2.0]


def test_l1_survives_next_to_a_coordinate_with_a_huge_step() -> None:
    # by itself the second coordinate would just die; the root lies nine orders of magnitude below it
    w = nn.Parameter(torch.tensor([1e-9, 0.9999999], dtype=torch.float64))
    groups = Groups(1, (GroupSlice("w", w, 0, torch.zeros(2, dtype=torch.int64), layer=True),))
    with torch.no_grad():
        prox_groups_(Layout(groups), L1(1.0), torch.ones(1), [step_of(torch.tensor([1e-8, 1.0], dtype=torch.float64))])
    x, norm = w.detach(), float(w.detach().norm())
    assert norm > 0
    residual = x - torch.tensor([1e-9, 0.9999999], dtype=torch.float64) + torch.tensor([1e-8, 1.0]) * x / norm
    assert residual.abs().tolist() == pytest.approx([0.0, 0.0], abs=1e-14)


def test_l1_is_not_misled_by_a_weight_whose_square_underflows() -> None:
    # two weights of 0.8 at a threshold of 1 survive together: 2 (0.8 / (r + 1))^2 = 1
    w, still = nn.Parameter(torch.tensor([0.8, 0.8])), nn.Parameter(torch.tensor([1e-30]))
    parts = [(w, torch.zeros(2, dtype=torch.int64)), (still, torch.zeros(1, dtype=torch.int64))]
    groups = Groups(1, tuple(GroupSlice("w", p, 0, ids, layer=True) for p, ids in parts))
    with torch.no_grad():
        prox_groups_(Layout(groups), L1(1.0), torch.ones(1), [step_of(torch.tensor([1.0, 1.0])), step_of(0.0)])
    r = 0.8 * 2**0.5 - 1
    assert w.tolist() == pytest.approx([0.8 * r / (r + 1)] * 2, rel=1e-5)


@pytest.mark.parametrize("cls", [L1, GroupLasso, SparseGroupLasso])
def test_faint_groups_far_below_the_threshold_become_exactly_zero_in_float32(cls: type[Penalty]) -> None:
    """Such as momentum leaves of a dead group: products of weights and shares underflow, one after the other."""
    random = torch.Generator().manual_seed(0)
    scales = 10.0 ** torch.arange(-42, -6).repeat_interleave(20)
    count, size = len(scales), 64
    w = nn.Parameter(torch.randn(count, size, generator=random) * scales[:, None])
    eta = 10.0 ** -(3 * torch.rand(count, size, generator=random))
    assert float((w.detach() / (0.07 * eta)).square().sum(1).max()) < 0.1
    groups = Groups(count, (GroupSlice("w", w, 0, torch.arange(count), layer=True),))
    with torch.no_grad():
        prox_groups_(Layout(groups), cls(0.14), torch.ones(count), [step_of(eta)])
    assert scales[~groups.dead()].tolist() == []


@pytest.mark.parametrize("exponent", [-20, -40, -50])
def test_l1_in_float32_is_the_same_on_a_smaller_scale(exponent: int) -> None:
    """Weights and strength times a power of two: so is the result."""
    random = torch.Generator().manual_seed(0)
    before = torch.randn(200, 16, generator=random)
    eta = 10.0 ** (0.5 * torch.rand(200, 16, generator=random))
    found = []
    for scale in (1.0, 2.0**exponent):
        w = nn.Parameter(before * scale)
        groups = Groups(200, (GroupSlice("w", w, 0, torch.arange(200), layer=True),))
        with torch.no_grad():
            prox_groups_(Layout(groups), L1(scale), torch.linspace(0.1, 6, 200), [step_of(eta)])
        found.append(w.detach() / scale)
    assert 20 < int((found[0] == 0).all(1).sum()) < 180
    torch.testing.assert_close(found[1], found[0], rtol=1e-5, atol=1e-6)


# --- a step for each coordinate: l1 on weights and on norms ---------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(seed=seeds, strength=st.floats(-3, 1).map(lambda e: 10.0**e), share=st.floats(0, 1), common=st.booleans())
def test_sparse_group_lasso_reaches_the_numerical_minimum(
    seed: int, strength: float, share: float, common: bool
) -> None:
    """In ``x = sign(w) y``, ``y >= 0``, the objective is smooth but at 0, and bounded below by scipy's best."""
    p = problem(seed, eta_exponents=(-1, 1))
    p.steps = [0.3] * 3 if common else p.steps
    apply(p, SparseGroupLasso(strength, share))
    assert untouched_stay(p)
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        if not w.any():
            assert not x.any()
            continue
        one, two = strength * share, strength * (1 - share) * float(p.weights[g])

        def cost(y: np.ndarray, w: np.ndarray = w, eta: np.ndarray = eta, one: float = one, two: float = two) -> float:
            return float(((y - np.abs(w)) ** 2 / (2 * eta)).sum() + one * y.sum() + two * np.linalg.norm(y))

        bounds = [(0.0, None)] * len(w)
        found = [minimize(cost, start * np.abs(w), method="L-BFGS-B", bounds=bounds).fun for start in (1.0, 0.5, 0.1)]
        assert (x * w >= 0).all()
        assert cost(np.abs(x)) <= min(*found, cost(np.zeros_like(w))) * (1 + MINIMISER_TOLERANCE)


@cases
@given(seed=seeds, strength=strengths, share=st.floats(0, 1), unmoved=st.booleans())
def test_sparse_group_lasso_is_optimal_for_hugely_different_steps(
    seed: int, strength: float, share: float, unmoved: bool
) -> None:
    p = problem(seed, eta_exponents=(-8, 3), unmoved=unmoved)
    apply(p, SparseGroupLasso(strength, share))
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        one, two = strength * share, strength * (1 - share) * float(p.weights[g])
        norm = np.linalg.norm(x)
        left = np.maximum(np.abs(w) - eta * one, 0)  # what the norm's part may still dispose of
        if norm > 0:
            residual = np.abs(x) - left + eta * two * np.abs(x) / norm
            assert (np.abs(residual) <= OPTIMALITY_TOLERANCE * np.abs(w)).all()
        elif left.any():
            assert (eta[left > 0] > 0).all()
            assert np.linalg.norm(left[left > 0] / eta[left > 0]) <= two * (1 + OPTIMALITY_TOLERANCE)


# --- a layer at once ------------------------------------------------------------------------------------------------


def two_layers() -> tuple[Groups, Tensor]:
    """Groups 0 to 2 in one layer, 3 to 6 in another, and a scale that belongs to the first."""
    torch.manual_seed(0)
    a, b, c = (nn.Parameter(torch.randn(n, 2, dtype=torch.float64)) for n in (3, 4, 3))
    slices = (
        GroupSlice("scale", c, 0, torch.tensor([0, 1, 2]), layer=False),
        GroupSlice("a", a, 0, torch.tensor([2, 0, 1]), layer=True),
        GroupSlice("b", b, 0, torch.tensor([3, 4, 5, 6]), layer=True),
    )
    return Groups(7, slices), torch.tensor([1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 3.0], dtype=torch.float64)


def test_the_layer_of_a_group_is_the_first_that_holds_it() -> None:
    groups, _ = two_layers()
    assert [layer.tolist() for layer in groups.layers()] == [[0, 1, 2], [3, 4, 5, 6]]


@pytest.mark.parametrize("penalty", [L1OverL2(0.3), Hoyer(0.1)])
def test_a_layerwise_penalty_acts_on_the_norms_of_each_layer_with_their_mean_weight(penalty: Penalty) -> None:
    groups, weights = two_layers()
    before = groups.squared_norms().sqrt()
    with torch.no_grad():
        prox_groups_(Layout(groups), penalty, weights, [step_of(0.5)] * 3)
    expected = torch.cat((penalty.prox(before[:3], 0.5 * 2.0), penalty.prox(before[3:], 0.5 * 1.5)))
    torch.testing.assert_close(groups.squared_norms().sqrt(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("penalty", [L1OverL2(0.3), Hoyer(0.1)])
def test_a_layerwise_penalty_takes_one_step_a_layer_that_keeps_the_weighted_norm(penalty: Penalty) -> None:
    groups, weights = two_layers()
    before = groups.squared_norms().sqrt()
    etas = [10 ** torch.randn_like(part.parameter.detach()) for part in groups.slices]
    quotients = [(part.parameter.detach().square() / eta).sum() for part, eta in zip(groups.slices, etas, strict=True)]
    first = before[:3].square().sum() / (quotients[0] + quotients[1])
    second = before[3:].square().sum() / quotients[2]
    with torch.no_grad():
        prox_groups_(Layout(groups), penalty, weights, [step_of(eta) for eta in etas])
    expected = torch.cat((penalty.prox(before[:3], first * 2.0), penalty.prox(before[3:], second * 1.5)))
    torch.testing.assert_close(groups.squared_norms().sqrt(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("penalty", [L1OverL2(0.3), Hoyer(0.1)])
def test_a_layerwise_penalty_on_single_weights_sees_each_parameter(penalty: Penalty) -> None:
    w, other = (nn.Parameter(torch.randn(4, 3, generator=torch.Generator().manual_seed(s)).double()) for s in (0, 1))
    before, eta = w.detach().clone(), 10 ** torch.randn(4, 3).double()
    step = before.square().sum() / (before.square() / eta).sum()
    with torch.no_grad():
        prox_weights_(Groups(24, weights=(("w", w), ("other", other))), penalty, [step_of(eta), step_of(0.0)])
    expected = penalty.prox(before.abs().flatten(), step).reshape(4, 3) * before.sign()
    torch.testing.assert_close(w.detach(), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)], ids=str)
def test_a_layer_without_weights_is_passed_over(cls: type[Penalty], shape: tuple[int, int]) -> None:
    empty, w = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.full((2, 2), 1e-3))
    with torch.no_grad():
        prox_weights_(Groups(4, weights=(("empty", empty), ("w", w))), cls(10.0), [step_of(1.0)] * 2)
    assert not bool(w.any())


def test_both_parts_of_sparse_group_lasso_act_on_single_weights() -> None:
    w = nn.Parameter(torch.tensor([-1.0, 0.2, 0.5], dtype=torch.float64))
    with torch.no_grad():
        prox_weights_(Groups(3, weights=(("w", w),)), SparseGroupLasso(1.0, 0.25), [step_of(0.3)])
    assert w.tolist() == pytest.approx([-0.7, 0.0, 0.2])


def test_a_group_along_two_dimensions_is_one_group() -> None:
    """Four kernels of two weights each."""
    w = nn.Parameter(torch.tensor([[[3.0, 4.0], [0.1, 0.1]], [[0.0, 1.0], [0.0, 0.0]]], dtype=torch.float64))
    groups = Groups(4, (GroupSlice("w", w, 0, torch.tensor([[0, 1], [2, 4]]), layer=True),))
    assert groups.squared_norms()[:3].tolist() == pytest.approx([25.0, 0.02, 1.0])
    with torch.no_grad():
        prox_groups_(Layout(groups), MCP(1.0, 3.0), torch.ones(4), [step_of(0.5)])
    assert w[0].tolist() == [[3.0, 4.0], [0.0, 0.0]]
    assert w[1].tolist() == [[0.0, pytest.approx(0.6)], [0.0, 0.0]]


# --- a step for each coordinate: l0 --------------------------------------------------------------------------------


@cases
@given(seed=seeds, strength=strengths, unmoved=st.booleans(), extreme=st.booleans())
def test_l0_is_the_best_of_all_supports(seed: int, strength: float, unmoved: bool, extreme: bool) -> None:
    p = problem(seed, eta_exponents=(-8, 3) if extreme else (-1, 1), unmoved=unmoved)
    apply(p, L0(strength))
    assert untouched_stay(p)
    costs = []
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        assert (x == w).all() or (x == 0).all()
        s = strength * float(p.weights[g])
        costs.append(
            [distance(w, y, eta) + s * float((y != 0).any()) for y in (np.zeros_like(w), w)]
            + [distance(w, x, eta) + s * float((x != 0).any())]
        )
    best = min(sum(costs[g][keep] for g, keep in enumerate(kept)) for kept in product((0, 1), repeat=len(costs)))
    assert sum(cost[2] for cost in costs) <= best * (1 + OPTIMALITY_TOLERANCE)


def test_l0_keeps_a_group_with_a_weight_that_has_not_been_stepped() -> None:
    a, b = nn.Parameter(torch.tensor([[0.1], [0.1]])), nn.Parameter(torch.tensor([0.1, 0.0]))
    ids = torch.tensor([0, 1])
    groups = Groups(2, (GroupSlice("a", a, 0, ids, layer=True), GroupSlice("b", b, 0, ids, layer=False)))
    with torch.no_grad():
        prox_groups_(Layout(groups), L0(10.0), torch.ones(2), [step_of(torch.ones(2, 1)), step_of(0.0)])
    assert a.tolist() == [[pytest.approx(0.1)], [0.0]]
    assert b.tolist() == [pytest.approx(0.1), 0.0]


# --- one step for all, single weights, any penalty ----------------------------------------------------------------


@pytest.mark.parametrize("cls", SEPARABLE.values(), ids=SEPARABLE.keys())
@few
@given(seed=seeds, strength=strengths, step=st.floats(1e-3, 10))
def test_with_one_step_the_norm_gets_the_scalar_operator(
    cls: type[Penalty], seed: int, strength: float, step: float
) -> None:
    p = problem(seed)
    p.steps = [step] * 3
    penalty = cls(strength)
    apply(p, penalty)
    assert untouched_stay(p)
    for g in range(p.groups.count):
        w, x, _ = p.vectors(g)
        norm = float(np.linalg.norm(w))
        shrunk = float(penalty.prox(torch.tensor([norm], dtype=torch.float64), step * float(p.weights[g])))
        assert x == pytest.approx(w * (shrunk / norm if norm > 0 else 1.0), rel=1e-9, abs=1e-12 * norm)
        assert shrunk > 0 or (x == 0).all()


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@few
@given(seed=seeds, strength=strengths, step=st.floats(1e-3, 10))
def test_equal_steps_at_each_coordinate_are_one_step(
    cls: type[Penalty], seed: int, strength: float, step: float
) -> None:
    common, apart = problem(seed), problem(seed)
    common.steps = [step] * 3
    apart.steps = [torch.full_like(before, step) for before in apart.before]
    apply(common, cls(strength))
    apply(apart, cls(strength))
    for one, other in zip(common.groups.slices, apart.groups.slices, strict=True):
        torch.testing.assert_close(one.parameter, other.parameter, rtol=1e-9, atol=1e-9)


class Quadratic(L1):
    """A penalty that no table knows: ``strength * z^2 / 2``."""

    def value(self, z: Tensor) -> Tensor:
        return self.strength * z.square() / 2

    def prox(self, z: Tensor, step: Tensor | float) -> Tensor:
        return z / (1 + self.strength * step)


@cases
@given(seed=seeds, strength=strengths)
def test_other_penalties_take_one_step_a_group_that_keeps_the_weighted_norm(seed: int, strength: float) -> None:
    p = problem(seed)
    apply(p, Quadratic(strength))
    for g in range(p.groups.count):
        w, x, eta = p.vectors(g)
        if (w != 0).any():
            step = (w**2).sum() / (w**2 / eta).sum()
            assert x == pytest.approx(w / (1 + strength * float(p.weights[g]) * step), rel=1e-9)


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("steps", [[0.1] * 3, [0.0] * 3, [0.1, 0.2, 0.0], None], ids=str)
@pytest.mark.parametrize("strength", [0.0, 1e-3, 1e6])
def test_all_zero_groups_stay_zero_and_nothing_becomes_nan(
    cls: type[Penalty], steps: list[Eta] | None, strength: float
) -> None:
    p = problem(3, dtype=torch.float32)
    for part in p.groups.slices:
        part.parameter.data.zero_()
    p.steps = p.steps if steps is None else steps
    apply(p, cls(strength))
    assert all(torch.equal(part.parameter, torch.zeros_like(part.parameter)) for part in p.groups.slices)


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("steps", [0.1, torch.tensor([0.1, 0.2])], ids=["one", "each"])
def test_a_group_whose_squares_underflow_becomes_exactly_zero(cls: type[Penalty], steps: Eta) -> None:
    w = nn.Parameter(torch.tensor([[1e-30, 2e-30], [3.0, 4.0]]))
    groups = Groups(2, (GroupSlice("w", w, 0, torch.arange(2), layer=True),))
    assert groups.dead().tolist() == [False, False]
    each = step_of(steps if isinstance(steps, float) else steps.expand(2, 2))
    with torch.no_grad():
        prox_groups_(Layout(groups), cls(0.1), torch.ones(2), [each])
    assert groups.dead().tolist() == [True, False]
    assert w[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("step", [0.1, torch.full((2, 2), 0.1)], ids=["one", "each"])
def test_nan_is_not_hidden_in_a_dead_group(cls: type[Penalty], step: Eta) -> None:
    w = nn.Parameter(torch.tensor([[float("nan"), 1.0], [3.0, 4.0]]))
    groups = Groups(2, (GroupSlice("w", w, 0, torch.arange(2), layer=True),))
    with torch.no_grad():
        prox_groups_(Layout(groups), cls(0.1), torch.ones(2), [step_of(step)])
    assert bool(w[0].isnan().any())
    assert bool(w[1].isfinite().all()) or issubclass(cls, LayerwisePenalty)  # which mixes the groups of a layer


@pytest.mark.parametrize("cls", SEPARABLE.values(), ids=SEPARABLE.keys())
def test_single_weights_after_rmsprop_get_the_scalar_operator_each_with_its_own_step(cls: type[Penalty]) -> None:
    torch.manual_seed(0)
    lr, eps, alpha, strength = 0.01, 1e-8, 0.9, 0.7
    weight = nn.Parameter(torch.randn(20, 3))
    gradient = torch.randn(20, 3) * 10 ** torch.empty(20, 3).uniform_(-2, 2)
    optimizer = torch.optim.RMSprop([weight], lr=lr, alpha=alpha, eps=eps)
    weight.grad = gradient.clone()
    optimizer.step()
    moved = weight.detach().clone()
    eta = lr / (((1 - alpha) * gradient.square()).sqrt() + eps)
    with torch.no_grad():
        prox_weights_(Groups(60, weights=(("w", weight),)), cls(strength), [step_of(eta)])
    scalar = [
        [float(cls(strength).prox(abs(w).reshape(1), float(e))) * float(w.sign()) for w, e in zip(ws, es, strict=True)]
        for ws, es in zip(moved, eta, strict=True)
    ]
    torch.testing.assert_close(weight.detach(), torch.tensor(scalar), rtol=1e-5, atol=1e-7)
    assert 0 < int((weight == 0).sum()) < 60


def test_groups_in_half_precision_are_summed_in_float32() -> None:
    w = nn.Parameter(torch.full((2, 1027), 1e-3, dtype=torch.bfloat16))
    groups = Groups(2, (GroupSlice("w", w, 0, torch.arange(2), layer=True),))
    assert groups.sizes().tolist() == [1027.0, 1027.0]
    assert groups.squared_norms().sqrt().tolist() == pytest.approx([float(w[0].detach().double().norm())] * 2, rel=1e-2)
    with torch.no_grad():
        prox_groups_(Layout(groups), L1(0.1), torch.tensor([1.0, 1e-3]), [step_of(torch.full_like(w, 1.0))])
    assert w.dtype == torch.bfloat16
    assert groups.dead().tolist() == [True, False]


@pytest.mark.parametrize("step", [0.1, torch.full((2, 1027), 0.1)], ids=["one", "each"])
def test_small_weights_in_float16_do_not_vanish(step: Eta) -> None:
    w = nn.Parameter(torch.full((2, 1027), 1e-4, dtype=torch.float16))
    groups = Groups(2, (GroupSlice("w", w, 0, torch.arange(2), layer=True),))
    with torch.no_grad():
        prox_groups_(Layout(groups), L0(1e-12), torch.ones(2), [step_of(step)])
    assert groups.dead().tolist() == [False, False]


@pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_single_weights_in_half_precision_lose_it_only_when_they_are_written(
    cls: type[Penalty], dtype: torch.dtype
) -> None:
    """A step of 1e5 for what has had no gradient, times a strength of 1e-8: float16 holds neither."""
    start = (10 ** (4 * torch.rand(20, 6, generator=torch.Generator().manual_seed(0)) - 4)).to(dtype)
    square = torch.where(torch.arange(6) < 5, 1e-4, 0.0).expand(20, 6).to(dtype)
    found = []
    for precision in (dtype, torch.float64):
        w = nn.Parameter(start.to(precision, copy=True))
        with torch.no_grad():
            step = Step(1e-3, square.to(precision), None, 1e-8)
            prox_weights_(Groups(120, weights=(("w", w),)), cls(1e-8), [step])
        found.append(w.detach().to(dtype))
    torch.testing.assert_close(*found, rtol=float(torch.finfo(dtype).eps), atol=0)
    assert 0 < int((found[1] == 0).sum()) < 20 or issubclass(cls, MCP | SCAD | LayerwisePenalty)


def test_importance_of_small_weights_in_float16_is_that_in_float64() -> None:
    start = torch.logspace(-4, 0, 5)
    worth = []
    for dtype in (torch.float16, torch.float64):
        w = nn.Parameter(start.half().to(dtype))
        with torch.no_grad():
            worth.append(importance(Groups(5, weights=(("w", w),)), torch.ones(()), [step_of(0.5)]))
    torch.testing.assert_close(*worth, rtol=1e-6, atol=0)
