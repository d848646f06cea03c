"""A graph whose numbers follow from the size of the example inputs takes that size alone, and says so."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ConfigError, ModelError
from compress.surgery import compact
from compress.surgery.graph_cut import Traces, graph_module
from compress.surgery.plan import Plan, load, save_weights
from export import to_onnx

NOTE = "height and width stay those of the example inputs"


def shuffled(y):
    n, c, h, w = y.shape
    return y.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def padded_to_fit(m, x):
    """As "same" padding does: its amounts follow from the size, and the padding of another size runs as well."""
    y = F.relu(m.a(x))
    y = F.pad(y, (0, -y.shape[3] % 5, 0, -y.shape[2] % 5))
    return m.head(F.relu(m.b(shuffled(y))).mean((2, 3)))


def regrouped(m, x):
    """At most other sizes its numbers do not fit; at those that have as many pixels of the last map they do."""
    y = F.relu(m.b(shuffled(F.relu(m.a(x)))))
    y = F.max_pool2d(y, 4)
    return m.head(y.flatten(2).view(y.shape[0], y.shape[1], *y.shape[2:]).mean((2, 3)))


def network(net, randomise_, kill_, run):
    torch.manual_seed(0)
    a, b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 3, stride=2)
    model = randomise_(net(run, a=a, b=b, head=nn.Linear(6, 4)))
    kill_(model.a, [0, 1, 4], 0.0)
    return kill_(model.b, [2]) and model


@pytest.mark.parametrize("run", [padded_to_fit, regrouped])
def test_such_a_graph_is_exact_at_its_size_and_refuses_others(net, randomise_, kill_, run):
    model, x = network(net, randomise_, kill_, run), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    result = compact(model, (x,), prefer="graph")
    assert (result.report.layers["a"].after, result.report.form) == (5, "graph")
    assert any(NOTE in note for note in result.report.notes)
    assert result.plan.fixed_size
    with torch.no_grad():
        for batch in (x, x[:1], torch.cat((x, x))):
            torch.testing.assert_close(result.model(batch), model(batch), rtol=1e-10, atol=1e-10)
    for height, width in ((33, 32), (34, 31), (20, 20), (66, 62)):
        with pytest.raises(ValueError, match=f"inputs of 3 x 33 x 31 alone, got 3 x {height} x {width}"):
            result.model(torch.randn(1, 3, height, width, dtype=torch.float64))


def test_it_still_refuses_them_when_it_is_rebuilt_from_its_plan(net, randomise_, kill_, tmp_path):
    model, x = network(net, randomise_, kill_, padded_to_fit), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    result = compact(model, (x,), prefer="graph")
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "weights.safetensors")
    assert Plan.load(tmp_path / "plan.json") == result.plan
    rebuilt = load(
        tmp_path / "plan.json", tmp_path / "weights.safetensors",
        base=lambda: network(net, randomise_, kill_, padded_to_fit),
    )  # fmt: skip
    with torch.no_grad():
        assert torch.equal(rebuilt(x), result.model(x))
    with pytest.raises(ValueError, match="alone"):
        rebuilt(x[:, :, :-1])


def test_it_can_be_pickled_and_traced_again(net, randomise_, kill_, tmp_path):
    model, x = network(net, randomise_, kill_, padded_to_fit), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    small = compact(model, (x,), prefer="graph").model
    torch.save(small, tmp_path / "small.pt")
    for again in (torch.load(tmp_path / "small.pt", weights_only=False), torch.fx.symbolic_trace(small)):
        with torch.no_grad():
            assert torch.equal(again(x), small(x))
        with pytest.raises(ValueError, match="alone"):
            again(x[:, :, 1:])


def test_sequences_have_a_length(net, randomise_, kill_):
    """A number that follows from the number of tokens."""

    def run(m, x):
        y = F.gelu(m.a(x)) * x.shape[1] ** -0.5
        return m.head(F.gelu(m.b(y.reshape(y.shape[0], y.shape[1], 2, -1).flatten(2))).mean(1))

    torch.manual_seed(0)
    model = randomise_(net(run, a=nn.Linear(16, 8), b=nn.Linear(8, 6), head=nn.Linear(6, 4)))
    kill_(model.a, [0, 1, 5])
    x = torch.randn(2, 6, 16, dtype=torch.float64)
    result = compact(model, (x,), prefer="graph")
    assert result.report.layers["a"].after == 5
    assert any("the length stays that of the example inputs" in note for note in result.report.notes)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x), rtol=1e-10, atol=1e-10)
    with pytest.raises(ValueError, match="inputs of 6 x 16 alone, got 12 x 16"):
        result.model(torch.randn(1, 12, 16, dtype=torch.float64))


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_it_is_exported_like_any_other(net, randomise_, kill_, tmp_path, dynamic_batch):
    model = network(net, randomise_, kill_, padded_to_fit).float()
    x = torch.randn(2, 3, 33, 31)
    small = compact(model, (x,), prefer="graph").model
    assert to_onnx(small, (x,), tmp_path / "m.onnx", dynamic_batch=dynamic_batch).random.max_relative_difference < 1e-5


def test_a_graph_that_takes_every_size_checks_none(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        return m.head(F.relu(m.b(torch.cat(F.relu(m.a(x)).split([3, 5], 1)[::-1], 1))).mean((2, 3)))

    model = network(net, randomise_, kill_, run)
    images = [torch.randn(2, 3, *size, dtype=torch.float64) for size in ((33, 31), (20, 47))]
    result = compact_exactly(model, *images, prefer="graph")
    assert not result.plan.fixed_size
    assert not any(NOTE in note for note in result.report.notes)


def test_a_trace_that_is_used_again_cuts_the_weights_of_the_network_at_hand(net, randomise_, kill_):
    traces, x = Traces(), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    first = network(net, randomise_, kill_, regrouped)
    second = randomise_(network(net, randomise_, kill_, regrouped), seed=1)
    wider = net(regrouped, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 10, 3, stride=2), head=nn.Linear(10, 4))
    with torch.no_grad():
        for model in (first, second, randomise_(wider), first.float()):
            batch = x.to(model.a.weight)
            made = graph_module(model, (batch,), {}, traces=traces).module
            torch.testing.assert_close(made(batch), model(batch))


def asked_for_the_type(m, x):
    return m.head(F.relu(m.b(F.relu(m.a(x)) * torch.finfo(x.dtype).bits)).mean((2, 3)))


def of_another_type(m, x):
    return m.head(F.relu(m.b(F.relu(m.a(x)) * x.new_tensor(0.1))).mean((2, 3)))


def cast(m, x):
    return m.head(F.relu(m.b(F.relu(m.a(x)) * x.float().mean())).mean((2, 3)))


@pytest.mark.parametrize("run", [asked_for_the_type, of_another_type, cast])
def test_what_a_network_computes_in_another_precision_only_is_traced_in_that(net, randomise_, kill_, run):
    traces, x = Traces(), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    model = network(net, randomise_, kill_, run)
    with torch.no_grad():
        for twin in (copy.deepcopy(model).float(), model):
            batch = x.to(twin.a.weight)
            traces.of(twin, (batch,))
        made = graph_module(model, (x,), {}, traces=traces).module
        torch.testing.assert_close(made(x), model(x), rtol=1e-10, atol=1e-10)


def test_a_tensor_that_is_an_attribute_is_that_of_the_network_at_hand(net, randomise_, kill_):
    traces, x = Traces(), torch.randn(2, 3, 33, 31, dtype=torch.float64)
    model = network(net, randomise_, kill_, lambda m, x: m.head(F.relu(m.b(m.a(x) * m.scale)).mean((2, 3))))
    with torch.no_grad():
        for model.scale in (torch.tensor(2.0), torch.tensor(3.0)):
            made = graph_module(model, (x,), {}, traces=traces).module
            torch.testing.assert_close(made(x), model(x), rtol=1e-10, atol=1e-10)


def eager_alone(m, x):
    if torch.compiler.is_exporting():
        raise RuntimeError("not for export")
    y = F.relu(m.a(x))
    return m.head(F.relu(m.b(y.view(-1, 8, *y.shape[2:]))).mean((2, 3)))


def test_what_torch_export_refuses_keeps_its_class(net, randomise_, kill_):
    """A graph is written from ``torch.export``'s, also of a network that can be captured without it."""
    model, x = network(net, randomise_, kill_, eager_alone), torch.randn(1, 3, 33, 31, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"could not be captured by torch\.export .*: not for export"):
        compact(model, (x,), prefer="graph")
    assert compact(model, (x,), prefer="smallest").plan.form == "class"


