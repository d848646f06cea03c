"""Pitfalls of the pipeline, of the representation of labels, and of tracing.

Those of single ops, of constants and of removal have files of their own beside this one.
"""

import copy
import logging
import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from compress.errors import CompressError, ModelError, VerificationError
from compress.graph import channel_graph
from compress.graph.aten.constants import ConstantFlow
from compress.graph.aten.labels import LabelFlow
from compress.graph.aten.trace import base_name, trace
from compress.graph.field import Field
from compress.graph.labels import NEUTRAL, LabelBook
from compress.surgery import compact, load, save_weights
from small_networks import conv, width

GENERATOR = torch.Generator().manual_seed(0)
SMALL, LARGE = (torch.randn(2, 3, size, size + 1, dtype=torch.float64, generator=GENERATOR) for size in (11, 16))
DEAD = [1, 5]


def pooled(m, y):
    return m.head(F.relu(y).mean((2, 3)))


def plain(m, x):
    return pooled(m, m.b(F.relu(m.a(x))))


def network(net, randomise_, run=plain, **layers):
    """Layers ``a`` (3 -> 8), ``b`` (8 -> 5) and the linear ``head``, and others, around ``run``."""
    torch.manual_seed(0)
    return randomise_(net(run, **{"a": conv(3, 8), "b": conv(8, 5), "head": nn.Linear(5, 2), **layers}))


def agree(model, small, *inputs):
    with torch.no_grad():
        for x in inputs:
            for expected, got in zip(tree_leaves(model(x)), tree_leaves(small(x)), strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def refusal(model, inputs, *more):
    """What ``compact`` says where it refuses; else ``None``, and what it returns is compared."""
    try:
        result = compact(model, inputs)
    except CompressError as error:
        return error
    agree(model, result.model, *inputs, *more)
    return None


class Several(nn.Module):
    """A network of several inputs: ``run(m, *inputs)``."""

    def __init__(self, run, **layers):
        super().__init__()
        self.run = run
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs):
        return self.run(self, *inputs)


# --- pipeline: bake ---------------------------------------------------------------------------------------------------


def masked(model):
    for layer, rows in ((model.a, DEAD), (model.b, [0])):
        mask = torch.ones_like(layer.weight)
        mask[rows] = 0
        prune.custom_from_mask(layer, "weight", mask)
        prune.custom_from_mask(layer, "bias", mask.flatten(1).amax(1))


class Rows(nn.Module):
    """A parametrisation that zeroes rows."""

    def __init__(self, rows):
        super().__init__()
        self.rows = rows

    def forward(self, tensor):
        keep = torch.ones(tensor.shape[0], dtype=tensor.dtype)
        keep[self.rows] = 0
        return tensor * keep.view(-1, *[1] * (tensor.ndim - 1))


def parametrized(model):
    for layer, rows in ((model.a, DEAD), (model.b, [0])):
        parametrize.register_parametrization(layer, "weight", Rows(rows))
        parametrize.register_parametrization(layer, "bias", Rows(rows))


def parametrized_twice(model):
    parametrizations.weight_norm(model.a)
    parametrizations.weight_norm(model.b)
    parametrized(model)


@pytest.mark.parametrize("disguise", [masked, parametrized, parametrized_twice], ids=lambda f: f.__name__)
def test_masks_and_parametrisations_are_baked_before_anything_else(net, randomise_, disguise):
    """A weight that is computed before each forward looks like an activation: everything would be pinned."""
    model = network(net, randomise_)
    disguise(model)
    names = set(model.state_dict())
    result = compact(model, (SMALL,))
    agree(model, result.model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "b")) == (6, 4)
    assert type(result.model.a) is nn.Conv2d
    assert set(model.state_dict()) == names  # the original wears its masks as before


# --- pipeline: in-place ops on views ----------------------------------------------------------------------------------

IN_PLACE = {
    "relu_ on a chunk": lambda y: (y.chunk(2, 1)[0].relu_(), y)[1],
    "relu_ on a slice": lambda y: (y[:, :, 1:].relu_(), y)[1],
    "slice assignment": lambda y: y.__setitem__((slice(None), slice(None), 0), 0.5) or y,
    "add_ through a view": lambda y: (y.view(y.shape[0], -1).add_(1), y)[1],
    "read before it is written": lambda y: (lambda z: z + y.relu_())(y * 1),
    "an alias that is written": lambda y: (lambda z: (y.add_(1), z)[1])(y.view_as(y)),
    "residual": lambda y: (lambda z: z.add_(y))(F.relu(y)),
    "fill_": lambda y: (y[:, :, :2].fill_(0.1), y)[1],
    "copy_ of another": lambda y: (y[:, :, :3].copy_(y[:, :, 3:6] * 3), y)[1],
    "index assignment": lambda y: y.__setitem__(y < -0.5, 0.0) or y,
    "channels swapped in place": lambda y: y.__setitem__((slice(None), slice(None)), y.flip(1)) or y,
}


