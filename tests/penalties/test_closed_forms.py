"""Numbers that follow from each penalty's formula, and the errors that other libraries make."""

import pytest
import torch

from compress.errors import ConfigError
from compress.penalties import (
    L0,
    L1,
    MCP,
    SCAD,
    GroupLasso,
    Hoyer,
    L1OverL2,
    LogSum,
    Lp,
    SparseGroupLasso,
    TransformedL1,
)


def values(*numbers: float) -> torch.Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def test_l0_threshold_is_the_square_root_of_2m() -> None:
    m = 0.5 * 0.02
    v = values(m, 0.999 * (2 * m) ** 0.5, 1.001 * (2 * m) ** 0.5)
    assert L0(0.02).prox(v, 0.5).tolist() == [0.0, 0.0, float(v[2])]


def test_l1_shrinks_by_m_and_group_lasso_is_l1_weighted_by_size() -> None:
    v = values(0.05, 0.1, 0.25)
    assert L1(0.2).prox(v, 0.5).tolist() == pytest.approx([0.0, 0.0, 0.15])
    assert torch.equal(GroupLasso(0.2).prox(v, 0.5), L1(0.2).prox(v, 0.5))
    assert (L0.default_group_weights, L1.default_group_weights) == ("none", "none")
    assert GroupLasso.default_group_weights == SparseGroupLasso.default_group_weights == "sqrt-size"


@pytest.mark.parametrize(
    ("p", "threshold"), [(1 / 2, 1.5 * 0.3 ** (2 / 3)), (2 / 3, 2 * (2 * 0.3 / 3) ** 0.75), (0.25, None)]
)
def test_lp_jumps_at_its_threshold(p: float, threshold: float | None) -> None:
    m = 0.3
    b = (2 * m * (1 - p)) ** (1 / (2 - p))
    jump = b + m * p * b ** (p - 1)
    assert threshold is None or jump == pytest.approx(threshold, rel=1e-12)
    found = Lp(m, p).prox(values(jump * (1 - 1e-9), jump * (1 + 1e-9)), 1.0)
    assert float(found[0]) == 0.0
    assert float(found[1]) == pytest.approx(b, rel=1e-6)


