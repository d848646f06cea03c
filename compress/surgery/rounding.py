"""Widths that are multiples of a block: dead channels stay until a layer fills the last block that it has begun.

A processor computes channels in blocks (ONNX Runtime: 8 on x86, 16 with AVX-512; int8 kernels often 4 or 16). A layer
of 33 channels costs as much as one of 40, and a depthwise convolution of 33 more than that. Channels that are dead
anyway fill the block without changing what is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.errors import ConfigError
from compress.graph import ChannelGraph
from compress.surgery.dead import Decision, find_dead


def check_round_to(round_to: int) -> None:
    """Refuse what is no width of a block.

    Raises:
        ConfigError: not a whole number of at least 1.
    """
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ConfigError(f"round_to={round_to!r}: expected a whole number of channels, at least 1 (8, say).")


def find_rounded(graph: ChannelGraph, *, pinned: Tensor, fold: bool, round_to: int) -> Decision:
    """``find_dead``, and the widths of layers rounded up to multiples of ``round_to``, as far as they have channels.

    A layer whose width is no multiple as it is keeps all of its last block. Where layers share channels, each of them
    is rounded; where one of them is made of parts that leave on their own, a part that was rounded may be larger than
    that layer needs.

    Args:
        graph: the channel graph of the network, with its weights.
        pinned: bool ``[classes]``, classes that must stay for a further reason.
        fold: whether constants other than 0 may be folded.
        round_to: channels of a block; 1 rounds nothing.
    """
    rows = graph.layer_rows()
    back = torch.zeros(graph.classes.count, dtype=torch.bool)
    while True:
        decision = find_dead(graph, pinned=pinned | back, fold=fold)
        left = filled(rows, decision.removed, round_to)
        if torch.equal(left, decision.removed):
            break
        back |= decision.removed & ~left  # what stays may hold others: a group of a convolution, a carrier
    why = f"fills the width up to a multiple of {round_to}"
    return dataclasses.replace(decision, kept=dict.fromkeys(back.nonzero().flatten().tolist(), why) | decision.kept)


def filled(rows: Sequence[Tensor], removed: Tensor, round_to: int) -> Tensor:
    """What still leaves when removed channels fill the last block of each layer.

    Those come first that are in the fewest layers, and they are spread over the layer: the groups of a convolution are
    to keep equally many.

    Args:
        rows: for each layer, int64 ``[channels]``, the class of each output.
        removed: bool ``[classes]``.
        round_to: channels of a block.

    Returns:
        Bool ``[classes]``.
    """
    left = removed.clone()
    layers = torch.zeros(removed.shape, dtype=torch.int64)  # of each class
    for classes in rows:
        layers[classes] += 1
    while round_to > 1:
        before = left.clone()
        for classes in rows:  # what fills one layer may begin a block in another
            gone = classes[left[classes]]
            missing = min((gone.numel() - classes.numel()) % round_to, gone.numel())
            if missing:
                some, channels = torch.unique(
                    gone[layers[gone] <= layers[gone].sort().values[missing - 1]], return_counts=True
                )
                count = -(-missing // int(channels.max()))  # a class may be a whole attention head
                left[some[torch.arange(count) * some.numel() // count]] = False
        if torch.equal(left, before):
            break
    return left
