import copy

import pytest
import torch
from torch import nn

from compress.errors import ConfigError
from compress.pruning import Policy, Target, prune_, recalibrate_
from compress.surgery import compact


def some_batches(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(n, 3, 8, 8, generator=generator) for n in sizes]


def test_statistics_are_the_plain_average_of_those_of_the_batches(plain):
    model = plain().double()
    given = [batch.double() for batch in some_batches(4, 6, 5)]
    recalibrate_(model, given)
    with torch.no_grad():
        before_norm = [model.a(batch) for batch in given]
    means = torch.stack([y.mean((0, 2, 3)) for y in before_norm]).mean(0)
    variances = torch.stack([y.transpose(0, 1).flatten(1).var(1) for y in before_norm]).mean(0)
    torch.testing.assert_close(model.norm.running_mean, means)
    torch.testing.assert_close(model.norm.running_var, variances)
    assert int(model.norm.num_batches_tracked) == 3


def test_nothing_else_changes():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 5)
    )
    model.eval()
    model[2].train()
    before = copy.deepcopy(model)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    recalibrate_(model, some_batches(4, 4))
    assert torch.equal(torch.get_rng_state(), state)  # dropout drew nothing
    assert [m.training for m in model.modules()] == [m.training for m in before.modules()]
    assert model[1].momentum == 0.3
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before.parameters(), strict=True))
    assert not torch.equal(model[1].running_mean, before[1].running_mean)


def test_dead_channels_stay_exactly_dead(plain):
    model = plain(8, 16)
    x = torch.randn(1, 3, 8, 8)
    report = prune_(model, (x,), Target("keep-ratio", 0.5), Policy(per_layer=True))
    recalibrate_(model, some_batches(8, 8))
    dead = ~(model.a.weight != 0).flatten(1).any(1)
    assert int(dead.sum()) == 4
    with torch.no_grad():
        assert (model.norm(model.a(torch.randn(5, 3, 8, 8)))[:, dead] == 0).all()
    after = compact(model, (x,)).report
    assert {layer: (w.before, w.after) for layer, w in after.layers.items()} == report.layers
    assert after.kept == {}


def test_what_cannot_be_re_estimated_is_refused_and_changes_nothing(plain):
    with pytest.raises(ConfigError, match="Linear has no BatchNorm with running statistics"):
        recalibrate_(nn.Linear(2, 2), [torch.randn(2, 2)])
    model = plain()
    mean = model.norm.running_mean.clone()
    with pytest.raises(ConfigError, match="at least one batch"):
        recalibrate_(model, [])
    assert torch.equal(model.norm.running_mean, mean)
