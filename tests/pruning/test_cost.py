"""What the ledger counts is what a network that was really cut costs."""

import pytest
import torch

from compress.graph import channel_graph
from compress.groups import GRANULARITIES
from compress.models import build
from compress.pruning.cost import COSTS, Ledger, Term
from compress.pruning.units import find_units, layers_of
from compress.surgery import compact

NETWORKS = {"lenet5": (1, 28), "resnet20": (3, 32)}
LARGE = "torchvision:mobilenet_v2"


def network(name, grouped):
    torch.manual_seed(0)
    if name == "grouped":
        return grouped(), torch.randn(1, 3, 9, 9)
    channels, size = NETWORKS.get(name, (3, 64))
    return build(name, num_classes=10, in_channels=channels, image_size=size), torch.randn(1, channels, size, size)


def a_third_zeroed_(model, graph, seed):
    """Zero a random third of the units, and return their classes."""
    groups = GRANULARITIES["coupled"](model, graph)
    slices = graph.out_slices()
    scores = torch.full((graph.classes.count,), torch.nan, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    for part in groups.slices:
        classes = slices[part.name, part.dim]
        inside = classes[part.groups < groups.count]
        scores[inside] = 0.0
    known = ~scores.isnan()
    scores[known] = torch.rand(int(known.sum()), generator=generator, dtype=torch.float64)
    units = find_units(scores, layers_of([], graph.classes.count), graph.partitions)
    chosen = [u for u in range(len(units)) if torch.rand((), generator=generator) < 1 / 3]
    gone = units.members(chosen)
    with torch.no_grad():
        for part in groups.slices:
            inside = gone[slices[part.name, part.dim]] & (part.groups < groups.count)
            part.parameter.index_fill_(part.dim, inside.nonzero().flatten(), 0)
    return units, chosen, gone


@pytest.mark.parametrize("name", [*NETWORKS, "grouped", pytest.param(LARGE, marks=pytest.mark.slow)])
def test_costs_are_those_of_the_network_that_was_cut(name, grouped):
    model, x = network(name, grouped)
    graph = channel_graph(model, (x,))
    units, chosen, gone = a_third_zeroed_(model, graph, seed=1)
    assert len(chosen) > 5
    report = compact(model, (x,)).report
    for kind, before, after in (
        ("macs", report.macs_before, report.macs_after),
        ("params", report.params_before, report.params_after),
    ):
        terms = COSTS[kind](model, graph)
        ledger = Ledger(terms, units.of_class, torch.zeros_like(gone))
        assert ledger.total == pytest.approx(before, rel=1e-12)
        for unit in chosen:
            expected = ledger.without(unit)
            ledger.remove(unit)
            assert ledger.total == pytest.approx(expected, rel=1e-12)
        assert ledger.total == pytest.approx(after, rel=1e-9)
        already = Ledger(terms, units.of_class, gone)
        assert already.total == pytest.approx(after, rel=1e-9)
        for unit in chosen:
            ledger.restore(unit)
        assert ledger.total == pytest.approx(before, rel=1e-9)


def test_tied_weights_are_counted_once():
    class Tied(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.a = torch.nn.Linear(6, 6)
            self.b = torch.nn.Linear(6, 6)
            self.b.weight = self.a.weight
            self.head = torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.b(self.a(x).relu()).relu())

    model = Tied()
    graph = channel_graph(model, (torch.randn(1, 6),))
    stay = torch.full((graph.classes.count,), -1)
    assert Ledger(COSTS["params"](model, graph), stay, stay == 0).total == 36 + 6 + 6 + 14
    assert Ledger(COSTS["macs"](model, graph), stay, stay == 0).total == 36 + 36 + 12


def test_floors_hold_for_every_layer_that_a_unit_belongs_to():
    unit_of = torch.tensor([0, 1, 2, -1])
    rows = [torch.tensor([0, 1, 3]), torch.tensor([1, 2])]
    ledger = Ledger([Term(4.0, (torch.arange(4),))], unit_of, torch.zeros(4, dtype=torch.bool), rows, 1)
    assert all(map(ledger.allows, range(3)))
    ledger.remove(1)
    assert ledger.allows(0)  # 3 stays in the first layer
    assert not ledger.allows(2)  # the last of the second
    high = Ledger([], unit_of, torch.zeros(4, dtype=torch.bool), rows, 5)
    assert not any(map(high.allows, range(3)))
    gone = torch.tensor([False, True, False, False])
    assert not Ledger([], unit_of, gone, rows, 1).allows(2)
