"""Deciding what leaves: the worklist against plain passes over everything, and how its work grows with depth."""

import pytest
import torch

from compress.graph.channels import ChannelGraph, Consumer, Selection
from compress.graph.labels import Classes
from compress.surgery import dead, readers
from compress.surgery.dead import constant_layers, find_dead, unread_inputs


def graph_of(count, layers, *, selections=(), pinned=(), elsewhere=(), constants=None):
    """A channel graph of ``count`` classes from (weight, inputs, outputs, groups, reads, constants, padded, shift).

    ``reads`` is bool ``[groups, out, in]``; a layer that is listed twice is used twice.
    """
    consumers, parameters, tensors, uses = [], {}, {}, {}
    for name, inputs, outputs, groups, reads, known, padded, shift in layers:
        consumers.append(Consumer(name, f"{name}.weight", shift, known, padded, groups))
        parameters[f"{name}.weight"] = {0: outputs, 1: inputs}
        tensors[f"{name}.weight"] = reads.double().flatten(0, 1)[..., None]
        if shift is not None:
            uses[shift[1]] = uses.get(shift[1], 0) + 1
    return ChannelGraph(
        classes=Classes(count, torch.arange(count), {c: ["output"] for c in pinned}, parameters),
        consumers=tuple(consumers), selections=tuple(selections), groups={}, tensors=tensors, uses=uses,
        sized=torch.zeros(count, dtype=torch.bool), operations=(), macs=0, layer_macs={},
        layer_constants=constants or {}, norms=frozenset(), constant_output=False, elsewhere=tuple(elsewhere),
    )  # fmt: skip


def random_graph(seed):
    """Layers between random classes: loops, shared streams, groups, tied uses, selections; many constants and zeros."""
    g = torch.Generator().manual_seed(seed)

    def integer(low, high):
        return int(torch.randint(low, high, (), generator=g))

    def chance(*shape, p):
        return torch.rand(shape, generator=g) < p

    def known(n):
        values = torch.tensor([0.0, 0.5, -0.3, torch.nan], dtype=torch.float64)
        return values[torch.multinomial(torch.tensor([3.0, 2, 1, 2]), n, True, generator=g)]

    count = integer(12, 40)
    layers, elsewhere = [], []
    for i in range(integer(2, 12)):
        groups, width, height = integer(1, 4), integer(1, 5), integer(1, 5)
        inputs, outputs = (torch.randint(0, count, (groups * n,), generator=g) for n in (width, height))
        reads = chance(groups, height, width, p=0.6)
        shift = [("bias", f"{i}.bias"), ("mean", f"{i}.mean"), ("bias", "shared"), None][integer(0, 4)]
        layer = (str(i), inputs, outputs, groups, reads)
        layers += [(*layer, known(len(inputs)), bool(chance(1, p=0.4)), shift) for _ in range(integer(1, 3))]
        if integer(0, 4) == 0:
            elsewhere.append(Consumer(str(i), f"{i}.weight", shift, known(len(inputs)), False, groups))
    selections = []
    for i in range(integer(0, 3)):
        n = integer(1, 5)
        one, other = (torch.randint(0, count, (n,), generator=g) for _ in range(2))
        selections.append(Selection(f"norm{i}.running_mean", one, other, 1))
    pinned = torch.randint(0, count, (3,), generator=g).tolist()
    constants = {f"{name}.weight": known(len(outputs)) for name, _, outputs, *_ in layers}
    return graph_of(count, layers, selections=selections, pinned=pinned, elsewhere=elsewhere, constants=constants)


def plain_unread(graph, weight, removed):
    alive = ~removed[graph.classes.parameters[weight][0]].reshape(graph.reads[weight].shape[0], -1, 1)
    return ~(graph.reads[weight] & alive).any(1).flatten()


def plain_harmless(graph, weight, fold):
    """(Inputs that may leave although they are read, agreed constants, whether any use is padded)."""
    uses = [c for c in graph.consumers if c.weight == weight]
    everywhere = uses + [c for c in graph.elsewhere if c.weight == weight]
    constants = everywhere[0].constants
    for use in everywhere[1:]:
        constants = torch.where(constants == use.constants, constants, torch.nan)
    padded = any(use.padded for use in everywhere)
    owned = uses[0].shift is not None and all(u.shift == uses[0].shift for u in uses)
    owned = owned and len(uses) == (graph.uses[uses[0].shift[1]] if uses[0].shift[0] == "bias" else 1)
    return (~constants.isnan() if fold and (padded or owned) else constants == 0), constants, padded


def plain_unseen(graph, weights, fold):
    """Full passes until nothing changes."""
    removed = torch.zeros(graph.classes.count, dtype=torch.bool)
    while True:
        seen = torch.zeros_like(removed)
        for weight in weights:
            visible = ~(plain_harmless(graph, weight, fold)[0] | plain_unread(graph, weight, removed))
            seen[graph.classes.parameters[weight][1][visible]] = True
        for selection in graph.selections:
            seen[selection.inputs[~removed[selection.outputs]]] = True
        if torch.equal(graph.free() & ~seen, removed):
            return removed
        removed = graph.free() & ~seen