@pytest.mark.parametrize("case", IN_PLACE)
def test_an_in_place_op_that_meets_a_view_is_seen_under_every_name(net, randomise_, kill_, compact_exactly, case):
    """``relu_`` on half the channels changes the whole: read as out of place it would be lost."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(IN_PLACE[case](m.a(x)))))
    kill_(model.a, [1], -0.4)
    kill_(model.a, [5], 0.4)
    compact_exactly(model, SMALL, LARGE)


@pytest.mark.parametrize("case", ["relu_ on a chunk", "residual"])
def test_functional_form_costs_no_channel(net, randomise_, kill_, compact_exactly, case):
    """Zeros that are written to stay what they are."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(IN_PLACE[case](m.a(x)))))
    kill_(model.a, DEAD)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6


# --- pipeline: the type check, the numeric check, and what happens when they fail -----------------------------------


def naive(model, result_of):
    """The network with the same channels cut by hand from ``a`` and ``b``, unchecked."""
    small = copy.deepcopy(model)
    keep = [c for c in range(8) if c not in result_of]
    small.a.weight = nn.Parameter(model.a.weight.detach()[keep])
    small.a.bias = nn.Parameter(model.a.bias.detach()[keep])
    small.b.weight = nn.Parameter(model.b.weight.detach()[:, keep])
    return small


def shuffled(m, x):
    y = F.relu(m.a(x))
    n, c, h, w = y.shape
    return pooled(m, m.b(y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))


SILENT = {
    "shuffle": (shuffled, [0, 1]),
    "swapped chunks": (lambda m, x: pooled(m, m.b(torch.cat(F.relu(m.a(x)).chunk(2, 1)[::-1], 1))), [0, 1]),
    "scale by the width": (lambda m, x: pooled(m, m.b(F.relu(m.a(x)) * m.a(x).shape[1] ** -0.5)), [0, 1]),
    "a loop over channels": (lambda m, x: (lambda y: pooled(m, m.b(y)) * len(y[0]))(F.relu(m.a(x))), [0, 1]),
    "a branch on the width": (
        lambda m, x: (lambda y: pooled(m, m.b(y if y.shape[1] > 7 else y.exp())))(F.relu(m.a(x))),
        [3],
    ),
}


@pytest.mark.parametrize("case", SILENT)
def test_what_runs_and_is_silently_wrong_without_the_type_check(net, randomise_, kill_, compact_exactly, case):
    """The same channels cut by hand: the network runs, accepts every size, and computes something else."""
    run, dead = SILENT[case]
    model = network(net, randomise_, run)
    kill_(model.a, dead)
    with torch.no_grad():
        wrong = naive(model, dead)(SMALL)
        assert (wrong - model(SMALL)).abs().max() > 1e-4
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 8
    assert len(result.report.kept["a"]) > 0


def test_the_order_of_consumers_is_part_of_the_type(net, randomise_, kill_, compact_exactly):
    """Branches sorted by width: cut unevenly they change places, and their concatenation fits all the same."""

    def run(m, x):
        branches = sorted((m.p, m.q), key=lambda layer: layer.weight.shape[0])
        return pooled(m, m.b(torch.cat([F.relu(branch(x)) for branch in branches], 1)))

    model = network(net, randomise_, run, p=conv(3, 4), q=conv(3, 4))
    kill_(model.q, [2])
    compact_exactly(model, SMALL, LARGE)


def test_the_sequence_of_ops_is_part_of_the_type(net, randomise_, kill_, compact_exactly):
    """As many steps as there are channels."""

    def run(m, x):
        y = F.relu(m.a(x))
        for _ in range(y.shape[1]):
            y = y * 0.9
        return pooled(m, m.b(y))

    model = network(net, randomise_, run)
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 8
    assert "number of channels" in result.report.kept["a"]


def test_a_smaller_and_a_larger_input_of_the_other_parity_are_compared(net, randomise_, kill_):
    """An error at the border shows only at some sizes."""
    model = network(net, randomise_, b=conv(8, 5, stride=2, padding=1))
    kill_(model.a, DEAD, 0.5)
    agreements = compact(model, (SMALL,)).report.agreements
    smaller, given, larger = sorted({agreement.input_shapes[0][2] for agreement in agreements})
    assert given == SMALL.shape[2]
    assert smaller % 2 == larger % 2 != given % 2
    assert max(a.max_relative_error for a in agreements) < 1e-12


def test_a_network_of_one_size_is_compared_at_that_size(net, randomise_, kill_, compact_exactly):
    """A linear layer on a flattened image takes no other."""
    model = network(net, randomise_, lambda m, x: m.flat(F.relu(m.a(x)).flatten(1)), flat=nn.Linear(8 * 9 * 10, 2))
    kill_(model.a, DEAD, 0.5)
    result = compact_exactly(model, SMALL)
    assert {a.input_shapes[0][2] for a in result.report.agreements} == {11}
    assert width(result, "a") == 6