def made_in_the_precision_of_the_input(m, x):
    kernel = torch.tensor([[[[0.25, 0.5, 0.25]]]], dtype=x.dtype, device=x.device).expand(3, 1, 1, 3)
    return m.head(F.relu(m.b(F.relu(m.a(F.conv2d(x, kernel, groups=3))))).mean((2, 3)))


def test_a_tensor_made_in_the_precision_of_the_input_is_traced_in_each(net, randomise_, kill_):
    model = network(net, randomise_, kill_, made_in_the_precision_of_the_input).float()
    assert compact(model, (torch.randn(1, 3, 33, 31),), prefer="graph").report.max_exact_error < 1e-10


def pairs(m, x):
    y = m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3)))
    half = len(y) // 2
    return y[:half] - y[half : 2 * half]


def capped(m, x):
    return m.head(F.relu(m.b(F.relu(m.a(x)))).mean((2, 3))) * min(len(x), 3)


def alone(m, x):
    y = F.relu(m.a(x))
    return m.head(F.relu(m.b(F.pad(y, (1, 1, 1, 1)) if len(x) == 1 else y)).mean((2, 3)))


@pytest.mark.parametrize(("run", "samples"), [(pairs, 2), (capped, 1), (alone, 2)])
def test_a_graph_that_is_right_for_one_number_of_samples_refuses_others(net, randomise_, kill_, tmp_path, run, samples):
    model, x = network(net, randomise_, kill_, run), torch.randn(samples, 3, 33, 31, dtype=torch.float64)
    result = compact(model, (x,), prefer="graph")
    assert any(f"the batch size stays {samples}" in note for note in result.report.notes)
    result.plan.save(tmp_path / "plan.json")
    save_weights(result.model, tmp_path / "model.safetensors")
    again = load(tmp_path / "plan.json", tmp_path / "model.safetensors", base=lambda: model)
    for small in (result.model, again, pickle.loads(pickle.dumps(result.model))):
        torch.testing.assert_close(small(x), model(x), rtol=1e-10, atol=1e-10)
        for other in (1, samples + 2)[samples == 1 :]:
            with pytest.raises(ValueError, match=f"takes inputs of {samples} along dimension 0 alone, got {other}"):
                small(torch.randn(other, 3, 33, 31, dtype=torch.float64))


def test_an_unknown_form_is_refused(net, randomise_, kill_):
    with pytest.raises(ConfigError, match="prefer='fixed'"):
        compact(network(net, randomise_, kill_, regrouped), (torch.randn(1, 3, 33, 31),), prefer="fixed")
