"""Cut graphs: exact at every batch size, trainable, exportable, rebuilt from data; what can't be cut says so."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from compress.errors import ModelError
from compress.graph import channel_graph
from compress.graph.aten import graph_of
from compress.graph.aten.trace import trace
from compress.surgery import compact
from compress.surgery.apply import fold_, make_plan
from compress.surgery.dead import Decision, find_dead
from compress.surgery.graph_cut import Blocked, graph_module, source_line
from compress.surgery.kept import Kept
from compress.surgery.type_check import mixed_channels
from export import to_onnx
from random_networks import RandomNetwork, kill_layer_by_layer_
from small_networks import pooled

EXACT = 1e-10  # relative, float64: rounding is 1e-16, a real mistake 1e-2
BATCHES = (1, 2, 5)
X = torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def conv(inputs, outputs, kernel=3, **options):
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def features(m, x):
    return F.relu(m.a(x))


def shuffle(y, groups):
    n, c, h, w = y.shape
    return y.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


# --- networks whose forward holds numbers of channels ---------------------------------------------------------------


def literal_view(m, x):
    return m.head(F.max_pool2d(features(m, x), 2).view(-1, 6 * 8 * 8))


def halves(m, x):
    y, gate = m.a(x).chunk(2, 1)
    return pooled(m, y * gate.sigmoid())


def branches(m, x):
    y, z = features(m, x).chunk(2, 1)
    return pooled(m, torch.cat([y, F.relu(m.b(z))], 1))


def pieces(m, x):
    y, z, last = features(m, x).split([5, 4, 3], 1)
    return pooled(m, torch.cat([last, F.relu(m.b(z)), y], 1))


def glu(m, x):
    return pooled(m, F.glu(m.a(x), 1))


def squeeze_excite(m, x):
    y = features(m, x)
    return pooled(m, y * F.hardsigmoid(m.up(F.relu(m.down(y.mean((2, 3), keepdim=True))))))


def shuffled(m, x):
    return pooled(m, F.relu(m.b(shuffle(features(m, x), 3))))


def shuffled_by_module(m, x):
    return pooled(m, F.relu(m.b(m.shuffle(features(m, x)))))


def shuffled_by_stack(m, x):
    return pooled(m, F.relu(m.b(torch.stack([features(m, x), F.relu(m.c(x))], 2).flatten(1, 2))))


def shuffled_twice(m, x):
    return pooled(m, F.relu(m.b(shuffle(shuffle(features(m, x), 3), 2))))


def arithmetic_between(m, x):
    y = m.a(x).view(-1, 2, 6, 16, 16)
    z = F.relu(m.c(x)).view(-1, 2, 6, 16, 16)
    y = F.relu(y) * torch.arange(1, 7, dtype=x.dtype).view(6, 1, 1) + z * 2
    return pooled(m, F.relu(m.b(y.transpose(1, 2).reshape(-1, 12, 16, 16))))


def u_net(m, x):
    skip = features(m, x).view(-1, 6, 16, 16)
    y = F.relu(m.b(F.max_pool2d(skip, 2))).view(-1, 8, 8, 8)
    return m.out(torch.cat([skip, m.up(y)], 1))


def padded_shortcut(m, x):
    y = features(m, x)
    return pooled(m, F.relu(m.b(y) + F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


def created(m, x):
    y = features(m, x)
    scale = torch.arange(12, dtype=x.dtype).view(1, 12, 1, 1)
    return pooled(m, y + torch.zeros(x.shape[0], 12, 16, 16, dtype=x.dtype) + 0.1 * scale * y)


def created_and_joined(m, x):
    y = features(m, x)
    return pooled(m, F.relu(m.b(x)) + torch.cat([y, y.new_zeros(y.shape[0], 4, 16, 16)], 1))


def layer_scale(m, x):
    y = features(m, x)
    return pooled(m, y + m.gamma[:, None, None] * F.relu(m.b(y)) * m.slope.view(1, -1, 1, 1))


def chain(*layers):
    def run(m, x):
        for layer in layers:
            x = F.relu(getattr(m, layer)(x))
        return pooled(m, x)

    return run


def thirds(m, x):
    y, z, w = features(m, x).view(-1, 3, 5, 16, 16).unbind(1)
    return pooled(m, F.relu(m.b(y * z + w)))


def maxout(m, x):
    return pooled(m, F.relu(m.b(m.a(x).view(x.shape[0], 5, 3, 16, 16).amax(2))))


def slices(m, x):
    y = features(m, x)
    return pooled(m, torch.cat([y[:, :5], y[:, 7:] * 2, y[:, 5:7]], 1))


def listed(m, x):
    return pooled(m, F.relu(m.b(features(m, x)[:, m.order])))


def moved(m, x):
    y = features(m, x)
    return pooled(
        m, F.relu(m.b(torch.cat([y.flip(1), y.roll(3, 1), y.repeat_interleave(2, 1)], 1) + y.repeat(1, 4, 1, 1)))
    )


def resized(m, x):
    y = F.interpolate(features(m, x), scale_factor=2) + F.interpolate(F.relu(m.c(x)), size=(32, 32), mode="bilinear")
    return pooled(m, F.relu(m.b(F.pad(F.pad(y, (1, 2, 0, 1)), (1, 1, 1, 1), mode="reflect"))))


def attention(m, x):
    tokens = m.a(x).flatten(2).transpose(1, 2)
    q, k, v = F.relu(m.qkv(tokens)).chunk(3, -1)
    y = tokens + m.out((q @ k.transpose(1, 2)).softmax(-1) @ v)
    return m.head((y + m.mlp(y)).mean(1))


def with_token(m, x):
    y = features(m, x).flatten(2).transpose(1, 2)
    return m.head(torch.cat([m.token.expand(x.shape[0], -1, -1), m.mlp(y)], 1).mean(1))


def used_twice(m, x):
    y = F.relu(m.b(F.relu(m.b(features(m, x)))))
    return pooled(m, F.relu(F.conv2d(y, m.b.weight, None, padding=2, dilation=2)))


def mlp(width):
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 10), nn.GELU(), nn.Linear(10, width))


def parameter(*shape):
    return nn.Parameter(torch.rand(shape))


NETWORKS = {
    "literal view": (literal_view, lambda: {"a": conv(3, 6), "head": nn.Linear(6 * 64, 4)}),
    "halves": (halves, lambda: {"a": conv(3, 12), "head": nn.Linear(6, 4)}),
    "branches": (branches, lambda: {"a": conv(3, 12), "b": conv(6, 6), "head": nn.Linear(12, 4)}),
    "pieces": (pieces, lambda: {"a": conv(3, 12), "b": conv(4, 6), "head": nn.Linear(14, 4)}),
    "glu": (glu, lambda: {"a": conv(3, 12), "head": nn.Linear(6, 4)}),
    "squeeze-excite": (
        squeeze_excite,
        lambda: {"a": conv(3, 12), "down": conv(12, 5, 1), "up": conv(5, 12, 1), "head": nn.Linear(12, 4)},
    ),
    "shuffled": (shuffled, lambda: {"a": conv(3, 12), "b": conv(12, 8), "head": nn.Linear(8, 4)}),
    "shuffled by a module": (
        shuffled_by_module,
        lambda: {"a": conv(3, 12), "shuffle": nn.ChannelShuffle(4), "b": conv(12, 8), "head": nn.Linear(8, 4)},
    ),
    "shuffled by stack": (
        shuffled_by_stack,
        lambda: {"a": conv(3, 6), "c": conv(3, 6), "b": conv(12, 8), "head": nn.Linear(8, 4)},
    ),
    "shuffled twice": (shuffled_twice, lambda: {"a": conv(3, 12), "b": conv(12, 8), "head": nn.Linear(8, 4)}),
    "arithmetic between": (
        arithmetic_between,
        lambda: {"a": conv(3, 12), "c": conv(3, 12), "b": conv(12, 8), "head": nn.Linear(8, 4)},
    ),
    "U-Net": (
        u_net,
        lambda: {"a": conv(3, 6), "b": conv(6, 8), "up": nn.ConvTranspose2d(8, 5, 2, 2), "out": conv(11, 2)},
    ),
    "padded shortcut": (
        padded_shortcut,
        lambda: {"a": conv(3, 8), "b": nn.Conv2d(8, 12, 3, 2, 1), "head": nn.Linear(12, 4)},
    ),
    "created": (created, lambda: {"a": conv(3, 12), "head": nn.Linear(12, 4)}),
    "created and joined": (created_and_joined, lambda: {"a": conv(3, 8), "b": conv(3, 12), "head": nn.Linear(12, 4)}),
    "layer scale": (
        layer_scale,
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 8),
            "gamma": parameter(8),
            "slope": parameter(8),
            "head": nn.Linear(8, 4),
        },
    ),
    "depthwise": (
        chain("a", "b", "norm"),
        lambda: {"a": conv(3, 6), "b": conv(6, 12, groups=6), "norm": nn.BatchNorm2d(12), "head": nn.Linear(12, 4)},
    ),
    "transposed": (
        chain("a", "b", "norm"),
        lambda: {
            "a": conv(3, 6),
            "b": nn.ConvTranspose2d(6, 8, 3, 2, 1, output_padding=1),
            "norm": nn.InstanceNorm2d(8, affine=True),
            "head": nn.Linear(8, 4),
        },
    ),
    "thirds": (thirds, lambda: {"a": conv(3, 15), "b": conv(5, 8), "head": nn.Linear(8, 4)}),
    "maxout": (maxout, lambda: {"a": conv(3, 15), "b": conv(5, 8), "head": nn.Linear(8, 4)}),
    "slices": (slices, lambda: {"a": conv(3, 12), "head": nn.Linear(12, 4)}),
    "listed": (
        listed,
        lambda: {
            "a": conv(3, 8),
            "b": conv(8, 6),
            "order": torch.tensor([3, 1, 0, 2, 7, 5, 6, 4]),
            "head": nn.Linear(6, 4),
        },
    ),
    "moved": (moved, lambda: {"a": conv(3, 8), "b": conv(32, 6), "head": nn.Linear(6, 4)}),
    "resized": (resized, lambda: {"a": conv(3, 8), "c": conv(3, 8), "b": conv(8, 6), "head": nn.Linear(6, 4)}),
    "attention": (
        attention,
        lambda: {
            "a": nn.Conv2d(3, 8, 8, 8),
            "qkv": nn.Linear(8, 12),
            "out": nn.Linear(4, 8),
            "mlp": mlp(8),
            "head": nn.Linear(8, 4),
        },
    ),
    "token": (
        with_token,
        lambda: {"a": conv(3, 8), "mlp": mlp(8), "token": parameter(1, 1, 8), "head": nn.Linear(8, 4)},
    ),
    "used twice": (used_twice, lambda: {"a": conv(3, 8), "b": conv(8, 8), "head": nn.Linear(8, 4)}),
}


class Network(nn.Module):
    def __init__(self, name):
        super().__init__()
        self.run, parts = NETWORKS[name][0], NETWORKS[name][1]()
        for key, part in parts.items():
            if isinstance(part, torch.Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(key, part)
            else:
                setattr(self, key, part)

    def forward(self, x):
        return self.run(self, x)


def kill_(model, x, share=0.5, seed=0):
    """Zero everything that a share of the free classes owns; the graph afterwards, and the classes."""
    traced = trace(model, (x,))
    graph = graph_of(model, traced)
    generator = torch.Generator().manual_seed(seed)
    dead = graph.free() & (torch.rand(graph.classes.count, generator=generator) < share)
    for dims in graph.classes.parameters.values():  # a layer keeps a channel
        for classes in dims.values():
            if bool(dead[classes].all()):
                dead[classes[0]] = False
    state = dict(model.named_parameters(remove_duplicate=False))
    with torch.no_grad():
        for (name, dim), classes in graph.out_slices().items():
            if name in state and classes.numel() == state[name].shape[dim]:
                state[name].movedim(dim, 0)[dead[classes]] = 0
    return graph_of(model, traced), dead


def cut(model, x, seed=0):
    """Kill, and cut all that was killed."""
    graph, dead = kill_(model, x, seed=seed)
    plan = make_plan(model, graph, Decision(dead, ()))
    return graph_module(model, (x,), plan.parameters), plan, dead


def difference(model, module, *shape, batches=BATCHES):
    """The largest of all batch sizes, relative to the largest output."""
    worst = 0.0
    with torch.no_grad():
        for batch in batches:
            y = torch.randn(batch, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(batch))
            expected, got = model(y), module(y)
            assert got.shape == expected.shape
            assert bool(expected.abs().max() > 0)
            worst = max(worst, float((got - expected).abs().max() / expected.abs().max()))
    return worst


@pytest.mark.parametrize("name", NETWORKS)
def test_all_that_is_dead_leaves(name, randomise_):
    torch.manual_seed(0)
    model = randomise_(Network(name))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    made, plan, dead = cut(model, X)
    assert bool(dead.any())
    assert difference(model, made.module, 3, 16, 16) <= EXACT
    assert made.fixed_batch is None
    state = made.module.state_dict()
    assert state.keys() | set(made.dropped) == before.keys()
    for key, kept in plan.parameters.items():
        assert state[key].shape == kept.cut(before[key]).shape
        assert torch.equal(state[key], kept.cut(model.state_dict()[key]))
    graph, again = channel_graph(model, (X,)), channel_graph(made.module, (X,))
    assert again.macs < graph.macs
    assert not bool(mixed_channels(graph, again, plan).any())


@pytest.mark.parametrize("seed", range(6))
def test_shuffles_are_right_whatever_stays(seed, randomise_):
    for name in ("shuffled twice", "branches", "arithmetic between"):
        torch.manual_seed(seed)
        model = randomise_(Network(name), seed)
        made, _, _ = cut(model, X, seed)
        assert difference(model, made.module, 3, 16, 16) <= EXACT


# --- random networks, with folded constants ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 150))])
def test_random_networks_with_folded_constants(seed, randomise_, kill_free_):
    model = randomise_(RandomNetwork(seed), seed)
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64)
    if seed % 3 == 2:
        kill_layer_by_layer_(model, seed)
    else:
        kill_free_(model, x, shift=(0.0, 0.3)[seed % 3], seed=seed)
    graph = channel_graph(model, (x,))
    decision = find_dead(graph)
    plan = make_plan(model, graph, decision)
    folded = copy.deepcopy(model)
    fold_(folded, decision)
    made = plan.as_graph(folded, (x,))
    assert difference(model, made.module, 3, 10, 10) <= EXACT
    sizes = {name: tuple(tensor.shape) for name, tensor in made.module.state_dict().items()}
    for name, kept in plan.parameters.items():
        assert sizes.get(name, kept.cut(model.state_dict()[name]).shape) == kept.cut(model.state_dict()[name]).shape


# --- what the module is good for -----------------------------------------------------------------------------------


class Trained(nn.Module):
    """Everything that behaves otherwise in training, behind an uneven split."""

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.slope = conv(3, 12, bias=False), nn.BatchNorm2d(12), nn.PReLU(12)
        self.b, self.drop, self.head = conv(6, 8), nn.Dropout(0.5), nn.Linear(14, 4)
        self.gamma = nn.Parameter(torch.rand(8))

    def forward(self, x):
        y, z = self.slope(self.norm(self.a(x))).chunk(2, 1)
        y = torch.cat([y, F.relu(self.b(z)) * self.gamma[:, None, None]], 1).mean((2, 3))
        return self.head(F.dropout(self.drop(y), 0.2, self.training))


@pytest.fixture
def trained(randomise_):
    torch.manual_seed(1)
    model = randomise_(Trained())
    made, plan, _ = cut(model, X)
    assert made.module.b.weight.shape[1] < 6
    return model, made, plan


def test_layers_are_modules_under_their_names(trained):
    model, made, _ = trained
    kinds = {name: type(module) for name, module in model.named_children()}
    assert {name: type(made.module.get_submodule(name)) for name in kinds if name != "drop"} == {
        name: kind for name, kind in kinds.items() if name != "drop"
    }
    assert sorted(m.p for m in made.module.modules() if isinstance(m, nn.Dropout)) == [0.2, 0.5]
    assert made.module.state_dict().keys() == model.state_dict().keys()
    assert isinstance(made.module.gamma, nn.Parameter)
    assert not made.module.training


def test_a_training_step_lowers_the_loss(trained):
    module = trained[1].module
    torch.manual_seed(0)
    x, target = torch.randn(16, 3, 16, 16, dtype=torch.float64), torch.randint(0, 4, (16,))
    for dropout in (m for m in module.modules() if isinstance(m, nn.Dropout)):
        dropout.p = 0.0
    module.train()
    mean = module.norm.running_mean.clone()
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    losses = []
    for _ in range(5):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(x), target)
        loss.backward()
        assert all(p.grad is not None and bool((p.grad != 0).any()) for p in module.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    assert not torch.equal(module.norm.running_mean, mean)
    assert int(module.norm.num_batches_tracked) == 5


def test_training_mode_computes_as_the_original_does(trained):
    """BatchNorm takes the statistics of the batch: channels without weights have none, and contribute nothing."""
    model, made, _ = trained
    torch.manual_seed(0)
    for network in (model, made.module):
        network.train()
    x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = made.module.norm(made.module.a(x)), model.norm(model.a(x))
    kept = model.norm.weight != 0
    assert torch.allclose(ours, theirs[:, kept], rtol=0, atol=1e-12)
    assert torch.allclose(made.module.norm.running_var, model.norm.running_var[kept], rtol=0, atol=1e-12)


def test_dropout_drops_in_training_only(trained):
    module, x = trained[1].module, X.expand(4, -1, -1, -1)
    with torch.no_grad():
        assert torch.equal(module(x), module(x))
        module.train()
        module.norm.eval()
        assert not torch.equal(module(x), module(x))


def test_copies_and_casts(trained):
    model, made, _ = trained
    twin = copy.deepcopy(made.module)
    assert twin.state_dict().keys() == made.module.state_dict().keys()
    assert difference(model, twin, 3, 16, 16) <= EXACT
    twin.float()
    assert twin(X.float()).dtype == torch.float32
    assert made.module.head.weight.dtype == torch.float64


@pytest.mark.parametrize(
    "name",
    ["shuffled by stack", "token", *(pytest.param(name, marks=pytest.mark.slow) for name in ("branches", "created"))],
)
def test_onnx_with_any_batch_size(name, randomise_, tmp_path):
    made, _, _ = cut(randomise_(Network(name)).float(), X.float())
    report = to_onnx(made.module, (X.float(),), tmp_path / "small.onnx", dynamic_batch=True)
    assert report.random.batches >= 3
    assert report.random.max_relative_difference <= 1e-5


def test_rebuilt_from_another_instance_for_saved_weights(trained):
    _, made, plan = trained
    fresh = Trained().double()
    kept = {name: Kept(kept.shape, dict(kept.indices), kept.groups) for name, kept in plan.parameters.items()}
    rebuilt = graph_module(fresh, (torch.zeros_like(X),), kept).module
    assert rebuilt.code == made.module.code
    rebuilt.load_state_dict(made.module.state_dict())
    assert torch.equal(rebuilt(X), made.module(X))


def test_weights_of_another_instance(trained):
    model, made, plan = trained
    half = copy.deepcopy(model).float()
    weights = made.weights_of(half)
    assert weights.keys() == made.module.state_dict().keys()
    for name, kept in plan.parameters.items():
        assert torch.equal(weights[name], kept.cut(half.state_dict()[name]))


# --- batch sizes, outputs, structure -------------------------------------------------------------------------------


def linear_network(net, run, **parts):
    return net(run, a=conv(3, 8), head=nn.Linear(8, 4), **parts)


def test_a_literal_batch_size_stays(net, randomise_):
    model = randomise_(linear_network(net, lambda m, x: m.head(features(m, x).mean((2, 3)).view(1, 8))))
    made, _, dead = cut(model, X)
    assert made.fixed_batch == 1
    assert any("the batch size stays 1" in note for note in made.notes)
    assert bool(dead.any())
    assert difference(model, made.module, 3, 16, 16, batches=(1,)) <= EXACT


def test_the_example_may_be_a_batch(net, randomise_):
    model = randomise_(linear_network(net, lambda m, x: m.head(features(m, x).view(x.shape[0], 8, -1).mean(2))))
    made, _, _ = cut(model, X.expand(3, -1, -1, -1))
    assert made.fixed_batch is None
    assert difference(model, made.module, 3, 16, 16) <= EXACT


def test_channels_may_share_a_dimension_with_the_batch(net, randomise_):
    def run(m, x):
        y = F.relu(m.a(x)).transpose(0, 1)
        return pooled(m, y.reshape(-1, 16, 16).view(8, x.shape[0], 16, 16).transpose(0, 1))

    model = randomise_(linear_network(net, run))
    made, _, _ = cut(model, X)
    assert made.fixed_batch is None
    assert difference(model, made.module, 3, 16, 16) <= EXACT


def test_any_batch_size_is_worth_more_than_channels(net, randomise_):
    """The list of channels that stay would have to grow with the batch."""

    def run(m, x):
        y = F.relu(m.a(x)).reshape(-1, 16, 16)
        return pooled(m, (y.roll(7, 0) * 2).view(-1, 8, 16, 16))

    model = randomise_(linear_network(net, run))
    graph, dead = kill_(model, X)
    with pytest.raises(Blocked, match="a dimension that holds the batch too") as refusal:
        graph_module(model, (X,), make_plan(model, graph, Decision(dead, ())).parameters)
    dead &= ~refusal.value.channels.among(graph.classes)
    made = graph_module(model, (X,), make_plan(model, graph, Decision(dead, ())).parameters)
    assert made.fixed_batch is None
    assert difference(model, made.module, 3, 16, 16) <= EXACT


def test_nested_outputs_keep_their_structure(net, randomise_):
    def run(m, x):
        y = features(m, x).mean((2, 3))
        return {"logits": m.head(y), "more": [m.other(y), None]}

    model = randomise_(linear_network(net, run, other=nn.Linear(8, 2)))
    made, _, _ = cut(model, X)
    got, expected = made.module(X), model(X)
    assert got.keys() == expected.keys()
    assert got["more"][1] is None
    assert torch.allclose(got["logits"], expected["logits"], rtol=0, atol=1e-12)
    assert torch.allclose(got["more"][0], expected["more"][0], rtol=0, atol=1e-12)


def test_several_inputs(randomise_):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = conv(3, 8), conv(1, 8), nn.Linear(8, 4)

        def forward(self, image, mask):
            return pooled(self, F.relu(self.a(image) + self.b(mask)))

    model = randomise_(Two())
    inputs = (X, X[:, :1])
    made = graph_module(model, inputs, {})
    assert made.fixed_batch is None
    assert torch.allclose(made.module(*inputs), model(*inputs), rtol=0, atol=1e-12)


def test_groups_leave_whole_or_evenly(net, randomise_):
    """12 channels in 4 groups of 3: the second group leaves, the others lose one channel each."""
    layers = {"a": conv(3, 12), "b": conv(12, 8, groups=4), "head": nn.Linear(8, 4)}
    model = randomise_(net(lambda m, x: pooled(m, F.relu(m.b(F.relu(m.a(x))))), **layers))
    gone, out = [0, 3, 4, 5, 7, 11], [2, 3]
    with torch.no_grad():
        model.a.weight[gone], model.a.bias[gone] = 0, 0
        model.b.weight[out], model.b.bias[out] = 0, 0
    reads = [i for i in range(12) if i not in gone]
    writes = [i for i in range(8) if i not in out]
    kept = {
        "a.weight": Kept((12, 3, 3, 3), {0: reads}),
        "a.bias": Kept((12,), {0: reads}),
        "b.weight": Kept((8, 3, 3, 3), {0: writes, 1: reads}, 4),
        "b.bias": Kept((8,), {0: writes}),
        "head.weight": Kept((4, 8), {1: writes}),
    }
    made = graph_module(model, (X,), kept)
    assert (made.module.b.groups, made.module.b.in_channels, made.module.b.out_channels) == (3, 6, 6)
    assert difference(model, made.module, 3, 16, 16) <= EXACT
    uneven = [i for i in reads if i != 1]
    kept |= {"a.weight": Kept((12, 3, 3, 3), {0: uneven}), "a.bias": Kept((12,), {0: uneven})}
    del kept["b.weight"]
    with pytest.raises(ModelError):
        graph_module(model, (X,), kept)


def test_channels_are_selected_in_front_of_a_batch_norm(net, randomise_):
    """Pre-activation: channels 1, 4 and 5 of the stream are dead for one reader only."""

    def run(m, x):
        stream = m.a(x)
        return pooled(m, F.relu(m.b(F.relu(m.norm(stream))) + stream))

    layers = {"a": conv(3, 8), "norm": nn.BatchNorm2d(8), "b": conv(8, 8), "head": nn.Linear(8, 4)}
    model = randomise_(net(run, **layers))
    with torch.no_grad():
        model.norm.weight[[1, 4, 5]], model.norm.bias[[1, 4, 5]] = 0, 0
    result = compact(model, (X,), select="always", prefer="graph")
    assert result.model.norm.weight.shape == (5,)
    assert result.model.b.weight.shape == (8, 5, 3, 3)
    assert result.model.a.weight.shape[0] == 8
    assert difference(model, result.model, 3, 16, 16) <= EXACT


# --- refusals and the report ---------------------------------------------------------------------------------------


def test_channels_that_cannot_leave_are_named_and_can_be_kept(net, randomise_):
    """Uneven halves with rows of the image between them lie along no single dimension."""

    def run(m, x):
        y = F.relu(m.a(x)).view(-1, 2, 6, 16, 16).permute(0, 1, 3, 2, 4)
        return pooled(m, F.relu(m.b(F.relu(y).permute(0, 3, 1, 2, 4).reshape(-1, 12, 16, 16))))

    model = randomise_(net(run, a=conv(3, 12), b=conv(12, 8), head=nn.Linear(8, 4)))
    graph, dead = kill_(model, X)
    with pytest.raises(Blocked, match="permute moves channels that were cut unevenly") as refusal:
        graph_module(model, (X,), make_plan(model, graph, Decision(dead, ())).parameters)
    held = refusal.value.channels.among(graph.classes)
    assert bool((held & dead).any())
    assert not bool((held & ~dead).any())
    made = graph_module(model, (X,), make_plan(model, graph, Decision(dead & ~held, ())).parameters)
    assert difference(model, made.module, 3, 16, 16) <= EXACT
    assert made.module.b.weight.shape[0] < 8


def test_the_report_names_the_lines(randomise_):
    model = randomise_(Trained())
    made, _, dead = cut(model, X)
    graph = channel_graph(model, (X,))
    (line,) = made.lines(graph.classes, dead)
    assert line.startswith("surgery/test_graph_module.py:")
    assert "in forward: y, z = self.slope(self.norm(self.a(x))).chunk(2, 1): chunk with other sizes: " in line
    assert line.endswith("of 6 channels stay")
    assert made.lines(graph.classes, torch.zeros_like(dead)) == []


def test_a_line_without_a_trace_is_named_by_its_module(net):
    nodes = trace(net(lambda m, x: m.a(x), a=conv(3, 8)), (X.float(),)).graph.nodes
    node = next(n for n in nodes if n.op == "call_function")
    node.meta.pop("stack_trace", None)
    assert source_line(node) == "a (conv2d)"


def test_sizes_that_stay_are_told(randomise_):
    fixed, _, _ = cut(randomise_(Network("U-Net")), X)
    free, _, _ = cut(randomise_(Network("branches")), X)
    assert fixed.fixed_sizes
    assert free.fixed_sizes == ()
    assert difference(randomise_(Network("branches")), free.module, 3, 16, 16) > 0  # other weights: the check checks


def test_a_shuffle_takes_other_image_sizes(randomise_):
    model = randomise_(Network("shuffled"))
    made, _, _ = cut(model, X)
    assert made.fixed_sizes == ()
    assert difference(model, made.module, 3, 21, 18) <= EXACT


def test_what_nobody_reads_is_dropped(net, randomise_):
    model = randomise_(linear_network(net, lambda m, x: pooled(m, features(m, x)), auxiliary=nn.Linear(8, 2)))
    made, _, _ = cut(model, X)
    assert set(made.dropped) == {"auxiliary.weight", "auxiliary.bias"}


def test_a_plan_for_another_network_is_refused(net, randomise_):
    model = randomise_(linear_network(net, lambda m, x: pooled(m, features(m, x))))
    half = {"a.weight": Kept((8, 3, 3, 3), {0: [0, 1]})}
    with pytest.raises(ModelError, match=r"the plan was made for another network: it cuts a\.weight"):
        graph_module(model, (X,), half)
    with pytest.raises(ModelError, match="it cuts other"):
        graph_module(model, (X,), {"other": Kept((8,), {0: [0]})})


def test_a_forward_that_writes_to_a_buffer_is_refused(randomise_):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = conv(3, 4)
            self.register_buffer("seen", torch.zeros(()))

        def forward(self, x):
            self.seen.add_(1)
            return self.a(x)

    with pytest.raises(ModelError, match="writes to seen in evaluation mode"):
        graph_module(randomise_(Counts()), (X,), {})


# --- families ------------------------------------------------------------------------------------------------------

FAMILIES = {
    "resnet18": 64,
    "mobilenet_v2": 64,
    "mobilenet_v3_small": 64,
    "shufflenet_v2_x0_5": 64,
    "shufflenet_v2_x1_0": 64,
    "densenet121": 64,
    "googlenet": 64,
    "inception_v3": 75,
    "efficientnet_b0": 64,
    "regnet_y_400mf": 64,
    "squeezenet1_1": 64,
    "mnasnet0_5": 64,
    "convnext_tiny": 64,
    "vit_b_16": 64,
    "swin_t": 64,
}
"""torchvision's name -> image size."""