@pytest.mark.parametrize(
    "spoil",
    [
        lambda y: y.view(-1, 8, 9, 10),
        lambda y: torch.cat(y.split([4, 4], 1)[::-1], 1),
        lambda y: y * y.shape[1],
        lambda y: y.softmax(1),
        lambda y: y.cumsum(1),
    ],
    ids=["literal view", "literal split", "scale", "softmax", "no rule"],
)
def test_what_can_not_be_cut_is_returned_whole_with_the_reason(net, randomise_, kill_, compact_exactly, spoil):
    """In the end the original comes back, never an error, and what can be cut elsewhere is."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(spoil(F.relu(m.a(x))))))
    kill_(model.a, DEAD)
    kill_(model.b, [2])
    result = compact_exactly(model, SMALL)
    assert (width(result, "a"), width(result, "b")) == (8, 4)
    assert result.report.kept["a"].startswith("2 channels: ")


def test_nothing_dead_is_no_error(net, randomise_, compact_exactly):
    """A network of live channels comes back as it was."""
    model = network(net, randomise_)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.report.params_after == result.report.params_before
    assert result.plan.parameters == {}
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), result.model.parameters(), strict=True))


def test_what_was_cut_once_is_not_cut_again(net, randomise_, kill_, compact_exactly):
    """Carriers and last channels are kept for a reason: a second run finds nothing more."""
    model = network(net, randomise_, b=conv(8, 5, padding=1))
    kill_(model.a, [1, 3, 5], 0.5)
    first = compact_exactly(model, SMALL, LARGE)
    second = compact_exactly(first.model, SMALL, LARGE)
    assert width(first, "a") == width(second, "a") == 6


# --- representation ---------------------------------------------------------------------------------------------------


def fields_of(flow):
    flow.run()
    found = []
    tree_map_only(Field, found.append, list(flow.env.values()))
    return found


@pytest.mark.parametrize("kind", [LabelFlow, ConstantFlow])
def test_labels_and_constants_are_stored_along_channels_alone(net, randomise_, kind):
    """An activation of 200 x 200 pixels has 40 000 times as many entries as channels; its labels have not."""

    def run(m, x):
        y = F.relu(m.a(x))
        y = y.permute(0, 2, 3, 1).roll(3, 1).flatten(1, 2).transpose(1, 2).unflatten(2, x.shape[2:])  # tokens and back
        y = torch.cat((y, F.max_pool2d(y, 3, 1, 1)), 1).unflatten(2, (-1, 2)).flip(3).flatten(2, 3)
        return m.b(y.chunk(2, 1)[0]).mean((2, 3))

    model = network(net, randomise_, run, a=conv(3, 8, padding=1))
    fields = fields_of(kind(trace(model, (torch.zeros(1, 3, 200, 200, dtype=torch.float64),))))
    assert max(len(f.shape) and torch.Size(f.shape).numel() for f in fields) >= 8 * 200 * 200
    assert max(field.data.numel() for field in fields) <= 16


def test_uniform_dimensions_are_found_again_after_each_move():
    """A repeat, a flip or a reshape of a stride-0 view is a full tensor: what still varies is looked up anew."""
    labels = torch.arange(5)
    field = Field.along(labels, 1, (2, 5, 40, 40))
    moved = Field.of(field.full().flip(2).repeat(1, 2, 1, 1).permute(0, 2, 3, 1).reshape(2, 1600, 10))
    assert moved.data.shape == (1, 1, 10)
    assert torch.equal(moved.vector(2), labels.repeat(2))
    assert torch.equal(moved.full(), labels.repeat(2).expand(2, 1600, 10))


def test_the_neutral_label_unifies_with_nothing():
    """Two channels that both meet padding are still strangers, and padding pins nothing."""
    book = LabelBook()
    labels = book.fresh(3)
    neutral = torch.full((3,), NEUTRAL)
    book.unify(labels, neutral)
    book.unify(neutral, labels.flip(0))
    book.unify(neutral, neutral)
    book.pin(neutral, "padding")
    classes = book.solve()
    assert classes.count == 3
    assert classes.reasons == {}
    assert torch.equal(classes.of(neutral), neutral)


def test_channels_that_meet_padding_stay_strangers_in_a_network(net, randomise_, kill_, compact_exactly):
    """Zeros appended to the channels of a shortcut, and zeros concatenated: two ways to widen."""

    def run(m, x):
        y = F.relu(m.a(x))
        wide = F.pad(y, (0, 0, 0, 0, 0, y.shape[1]))
        also = torch.cat((y.new_zeros(y.shape), y), 1)
        return pooled(m, m.b(wide + also + m.c(y)))

    model = network(net, randomise_, run, c=conv(8, 16, 1), b=conv(16, 5))
    graph = channel_graph(model, (SMALL,))
    assert graph.classes.parameters["c.weight"][0].unique().numel() == 8  # i and i + 8 meet y[i]
    assert torch.equal(*graph.classes.parameters["c.weight"][0].view(2, 8))
    kill_(model.a, DEAD)
    kill_(model.c, [c + s for c in DEAD for s in (0, 8)])
    result = compact_exactly(model, SMALL, LARGE)
    assert (width(result, "a"), width(result, "c")) in {(6, 12), (8, 16)}


def test_tokens_are_no_channels(net, randomise_, kill_, compact_exactly):
    """A class token and position embeddings: along the tokens they are neutral, along the features they follow."""

    def run(m, x):
        y = F.relu(m.a(x)).flatten(2).transpose(1, 2)
        y = torch.cat((m.token.expand(y.shape[0], -1, -1), y), 1) + m.positions
        return m.head(F.relu(m.fc(y)).mean(1))

    model = network(net, randomise_, run, fc=nn.Linear(8, 5))
    model.token = nn.Parameter(torch.randn(1, 1, 8, dtype=torch.float64))
    model.positions = nn.Parameter(torch.randn(1, 91, 8, dtype=torch.float64))
    kill_(model.a, DEAD)
    with torch.no_grad():
        model.token[..., DEAD] = 0
        model.positions[..., DEAD] = 0
    result = compact_exactly(model, SMALL)
    assert width(result, "a") in (6, 8)
    assert result.model.positions.shape == (1, 91, width(result, "a"))


def test_position_embeddings_make_a_constant_vary_over_tokens(net, randomise_, kill_, compact_exactly):
    """Dead in the convolution, alive by position: not constant."""

    def run(m, x):
        y = F.relu(m.a(x)).flatten(2).transpose(1, 2) + m.positions
        return m.head(F.relu(m.fc(y)).mean(1))

    model = network(net, randomise_, run, fc=nn.Linear(8, 5))
    model.positions = nn.Parameter(torch.randn(1, 90, 8, dtype=torch.float64))
    kill_(model.a, DEAD, 0.3)
    assert width(compact_exactly(model, SMALL), "a") == 8


def test_a_class_carries_every_reason_for_which_it_stays(net, randomise_, kill_, compact_exactly):
    """A pin is a label of its own for each reason: the first must not hide the second."""

    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, m.b(y.softmax(1))), y.cumsum(1), y

    model = network(net, randomise_, run)
    graph = channel_graph(model, (SMALL,))
    for cls in graph.classes.parameters["a.weight"][0].tolist():
        reasons = "; ".join(graph.classes.reasons[cls])
        assert "softmax" in reasons
        assert "cumsum" in reasons
        assert "output of the network" in reasons
        assert len(graph.classes.reasons[cls]) == len(set(graph.classes.reasons[cls]))


@pytest.mark.parametrize("seed", range(5))
def test_classes_are_the_connected_components_of_all_pairs(seed):
    """Solved once at the end, with pairs in any order, many times over and in both directions."""
    rng = random.Random(seed)
    book, n = LabelBook(), 60
    book.fresh(n)
    parent = list(range(n))

    def find(i):
        return i if parent[i] == i else find(parent[i])

    for _ in range(40):
        a, b = rng.randrange(n), rng.randrange(n)
        parent[find(a)] = find(b)
        for _ in range(rng.randrange(1, 4)):
            book.unify(*(torch.tensor([i]) for i in rng.sample((a, b), 2)))
    classes = book.solve()
    assert classes.count == len({find(i) for i in range(n)})
    for i in range(n):
        for j in range(n):
            assert (classes.of_label[i] == classes.of_label[j]) == (find(i) == find(j))


def test_labels_beyond_32_bits_of_pairs_do_not_collide():
    """Pairs are de-duplicated as one 64-bit key: high labels must not spill into the other half."""
    book = LabelBook()
    high = (1 << 20) + 7
    book.fresh(high + 1)
    book.unify(torch.tensor([3, 7, high]), torch.tensor([high, 5, high]))
    classes = book.solve()
    assert classes.count == high + 1 - 2
    assert classes.of_label[3] == classes.of_label[high]
    assert classes.of_label[5] == classes.of_label[7] != classes.of_label[3]


# --- tracing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 2, 4])
def test_the_batch_of_the_example_is_not_built_in(net, randomise_, kill_, compact_exactly, batch):
    """Traced with a fixed batch, used with any other: the compact network is a module, not the trace."""
    model = network(
        net,
        randomise_,
        lambda m, x: (lambda y: m.head(y.view(y.shape[0], -1)))(F.relu(m.a(x)).mean((2, 3))),
        head=nn.Linear(8, 2),
    )
    kill_(model.a, DEAD, 0.3)
    inputs = [torch.randn(n, 3, 9, 9, dtype=torch.float64) for n in (batch, 1, 3)]
    assert width(compact_exactly(model, *inputs), "a") == 6


LIFTED = {
    "a number": lambda y: y * torch.tensor(0.5, dtype=y.dtype),
    "a list over space": lambda y: y + torch.tensor([0.1] * y.shape[3], dtype=y.dtype),
    "a list over channels": lambda y: y * torch.tensor([1.0, 2, 3, 4, 5, 6, 7, 8], dtype=y.dtype).view(-1, 1, 1),
    "mean and deviation": lambda y: (y - torch.tensor(0.1, dtype=y.dtype)) / torch.tensor([2.0], dtype=y.dtype),
    "a tensor of the module": lambda y: y * TABLE.view(-1, 1, 1),
}
TABLE = torch.rand(8, dtype=torch.float64) + 0.5


@pytest.mark.parametrize("case", LIFTED)
def test_tensors_made_in_forward_are_lifted_constants(net, randomise_, kill_, compact_exactly, case):
    """They are no parameters of any module: known to the constants, out of reach of the knife."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(LIFTED[case](F.relu(m.a(x))))))
    kill_(model.a, [1], 0.4)
    kill_(model.a, [5])
    result = compact_exactly(model, SMALL, *([] if case == "a list over space" else [LARGE]))
    assert width(result, "a") == (8 if "channels" in case or "module" in case else 6)


