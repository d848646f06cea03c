"""What every penalty in ``PENALTIES`` promises, checked from its definition: a new one is picked up from the table."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch import Tensor

from compress.errors import ConfigError
from compress.penalties import PENALTIES, Penalty, SeparablePenalty

SEPARABLE = [name for name, cls in PENALTIES.items() if issubclass(cls, SeparablePenalty)]
VECTOR = [name for name in PENALTIES if name not in SEPARABLE]

SHAPES: dict[str, dict[str, st.SearchStrategy[float]]] = {
    "lp": {"p": st.one_of(st.sampled_from([1 / 2, 2 / 3, 3 / 4]), st.floats(0.01, 0.99))},
    "transformed-l1": {"a": st.floats(-2, 3).map(lambda e: 10.0**e)},
    "mcp": {"a": st.floats(-1, 2).map(lambda e: 10.0**e)},
    "scad": {"a": st.floats(-2, 1.5).map(lambda e: 2 + 10.0**e)},
    "log-sum": {"eps": st.floats(-3, 1).map(lambda e: 10.0**e)},
    "sparse-group-lasso": {"l1_share": st.floats(0, 1)},
}
"""Penalty -> what its shape parameters are drawn from."""

every_penalty = pytest.mark.parametrize("name", PENALTIES)
every_separable = pytest.mark.parametrize("name", SEPARABLE)
every_vector = pytest.mark.parametrize("name", VECTOR)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

OBJECTIVE_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}
"""Relative excess of the objective: rounding in float32, the refined grid's resolution in float64."""

MINIMISER_TOLERANCE = 1e-3
"""Relative distance from the grid's minimiser, which the objective's rounding blurs by its square root."""

DERIVATIVE_TOLERANCE = 1e-5
"""Relative error of a central difference in float64 with a relative width of 1e-6."""

magnitudes = st.floats(1e-4, 50.0)
strengths = st.floats(-4, 0.7).map(lambda e: 10.0**e)
steps = st.floats(-3, 1).map(lambda e: 10.0**e)
shares = st.floats(-3, 0.3).map(lambda e: 10.0**e)
vectors = st.lists(
    st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(1e-3, 3.0)), min_size=1, max_size=3
)  # zeros and ties among them


def drawn(data: st.DataObject, name: str, strength: float | None = None) -> Penalty:
    """A penalty of random strength and shape."""
    shape: dict[str, Any] = {key: data.draw(values, key) for key, values in SHAPES.get(name, {}).items()}
    return PENALTIES[name](data.draw(strengths, "strength") if strength is None else strength, **shape)


def for_vectors(data: st.DataObject, name: str, v: Tensor, step: float) -> Penalty:
    """A penalty that decides something about ``v``: ``step * strength`` is of the size of its squares, or less."""
    largest = float(v.max()) or 1.0
    return drawn(data, name, strength=data.draw(shares, "share") * largest**2 / step)


def objective(penalty: Penalty, u: Tensor, v: Tensor, step: float) -> Tensor:
    """``||u - v||^2 / 2 + step * penalty(u)``, the definition of what prox minimises; ``u`` is ``[..., n]``."""
    value = penalty.value(u)
    return (u - v).square().sum(-1) / 2 + step * (value.sum(-1) if isinstance(penalty, SeparablePenalty) else value)


