"""What cannot be removed is kept with its reason; what would be wrong is refused. Nothing is silently wrong."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from compress.errors import ConstantOutputError, ModelError, VerificationError
from compress.surgery import compact
from small_networks import conv, pooled

X, Y = (torch.randn(2, 3, size, size, dtype=torch.float64) for size in (12, 17))


def kept_with(result, layer):
    width = result.report.layers[layer]
    assert width.after == width.before
    return result.report.kept[layer]


def test_a_literal_number_of_features_is_kept(net, randomise_, kill_, compact_exactly):
    model = randomise_(
        net(
            lambda m, x: m.head(F.relu(m.b(F.relu(m.a(x)))).view(-1, 4 * 8 * 8)),
            a=conv(3, 6),
            b=conv(6, 4),
            head=nn.Linear(256, 2),
        )
    )
    kill_(model.a, [0, 1])
    kill_(model.b, [2])
    result = compact_exactly(model, X)
    assert kept_with(result, "b") == "1 channel: forward splits its channels, or holds their number as a literal"
    assert result.report.layers["a"].after == 4


def test_a_literal_split_is_kept(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        first, second = m.a(x).split([2, 4], 1)
        return pooled(m, torch.cat((m.b(first), m.c(second)), 1))

    model = randomise_(net(run, a=conv(3, 6), b=conv(2, 3), c=conv(4, 3), head=nn.Linear(6, 2)))
    kill_(model.a, [3])
    kill_(model.b, [0])
    result = compact_exactly(model, X, Y)
    assert "literal" in kept_with(result, "a")
    assert result.report.layers["b"].after == 2


@pytest.mark.parametrize("dead", [[1], [1, 2], [0, 1, 2]])
def test_an_uneven_shuffle_runs_and_is_found_out(net, randomise_, kill_, compact_exactly, dead):
    """Cut unevenly, this forward runs and mixes the wrong channels: only the type check can tell."""

    def run(m, x):
        y = m.a(x)
        n, c, h, w = y.shape
        return pooled(m, m.b(F.relu(y).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))

    model = randomise_(net(run, a=conv(3, 8), b=conv(8, 4), head=nn.Linear(4, 2)))
    kill_(model.a, dead)
    kill_(model.b, [3])
    result = compact_exactly(model, X, Y)
    assert result.report.layers["b"].after == 3
    assert kept_with(result, "a").startswith(f"{len(dead)} channel")


def test_an_even_shuffle_is_cut(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = m.a(x)
        n, c, h, w = y.shape
        return pooled(m, m.b(F.relu(y).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)))

    model = randomise_(net(run, a=conv(3, 8), b=conv(8, 4), head=nn.Linear(4, 2)))
    kill_(model.a, [1, 5])
    assert compact_exactly(model, X, Y).report.layers["a"].after == 6


@pytest.mark.parametrize("dead", [[0], [0, 1], [0, 3]])
def test_an_uneven_chunk(net, randomise_, kill_, compact_exactly, dead):
    def run(m, x):
        one, two = m.a(x).chunk(2, 1)
        return pooled(m, torch.cat((m.b(one), m.c(two)), 1))

    model = randomise_(net(run, a=conv(3, 6), b=conv(3, 3), c=conv(3, 3), head=nn.Linear(6, 2)))
    kill_(model.a, dead)
    result = compact_exactly(model, X, Y)
    assert result.report.layers["a"].after == (4 if dead == [0, 3] else 6)


@pytest.mark.parametrize(
    "scale",
    [
        lambda y: y * y.shape[1] ** -0.5,
        lambda y: y / y.shape[1],
        lambda y: y + y.shape[1],
        lambda y: y * float(y.shape[1]),
    ],
    ids=["root", "quotient", "sum", "float"],
)
def test_arithmetic_with_the_number_of_channels_is_kept(net, randomise_, kill_, compact_exactly, scale):
    model = randomise_(
        net(lambda m, x: pooled(m, m.b(scale(F.relu(m.a(x))))), a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2))
    )
    kill_(model.a, [0, 1])
    kill_(model.b, [3])
    result = compact_exactly(model, X, Y)
    assert kept_with(result, "a") == "2 channels: forward computes with its number of channels"
    assert result.report.layers["b"].after == 3


def test_another_path_with_fewer_channels_is_kept(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = m.a(x)
        return pooled(m, m.b(F.relu(y) if y.shape[1] == 6 else torch.sigmoid(y)))

    model = randomise_(net(run, a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2)))
    kill_(model.a, [0, 1])
    assert "forward computes with" in kept_with(compact_exactly(model, X, Y), "a")


@pytest.mark.parametrize("size", [12, 17])
@pytest.mark.parametrize("odd", [0, 1])
def test_padding_that_depends_on_the_input_size(net, randomise_, kill_, compact_exactly, size, odd):
    """At the traced size nothing may be padded, and a constant be folded; at another it would be wrong."""

    def run(m, x):
        y = F.relu(m.a(x))
        y = F.pad(y, (0, 1, 0, 1)) if x.shape[2] % 2 == odd else y
        return pooled(m, F.relu(m.b(y)))

    model = randomise_(net(run, a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2)))
    kill_(model.a, [0, 1], 0.5)
    kill_(model.a, [4], 0.0)
    inputs = (X, Y) if size == 12 else (Y, X)
    result = compact_exactly(model, *inputs)
    assert result.report.layers["a"].after == 4
    assert result.report.kept["a"] == "1 channel: constant 0.5, carried for the padded b"


def test_a_network_that_is_not_repeatable_is_refused(net, randomise_, kill_):
    model = net(lambda m, x: pooled(m, F.dropout(m.a(x), 0.5, True)), a=conv(3, 6), head=nn.Linear(6, 2))
    kill_(randomise_(model).a, [0])
    with pytest.raises(VerificationError, match="differs from the original by"):
        compact(model, (X,))


def test_a_forward_that_draws_its_own_numbers_is_refused(net, randomise_, kill_):
    model = net(lambda m, x: pooled(m, m.a(x) * random.random()), a=conv(3, 6), head=nn.Linear(6, 2))
    kill_(randomise_(model).a, [0])
    with pytest.raises(ModelError, match="two traces of the same Net differ"):
        compact(model, (X,))


def test_weights_that_are_not_finite_are_refused(net, randomise_):
    model = randomise_(net(lambda m, x: pooled(m, m.a(x)), a=conv(3, 6), head=nn.Linear(6, 2)))
    model.head.weight.data[0, 0] = float("nan")
    with pytest.raises(VerificationError, match="not finite"):
        compact(model, (X,))


def test_a_forward_that_counts_leaves_the_original_as_it_was(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        m.calls += 1
        return pooled(m, F.relu(m.a(x)))

    model = randomise_(net(run, a=conv(3, 6), head=nn.Linear(6, 2)))
    model.register_buffer("calls", torch.zeros((), dtype=torch.float64))
    kill_(model.a, [0, 1])
    result = compact(model, (X,))
    assert float(model.calls) == 0
    assert result.report.layers["a"].after == 4


def test_shared_and_own_reasons_are_in_the_report(net, randomise_, kill_, compact_exactly):
    model = randomise_(
        net(
            lambda m, x: m.head(m.norm(F.relu(m.a(x)).mean((2, 3)))),
            a=conv(3, 6),
            norm=nn.LayerNorm(6),
            head=nn.Linear(6, 2),
        )
    )
    kill_(model.a, [0, 1])
    assert kept_with(compact_exactly(model, X, Y), "a") == (
        "2 channels: layer_norm: a statistic over channels (at norm)"
    )


def test_option_a_shortcuts(net, randomise_, kill_, compact_exactly):
    """Channels padded with zeros, as in the ResNet paper: what meets the padding may hold a literal."""

    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, F.relu(m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))

    model = randomise_(net(run, a=conv(3, 4), b=conv(4, 8, stride=2, padding=1), head=nn.Linear(8, 2)))
    kill_(model.a, [1])
    kill_(model.b, [0, 3])
    result = compact_exactly(model, X, Y)
    assert (result.report.layers["a"].after, result.report.layers["b"].after) == (3, 7)
    assert result.report.kept == {"b": "1 channel: forward splits its channels, or holds their number as a literal"}


def test_pruning_masks_are_baked_into_plain_weights(net, randomise_, compact_exactly):
    model = randomise_(
        net(lambda m, x: pooled(m, F.relu(m.b(F.relu(m.a(x))))), a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2))
    )
    prune.ln_structured(model.a, "weight", 0.5, n=2, dim=0)
    prune.random_unstructured(model.b, "bias", 2)
    model(X)
    result = compact(model, (X,))
    torch.testing.assert_close(result.model(Y), model(Y), rtol=1e-12, atol=1e-12)
    assert result.report.layers["a"].after == 3
    assert set(dict(result.model.named_parameters())) == {
        f"{layer}.{kind}" for layer in ("a", "b", "head") for kind in ("weight", "bias")
    }
    assert prune.is_pruned(model.a)


def test_parametrizations_are_baked_too(net, randomise_, compact_exactly):
    class Masked(nn.Module):
        def forward(self, weight):
            keep = torch.ones_like(weight)
            keep[:2] = 0
            return weight * keep

    model = net(lambda m, x: pooled(m, F.relu(m.b(m.a(x)))), a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2))
    randomise_(model)
    parametrize.register_parametrization(model.a, "weight", Masked())
    parametrizations.weight_norm(model.b)
    result = compact(model, (X,))
    torch.testing.assert_close(result.model(Y), model(Y), rtol=1e-12, atol=1e-12)
    assert result.report.layers["a"].after == 4
    assert type(result.model.b) is nn.Conv2d
    assert parametrize.is_parametrized(model.a)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2), (torch.bfloat16, 5e-2)])
def test_every_precision_is_certified_in_its_own_and_in_float64(net, randomise_, kill_, dtype, tolerance):
    model = randomise_(
        net(
            lambda m, x: pooled(m, F.relu(m.b(F.relu(m.a(x))))),
            a=conv(3, 6),
            b=conv(6, 4, padding=1),
            head=nn.Linear(4, 2),
        )
    ).to(dtype)
    kill_(model.a, [0, 1], 0.5)
    report = compact(model, (X.to(dtype),)).report
    assert report.max_exact_error < 1e-10
    assert report.max_relative_error < tolerance
    own = str(dtype).removeprefix("torch.")
    assert {a.dtype for a in report.agreements} == {own, "float64"}
    assert len({a.input_shapes for a in report.agreements}) == 3


def test_a_network_that_insists_on_float32_has_no_float64_certificate(net, randomise_, kill_):
    model = randomise_(net(lambda m, x: pooled(m, F.relu(m.a(x.float()))), a=conv(3, 6), head=nn.Linear(6, 2))).float()
    kill_(model.a, [0, 1], 0.5)
    report = compact(model, (X.float(),)).report
    assert report.max_exact_error is None
    assert report.layers["a"].after == 4


def test_float32_inside_a_float64_network_is_no_reason_to_refuse(net, randomise_, kill_):
    def run(m, x):
        return pooled(m, m.b(torch.sigmoid(m.a(x).float()).to(m.b.weight.dtype)))

    model = randomise_(net(run, a=conv(3, 6), b=conv(6, 4), head=nn.Linear(4, 2))).float()
    kill_(model.a, [0, 1], 0.5)
    assert compact(model, (X.float(),)).report.max_exact_error is None


def test_boolean_and_several_outputs(net, randomise_, kill_):
    def run(m, x):
        y = pooled(m, F.relu(m.a(x)))
        return {"logits": y, "positive": [y > 0, y.argmax(1)]}

    model = randomise_(net(run, a=conv(3, 6), head=nn.Linear(6, 2)))
    kill_(model.a, [0, 1])
    result = compact(model, (X,))
    assert torch.equal(result.model(X)["positive"][0], model(X)["positive"][0])
    assert result.report.layers["a"].after == 4


def test_a_single_channel_must_not_be_broadcast_over_many(net, randomise_, kill_, compact_exactly):
    """One of two chunks of one channel each, times two channels, runs: but it is no longer the same product."""

    def run(m, x):
        return pooled(m, m.a(x).chunk(2, 1)[0] * torch.sigmoid(m.b(x)))

    model = randomise_(net(run, a=conv(3, 4), b=conv(3, 2), head=nn.Linear(2, 2)))
    kill_(model.a, [2, 3])
    result = compact_exactly(model, X, Y)
    assert kept_with(result, "a").startswith("2 channels: cut unevenly")


def test_a_number_of_channels_in_a_created_tensor_is_kept(net, randomise_, kill_, compact_exactly):
    def run(m, x):
        y = F.relu(m.a(x))
        return pooled(m, y * y.new_full((1, 1, 1, 1), y.shape[1]) * (torch.ones(1, dtype=y.dtype) * y.shape[1]))

    model = randomise_(net(run, a=conv(3, 6), head=nn.Linear(6, 2)))
    kill_(model.a, [0, 1])
    assert "computes with" in kept_with(compact_exactly(model, X, Y), "a")


def test_a_network_that_ignores_its_input_is_refused(net, randomise_):
    model = randomise_(net(lambda m, x: pooled(m, F.relu(m.a(x))), a=conv(3, 6), head=nn.Linear(6, 2)))
    model.a.weight.data.zero_()
    with pytest.raises(ConstantOutputError, match=r"no longer depends on its input: no filter is left in a\.") as error:
        compact(model, (X,))
    assert error.value.layers == ("a",)