def test_a_tensor_that_is_an_attribute_but_no_buffer(net, randomise_, kill_, compact_exactly):
    """Lazily made in ``__init__`` and never registered."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)) * m.loose)))
    model.loose = torch.rand(8, 1, 1, dtype=torch.float64)
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    assert result.model.loose.shape[0] == width(result, "a")


REFUSED = {
    "control flow on values": lambda m, x: plain(m, x) if x.mean() > 0 else plain(m, -x),
    "a loop until a value": lambda m, x: plain(m, x) * next(i for i in range(1, 9) if x.sum() < 10**i),
    "a number read from a tensor": lambda m, x: pooled(m, m.b(F.relu(m.a(x)) * float(x.abs().max()))),
    "numpy": lambda m, x: torch.from_numpy(pooled(m, m.b(F.relu(m.a(x)))).detach().numpy() * 2),
    "wrong size": lambda m, x: pooled(m, m.b(F.relu(m.a(x[:, :2])))),
    "no tensor at all": lambda m, x: m.head.undefined,
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_can_not_be_exported_is_said_clearly(net, randomise_, kill_, caplog, case):
    """One line, with the class and the shapes; no traceback of the exporter, nothing in the log."""
    model = network(net, randomise_, REFUSED[case])
    kill_(model.a, DEAD)
    with caplog.at_level(logging.WARNING):
        error = refusal(model, (SMALL,))
    assert isinstance(error, ModelError)
    assert "Net could not be captured" in str(error)
    assert "(2, 3, 11, 12)" in str(error)
    assert "Traceback" not in str(error)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_script_module_is_refused_in_words(net, randomise_):
    """It has no Python ``forward`` left to trace."""
    script = torch.jit.trace(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 5)).double(), SMALL)
    with pytest.raises(ModelError, match=r"(?i)script|captured"):
        compact(script, (SMALL,))


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:.*torch.jit.*:FutureWarning")
def test_a_scripted_part_is_refused_or_exact(net, randomise_, kill_):
    """A function compiled by TorchScript inside an ordinary network."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(m.act(m.a(x)))), act=torch.jit.script(nn.ReLU()))
    kill_(model.a, DEAD)
    error = refusal(model, (SMALL,), LARGE)
    assert error is None or "captured" in str(error)


