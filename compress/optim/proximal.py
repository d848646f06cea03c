"""Proximal steps on groups, in the metric of the optimiser.

With one step ``eta`` for a whole group, the proximal operator of a penalty on the group's norm only rescales the group:
``w_g * prox(||w_g||, eta) / ||w_g||``, exact for every penalty. With a step for each coordinate (RMSProp, Adam):

* single weights: the scalar operator with each weight's own step; exact for every penalty;
* ``l0``: the group stays iff ``sum_i w_i^2 / (2 eta_i) > strength_g``; exact;
* ``l1`` on norms: the root of a scalar equation for each group; exact;
* ``sparse-group-lasso``: its part on single weights, then its part on norms; exact;
* any other penalty: one step for each group, the one that leaves ``sum_i w_i^2 / eta_i`` as it is; an approximation.

A layerwise penalty takes one step for each layer, found in the same way, on single weights too; its weight is the mean
of the layer's group weights.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from compress.groups import Groups, GroupSlice, at_least_single
from compress.optim.blocks import Block, Layout, Passes
from compress.optim.metric import Step
from compress.penalties import L0, L1, GroupLasso, LayerwisePenalty, Penalty, SeparablePenalty

Part = SeparablePenalty | LayerwisePenalty
Index = slice | Tensor

_NEWTON_LIMIT = 100
"""Near the root convergence is quadratic, far from it a step grows ``r + t`` by half or more: 1 or 2 steps for common
groups, some 45 for the worst ones in float64."""

_TOLERANCE = 8
"""Largest relative error of the root, in units of the dtype's epsilon: the rounding error of a sum over a few thousand
weights."""


def prox_weights_(groups: Groups, penalty: Penalty, steps: list[Step]) -> None:
    """Apply the operator to single weights, in place: to each by itself, or to each parameter as a layer."""
    for part in penalty.parts:
        for (name, parameter), step in zip(groups.weights, steps, strict=True):
            if isinstance(part, LayerwisePenalty):
                _prox_layer_(parameter.detach(), part, step)
                continue
            if not parameter.numel():
                continue
            rows = Groups(len(parameter), (GroupSlice(name, parameter, 0, torch.arange(len(parameter)), layer=True),))
            for block in Layout(rows).blocks:
                block.weights.copy_(_shrunk(part, block, step))


def _prox_layer_(w: Tensor, part: LayerwisePenalty, step: Step) -> None:
    """All weights of a layer are one vector, with one step."""
    v = at_least_single(w)
    squares = v.square()
    quotients = _over(squares * step.denominator(lambda tensor: tensor, torch.empty_like(v)), step.rate)
    own = _one_step(part, squares, quotients)
    w.copy_(part.prox(v.abs().flatten(), own).reshape(w.shape).copysign(v))


def _shrunk(part: SeparablePenalty, block: Block, step: Step) -> Tensor:
    """The scalar operator on every weight of a block."""
    w = block.precise
    return part.prox(w.abs(), step.eta(block.cut, block.buffers[0])).copysign(w)


def prox_groups_(layout: Layout, penalty: Penalty, weights: Tensor, steps: list[Step]) -> None:
    """Apply the group operator to every group, in place.

    Args:
        layout: of the groups.
        penalty: acts on group norms.
        weights: ``[count]``, the factor of the penalty for each group.
        steps: the step of each slice's parameter, in the order of ``groups.slices``.
    """
    groups = layout.groups
    if penalty.on_weights is not None:
        _prox_members_(Passes(layout, steps), penalty.on_weights)
    part, common = penalty.on_norms, _common_rate(steps)
    if common is not None:
        norms = groups.squared_norms().sqrt()
        _rescale_(groups, norms, _prox_norms(groups, part, weights, norms, lambda _: common))
    else:
        DIAGONAL.get(type(part), _one_step_a_group_)(Passes(layout, steps), part, weights)


def is_exact(groups: Groups, penalty: Penalty, steps: list[Step]) -> bool:
    """Whether the proximal step is the minimiser in the metric of these steps, or the approximation told above."""
    if groups.slices:
        return _common_rate(steps) is not None or type(penalty.on_norms) in DIAGONAL
    layerwise = any(isinstance(part, LayerwisePenalty) for part in penalty.parts)
    return not layerwise or all(step.square is None for step in steps)


def seen_at_once(groups: Groups, part: Part, weights: Tensor) -> Iterator[tuple[Index, Tensor]]:
    """Which groups a penalty sees at once, and its factor on them: all, each by itself, or those of a layer."""
    if isinstance(part, LayerwisePenalty):
        for layer in groups.layers():
            yield layer, weights[layer].mean()
    else:
        yield slice(None), weights


def _prox_norms(
    groups: Groups, part: Part, weights: Tensor, norms: Tensor, step_of: Callable[[Index], Tensor | float]
) -> Tensor:
    shrunk = torch.empty_like(norms)
    for at, factor in seen_at_once(groups, part, weights):
        shrunk[at] = part.prox(norms[at], factor * step_of(at))
    return shrunk


def _prox_members_(passes: Passes, penalty: SeparablePenalty) -> None:
    """Apply the scalar operator to every weight that is in a group, in place."""
    inside = passes.layout.index < passes.groups.count
    for block in passes.layout.blocks:
        w = block.weights
        w.copy_(torch.where(passes.at(block, inside), _shrunk(penalty, block, passes.step(block)), w))


def _common_rate(steps: list[Step]) -> float | None:
    """The one step of all slices, if there is one."""
    rates = {step.rate for step in steps if step.square is None}
    return rates.pop() if len(rates) == 1 and all(step.square is None for step in steps) else None


def _rescale_(groups: Groups, norms: Tensor, shrunk: Tensor) -> None:
    """Scale every group from its norm to the new one; a group whose norm underflows to 0 becomes exactly 0."""
    groups.scale_(torch.where(norms > 0, shrunk / norms, 0.0))


def weighted_squares(passes: Passes) -> Tensor:
    """``sum_i w_i^2 / eta_i`` of every group.

    A coordinate that was not stepped cannot move: it is infinite there, unless all such weights are zero.
    """

    def values(block: Block) -> Iterator[Tensor]:
        yield _divided(passes, block, _squares(block))

    return passes.by_group(_over(passes.by_index(1, values), passes.rates))[0]


def _squares(block: Block) -> Tensor:
    """``w_i^2``, in buffer 1."""
    w = block.precise
    return torch.mul(w, w, out=block.buffers[1])


def _divided(passes: Passes, block: Block, squares: Tensor) -> Tensor:
    """``w_i^2 rate / eta_i``, in place of the squares."""
    return squares if passes.step(block).square is None else squares.mul_(passes.denominator(block))


def _over(values: Tensor, rates: Tensor | float) -> Tensor:
    """Over the rate; what is 0 stays so at a rate of 0."""
    return torch.where(values == 0, values, values / rates)


def _one_step(part: Part, squares: Tensor, quotients: Tensor) -> Tensor:
    """The step that leaves ``sum_i w_i^2 / eta_i`` as it is: of each group, or of all together as one layer."""
    if isinstance(part, LayerwisePenalty):
        squares, quotients = squares.sum(), quotients.sum()
    return torch.where(squares > 0, squares / quotients, 0.0)


def _l0_diagonal_(passes: Passes, penalty: Part, weights: Tensor) -> None:
    """Keep a group iff dropping it would cost more than the penalty."""
    quotients = weighted_squares(passes)
    keep = quotients / 2 > penalty.strength * weights
    if not bool(keep.all()):
        passes.groups.scale_(keep.to(quotients.dtype))


def _l1_diagonal_(passes: Passes, penalty: Part, weights: Tensor) -> None:
    """``min_x sum_i (x_i - w_i)^2 / (2 eta_i) + s_g ||x||``, exactly.

    With ``t_i = eta_i s_g`` the solution is ``x_i = w_i r / (r + t_i)``, where ``r = ||x||`` is the root of
    ``f(r) = sum_i (w_i / (r + t_i))^2 = 1``; where ``f(0) <= 1`` there is none and ``x = 0``. A coordinate with
    ``t_i = 0`` stays as it is. With ``eta_i = rate / d_i`` it is ``x_i = w_i d_i / (d_i + rate s_g / r)``.
    """
    if penalty.strength == 0:
        return
    strengths = penalty.strength * weights
    pulls = _pulls(passes, strengths, _secular_roots(passes, strengths))
    for block in passes.layout.blocks:
        if passes.step(block).rate > 0:
            block.weights.mul_(_shares(passes, pulls, block))


def _pulls(passes: Passes, strengths: Tensor, r: Tensor) -> Tensor:
    """``rate s_g / r`` by index, 0 for what is in no group; nothing pulls where the strength is 0."""
    return passes.spread(torch.where(strengths > 0, strengths / r, 0.0), outside=0.0) * passes.rates


def _shares(passes: Passes, pulls: Tensor, block: Block) -> Tensor:
    """``r / (r + t_i)`` of every weight, in buffer 1."""
    stays, out = passes.denominator(block), block.buffers[1]
    return torch.div(stays, torch.add(stays, passes.at(block, pulls), out=out), out=out)


def _secular_roots(passes: Passes, strengths: Tensor) -> Tensor:
    """The root of ``f(r) = sum_i (w_i / (r + t_i))^2 = 1`` of every group, ``[count]``; 0 where ``f(0) <= 1``.

    ``M(r) = ||w|| / sqrt(f)`` is the power mean (exponent -2, weights ``w_i^2``) of the ``r + t_i``: increasing and
    concave, its slope at least 1, its third derivative at most ``27 M / r^3``. ``||w||`` lies above the root of
    ``M(r) = ||w||``, so that Newton's method lands below it with its first step ``delta`` down. The parabola through
    ``||w||`` comes nearer, with a step ``d <= delta``: to within ``4.5 M(||w||) (d / (||w|| - delta))^3``. Where that
    is no more than rounding, as it is where a step takes less than half a hundredth of a group's norm, it is the root.
    The other groups go on.
    """

    def squares(block: Block) -> Iterator[Tensor]:
        yield _squares(block)

    norms = passes.sums(1, squares)[0].sqrt()
    pulls = _pulls(passes, strengths, norms)
    p2, p3, p4 = passes.sums(3, functools.partial(_first_terms, passes, pulls))
    root, moves = p2.sqrt(), p3 > 0
    delta = torch.where(moves, (norms - root) * (p2 / p3), norms)
    bend = torch.where(moves, 1.5 * (p4 / p3 - p3 / p2) / norms, 0.0).clamp_min(0.0)
    d = 2 * delta / (1 + (1 + 4 * bend * delta).clamp_min(0.0).sqrt())
    limits = torch.finfo(norms.dtype)
    faint = p4 < limits.tiny / limits.eps  # so that the sums have lost terms, or all of them, to underflow
    least = torch.where(faint, 0.0, (norms - delta).clamp_min(0.0))
    reach = torch.where(root > 0, norms / root, torch.inf)
    near = 4.5 * reach * (d / norms).pow(3) <= _TOLERANCE * limits.eps * (least / norms).pow(4)
    sure = (norms == 0) | (near & ~faint)
    if bool(sure.all()):
        return norms - d
    return torch.where(sure, norms - d, _newton(passes.over(~sure), strengths, norms, least))


def _first_terms(passes: Passes, pulls: Tensor, block: Block) -> Iterator[Tensor]:
    """``w_i^2 (r / (r + t_i))^k`` for ``r = ||w||`` and ``k`` = 2, 3, 4."""
    shares = _shares(passes, pulls, block)
    terms = torch.mul(block.precise, shares, out=block.buffers[0]).square_()
    yield terms
    yield terms.mul_(shares)
    yield terms.mul_(shares)


def _newton(passes: Passes, strengths: Tensor, norms: Tensor, start: Tensor) -> Tensor:
    """The roots of ``_secular_roots`` by Newton's method on ``M(r) = ||w||``, which approaches them from below.

    ``||max(|w_i| - t_i, 0)||`` lies below the root too; from there on no term of ``f`` exceeds 1: nothing overflows,
    however different the steps are. Where there is no root both starts are at most 0, and 0 stays. Since ``M' >= 1``
    and ``|M''| <= 3 M / r^2``, a step of ``delta`` leaves an error of at most ``1.5 ||w|| (delta / r)^2``.

    Args:
        passes: over the groups that are wanted; what is returned for others means nothing.
        strengths: ``s_g`` of each group.
        norms: ``||w||``.
        start: at most the root.
    """
    r, pulls = start, passes.spread(strengths, outside=0.0) * passes.rates
    if bool((r < norms / 2).any()):
        (excess,) = passes.sums(1, functools.partial(_excess, passes, pulls))
        r = torch.maximum(r, excess.sqrt())
    tolerance = _TOLERANCE * torch.finfo(r.dtype).eps
    for _ in range(_NEWTON_LIMIT):
        at = passes.spread(torch.where(norms > 0, r, torch.inf), outside=1.0)  # a group without weights has no terms
        f, slope = passes.sums(2, functools.partial(_terms, passes, at, pulls))
        delta = torch.where(f > 1, (f.sqrt() - 1) * f / slope, 0.0)
        r = r + delta
        if not bool((1.5 * norms * (delta / r).square() > tolerance * r).any()):
            break
    return r


def _excess(passes: Passes, pulls: Tensor, block: Block) -> Iterator[Tensor]:
    """``max(|w| - t, 0)^2``, with ``t = c / d``; ``pulls`` are the ``c = rate s_g`` by index."""
    denominator, out = passes.denominator(block), block.buffers[1]
    t = torch.div(passes.at(block, pulls), denominator, out=out)
    yield torch.sub(block.precise.abs(), t, out=out).clamp_min_(0.0).square_()


def _terms(passes: Passes, r: Tensor, pulls: Tensor, block: Block) -> Iterator[Tensor]:
    """The terms of ``f(r)`` and of ``-f'(r) / 2``; weights that cannot move and whose square underflows count as 0.

    With ``1 / (r + t_i) = d_i / (r d_i + c)``; ``r`` and ``pulls``, the ``c = rate s_g``, are by index.
    """
    denominator, out = passes.denominator(block), block.buffers[1]
    shifted = torch.addcmul(passes.at(block, pulls), passes.at(block, r), denominator, out=out)
    inverse = torch.div(denominator, shifted.clamp_min_(torch.finfo(passes.layout.dtype).tiny), out=out)
    w = block.precise
    w = w if passes.step(block).rate > 0 else torch.where(w.square() > 0, w, 0.0)
    squares = torch.mul(w, inverse, out=block.buffers[0]).square_()
    yield squares
    yield squares.mul_(inverse)


def _one_step_a_group_(passes: Passes, part: Part, weights: Tensor) -> None:
    """Approximation for the other penalties: the step ``||w||^2 / sum_i (w_i^2 / eta_i)`` for the whole group."""

    def values(block: Block) -> Iterator[Tensor]:
        squares = _squares(block)
        yield squares
        yield _divided(passes, block, squares)

    rows = passes.by_index(2, values)
    rows[1] = _over(rows[1], passes.rates)
    squares, quotients = passes.by_group(rows)
    norms = squares.sqrt()
    shrunk = _prox_norms(passes.groups, part, weights, norms, lambda at: _one_step(part, squares[at], quotients[at]))
    _rescale_(passes.groups, norms, shrunk)


DIAGONAL: dict[type[Penalty], Callable[[Passes, Part, Tensor], None]] = {
    L0: _l0_diagonal_,
    L1: _l1_diagonal_,
    GroupLasso: _l1_diagonal_,
}
"""Penalty -> its exact group operator in a diagonal metric."""