def brute_force_each(penalty: Penalty, v: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """Minimiser and minimum over ``[0, 1.5 v]`` for each of ``v``: a dense grid, refined around its best point.

    Zero and ``v`` are looked at by themselves: a jump at 0 hides its point from any refinement.
    """
    low, up = torch.zeros_like(v), 1.5 * v
    best, lowest = torch.zeros_like(v), torch.full_like(v, torch.inf)
    for _ in range(6):
        grid = low[:, None] + (up - low)[:, None] * torch.linspace(0, 1, 801, dtype=v.dtype)
        grid = torch.cat((grid, torch.zeros_like(v)[:, None], v[:, None]), dim=1)
        costs = (grid - v[:, None]).square() / 2 + step * penalty.value(grid)
        cost, at = costs.min(dim=1)
        best = torch.where(cost < lowest, grid.gather(1, at[:, None])[:, 0], best)
        lowest = torch.minimum(cost, lowest)
        width = 2 * (up - low) / 800
        low, up = (best - width).clamp_min(0), best + width
    return best, lowest


def brute_force(penalty: Penalty, v: Tensor, step: float) -> tuple[Tensor, Tensor]:
    """The same for a vector, over ``[0, 2 ||v||]^n``; each grid has the faces on which some coordinates are 0."""
    n, high = len(v), 2 * float(v.norm()) + 1e-6
    low, up = torch.zeros(n, dtype=torch.float64), torch.full((n,), high, dtype=torch.float64)
    best, lowest = torch.zeros(n, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64)
    for points in (4001, *[401] * 6) if n == 1 else (41, *[13] * 14):
        axes = [torch.linspace(float(a), float(b), points, dtype=torch.float64) for a, b in zip(low, up, strict=True)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, n)
        grid = torch.cat((grid, torch.where(grid == grid.amin(0), 0.0, grid)))
        costs = objective(penalty, grid, v, step)
        at = int(costs.argmin())
        if float(costs[at]) < float(lowest):
            best, lowest = grid[at], costs[at]
        width = 2 * (up - low) / (points - 1)
        low, up = (best - width).clamp_min(0), best + width
    return best, lowest


def assert_same(found: Tensor, reached: Tensor, best: Tensor, lowest: Tensor, size: Tensor, tolerance: float) -> None:
    """``found`` costs as little as the best point of the grid and, where no other point does, it is that point."""
    excess = reached - lowest
    assert bool((excess <= tolerance * size).all())
    tie = excess.abs() <= 10 * tolerance * size  # or flat between the two
    assert bool((tie | ((found - best).abs() <= MINIMISER_TOLERANCE * best)).all())


# --- the proximal operator -------------------------------------------------------------------------------------------


def test_every_shape_parameter_is_drawn() -> None:
    assert {name: set(cls.shape_parameters()) for name, cls in PENALTIES.items()} == {
        name: set(SHAPES.get(name, {})) for name in PENALTIES
    }


@every_separable
@every_dtype
@settings(max_examples=40, deadline=None)
@given(data=st.data(), scale=st.floats(0, 1), step=steps)
def test_prox_minimises_its_definition(
    name: str, dtype: torch.dtype, data: st.DataObject, scale: float, step: float
) -> None:
    """At 48 magnitudes from 1e-4 to 60, so that few thresholds fall between two of them by much."""
    penalty, z = drawn(data, name), (10 ** (torch.linspace(-4, 1.64, 48).double() + 0.12 * scale)).to(dtype)
    found, v = penalty.prox(z, step), z.double()
    assert found.dtype == dtype
    assert bool((found >= 0).all())
    assert bool((found <= z).all())
    best, lowest = brute_force_each(penalty, v, step)
    reached = (found.double() - v).square() / 2 + step * penalty.value(found.double())
    assert_same(found.double(), reached, best, lowest, v.square() / 2 + lowest, OBJECTIVE_TOLERANCE[dtype])


@every_vector
@every_dtype
@settings(max_examples=25, deadline=None)
@given(data=st.data(), numbers=vectors, step=steps)
def test_prox_of_a_vector_minimises_its_definition(
    name: str, dtype: torch.dtype, data: st.DataObject, numbers: list[float], step: float
) -> None:
    z = torch.tensor(numbers, dtype=dtype)
    penalty, v = for_vectors(data, name, z, step), z.double()
    found = penalty.prox(z, step)
    assert found.dtype == dtype
    assert bool((found >= 0).all())
    best, lowest = brute_force(penalty, v, step)
    reached, size = objective(penalty, found.double(), v, step), v.square().sum() / 2 + lowest
    assert_same(found.double(), reached, best, lowest, size, OBJECTIVE_TOLERANCE[dtype])


@every_vector
@settings(max_examples=20, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), n=st.integers(4, 12), step=steps)
def test_no_descent_finds_less_than_prox_of_a_longer_vector(
    name: str, data: st.DataObject, seed: int, n: int, step: float
) -> None:
    """From ``v`` and from it cut to its ``t`` largest, for every ``t``; the derivative is checked elsewhere."""
    v = torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) ** 2
    penalty = for_vectors(data, name, v, step)
    reached = float(objective(penalty, penalty.prox(v, step), v, step))

    def cost(u: np.ndarray) -> tuple[float, np.ndarray]:
        at = torch.from_numpy(u)
        return float(objective(penalty, at, v, step)), (at - v + step * penalty.subgradient(at)).numpy()

    starts = [torch.where(v >= least, v, 0.0) for least in v]
    best = min(
        float(minimize(cost, u.numpy(), jac=True, method="L-BFGS-B", bounds=[(0, None)] * n).fun) for u in starts
    )
    best = min(best, float(v.square().sum()) / 2)
    assert reached <= best * (1 + OBJECTIVE_TOLERANCE[torch.float64])