def test_data_parallel_is_refused_with_the_way_out(net, randomise_):
    """It prefixes every name, and there is nothing to gain from it here."""
    with pytest.raises(ModelError, match=r"model\.module"):
        compact(nn.DataParallel(network(net, randomise_)), (SMALL,))


def test_a_wrapped_network_keeps_its_names(net, randomise_, kill_, compact_exactly):
    """Inside a Sequential and a ModuleList the state names have prefixes: the plan uses them."""
    inner = network(net, randomise_)
    kill_(inner.a, DEAD)
    model = nn.Sequential(nn.Identity(), nn.ModuleList([inner])[0])
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "1.a") == 6
    assert result.plan.parameters["1.a.weight"].indices[0] == [0, 2, 3, 4, 6, 7]


# --- networks as people bring them ------------------------------------------------------------------------------------


def test_channels_last_memory(net, randomise_, kill_, compact_exactly):
    """Strides of the weights are others; the numbers are not."""
    model = network(net, randomise_, b=conv(8, 5, padding=1)).to(memory_format=torch.channels_last)
    kill_(model.a, [1, 3, 5], 0.4)
    x, y = (t.contiguous(memory_format=torch.channels_last) for t in (SMALL, LARGE))
    assert width(compact_exactly(model, x, y), "a") == 6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("padding", [0, 1])
def test_half_precision(net, randomise_, kill_, dtype, padding):
    """The double-precision certificate is as exact as for any other network."""
    model = network(net, randomise_, b=conv(8, 5, padding=padding))
    kill_(model.a, [1, 3, 5], 0.4)
    model.to(dtype)
    result = compact(model, (SMALL.to(dtype),))
    assert width(result, "a") == (6 if padding else 5)
    assert result.report.max_exact_error < 1e-10
    assert {p.dtype for p in result.model.parameters()} == {dtype}


def test_a_network_of_several_precisions(net, randomise_, kill_):
    """A head in float32 behind a body in bfloat16."""
    model = network(net, randomise_, lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).float().mean((2, 3)))).float()
    model.a.bfloat16(), model.b.bfloat16()
    kill_(model.a, DEAD, 0.4)
    result = compact(model, (SMALL.bfloat16(),))
    with torch.no_grad():
        torch.testing.assert_close(result.model(LARGE.bfloat16()), model(LARGE.bfloat16()), rtol=5e-2, atol=5e-2)
    assert {name: p.dtype for name, p in result.model.named_parameters()} == {
        name: p.dtype for name, p in model.named_parameters()
    }


