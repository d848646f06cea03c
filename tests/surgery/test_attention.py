"""Attention: whole heads leave where all their values are constant; everything else of it stays, with the reason."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.surgery import compact, cut
from compress.surgery.suspects import find_failing

HEADS, SIZE, WIDTH = 4, 6, 24
DEAD = (1, 3)
ROWS = [head * SIZE + i for head in DEAD for i in range(SIZE)]
WHOLE = "a whole attention head"


def by_hand(q, k, v, mask=None):
    scores = q @ k.transpose(-2, -1) * SIZE**-0.5
    return F.dropout((scores if mask is None else scores + mask).softmax(-1), 0.5, training=False) @ v


def fused(attend):
    """One layer for queries, keys and values, as in timm and Swin: the number of heads stands in ``forward``."""

    def run(m, x):
        n, tokens, _ = x.shape
        q, k, v = m.qkv(x).reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = attend(m, q, k, v).transpose(1, 2).reshape(n, tokens, -1)
        return m.head(F.gelu(m.proj(y)))

    return run


def separate(attend):
    """Three layers, and the number of heads left open."""

    def run(m, x):
        q, k, v = (layer(x).unflatten(-1, (-1, SIZE)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return m.head(F.gelu(m.proj(attend(m, q, k, v).transpose(1, 2).flatten(2))))

    return run


def layers(*names, **more):
    return {name: nn.Linear(WIDTH, WIDTH) for name in (*names, "proj")} | {"head": nn.Linear(WIDTH, 5)} | more


def tokens(count=2):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, n, WIDTH, dtype=torch.float64, generator=generator) for n in (10, 7)]


ATTENTION = {
    "by hand": lambda _m, q, k, v: by_hand(q, k, v),
    "one operation": lambda _m, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "causal": lambda _m, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "einsum": lambda _m, q, k, v: torch.einsum(
        "b h i j, b h j d -> b h i d", (torch.einsum("bhid,bhjd->bhij", q, k)).softmax(-1), v
    ),
    "batched product": lambda _m, q, k, v: torch.bmm(
        (q.flatten(0, 1) @ k.flatten(0, 1).transpose(1, 2)).softmax(-1), v.flatten(0, 1)
    ).unflatten(0, (-1, q.shape[1])),
}


@pytest.mark.parametrize("shift", [0.0, 0.7])
@pytest.mark.parametrize("attend", ATTENTION)
def test_whole_heads_leave_and_their_constants_fold_into_the_projection(
    net, randomise_, kill_, compact_exactly, attend, shift
):
    """By closed form: a mean of equal values is that value, whatever the weights are."""
    model = randomise_(net(separate(ATTENTION[attend]), **layers("q", "k", "v")))
    for layer in (model.q, model.k, model.v):
        kill_(layer, ROWS, shift)
    result = compact_exactly(model, *tokens())
    assert result.report.form == "class"
    assert [result.report.layers[name].after for name in "qkv"] == [WIDTH - len(ROWS)] * 3
    expected = model.proj.bias + shift * model.proj.weight[:, ROWS].sum(1)
    torch.testing.assert_close(result.model.proj.bias, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("attend", ["by hand", "one operation", "einsum"])
def test_a_fused_layer_loses_heads_as_a_graph_and_says_why_the_class_cannot(
    net, randomise_, kill_, compact_exactly, attend
):
    model = randomise_(net(fused(ATTENTION[attend]), qkv=nn.Linear(WIDTH, 3 * WIDTH), **layers()))
    kill_(model.qkv, [part * WIDTH + row for part in range(3) for row in ROWS], 0.4)
    own = compact_exactly(model, *tokens())
    assert own.report.layers["qkv"].after == 3 * WIDTH
    assert sum(own.report.layers["qkv"].kept.values()) == 3 * len(ROWS)
    result = compact_exactly(model, *tokens(), prefer="smallest")
    assert (result.report.form, result.report.more_removed) == ("graph", 3 * len(ROWS))
    assert result.report.layers["qkv"].after == 3 * (WIDTH - len(ROWS))


def test_keys_and_queries_that_live_leave_with_dead_values(net, randomise_, kill_, compact_exactly):
    """What they weight is gone."""
    model = randomise_(net(separate(ATTENTION["by hand"]), **layers("q", "k", "v")))
    kill_(model.v, ROWS, 0.3)
    result = compact_exactly(model, *tokens())
    assert [result.report.layers[name].after for name in "qkv"] == [WIDTH - len(ROWS)] * 3


def test_a_head_that_the_projection_does_not_read_leaves(net, randomise_, compact_exactly):
    model = randomise_(net(separate(ATTENTION["one operation"]), **layers("q", "k", "v")))
    model.proj.weight.data[:, ROWS] = 0
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH - len(ROWS)


@pytest.mark.parametrize("layer", ["q", "k", "v"])
def test_single_dead_channels_of_a_living_head_stay_with_the_reason(net, randomise_, kill_, compact_exactly, layer):
    model = randomise_(net(separate(ATTENTION["by hand"]), **layers("q", "k", "v")))
    kill_(model.get_submodule(layer), [0, 1, 9])
    found = compact_exactly(model, *tokens(), prefer="smallest").report.layers[layer]
    ((reason, count),) = found.kept.items()
    assert (found.after, found.dead, count) == (WIDTH, 3, 3)
    assert WHOLE in reason


def test_dead_queries_and_keys_alone_keep_the_head(net, randomise_, kill_, compact_exactly):
    """Its values are averaged then; they still pass."""
    model = randomise_(net(separate(ATTENTION["one operation"]), **layers("q", "k", "v")))
    for layer in (model.q, model.k):
        kill_(layer, ROWS, 0.2)
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_without_softmax_zeros_alone_leave(net, randomise_, kill_, compact_exactly, value):
    """Linear attention: weights do not sum to 1."""
    attend = lambda _m, q, k, v: q @ (k.transpose(-2, -1) @ v)  # noqa: E731
    model = randomise_(net(separate(attend), **layers("q", "k", "v")))
    kill_(model.v, ROWS, value)
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH - (0 if value else len(ROWS))


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_mask_that_hides_every_key_of_a_query_keeps_constants(net, randomise_, kill_, compact_exactly, value):
    """Such a query has 0 instead of the mean of its values."""

    def attend(_m, q, k, v):
        mask = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool)
        mask[0] = False
        return F.scaled_dot_product_attention(q, k, v, mask)

    model = randomise_(net(separate(attend), **layers("q", "k", "v")))
    kill_(model.v, ROWS, value)
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH - (0 if value else len(ROWS))


def test_a_softmax_over_queries_gives_no_mean(net, randomise_, kill_, compact_exactly):
    attend = lambda _m, q, k, v: (q @ k.transpose(-2, -1)).softmax(-2) @ v  # noqa: E731
    model = randomise_(net(separate(attend), **layers("q", "k", "v")))
    kill_(model.v, ROWS, 0.5)
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH


@pytest.mark.parametrize("shape", [(HEADS, 1, 1), (1, HEADS, 1, 1)], ids=str)
def test_a_temperature_or_bias_for_each_head_leaves_with_it(net, randomise_, kill_, compact_exactly, shape):
    attend = lambda m, q, k, v: (q @ k.transpose(-2, -1) * m.scale + m.scale).softmax(-1) @ v  # noqa: E731
    model = net(separate(attend), **layers("q", "k", "v"))
    model.scale = nn.Parameter(torch.rand(shape))
    kill_(randomise_(model).v, ROWS, 0.5)
    result = compact_exactly(model, *tokens())
    assert result.report.layers["v"].after == WIDTH - len(ROWS)
    assert result.model.scale.numel() == HEADS - len(DEAD)


def test_heads_that_are_mixed_stay(net, randomise_, kill_, compact_exactly):
    """Talking heads: a linear layer over heads reads the scores of all of them."""

    def attend(m, q, k, v):
        scores = m.talk((q @ k.transpose(-2, -1)).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return scores.softmax(-1) @ v

    model = randomise_(net(separate(attend), **layers("q", "k", "v", talk=nn.Linear(HEADS, HEADS))))
    for layer in (model.q, model.k):
        kill_(layer, ROWS, 0.2)
    kill_(model.v, ROWS[:SIZE], 0.3)
    found = compact_exactly(model, *tokens())
    assert found.report.layers["talk"].after == HEADS - 1  # the weights of the head whose values are constant
    assert found.report.layers["v"].after == WIDTH - SIZE


def test_one_head_is_a_layer_of_its_own_and_stays(net, randomise_, kill_, compact_exactly):
    run = lambda m, x: m.head(m.proj(by_hand(m.q(x), m.k(x), m.v(x))))  # noqa: E731
    model = randomise_(net(run, **layers("q", "k", "v")))
    kill_(model.v, [0, 1], 0.2)
    assert compact_exactly(model, *tokens()).report.layers["v"].after == WIDTH


def test_attention_over_channels_ties_all_of_them(net, randomise_, kill_, compact_exactly):
    """Cross-covariance: every channel of a query meets every channel of the keys of its head."""

    def attend(_m, q, k, v):
        weights = (q.transpose(-2, -1) @ k).softmax(-1)
        return (weights @ v.transpose(-2, -1)).transpose(-2, -1)

    model = randomise_(net(separate(attend), **layers("q", "k", "v")))
    for layer in (model.q, model.k, model.v):
        kill_(layer, [*ROWS, 0])
    result = compact_exactly(model, *tokens())
    assert [result.report.layers[name].after for name in "qkv"] == [WIDTH - len(ROWS)] * 3


@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_loses_heads_as_a_graph(net, randomise_, compact_exactly, batch_first, need_weights):
    """By default it averages its weights over heads, which nobody reads."""
    run = lambda m, x: m.head(F.gelu(m.mha(x, x, x, need_weights=need_weights)[0]))  # noqa: E731
    mha = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first)
    model = randomise_(net(run, mha=mha, head=nn.Linear(WIDTH, 5)))
    with torch.no_grad():
        rows = [part * WIDTH + row for part in range(3) for row in ROWS]
        mha.in_proj_weight[rows] = 0
        mha.in_proj_bias[rows] = 0.3
    result = compact_exactly(model, tokens()[0], prefer="smallest")
    assert result.report.form == "graph"
    assert result.report.params_after < result.report.params_before


def test_every_channel_of_a_dead_head_counts_once(net, randomise_, kill_):
    model = randomise_(net(separate(ATTENTION["by hand"]), **layers("q", "k", "v"))).float()
    kill_(model.v, ROWS, 0.5)
    report = compact(model, (tokens()[0].float(),)).report
    assert report.layers["v"].dead == len(ROWS)
    assert report.max_exact_error < 1e-12


def test_a_bias_of_which_a_part_is_set_to_zero_goes_with_its_heads(net, randomise_, kill_, compact_exactly):
    """Swin-v2: keys have no bias, which ``forward`` writes into a copy of the one of all three."""

    def run(m, x):
        bias = m.qkv.bias.clone()
        bias[WIDTH : 2 * WIDTH].zero_()
        n, tokens, _ = x.shape
        q, k, v = F.linear(x, m.qkv.weight, bias).reshape(n, tokens, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        y = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)).softmax(-1) @ v
        return m.head(F.gelu(m.proj(y.transpose(1, 2).reshape(n, tokens, -1))))

    model = randomise_(net(run, qkv=nn.Linear(WIDTH, 3 * WIDTH), **layers()))
    rows = [part * WIDTH + row for part in range(3) for row in ROWS]
    kill_(model.qkv, rows, 0.4)
    assert compact_exactly(model, *tokens()).report.layers["qkv"].after == 3 * WIDTH
    result = compact_exactly(model, *tokens(), prefer="graph")
    assert result.report.layers["qkv"].after == 3 * WIDTH - len(rows)


@pytest.mark.parametrize("value", [0.0, 0.5])
@pytest.mark.parametrize("equation", ["bhij,bhjd->bhid", "bhji,bhjd->bhid", "bhij,bhjd->hbid", "bhij,bhkd->bhid"])
def test_einsums_of_all_kinds(net, randomise_, kill_, compact_exactly, equation, value):
    """A mean over keys is a mean only where what is summed is what the softmax runs over, and nothing else."""

    def attend(_m, q, k, v):
        y = torch.einsum(equation, (q @ k.transpose(-2, -1)).softmax(-1), v)
        return y if equation.endswith("bhid") else y.transpose(0, 1)

    model = randomise_(net(separate(attend), **layers("q", "k", "v")))
    for layer in (model.q, model.k, model.v):
        kill_(layer, ROWS, value)
    found = compact_exactly(model, *tokens()).report.layers["v"].after
    if value == 0 or equation.startswith("bhij,bhjd"):
        assert found == WIDTH - len(ROWS)


def test_masks_that_are_joined_by_and_do_not_stop_the_graph(net, randomise_, kill_, compact_exactly):
    """An operator of Python, whose name ends in two underscores: no in-place operation."""

    def attend(_m, q, k, v):
        row = torch.arange(q.shape[2])
        near = (row[:, None] - row < 4) & (row - row[:, None] < 4)
        return by_hand(q, k, v, torch.zeros(near.shape, dtype=q.dtype).masked_fill(~near, -100.0))

    model = randomise_(net(fused(attend), qkv=nn.Linear(WIDTH, 3 * WIDTH), **layers()))
    kill_(model.qkv, [part * WIDTH + row for part in range(3) for row in ROWS], 0.4)
    assert compact_exactly(model, tokens()[0], prefer="smallest").report.form == "graph"


def test_one_attention_that_holds_its_number_of_heads_tells_of_all_of_its_class(
    net, randomise_, kill_, compact_exactly, monkeypatch
):
    """Each refusal costs a run of the network; a transformer has dozens of layers."""

    def run(model, x):
        for layer in (model.first, model.second, model.third):
            x = x + layer(x, x, x, need_weights=False)[0]
        return x

    blocks = {name: nn.MultiheadAttention(WIDTH, HEADS, batch_first=True) for name in ("first", "second", "third")}
    model = randomise_(net(run, **blocks))
    with torch.no_grad():
        for block in blocks.values():
            rows = [part * WIDTH + row for part in range(3) for row in ROWS]
            block.in_proj_weight[rows] = 0
            block.in_proj_bias[rows] = 0.3
    refused = []
    monkeypatch.setattr(cut, "find_failing", lambda *args: refused.append(args[-1]) or find_failing(*args))
    result = compact_exactly(model, tokens()[0])
    assert refused == ["first"]
    assert result.report.params_after == result.report.params_before
    assert compact_exactly(model, tokens()[0], prefer="smallest").report.params_after < result.report.params_after


@pytest.mark.parametrize("laid_out", ["as it is", "as one list"])
def test_a_table_of_biases_by_position_loses_the_columns_of_its_heads(
    net, randomise_, kill_, compact_exactly, laid_out
):
    """The index may be brought into another shape first, as MaxViT does."""
    count = 7

    def run(m, x):
        n = x.shape[0]
        q, k, v = m.qkv(x).reshape(n, count, 3, HEADS, SIZE).permute(2, 0, 3, 1, 4)
        index = m.index if laid_out == "as it is" else m.index.view(-1)
        bias = m.table[index].view(count, count, -1).permute(2, 0, 1).unsqueeze(0)
        y = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        return m.head(F.gelu(m.proj(y.transpose(1, 2).reshape(n, count, WIDTH))))

    model = net(run, qkv=nn.Linear(WIDTH, 3 * WIDTH), **layers())
    model.table = nn.Parameter(torch.randn(2 * count - 1, HEADS))
    positions = torch.arange(count)
    model.register_buffer("index", positions[:, None] - positions + count - 1)
    model = randomise_(model)
    kill_(model.qkv, [part * WIDTH + row for part in range(3) for row in ROWS], 0.4)
    result = compact_exactly(model, tokens()[1], prefer="smallest")
    assert result.report.layers["qkv"].after == 3 * (WIDTH - len(ROWS))
    assert result.model.state_dict()["table"].shape == (2 * count - 1, HEADS - len(DEAD))
