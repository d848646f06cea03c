"""What every penalty in ``PENALTIES`` promises, checked from its definition: a new one is picked up from the table."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from compress.errors import ConfigError
from compress.penalties import L0, L1, PENALTIES, GroupLasso, Penalty

every_penalty = pytest.mark.parametrize("cls", PENALTIES.values(), ids=PENALTIES.keys())
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])

OBJECTIVE_TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-9}
"""Relative excess of the objective: rounding in float32, the refined grid's resolution in float64."""

DERIVATIVE_TOLERANCE = 1e-5
"""Relative error of a central difference in float64 with a relative width of 1e-6."""

magnitudes = st.floats(1e-4, 50.0)
strengths = st.floats(1e-4, 5.0)
steps = st.floats(1e-3, 10.0)


def objective(penalty: Penalty, u: Tensor, v: float, step: float) -> Tensor:
    """``(u - v)^2 / 2 + step * penalty(u)``, the definition of what prox minimises."""
    return (u - v).square() / 2 + step * penalty.value(u)


def lowest(penalty: Penalty, v: float, step: float) -> float:
    """The smallest objective on ``[0, 1.5 v]``: a dense grid, refined five times around its best point."""
    ends = torch.tensor([0.0, v], dtype=torch.float64)  # a jump at 0 hides its point from any refinement
    best = float(objective(penalty, ends, v, step).min())
    low, high = 0.0, 1.5 * v
    for _ in range(5):
        grid = torch.linspace(low, high, 2001, dtype=torch.float64)
        values = objective(penalty, grid, v, step)
        at, width = float(grid[values.argmin()]), (high - low) / 2000
        best = min(best, float(values.min()))
        low, high = max(0.0, at - 2 * width), at + 2 * width
    return best


@every_penalty
@every_dtype
@settings(max_examples=60, deadline=None)
@given(v=magnitudes, strength=strengths, step=steps)
def test_prox_minimises_its_definition(
    cls: type[Penalty], dtype: torch.dtype, v: float, strength: float, step: float
) -> None:
    penalty = cls(strength)
    z = torch.tensor([v], dtype=dtype)
    found = penalty.prox(z, step).double()
    reached = float(objective(penalty, found, float(z), step))
    best = lowest(penalty, float(z), step)
    assert reached - best <= OBJECTIVE_TOLERANCE[dtype] * (v * v / 2 + best)
    assert 0 <= float(found) <= float(z)


@every_penalty
@settings(max_examples=60, deadline=None)
@given(v=magnitudes, strength=strengths, step=steps)
def test_prox_is_stationary_where_it_is_not_zero(cls: type[Penalty], v: float, strength: float, step: float) -> None:
    penalty = cls(strength)
    z = torch.tensor([v], dtype=torch.float64)
    u = penalty.prox(z, step)
    if float(u) > 0:
        assert float(u + step * penalty.subgradient(u)) == pytest.approx(v, rel=1e-7)


@every_penalty
@settings(max_examples=60, deadline=None)
@given(z=magnitudes, strength=strengths)
def test_subgradient_is_the_derivative_of_the_value(cls: type[Penalty], z: float, strength: float) -> None:
    penalty, width = cls(strength), 1e-6 * z
    at = torch.tensor([z - width, z, z + width], dtype=torch.float64)
    left, here, right = penalty.value(at).tolist()
    backward, forward = (here - left) / width, (right - here) / width
    kink = abs(forward - backward) > 1e-2 * max(abs(forward), abs(backward), 1e-12)
    derivative = float(penalty.subgradient(at[1:2]))
    if kink:
        assert min(backward, forward) - strength * 1e-2 <= derivative <= max(backward, forward) + strength * 1e-2
    else:
        assert derivative == pytest.approx((right - left) / (2 * width), rel=DERIVATIVE_TOLERANCE, abs=1e-8 * strength)


@every_penalty
@every_dtype
def test_zero_stays_zero(cls: type[Penalty], dtype: torch.dtype) -> None:
    penalty, zero = cls(0.3), torch.zeros(3, dtype=dtype)
    for result in (penalty.value(zero), penalty.subgradient(zero), penalty.prox(zero, 0.5), penalty.prox(zero, 0.0)):
        assert torch.equal(result, zero)