def test_several_inputs_and_outputs(randomise_, kill_):
    """A second image, a vector and a dictionary of results."""

    def run(m, x, z, v):
        y = F.relu(m.a(x) + m.c(z))
        logits = m.head(F.relu(m.b(y)).mean((2, 3)) * v)
        return {"logits": logits, "both": (y.mean((2, 3)) @ m.w, logits > 0), "none": None, "number": 3}

    torch.manual_seed(0)
    model = randomise_(Several(run, a=conv(3, 8), c=conv(1, 8), b=conv(8, 5), head=nn.Linear(5, 2)))
    model.w = nn.Parameter(torch.randn(8, 2, dtype=torch.float64))
    kill_(model.a, DEAD)
    kill_(model.c, DEAD)
    kill_(model.b, [2])
    inputs = (SMALL, SMALL[:, :1] + 1, torch.rand(5, dtype=torch.float64))
    result = compact(model, inputs)
    assert result.report.layers["b"].after in (4, 5)
    large = (LARGE, LARGE[:, :1] + 1, inputs[2])
    with torch.no_grad():
        for some in (inputs, large):
            expected, got = model(*some), result.model(*some)
            assert expected.keys() == got.keys()
            torch.testing.assert_close(got["logits"], expected["logits"], rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(got["both"][0], expected["both"][0], rtol=1e-10, atol=1e-10)
            assert torch.equal(got["both"][1], expected["both"][1])


def test_integer_and_bool_inputs_keep_their_values(randomise_, kill_):
    """Positions and masks are no noise: the comparison uses the example's own."""

    def run(m, x, mask, index):
        y = F.relu(m.a(x)) * mask[:, None]
        return m.head(F.relu(m.b(y)).mean((2, 3)))[index]

    torch.manual_seed(0)
    model = randomise_(Several(run, a=conv(3, 8), b=conv(8, 5), head=nn.Linear(5, 2)))
    kill_(model.a, DEAD)
    mask = torch.rand(2, 9, 10) > 0.5
    result = compact(model, (SMALL, mask, torch.tensor([1, 0, 1])))
    assert result.report.layers["a"].after == 6


def test_complex_inputs(randomise_, kill_):
    """A spectrum as the input: real and imaginary part become channels."""

    def run(m, x):
        y = torch.view_as_real(x).movedim(-1, 2).flatten(1, 2)
        return m.head(F.relu(m.b(F.relu(m.a(y)))).mean((2, 3)))

    torch.manual_seed(0)
    model = randomise_(Several(run, a=conv(6, 8), b=conv(8, 5), head=nn.Linear(5, 2)))
    kill_(model.a, DEAD)
    x = torch.complex(SMALL, SMALL.flip(2))
    result = compact(model, (x,))
    assert result.report.layers["a"].after == 6
    agree(model, result.model, x)


def test_a_spectrum_inside_the_network(net, randomise_, kill_, compact_exactly):
    """Complex numbers between two layers have no labels yet: kept."""
    model = network(
        net,
        randomise_,
        lambda m, x: (lambda y: pooled(m, m.b(torch.fft.irfft2(torch.fft.rfft2(y) * 2, s=y.shape[2:]))))(
            F.relu(m.a(x))
        ),
    )
    kill_(model.a, DEAD, 0.4)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 8


@pytest.mark.parametrize("empty", ["an output", "in between"])
def test_tensors_without_entries(net, randomise_, kill_, empty):
    """No detections, no rows: nothing to compare is no agreement by division through zero."""

    def run(m, x):
        y = pooled(m, m.b(F.relu(m.a(x))))
        return (y, y[:, :0]) if empty == "an output" else torch.cat((y, y[:, :0]), 1)

    model = network(net, randomise_, run)
    kill_(model.a, DEAD, 0.4)
    result = compact(model, (SMALL,))
    assert width(result, "a") <= 6
    agree(model, result.model, SMALL, LARGE)


def test_unused_parameters_and_buffers_stay(net, randomise_, kill_, compact_exactly):
    """A head for another task, a layer that this forward never calls."""
    model = network(net, randomise_, unused=conv(8, 7), other=nn.BatchNorm2d(8))
    model.spare = nn.Parameter(torch.rand(8, dtype=torch.float64))
    kill_(model.a, DEAD)
    result = compact_exactly(model, SMALL, LARGE)
    assert width(result, "a") == 6
    for name in ("unused.weight", "unused.bias", "other.weight", "other.running_mean", "spare"):
        assert torch.equal(result.model.state_dict()[name], model.state_dict()[name])


def test_frozen_parameters_stay_frozen(net, randomise_, kill_, compact_exactly):
    """Cut parameters are new tensors: whether they are trained is copied."""
    model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.bn(m.a(x))))), bn=nn.BatchNorm2d(8))
    kill_(model.bn, DEAD, 0.3)
    model.a.weight.requires_grad_(False)
    model.bn.bias.requires_grad_(False)
    model.b.bias.requires_grad_(False)
    result = compact_exactly(model, SMALL, LARGE)
    before, after = ({n for n, p in m.named_parameters() if not p.requires_grad} for m in (model, result.model))
    assert before == after == {"a.weight", "bn.bias", "b.bias"}