def plain_decision(graph, fold):
    """``(removed, kept)`` by full passes over all layers, each rule again from the first whenever one took back."""
    weights = list(dict.fromkeys(c.weight for c in graph.consumers))
    dims = graph.classes.parameters
    removed, kept, carriers = plain_unseen(graph, weights, fold), set(), {w: set() for w in weights}

    def keep(classes):
        removed[classes] = False
        kept.update(int(c) for c in classes)

    def lost(weight):
        constant = torch.stack([~c.constants.isnan() for c in graph.consumers if c.weight == weight]).any(0)
        harmless = plain_harmless(graph, weight, fold)[0]
        inputs = dims[weight][1]
        keep(inputs[removed[inputs] & constant & ~harmless & ~plain_unread(graph, weight, removed)])

    def carried(weight):
        _, constants, padded = plain_harmless(graph, weight, fold)
        inputs, width = dims[weight][1], graph.reads[weight].shape[2]
        known = ~constants.isnan() & (constants != 0)
        folded = removed[inputs] & known & ~plain_unread(graph, weight, removed)
        for group in (folded.nonzero().flatten() // width).unique().tolist() if padded else ():
            if group not in carriers[weight]:
                carriers[weight].add(group)
                own = torch.arange(len(inputs)) // width == group
                if not bool((own & ~removed[inputs] & known).any()):
                    keep(inputs[torch.where(own & folded, constants.abs(), 0.0).argmax()][None])

    def equal(weight):
        groups = graph.reads[weight].shape[0]
        sides = [dims[weight][d].reshape(groups, -1) for d in (1, 0)]
        staying = ~(removed[sides[0]].all(1) & removed[sides[1]].all(1))
        staying[0] |= not bool(staying.any())
        for side in sides if groups > 1 else ():
            gone = removed[side[staying]]
            least = min(int(gone.sum(1).min()), side.shape[1] - 1)
            keep(side[staying][gone & (gone.cumsum(1) > least)])

    def selected(selection):
        keep(selection.inputs[removed[selection.inputs] & ~removed[selection.outputs]])

    for along in dims.values():
        for classes in along.values():
            if bool(removed[classes].all()):
                keep(classes[:1])
    steps = [(lost, weights), (selected, graph.selections), (carried, weights), (equal, weights)]
    changed = True
    while changed:
        changed = False
        for step, those in steps:
            before = len(kept)
            for one in those:
                step(one)
            if len(kept) > before:
                changed = True
                break
    return removed, kept


@pytest.mark.parametrize("fold", [True, False])
def test_the_worklist_decides_what_plain_passes_decide(fold):
    """Class by class, on graphs with loops and shared classes that no network could have."""
    left = taken_back = 0
    for seed in range(80):
        graph = random_graph(seed)
        removed, kept = plain_decision(graph, fold)
        decision = find_dead(graph, fold=fold)
        assert torch.equal(decision.removed, removed), seed
        assert set(decision.kept) == kept, seed
        left, taken_back = left + int(removed.sum()), taken_back + len(kept)
    assert min(left, taken_back) > 100  # the graphs are no trivial ones


def test_layers_without_a_living_output_and_unread_inputs_are_those_of_plain_passes():
    """What is constant, or seen by nobody."""
    found = 0
    for seed in range(40):
        graph = random_graph(seed)
        weights = list(dict.fromkeys(c.weight for c in graph.consumers))
        hidden = plain_unseen(graph, weights, fold=True)
        expected = {
            name: known.nan_to_num()
            for name, known in graph.layer_constants.items()
            if bool((hidden[graph.classes.parameters[name][0]] | ~known.isnan()).all())
        }
        layers = constant_layers(graph)
        assert layers.keys() == expected.keys()
        assert all(torch.equal(layers[name], expected[name]) for name in expected)
        found += len(expected)
        decision = find_dead(graph)
        for (inputs, zero), weight in zip(unread_inputs(graph, decision), weights, strict=True):
            assert torch.equal(inputs, graph.classes.parameters[weight][1])
            assert torch.equal(zero, plain_unread(graph, weight, decision.removed))
    assert found > 10


def chain(depth, *, backward, groups=4, width=8):
    """Grouped layers one behind the other: each has dead channels of its own; or the last of them reads nothing."""
    g = torch.Generator().manual_seed(0)
    classes = torch.arange((depth + 1) * groups * width).reshape(depth + 1, -1)
    dead_ = torch.rand(4, groups * width, generator=g) < 0.5  # four kinds of layer, in turn
    layers = []
    for i in range(depth):
        known = torch.full((groups * width,), torch.nan, dtype=torch.float64)
        if not backward:
            known[dead_[i % 4]] = 0.3 * (i % 3)
        reads = torch.full((groups, width, width), not (backward and i == depth - 1))
        layers.append((str(i), classes[i], classes[i + 1], groups, reads, known, i % 2 == 0, ("bias", f"{i}.bias")))
    return graph_of(classes.numel(), layers, pinned=classes[-1].tolist())


@pytest.mark.parametrize("backward", [False, True])
def test_work_grows_in_proportion_to_depth(monkeypatch, backward):
    """Counted in evaluations of what a layer still reads: a few a layer, however many layers there are."""
    count = 0

    def counted(reader, removed, unread=readers.unread):
        nonlocal count
        count += 1
        return unread(reader, removed)

    monkeypatch.setattr(dead, "unread", counted)
    monkeypatch.setattr(readers, "unread", counted)
    each = []
    for depth in (20, 80, 320):
        count = 0
        decision = find_dead(chain(depth, backward=backward))
        assert bool(decision.removed.any())
        each.append(count / depth)
    assert max(each) <= 6
    assert each[-1] <= 1.1 * each[1]