@pytest.mark.parametrize("p", [1 / 2, 2 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lp_closed_forms_agree_with_newtons_method_next_to_them(p: float, dtype: torch.dtype) -> None:
    v = torch.logspace(-3, 4, 500, dtype=dtype)
    closed, iterated = Lp(0.2, p).prox(v, 0.7), Lp(0.2, p * (1 + 1e-14)).prox(v, 0.7)
    rounding = max(8 * torch.finfo(dtype).eps, 1e-13)  # and what the other p makes
    torch.testing.assert_close(closed, iterated, rtol=rounding, atol=0)


def test_lp_close_to_its_ends_is_l0_and_l1() -> None:
    v = torch.linspace(0.011, 3.003, 300, dtype=torch.float64)  # not at L0's threshold
    torch.testing.assert_close(Lp(0.5, 1e-9).prox(v, 1.0), L0(0.5).prox(v, 1.0), rtol=0, atol=1e-6)
    torch.testing.assert_close(Lp(0.5, 1 - 1e-9).prox(v, 1.0), L1(0.5).prox(v, 1.0), rtol=0, atol=1e-6)


def test_transformed_l1_is_l1_for_a_large_a_without_losing_digits() -> None:
    v = torch.linspace(0.5, 3, 100)
    torch.testing.assert_close(TransformedL1(0.1, 1e7).prox(v, 1.0), L1(0.1).prox(v, 1.0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(("m", "threshold"), [(0.2, 0.4), (1.0, 1.5)])
def test_transformed_l1_has_two_kinds_of_threshold(m: float, threshold: float) -> None:
    """At a = 1: 2m, from 0 on without a jump, up to m = 1/4; then 2 sqrt(m) - 1/2, with a jump."""
    found = TransformedL1(m).prox(values(threshold - 1e-9, threshold + 1e-9), 1.0)
    assert float(found[0]) == 0.0
    assert float(found[1]) == pytest.approx(0.0 if m <= 0.25 else threshold - 0.5, abs=1e-6)


def test_mcp_is_a_hard_threshold_where_the_step_exceeds_its_curvature() -> None:
    """At s sqrt(a step) = 2; soft thresholding would say 4."""
    v = values(0.5, 1.99, 2.01, 3.0)
    assert MCP(1.0, 1.0).prox(v, 4.0).tolist() == [0.0, 0.0, 2.01, 3.0]
    assert MCP(1.0, 2.0).prox(values(0.4, 1.0, 1.9, 2.1), 0.5).tolist() == pytest.approx([0.0, 2 / 3, 28 / 15, 2.1])


def test_mcp_and_scad_do_not_touch_what_is_beyond_their_reach() -> None:
    v = values(2.9, 3.1, 3.6, 3.8) * 1e-4
    assert MCP(1e-4, 3.0).prox(v, 0.1)[1:].tolist() == v[1:].tolist()
    assert SCAD(1e-4, 3.7).prox(v, 0.1)[3:].tolist() == v[3:].tolist()
    assert MCP(1e-4, 3.0).subgradient(v)[1:].tolist() == [0.0] * 3
    assert float(MCP(1e-4, 1e4).subgradient(values(0.5))) == pytest.approx(0.5e-4)


def test_scad_compares_candidates_where_the_step_exceeds_its_curvature() -> None:
    """s = 1, a = 3, step = 4: keeping v costs 4 * 2 = 8, dropping it v^2 / 2, so that the threshold is 4."""
    assert SCAD(1.0, 3.0).prox(values(3.9, 3.99, 4.01, 9.0), 4.0).tolist() == [0.0, 0.0, 4.01, 9.0]
    # step = 2.2: at v = 3.21 keeping costs 4.4, soft thresholding to 1.01 costs 2.42 + 2.2 * 1.0099.. = 4.64
    assert SCAD(1.0, 3.0).prox(values(2.5, 3.05, 3.21), 2.2).tolist() == pytest.approx([0.3, 0.85, 3.21])


def test_log_sum_compares_with_zero_where_its_objective_has_two_minima() -> None:
    """eps = 0.1, m = 0.5: from v = 2 sqrt(m) - eps = 1.314 on there is a stationary point, dearer than 0 at first."""
    penalty = LogSum(0.5, 0.1)
    v = torch.linspace(1.3, 3, 1701, dtype=torch.float64)
    found = penalty.prox(v, 1.0)
    first = int((found > 0).nonzero()[0])
    assert 1.4 < float(v[first]) < 5.0  # between the stationary point's start and m / eps
    u, w = found[first], v[first]
    assert float(u * u / 2 - u * w + penalty.value(u)) == pytest.approx(0.0, abs=2e-3)
    assert float(found[first]) > 0.5


def test_ratios_count_equal_magnitudes() -> None:
    for k in (1, 2, 7):
        z = torch.cat((torch.full((k,), 3.0), torch.zeros(4)))
        assert float(L1OverL2(0.5).value(z)) == pytest.approx(0.5 * k**0.5)
        assert float(Hoyer(0.5).value(z)) == pytest.approx(0.5 * k)


@pytest.mark.parametrize("penalty", [L1OverL2(0.3), Hoyer(0.05)])
def test_ratios_let_the_large_grow_and_kill_the_small(penalty: L1OverL2) -> None:
    v = values(0.02, 0.05, 1.0, 2.0)
    found = penalty.prox(v, 1.0)
    assert found[:2].tolist() == [0.0, 0.0]
    assert float(found[2]) < 1.0
    assert float(found[3]) > 2.0
    assert float(penalty.subgradient(v)[3]) < 0 < float(penalty.subgradient(v)[0])


@pytest.mark.parametrize("penalty", [L1OverL2(1.0), Hoyer(1.0)])
def test_a_ratio_gives_a_layer_up_where_one_survivor_costs_more_than_it_is_worth(penalty: L1OverL2) -> None:
    v = values(0.1, 1.0, 3.0)
    assert penalty.prox(v, 0.99 * 4.5).tolist() == [0.0, 0.0, 3.0]
    assert penalty.prox(v, 1.01 * 4.5).tolist() == [0.0, 0.0, 0.0]


def test_a_ratio_of_a_long_vector_is_stationary_and_finite() -> None:
    v = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for penalty in (L1OverL2(5.0), Hoyer(0.05)):
        u = penalty.prox(v, 1.0)
        alive = u > 0
        assert 0.1 < float(alive.double().mean()) < 0.99
        assert float((u + penalty.subgradient(u) - v)[alive].abs().max()) < 1e-10
        assert float((v.square().sum() - u.square().sum()) / 2 + penalty.value(u)) < float(penalty.value(v))


def test_sparse_group_lasso_is_l1_and_group_lasso_at_its_ends() -> None:
    v = values(0.05, 0.3, 0.4)
    assert torch.equal(SparseGroupLasso(0.2, 1.0).prox(v, 0.5), L1(0.2).prox(v, 0.5))
    shrunk = v * (1 - 0.1 / v.norm())
    torch.testing.assert_close(SparseGroupLasso(0.2, 0.0).prox(v, 0.5), shrunk)
    assert float(SparseGroupLasso(0.2, 0.25).value(v)) == pytest.approx(0.2 * (0.25 * 0.75 + 0.75 * float(v.norm())))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lp(0.1, 1.0), "Lp: p: got 1, expected a finite number above 0 and below 1"),
        (lambda: SCAD(0.1, 2.0), "SCAD: a: got 2, expected a finite number above 2"),
        (lambda: MCP(0.1, 0.0), "MCP: a: got 0, expected a finite number above 0"),
        (lambda: SparseGroupLasso(0.1, 1.5), "l1_share: got 1.5, expected a number from 0 to 1"),
    ],
)
def test_the_ends_of_ranges(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