def test_gradients_and_optimiser_state_of_the_original_are_left_alone(net, randomise_, kill_):
    """In the middle of training: gradients stay on the original, and do not travel."""
    model = network(net, randomise_)
    kill_(model.a, DEAD)
    model(SMALL).sum().backward()
    gradient = model.b.weight.grad.clone()
    result = compact(model, (SMALL,))
    assert torch.equal(model.b.weight.grad, gradient)
    result.model(SMALL).sum().backward()
    assert result.model.b.weight.grad.shape == (5, 6, 3, 3)
    assert torch.equal(model.b.weight.grad, gradient)


@pytest.mark.parametrize("persistent", [True, False])
def test_buffers_that_are_not_saved(net, randomise_, kill_, tmp_path, persistent):
    """A table of weights by position, made anew by the constructor: cut or not, the saved network must match."""

    def base():
        model = network(net, randomise_, lambda m, x: pooled(m, m.b(F.relu(m.a(x)) * m.gains)))
        model.register_buffer(
            "gains", torch.arange(1.0, 9, dtype=torch.float64).view(-1, 1, 1) / 8, persistent=persistent
        )
        return model

    model = base()
    kill_(model.a, DEAD)
    result = compact(model, (SMALL,))
    agree(model, result.model, SMALL, LARGE)
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    rebuilt = load(tmp_path / "plan.json", tmp_path / "weights.safetensors", base=base)
    agree(model, rebuilt, SMALL, LARGE)


def test_a_network_that_writes_to_its_buffers_comes_back_as_it_was(net, randomise_, kill_):
    """The certificate runs both networks many times: neither may have counted along."""

    def run(m, x):
        m.calls.add_(1)
        y = F.relu(m.a(x))
        m.average.mul_(0.9).add_(0.1 * y.mean((0, 2, 3)))
        return pooled(m, m.b(y))

    model = network(net, randomise_, run)
    model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
    model.register_buffer("average", torch.zeros(8, dtype=torch.float64))
    kill_(model.a, DEAD)
    result = compact(model, (SMALL,))
    assert (int(model.calls), int(result.model.calls)) == (0, 0)
    assert not result.model.average.any()
    agree(model, result.model, SMALL, LARGE)
    kept = [0, 2, 3, 4, 6, 7] if result.model.average.numel() == 6 else list(range(8))
    torch.testing.assert_close(result.model.average, model.average[kept], rtol=1e-12, atol=1e-12)


def test_a_buffer_made_at_the_first_call(net, randomise_, kill_):
    """A grid that is cached by its size: exact, or refused in words."""

    def run(m, x):
        y = F.relu(m.a(x))
        if not hasattr(m, "grid") or m.grid.shape != y.shape[2:]:
            m.register_buffer("grid", torch.linspace(0, 1, y.shape[2] * y.shape[3], dtype=y.dtype).view(y.shape[2:]))
        return pooled(m, m.b(y * m.grid))

    model = network(net, randomise_, run)
    kill_(model.a, DEAD)
    error = refusal(model, (SMALL,), LARGE)
    assert error is None or isinstance(error, (ModelError, VerificationError))
    assert not hasattr(model, "grid") or not type(model.grid).__name__.startswith("Fake")
    model(SMALL)  # the original still runs


def test_a_lazy_layer_that_has_seen_its_input(net, randomise_, kill_, compact_exactly):
    """``LazyConv2d`` has become a ``Conv2d`` by then."""
    model = network(net, randomise_)
    model.b = nn.LazyConv2d(5, 3, dtype=torch.float64)
    model(SMALL)
    kill_(model.a, DEAD, 0.4)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6


def test_a_lazy_layer_that_has_not_is_refused(net, randomise_):
    """Its weights have no shape yet."""
    model = network(net, randomise_)
    model.b = nn.LazyConv2d(5, 3, dtype=torch.float64)
    with pytest.raises(CompressError):
        compact(model, (SMALL,))


def test_training_modes_are_restored_module_by_module(net, randomise_, kill_, compact_exactly):
    """A frozen BatchNorm in evaluation mode inside a network in training mode."""
    model = network(
        net,
        randomise_,
        lambda m, x: pooled(m, m.b(m.drop(F.relu(m.bn(m.a(x)))))),
        bn=nn.BatchNorm2d(8),
        drop=nn.Dropout(0.5),
    ).train()
    model.bn.eval()
    kill_(model.bn, DEAD)
    result = compact(model, (SMALL,))
    assert model.training
    assert model.drop.training
    assert not model.bn.training
    assert not result.model.bn.training
    assert width(result, "a") == 6


def test_checkpointed_segments(net, randomise_, kill_):
    """Activation checkpointing wraps a part of forward in a function of its own."""
    model = network(
        net, randomise_, lambda m, x: pooled(m, m.b(checkpoint(lambda t: F.relu(m.a(t)), x, use_reentrant=False)))
    )
    kill_(model.a, DEAD)
    error = refusal(model, (SMALL,), LARGE)
    assert error is None or "captured" in str(error)


