"""Scores against their formulas, written out on networks small enough to do so."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import ConfigError
from compress.groups import find_groups
from compress.pruning import CRITERIA
from compress.pruning.criterion import NORMALISATIONS
from compress.pruning.taylor import slopes


def example(n=1):
    return torch.randn(n, 3, 6, 6, generator=torch.Generator().manual_seed(1))


def labelled(model, n=8):
    return example(n).to(next(model.parameters()).dtype), torch.arange(n) % 5


def owned(model, channel, *, layer):
    """All weights of one channel of ``Plain``, by hand."""
    if layer == "a":
        return [model.a.weight[channel], model.norm.weight[channel], model.norm.bias[channel]]
    return [model.b.weight[channel], model.b.bias[channel]]


def by_hand(model, value):
    """``value`` of each channel of ``a``, then of ``b``."""
    return torch.stack(
        [
            value(owned(model, c, layer=layer))
            for layer, conv in (("a", model.a), ("b", model.b))
            for c in range(len(conv.weight))
        ]
    )


def test_magnitude_is_the_norm_of_all_that_a_channel_owns(plain):
    model = plain()
    scores = CRITERIA["magnitude"].score(model, find_groups(model, "coupled", (example(),)), ())
    with torch.no_grad():
        expected = by_hand(model, lambda parts: torch.cat([p.flatten() for p in parts]).norm())
    torch.testing.assert_close(scores, expected)


def test_bn_scale_is_the_mean_of_the_scales_that_a_channel_passes(plain):
    model = plain()
    model.norm.weight.data[2] = -3.0
    scores = CRITERIA["bn-scale"].score(model, find_groups(model, "coupled", (example(),)), ())
    torch.testing.assert_close(scores[:4], model.norm.weight.detach().abs())
    assert scores[2] == 3
    assert scores[4:].isnan().all()  # b has no BatchNorm


def test_bn_scale_of_a_coupled_group_is_a_mean_over_its_batchnorms():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.norm_a = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
            self.b, self.norm_b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 5)

        def forward(self, x):
            x = self.norm_a(self.a(x))
            return self.head((x + self.norm_b(self.b(x))).mean((2, 3)))

    model = Twice()
    for norm in (model.norm_a, model.norm_b):
        norm.weight.data.normal_()
    scores = CRITERIA["bn-scale"].score(model, find_groups(model, "coupled", (example(),)), ())
    expected = (model.norm_a.weight.abs() + model.norm_b.weight.abs()).detach() / 2
    torch.testing.assert_close(scores, expected)


def test_bn_scale_needs_a_batchnorm():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    groups = find_groups(model, "coupled", (example(),))
    with pytest.raises(ConfigError, match="no channel of this Sequential passes a BatchNorm with a scale"):
        CRITERIA["bn-scale"].score(model, groups, ())


def test_taylor_is_the_mean_square_of_weights_times_gradients(plain):
    model = plain()
    groups = find_groups(model, "coupled", (example(),))
    given = [(example(4), torch.tensor([0, 1, 2, 3])), (2 * example(3), torch.tensor([4, 4, 0]))]
    expected = torch.zeros(10, dtype=torch.float64)
    for images, labels in given:
        twin = copy.deepcopy(model)
        F.cross_entropy(twin(images), labels).backward()
        products = copy.deepcopy(twin)
        for product, weight in zip(products.parameters(), twin.parameters(), strict=True):
            product.data = weight.detach() * weight.grad
        with torch.no_grad():
            expected += by_hand(products, lambda parts: sum(p.sum() for p in parts)).double().square() / 2
    model.train()
    scores = CRITERIA["taylor"].score(model, groups, given)
    torch.testing.assert_close(scores, expected, rtol=1e-4, atol=1e-12)
    assert model.training  # judged in evaluation mode, and given back as it was
    assert all(p.grad is None for p in model.parameters())
    assert int(model.norm.num_batches_tracked) == 0


@pytest.mark.parametrize("group", range(10))
def test_taylor_is_the_slope_of_the_loss_as_the_group_is_scaled(plain, group):
    model = plain().double()
    groups = find_groups(model, "coupled", (example().double(),))
    images, labels = labelled(model)
    slope = float(slopes(model, groups, images, labels)[group])

    def loss(scale):
        twin = copy.deepcopy(model)
        scaled = find_groups(twin, "coupled", (example().double(),))
        factors = torch.ones(scaled.count, dtype=torch.float64)
        factors[group] = scale
        scaled.scale_(factors)
        with torch.no_grad():
            return float(F.cross_entropy(twin(images), labels))

    step = 1e-6
    assert slope == pytest.approx((loss(1 + step) - loss(1 - step)) / (2 * step), rel=1e-6, abs=1e-9)


def test_weights_that_are_not_trained_are_judged_all_the_same(plain):
    model = plain()
    groups = find_groups(model, "coupled", (example(),))
    expected = slopes(model, groups, *labelled(model))
    model.requires_grad_(False)
    assert torch.equal(slopes(model, groups, *labelled(model)), expected)


def test_normalisations():
    scores = torch.tensor([1.0, 3.0, 10.0, torch.nan, 30.0, 0.0])
    sizes = torch.tensor([4.0, 9.0, 1.0, 1.0, 100.0, 5.0])
    layers = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.equal(NORMALISATIONS["none"](scores, sizes, layers).nan_to_num(-1), scores.nan_to_num(-1))
    by_size = NORMALISATIONS["size"](scores, sizes, layers)
    assert by_size.nan_to_num(-1).tolist() == [0.5, 1.0, 10.0, -1.0, 3.0, 0.0]
    by_layer = NORMALISATIONS["layer"](scores, sizes, layers)
    assert by_layer.nan_to_num(-1).tolist() == [0.5, 1.5, 0.5, -1.0, 1.5, 0.0]


def test_size_makes_the_root_mean_square_of_a_norm():
    weights = torch.randn(7, 25)
    scores = NORMALISATIONS["size"](weights.norm(dim=1), torch.full((7,), 25.0), torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(scores, weights.square().mean(1).sqrt())
    assert math.isclose(float(scores[0]), float(weights[0].square().mean()) ** 0.5, rel_tol=1e-6)
