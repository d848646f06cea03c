"""What a network keeps outside of its parameters, and what it can't be followed through."""

import functools
import logging
import sys
import threading
from collections import OrderedDict
from contextlib import suppress

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from compress.errors import ModelError, VerificationError
from compress.graph.caches import unspoilt
from compress.surgery import compact
from compress.surgery.plan import weights_hash
from compress.surgery.verify import certify

X = torch.randn(1, 3, 16, 16)
GRIDS = {}
SEEN = []


@functools.lru_cache
def remembered(size):
    return torch.linspace(0, 1, size)


class Net(nn.Module):
    grids = {}  # noqa: RUF012 - shared by all networks of the class, as many keep their grids
    last = None

    def __init__(self, keep):
        super().__init__()
        torch.manual_seed(0)
        self.keep = keep
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.a.weight[1] = 0
            self.a.bias[1] = 0

    def forward(self, x):
        return self.b(F.relu(self.a(x) + self.keep(type(self), x)))


def on_the_class(cls, x):
    return cls.grids.setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))


def in_the_file(_cls, x):
    return GRIDS.setdefault((x.shape[-1], "grid"), torch.linspace(0, 1, x.shape[-1]))


def as_an_attribute(cls, x):
    if cls.last is None or cls.last.shape[-1] != x.shape[-1]:
        cls.last = torch.linspace(0, 1, x.shape[-1])
    return cls.last


def in_a_list(_cls, x):
    SEEN.append(x.sum())
    return 0.0


def by_function(_cls, x):
    return remembered(x.shape[-1])


ORDERED = OrderedDict()
NESTED = {"grids": {}}


class Store:
    """Has methods of the names of those of functions that remember."""

    def __init__(self):
        self.grids = {}

    def cache_info(self):
        return {}

    def cache_clear(self):
        raise AssertionError


STORE = Store()


def in_order(_cls, x):
    return ORDERED.setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))


def nested(_cls, x):
    return NESTED["grids"].setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))


def in_an_object(_cls, x):
    return STORE.grids.setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))


def as_a_default(_cls, x, grids={}):  # noqa: B006 - as people write it
    return grids.setdefault(x.shape[-1], torch.linspace(0, 1, x.shape[-1]))


KEEP = [
    on_the_class,
    in_the_file,
    as_an_attribute,
    in_a_list,
    by_function,
    in_order,
    nested,
    in_an_object,
    as_a_default,
]


@pytest.mark.parametrize("keep", KEEP)
def test_no_tensor_without_values_stays_behind(keep):
    """Whether such a network is compacted or refused: the user's own goes on as before."""
    model = Net(keep).eval()
    kept = [*Net.grids.values(), *GRIDS.values(), *SEEN]
    with suppress(ModelError):  # a cache that is empty at first makes two runs differ
        compact(model, (X,))
    for size in (16, 25, 10, 32, 8):
        y = model(torch.randn(1, 3, size, size))
        assert type(y) is torch.Tensor
        assert not y.is_meta
    after = [*Net.grids.values(), *GRIDS.values(), *SEEN, remembered(16)]
    assert not any(isinstance(tensor, FakeTensor) or tensor.is_meta for tensor in after)
    assert all(any(tensor is other for other in after) for tensor in kept)


def test_what_others_keep_meanwhile_is_left_alone():
    with unspoilt(Net(in_a_list)):
        SEEN.append(torch.ones(1))
        SEEN.append(torch.ones(1, device="meta"))
        GRIDS["new"] = torch.ones(2)
    assert [tensor.device.type for tensor in SEEN[-1:]] == ["cpu"]
    assert torch.equal(GRIDS.pop("new"), torch.ones(2))


def test_threads_leave_the_streams_as_they_were():
    level = logging.getLogger("torch").level
    before = sys.stdout, sys.stderr
    threads = [threading.Thread(target=compact, args=(Net(lambda *_: 0.0).eval(), (X,))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (sys.stdout, sys.stderr) == before
    assert logging.getLogger("torch").level == level


NUMBERS = {
    "scaled": lambda m, x: m.b(m.a(x) * m.t.item()),
    "clamped": lambda m, x: m.b(m.a(x).clamp(-m.t.item(), m.t.item())),
    "of the input": lambda m, x: m.b(m.a(x) / x.abs().max().item()),
}


@pytest.mark.parametrize("prefer", ["class", "graph", "smallest"])
@pytest.mark.parametrize("case", NUMBERS)
def test_numbers_read_out_of_tensors_are_refused_in_words(net, case, prefer):
    model = net(NUMBERS[case], a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).eval()
    model.register_buffer("t", torch.tensor(2.0))
    with pytest.raises(ModelError, match=r"reads a number out of a tensor .* and computes with it"):
        compact(model, (X,), prefer=prefer)


def test_a_number_as_an_output_has_no_graph(net):
    run = lambda m, x: (y := m.b(m.a(x)), y.mean().item())  # noqa: E731
    model = net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).eval()
    assert compact(model, (X,)).plan.form == "class"
    with pytest.raises(ModelError, match="is no tensor"):
        compact(model, (X,), prefer="graph")


def test_what_cannot_be_copied_is_told_and_results_of_a_training_step_can(net):
    model = net(lambda m, x: m.b(m.kept.setdefault("h", m.a(x))), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1))
    model.kept = {}
    model.kept["itself"] = model.kept
    model(X)
    model.run = lambda m, x: m.b(m.a(x))
    nn.init.zeros_(model.a.weight[1])
    nn.init.zeros_(model.a.bias[1:2])
    assert compact(model.eval(), (X,)).report.layers["a"].after == 7
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"can't be copied: .*lock"):
        compact(model, (X,))