def family(name, randomise_):
    from compress.torchvision_compat import torchvision

    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    options |= {"image_size": FAMILIES[name]} if name == "vit_b_16" else {}
    torch.manual_seed(0)
    model = randomise_(getattr(torchvision.models, name)(weights=None, **options))
    for key, parameter in model.named_parameters():
        if key.endswith(("layer_scale", "class_token", "pos_embedding")):  # as small as they are made, they hide errors
            nn.init.normal_(parameter, 0, 0.3)
    size = FAMILIES[name]
    return model, torch.randn(1, 3, size, size, dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_families(name, randomise_):
    model, x = family(name, randomise_)
    graph, _ = kill_(model, x)
    decision = find_dead(graph, fold=False)
    made = graph_module(model, (x,), make_plan(model, graph, decision).parameters)
    assert int(decision.removed.sum()) > 100
    assert made.fixed_batch is None
    assert difference(model, made.module, *x.shape[1:]) <= EXACT
    assert sum(p.numel() for p in made.module.parameters()) < 0.8 * sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_the_graph_loses_more_than_the_class(randomise_):
    """ShuffleNetV2 x1.0: its class halves and shuffles channels, which must stay even for it."""
    model, x = family("shufflenet_v2_x1_0", randomise_)
    kill_(model, x)
    small = {prefer: compact(model, (x,), prefer=prefer).report for prefer in ("class", "graph")}
    assert small["graph"].params_after < 0.9e6 < small["class"].params_after < 1.2e6
    assert small["graph"].max_relative_error <= EXACT
    assert any("x1, x2 = x.chunk(2, dim=1)" in line for line in small["graph"].rewritten)


def test_a_vector_made_in_forward_scales_channels(net, randomise_):
    model = randomise_(
        linear_network(net, lambda m, x: pooled(m, features(m, x) * torch.full((1,), 0.5, dtype=x.dtype)))
    )
    made, _, _ = cut(model, X)
    assert difference(model, made.module, 3, 8, 8) <= EXACT
