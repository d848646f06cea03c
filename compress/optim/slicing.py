"""Fewer channels in the middle of training: the optimiser's state and the penalty's groups go along.

A parameter that is cut is replaced by a smaller one. What the optimiser keeps in its shape (momentum, averages of
gradients and of their squares) is cut at the same places; the number of steps stays.

With a channel goes a column of every filter that reads it. Those weights did nothing and had no gradient, but to a
penalty on the norms of whole filters they count. So that the others train on as if nothing had been cut, they stay
beside the network as *unread weights*: the optimiser and the penalty see them, the forward pass does not.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from compress.groups import Groups, GroupSlice
from compress.optim.regularizer import Regularizer
from compress.penalties import LayerwisePenalty


@dataclass(frozen=True)
class Piece:
    """What takes the place of a parameter, or of a part of it.

    Attributes:
        parameter: the new parameter.
        positions: int64 of its shape, on its device: the entry of the old parameter, counted flat, that each of its own
            comes from.
    """

    parameter: nn.Parameter
    positions: Tensor

    @classmethod
    def taken(cls, old: nn.Parameter, positions: Tensor) -> Piece:
        """A new parameter of the entries of ``old`` at ``positions``."""
        return cls(nn.Parameter(_taken(old.detach(), positions), requires_grad=old.requires_grad), positions)


Pieces = dict[nn.Parameter, tuple[Piece, ...]]
"""Parameter -> what takes its place; nothing takes the place of one that is to be forgotten."""


class UnreadSlice(GroupSlice):
    """Unread weights: one-dimensional, every entry with the group that it still belongs to."""

    def __init__(self, name: str, parameter: nn.Parameter, groups: Tensor):
        super().__init__(name, parameter, 0, groups, layer=False)


def unread(regularizer: Regularizer) -> list[nn.Parameter]:
    """The unread weights; the caller gives them a gradient of 0 in every step, so that they move as they would have."""
    return [part.parameter for part in regularizer.groups.slices if isinstance(part, UnreadSlice)]


def slice_optimizer_(optimizer: torch.optim.Optimizer, pieces: Pieces) -> None:
    """Put pieces in the place of parameters, each with its share of the state.

    The optimizer's parameter groups keep their options and their order.
    """
    for group in optimizer.param_groups:
        kept = ([piece.parameter for piece in pieces[old]] if old in pieces else [old] for old in group["params"])
        group["params"] = [parameter for some in kept for parameter in some]
    for old, new in pieces.items():
        state = optimizer.state.pop(old, None)
        for piece in new if state is not None else ():
            optimizer.state[piece.parameter] = {key: _share(value, old, piece) for key, value in state.items()}


def whole(cut: Mapping[nn.Parameter, Piece]) -> Pieces:
    """Each parameter's new form alone."""
    return {old: (piece,) for old, piece in cut.items()}


def sliced(regularizer: Regularizer, cut: Mapping[nn.Parameter, Piece]) -> tuple[Regularizer, Pieces]:
    """The penalty on the groups that stay: each weighs in it what it did, and frozen ones stay frozen.

    Args:
        regularizer: of the network before the cut; it is not changed.
        cut: every parameter of the network that was replaced, and its new form.

    Returns:
        The new regularizer, and what the optimiser is to put in the place of each parameter: ``cut``, with the unread
        weights that it leaves behind, and what stays of the unread weights of earlier cuts.
    """
    if regularizer.groups.slices:
        return _SlicedGroups(regularizer, cut).result()
    result = copy.copy(regularizer)
    weights = tuple((name, cut[p].parameter if p in cut else p) for name, p in regularizer.groups.weights)
    result.groups = Groups(sum(p.numel() for _, p in weights), weights=weights)
    if regularizer._frozen is not None:
        frozen = zip(regularizer.groups.weights, regularizer._frozen, strict=True)
        result._frozen = [_taken(alive, cut[p].positions) if p in cut else alive for (_, p), alive in frozen]
    return result, whole(cut)