def test_a_sparse_buffer_is_hashed_too(net):
    model = net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).eval()
    model.register_buffer("s", torch.eye(3).to_sparse())
    assert len(compact(model, (X,)).plan.hash_before) == 64


def test_a_network_that_is_not_finite_for_one_sample_is_compared_with_more(net):
    def run(m, x):
        y = m.b(m.a(x)).mean((2, 3))
        return y / (1e-3 + ((y - y.mean(0)) ** 2).sum(0) / (len(x) - 1))

    model = net(run, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).eval()
    nn.init.zeros_(model.a.weight[1])
    nn.init.zeros_(model.a.bias[1:2])
    assert compact(model, (torch.randn(3, 3, 16, 16),)).report.layers["a"].after == 7


@pytest.mark.parametrize("number", [lambda x: x.shape[0], lambda x: {"size": tuple(x.shape[2:])}], ids=["one", "pair"])
def test_numbers_that_forward_returns_are_compared(net, number):
    """A graph holds those of the example inputs: it takes no others, or there is none."""
    model = net(lambda m, x: (m.b(m.a(x)), number(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 4, 1)).eval()
    with suppress(VerificationError):
        small = compact(model, (X,), prefer="graph").model
        assert small(X)[1] == model(X)[1]
        for other in (torch.randn(2, 3, 16, 16), torch.randn(1, 3, 20, 20)):
            with suppress(ValueError):
                assert small(other)[1] == model(other)[1]
    assert compact(model, (X,)).model(X)[1] == model(X)[1]


@pytest.mark.parametrize("samples", [1, 4])
def test_a_graph_beside_a_vector_without_a_batch_refuses_other_numbers_of_samples(net, samples):
    def run(m, x, v):
        left, right = F.relu(m.a(x)).chunk(2, 1)
        return m.f(F.relu(m.b(left) + m.c(right)).view(x.shape[0], 8, -1).mean(-1)) + m.g(v)

    torch.manual_seed(0)
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(4, 8, 3), "c": nn.Conv2d(4, 8, 3)}
    model = net(run, **layers, f=nn.Linear(8, 4), g=nn.Linear(5, 4)).eval()
    with torch.no_grad():
        model.a.weight[:3] = 0
        model.a.bias[:3] = 0
    v = torch.randn(5)
    small = compact(model, (torch.randn(samples, 3, 16, 16), v), prefer="graph").model
    x = torch.randn(samples, 3, 16, 16)
    torch.testing.assert_close(small(x, v), model(x, v), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match=f"takes inputs of {samples} along dimension 0 alone, got 8"):
        small(torch.randn(8, 3, 16, 16), v)


def test_imaginary_parts_are_compared(net):
    def scaled(k):
        model = net(lambda m, x: torch.complex(m.a(x), k * m.a(x)), a=nn.Conv2d(3, 2, 1, dtype=torch.float64))
        nn.init.ones_(model.a.weight)
        return model.eval()

    with pytest.raises(VerificationError, match="differs from the original"):
        certify(scaled(1.0), scaled(5.0), None, (X.double(),))


class Single(nn.Module):
    """A part that keeps its own precision, whatever the network around it is cast to."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def _apply(self, fn, recurse=True):
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.float()).to(x.dtype)


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            self.conv.weight.clamp_(-0.2, 0.2)
        return self.conv(x)


@pytest.mark.parametrize("part", [Single, Clamped])
def test_parts_with_weights_of_their_own_kind_are_no_obstacle(part: type[nn.Module]) -> None:
    """Weights that are not cut are those of the network, and are written to by nobody but its forward."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 1), nn.ReLU(), part(), nn.Flatten(1))
    with torch.no_grad():
        model[0].weight[:3] = 0
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = compact(model.eval(), (torch.randn(1, 3, 8, 8),))
    assert result.model[0].out_channels < 12
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert result.plan.hash_before == weights_hash(before)
    with torch.no_grad():
        result.model[4].conv.weight.add_(1)
    assert torch.equal(before["4.conv.weight"], model[4].conv.weight)