def test_autocast_inside_forward(net, randomise_, kill_):
    """A region in bfloat16: casts that labels must not go through."""

    def run(m, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = m.b(F.relu(m.a(x)))
        return m.head(F.relu(y.float()).mean((2, 3)))

    model = network(net, randomise_, run).float()
    kill_(model.a, DEAD)
    result = compact(model, (SMALL.float(),))
    with torch.no_grad():
        torch.testing.assert_close(result.model(LARGE.float()), model(LARGE.float()), rtol=2e-2, atol=2e-2)


def test_no_grad_inside_forward(net, randomise_, kill_, compact_exactly):
    """A frozen backbone under ``torch.no_grad``: export makes it a subgraph of its own."""

    def run(m, x):
        with torch.no_grad():
            y = F.relu(m.a(x))
        return pooled(m, m.b(y))

    model = network(net, randomise_, run)
    kill_(model.a, DEAD, 0.4)
    assert width(compact_exactly(model, SMALL, LARGE), "a") == 6


def test_a_branch_that_export_keeps(net, randomise_, kill_):
    """``torch.cond`` is a subgraph: what enters it has no rule."""

    def run(m, x):
        y = F.relu(m.a(x))
        z = torch.cond(x.mean() > 0, lambda t: t * 2, lambda t: t + 1, (y,))
        return pooled(m, m.b(z))

    model = network(net, randomise_, run)
    kill_(model.a, DEAD, 0.4)
    error = refusal(model, (SMALL,), -SMALL, LARGE, SMALL + 3)
    assert error is None or isinstance(error, ModelError)


# --- the graph module, where the class can't express it ---------------------------------------------------------------

UNEVEN = {
    "shuffle": (shuffled, [0, 1]),
    "literal split": (lambda m, x: pooled(m, m.b(torch.cat(F.relu(m.a(x)).split([3, 5], 1)[::-1], 1))), [0, 5]),
    "literal view": (lambda m, x: m.flat(F.relu(m.a(x)).view(-1, 8 * 9 * 10)), DEAD),
    "chunk": (lambda m, x: pooled(m, m.b(torch.cat(F.relu(m.a(x)).chunk(2, 1)[::-1], 1))), [0, 1, 7]),
    "index list": (lambda m, x: pooled(m, m.b(F.relu(m.a(x))[:, [7, 6, 5, 4, 3, 2, 1, 0]])), [0, 5, 6]),
    "slices": (lambda m, x: (lambda y: pooled(m, m.b(torch.cat((y[:, 5:], y[:, :5]), 1))))(F.relu(m.a(x))), [0, 1, 6]),
    "depthwise": (lambda m, x: pooled(m, m.b(F.relu(m.dw(F.relu(m.a(x)))))), DEAD),
}


@pytest.mark.parametrize("case", UNEVEN)
def test_the_graph_module_removes_what_the_class_can_not(net, randomise_, kill_, case):
    """Sizes, split points, groups and movement chains are rewritten; the function stays."""
    run, dead = UNEVEN[case]
    model = network(net, randomise_, run, dw=conv(8, 8, groups=8), flat=nn.Linear(720, 2))
    kill_(model.a, dead[:1], 0.4)
    kill_(model.a, dead[1:])
    result = compact(model, (SMALL,), prefer="graph")
    agree(model, result.model, SMALL)
    assert width(result, "a") == 8 - len(dead)
    assert isinstance(result.model, torch.fx.GraphModule)
    assert len(result.report.rewritten) == (0 if case == "depthwise" else 2 if case == "slices" else 1)


def test_the_report_says_that_spatial_sizes_stay_those_of_the_trace(net, randomise_, kill_):
    """A view of height times width stands in the graph as a number."""
    model = network(net, randomise_, UNEVEN["literal view"][0], flat=nn.Linear(720, 2))
    kill_(model.a, DEAD)
    notes = compact(model, (SMALL,), prefer="graph").report.notes
    assert any("height and width stay" in note and "11x12" in note for note in notes)


def test_the_smallest_is_the_graph_module_only_where_it_is_smaller(net, randomise_, kill_):
    """The class is worth more than nothing: an ordinary network keeps it."""
    model = network(net, randomise_)
    kill_(model.a, DEAD)
    assert type(compact(model, (SMALL,), prefer="smallest").model) is type(model)
    uneven = network(net, randomise_, shuffled)
    kill_(uneven.a, [0, 1])
    small = compact(uneven, (SMALL,), prefer="smallest")
    assert isinstance(small.model, torch.fx.GraphModule)
    agree(uneven, small.model, SMALL)
    assert type(compact(uneven, (SMALL,), prefer="class").model) is type(uneven)


def test_ops_seen_by_both_flows_have_the_same_shapes(net, randomise_):
    """Labels and constants describe the same activations, or one of them lies."""

    def run(m, x):
        y = F.relu(m.a(x))
        return m.b(torch.cat((y, F.pad(y, (1, 1, 1, 1))[:, :, 1:-1, 1:-1]), 1).chunk(2, 1)[1]).mean((2, 3))

    traced = trace(network(net, randomise_, run), (SMALL,))
    labels, values = LabelFlow(traced), ConstantFlow(traced)
    labels.run(), values.run()
    compared = 0
    for node in traced.graph.nodes:
        one, other = labels.env.get(node), values.env.get(node)
        if isinstance(one, Field) and isinstance(other, Field):
            assert one.shape == other.shape == tuple(node.meta["val"].shape), base_name(node)
            compared += 1
    assert compared > 5