@every_penalty
@every_dtype
def test_no_step_or_no_strength_moves_nothing(cls: type[Penalty], dtype: torch.dtype) -> None:
    z = torch.tensor([0.0, 1e-30, 1e-3, 1.0, 40.0], dtype=dtype)
    assert torch.equal(cls(0.7).prox(z, 0.0), z)
    assert torch.equal(cls(0.0).prox(z, 2.0), z)
    assert torch.equal(cls(0.0).value(z), torch.zeros_like(z))
    assert torch.equal(cls(0.0).subgradient(z), torch.zeros_like(z))


@every_penalty
def test_prox_is_monotone_and_reaches_exact_zero(cls: type[Penalty]) -> None:
    found = cls(0.5).prox(torch.linspace(0, 5, 501), 0.4)
    assert bool((found.diff() >= 0).all())
    assert float(found[1]) == 0.0
    assert float(found[-1]) > 0


@every_penalty
@every_dtype
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3, 4)], ids=str)
def test_shape_and_dtype_are_kept_and_the_input_is_not_changed(
    cls: type[Penalty], dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    penalty, z = cls(0.3), torch.rand(shape, dtype=dtype)
    step = torch.full(shape, 0.5, dtype=dtype)
    z_before, step_before = z.clone(), step.clone()
    for result in (penalty.value(z), penalty.subgradient(z), penalty.prox(z, 0.5), penalty.prox(z, step)):
        assert result.shape == shape
        assert result.dtype == dtype
    assert torch.equal(z, z_before)
    assert torch.equal(step, step_before)


@every_penalty
@every_dtype
def test_a_tensor_of_steps_acts_elementwise_and_broadcasts(cls: type[Penalty], dtype: torch.dtype) -> None:
    penalty, z = cls(0.4), torch.linspace(0, 4, 24, dtype=dtype).reshape(6, 4)
    step = torch.tensor([1e-3, 0.1, 1.0, 10.0], dtype=dtype)
    by_column = torch.stack([penalty.prox(z[:, i], float(step[i])) for i in range(4)], dim=1)
    torch.testing.assert_close(penalty.prox(z, step), by_column, rtol=1e-6, atol=1e-6)


@every_penalty
def test_nan_is_not_hidden_in_a_zero(cls: type[Penalty]) -> None:
    assert bool(cls(0.3).prox(torch.tensor([float("nan")]), 0.5).isnan())


@every_penalty
@pytest.mark.parametrize("strength", [-1e-9, float("nan"), float("inf")])
def test_a_strength_that_is_no_number_from_0_is_refused(cls: type[Penalty], strength: float) -> None:
    with pytest.raises(ConfigError, match=f"penalty strength: got {strength}, expected a finite number >= 0"):
        cls(strength)


@every_penalty
def test_a_penalty_is_frozen(cls: type[Penalty]) -> None:
    penalty = cls(0.3)
    with pytest.raises(dataclasses.FrozenInstanceError):
        penalty.strength = 0.4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="got -1"):
        dataclasses.replace(penalty, strength=-1.0)


def test_l0_threshold_is_the_square_root_of_2m() -> None:
    m = 0.5 * 0.02
    v = torch.tensor([m, 0.999 * (2 * m) ** 0.5, 1.001 * (2 * m) ** 0.5], dtype=torch.float64)
    assert L0(0.02).prox(v, 0.5).tolist() == [0.0, 0.0, float(v[2])]


def test_l1_shrinks_by_m_and_group_lasso_is_l1_weighted_by_size() -> None:
    v = torch.tensor([0.05, 0.1, 0.25], dtype=torch.float64)
    assert L1(0.2).prox(v, 0.5).tolist() == pytest.approx([0.0, 0.0, 0.15])
    assert torch.equal(GroupLasso(0.2).prox(v, 0.5), L1(0.2).prox(v, 0.5))
    assert (L0.default_group_weights, L1.default_group_weights) == ("none", "none")
    assert GroupLasso.default_group_weights == "sqrt-size"