@every_penalty
@settings(max_examples=50, deadline=None)
@given(data=st.data(), step=steps, seed=st.integers(0, 10**6))
def test_prox_is_stationary_where_it_is_not_zero(name: str, data: st.DataObject, step: float, seed: int) -> None:
    """``v - u = step * penalty'(u)``."""
    v = 10 ** (2 * torch.rand(8, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) - 1)
    penalty = for_vectors(data, name, v, step)
    u = penalty.prox(v, step)
    alive = u > 0
    residual = (u + step * penalty.subgradient(u) - v)[alive]
    assert bool((residual.abs() <= 1e-7 * (v[alive] + (0 if name in SEPARABLE else v.norm()))).all())


@every_separable
@settings(max_examples=25, deadline=None)
@given(data=st.data(), step=steps)
def test_prox_is_monotone_and_reaches_exact_zero(name: str, data: st.DataObject, step: float) -> None:
    penalty = drawn(data, name)
    v = torch.cat((torch.zeros(1), torch.logspace(-12, 4, 801))).double()
    found = penalty.prox(v, step)
    assert bool((found.diff() >= -1e-12 * v[1:]).all())
    assert float(found[1]) == 0.0
    assert float(found[-1]) > 0


@every_vector
@settings(max_examples=25, deadline=None)
@given(data=st.data(), step=steps, seed=st.integers(0, 10**6))
def test_prox_of_a_vector_keeps_the_order_and_does_not_see_it(
    name: str, data: st.DataObject, step: float, seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    v = torch.rand(9, dtype=torch.float64, generator=random).sort().values
    penalty = for_vectors(data, name, v, step)
    found = penalty.prox(v, step)
    assert bool((found.diff() >= 0).all())
    shuffled = torch.randperm(9, generator=random)
    torch.testing.assert_close(penalty.prox(v[shuffled], step), found[shuffled], rtol=1e-12, atol=0)
    assert float(penalty.value(v[shuffled])) == pytest.approx(float(penalty.value(v)), rel=1e-12)


# --- the derivative --------------------------------------------------------------------------------------------------


@every_separable
@settings(max_examples=50, deadline=None)
@given(data=st.data(), z=magnitudes)
def test_subgradient_is_the_derivative_of_the_value(name: str, data: st.DataObject, z: float) -> None:
    penalty, width = drawn(data, name), 1e-6 * z
    at = torch.tensor([z - width, z, z + width], dtype=torch.float64)
    left, here, right = penalty.value(at).tolist()
    backward, forward = (here - left) / width, (right - here) / width
    rounding = 1e-15 * (1 + here) / width
    kink = abs(forward - backward) > 1e-2 * max(abs(forward), abs(backward)) + 10 * rounding
    derivative = float(penalty.subgradient(at[1:2]))
    if kink:
        assert min(backward, forward) - rounding <= derivative <= max(backward, forward) + rounding
    else:
        assert derivative == pytest.approx((right - left) / (2 * width), rel=DERIVATIVE_TOLERANCE, abs=rounding)


@every_vector
@settings(max_examples=25, deadline=None)
@given(data=st.data(), seed=st.integers(0, 10**6), n=st.integers(1, 9))
def test_subgradient_of_a_vector_is_the_derivative_of_the_value(
    name: str, data: st.DataObject, seed: int, n: int
) -> None:
    penalty, width = drawn(data, name, strength=0.7), 1e-5
    z = 0.1 + torch.rand(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    around = z + width * torch.eye(n, dtype=torch.float64), z - width * torch.eye(n, dtype=torch.float64)
    expected = (penalty.value(around[0]) - penalty.value(around[1])) / (2 * width)
    torch.testing.assert_close(penalty.subgradient(z), expected, rtol=1e-6, atol=1e-8)


# --- what must not happen --------------------------------------------------------------------------------------------


@every_penalty
@every_dtype
def test_zero_stays_zero(name: str, dtype: torch.dtype) -> None:
    penalty, zero = PENALTIES[name](0.3), torch.zeros(3, dtype=dtype)
    for result in (penalty.value(zero), penalty.subgradient(zero), penalty.prox(zero, 0.5), penalty.prox(zero, 0.0)):
        assert torch.equal(result, torch.zeros_like(result))


@every_penalty
@every_dtype
def test_no_step_or_no_strength_moves_nothing(name: str, dtype: torch.dtype) -> None:
    cls, z = PENALTIES[name], torch.tensor([0.0, 1e-30, 1e-3, 1.0, 40.0], dtype=dtype)
    assert torch.equal(cls(0.7).prox(z, 0.0), z)
    assert torch.equal(cls(0.0).prox(z, 2.0), z)
    for result in (cls(0.0).value(z), cls(0.0).subgradient(z)):
        assert torch.equal(result, torch.zeros_like(result))


@every_penalty
@every_dtype
@settings(max_examples=25, deadline=None)
@given(data=st.data(), step=st.floats(-12, 12).map(lambda e: 10.0**e))
def test_everything_is_finite(name: str, dtype: torch.dtype, data: st.DataObject, step: float) -> None:
    penalty, largest = drawn(data, name), 1e30 if dtype == torch.float32 else 1e150
    smallest = float(torch.finfo(dtype).smallest_normal)
    z = torch.tensor([0.0, smallest / 1024, smallest, 1e-20, 1e-3, 1.0, 1.0, 1e3, 1e15, largest], dtype=dtype)
    for some in (z, z[:4], z[1:3], z[:1], z[-2:]):
        for result in (penalty.value(some), penalty.subgradient(some), penalty.prox(some, step)):
            assert bool(result.isfinite().all())
        assert bool((penalty.prox(some, step) >= 0).all())


@every_penalty
def test_nan_is_not_hidden(name: str) -> None:
    penalty, z = PENALTIES[name](0.3), torch.tensor([float("nan"), 0.0, 1.0])
    for result in (penalty.value(z), penalty.subgradient(z), penalty.prox(z, 0.5), penalty.prox(z, 0.0)):
        assert bool(result.flatten()[0].isnan())


@every_separable
@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)], ids=str)
def test_shape_and_dtype_are_kept_and_the_input_is_not_changed(
    name: str, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    penalty, z = PENALTIES[name](0.3), torch.rand(shape, dtype=dtype)
    step = torch.full(shape, 0.5, dtype=dtype)
    z_before, step_before = z.clone(), step.clone()
    for result in (penalty.value(z), penalty.subgradient(z), penalty.prox(z, 0.5), penalty.prox(z, step)):
        assert result.shape == shape
        assert result.dtype == dtype
    assert torch.equal(z, z_before)
    assert torch.equal(step, step_before)


@every_vector
@every_dtype
@pytest.mark.parametrize("shape", [(0,), (5,), (2, 3, 4)], ids=str)
def test_vectors_lie_along_the_last_dimension(name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    penalty, z = PENALTIES[name](0.3), torch.rand(shape, dtype=dtype)
    step = torch.full(shape[:-1], 0.5, dtype=dtype)
    z_before = z.clone()
    assert penalty.value(z).shape == shape[:-1]
    assert penalty.value(z).dtype == dtype
    for result in (penalty.subgradient(z), penalty.prox(z, 0.5), penalty.prox(z, step)):
        assert result.shape == shape
        assert result.dtype == dtype
    assert torch.equal(z, z_before)


@every_separable
@every_dtype
def test_a_tensor_of_steps_acts_elementwise_and_broadcasts(name: str, dtype: torch.dtype) -> None:
    penalty, z = PENALTIES[name](0.4), torch.linspace(0, 4, 24, dtype=dtype).reshape(6, 4)
    step = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=dtype)
    by_column = torch.stack([penalty.prox(z[:, i], float(step[i])) for i in range(4)], dim=1)
    torch.testing.assert_close(penalty.prox(z, step), by_column, rtol=1e-6, atol=1e-6)


@every_vector
@every_dtype
def test_every_vector_has_its_own_step(name: str, dtype: torch.dtype) -> None:
    penalty, z = PENALTIES[name](0.4), torch.linspace(0, 4, 24, dtype=dtype).reshape(4, 6)
    step = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=dtype)
    by_row = torch.stack([penalty.prox(z[i], float(step[i])) for i in range(4)])
    torch.testing.assert_close(penalty.prox(z, step), by_row, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(penalty.value(z), torch.stack([penalty.value(row) for row in z]))
    torch.testing.assert_close(penalty.subgradient(z), torch.stack([penalty.subgradient(row) for row in z]))


# --- construction ----------------------------------------------------------------------------------------------------


@every_penalty
@pytest.mark.parametrize("strength", [-1e-9, float("nan"), float("inf")])
def test_a_strength_that_is_no_number_from_0_is_refused(name: str, strength: float) -> None:
    with pytest.raises(ConfigError, match=f"penalty strength: got {strength}, expected a finite number >= 0"):
        PENALTIES[name](strength)


@pytest.mark.parametrize(
    ("name", "key"), [(name, key) for name, cls in PENALTIES.items() for key in cls.shape_parameters()]
)
@pytest.mark.parametrize("value", [-0.5, float("nan"), float("inf")])
def test_a_shape_parameter_out_of_its_range_is_refused_by_name(name: str, key: str, value: float) -> None:
    shape: dict[str, Any] = {key: value}
    with pytest.raises(ConfigError, match=f"{PENALTIES[name].__name__}: {key}: got {value:g}, expected"):
        PENALTIES[name](0.3, **shape)


@every_penalty
def test_a_penalty_is_frozen(name: str) -> None:
    penalty = PENALTIES[name](0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.strength = 0.4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="got -1"):
        dataclasses.replace(penalty, strength=-1.0)