def without_unread(regularizer: Regularizer) -> tuple[Regularizer, Pieces]:
    """The same regularizer once norms no longer matter, and for the optimiser, what to forget."""
    gone = unread(regularizer)
    if not gone:
        return regularizer, {}
    groups = regularizer.groups
    result = copy.copy(regularizer)
    slices = tuple(part for part in groups.slices if not isinstance(part, UnreadSlice))
    result._factors = regularizer._weights()  # of the groups in their first size
    result.groups = Groups(groups.count, slices, macs=groups.macs)
    return result, dict.fromkeys(gone, ())


class _SlicedGroups:
    """The groups of one cut.

    ``number`` gives each old group its new one; the last entry is that of "in no group", on both sides.
    """

    def __init__(self, regularizer: Regularizer, cut: Mapping[nn.Parameter, Piece]):
        self.old, self.cut = regularizer, cut
        groups = regularizer.groups
        self.stays = torch.zeros(groups.count + 1, dtype=torch.bool, device=groups.slices[0].parameter.device)
        for part in groups.slices:
            if not isinstance(part, UnreadSlice):
                self.stays[self._along(part)] = True
        self.stays[-1] = False
        self.count = int(self.stays.sum())
        self.number = torch.where(self.stays, self.stays.cumsum(0) - 1, self.count)
        self.pieces = whole(cut)

    def result(self) -> tuple[Regularizer, Pieces]:
        """The new regularizer, and the pieces for the optimiser."""
        old = self.old.groups
        network = [part for part in old.slices if not isinstance(part, UnreadSlice)]
        slices: list[GroupSlice] = [self._smaller(part) for part in network]
        for part in old.slices:
            slices += self._unread(part)
        new = copy.copy(self.old)
        stays = self.stays[:-1]
        macs = None if old.macs is None else old.macs[stays.to(old.macs.device)]
        new.groups = Groups(self.count, tuple(slices), macs=macs)
        new._factors = self._factors()[stays]
        if self.old._frozen is not None:
            new._frozen = [self.old._frozen[0][stays]]
        return new, self.pieces

    def _factors(self) -> Tensor:
        """The old weights of all groups; for a layerwise penalty, which takes their mean, all alike in a layer."""
        factors = self.old._weights()
        if isinstance(self.old.penalty.on_norms, LayerwisePenalty):
            factors = factors.clone()
            for layer in self.old.groups.layers():
                factors[layer] = factors[layer].mean()
        return factors

    def _along(self, part: GroupSlice) -> Tensor:
        """The old group of every index that stays along the slice's dimensions."""
        if part.parameter not in self.cut:
            return part.index()
        members = _members(part)[self.cut[part.parameter].positions]
        own = len(part.dims)
        members = members.movedim(tuple(part.dims), tuple(range(own)))
        return members.flatten(own)[..., 0] if members.ndim > own else members

    def _smaller(self, part: GroupSlice) -> GroupSlice:
        parameter = self.cut[part.parameter].parameter if part.parameter in self.cut else part.parameter
        return GroupSlice(part.name, parameter, part.dim, self.number[self._along(part)], layer=part.layer)

    def _unread(self, part: GroupSlice) -> list[GroupSlice]:
        """The weights of groups that stay which the forward pass reads no more, of this slice: none or one."""
        parameter, members = part.parameter, _members(part)
        gone = self.stays[members]
        if isinstance(part, UnreadSlice):
            self.pieces[parameter] = ()
        elif self.old._frozen is not None or parameter not in self.cut:
            return []
        else:
            gone[self.cut[parameter].positions.flatten()] = False
        positions = gone.nonzero().flatten()
        if not positions.numel():
            return []
        piece = Piece.taken(parameter, positions)
        self.pieces[parameter] = (*self.pieces[parameter], piece)
        return [UnreadSlice(part.name, piece.parameter, self.number[members[positions]])]


def _members(part: GroupSlice) -> Tensor:
    """The group of every entry of the slice's parameter, flat: int64 ``[numel]``."""
    return part.broadcast(part.index()).expand(part.parameter.shape).flatten()


def _share(value: object, old: nn.Parameter, piece: Piece) -> object:
    """What a piece gets of one entry of its parameter's state; a count of steps is a tensor that moves in place."""
    if not isinstance(value, Tensor):
        return value
    return _taken(value, piece.positions) if value.shape == old.shape else value.clone()


def _taken(tensor: Tensor, positions: Tensor) -> Tensor:
    return tensor.reshape(-1)[positions]
