"""The certificate refuses what it must, and says by how much."""

import copy

import pytest
import torch
from torch import nn

from compress.errors import VerificationError
from compress.surgery.running import outputs, random_inputs
from compress.surgery.verify import TOLERANCES, certify
from compress.surgery.watch import other_runs

X = torch.randn(1, 3, 10, 10, dtype=torch.float64)


class Two(nn.Module):
    """Two outputs, the second of which may be off."""

    def __init__(self, off=0.0, limit=None):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, dtype=torch.float64)
        self.off, self.limit = off, limit

    def forward(self, x):
        if self.limit is not None and x.shape[2] > self.limit:
            raise KeyError("too large")
        y = self.conv(x)
        return y, y + self.off


def pair(**changes):
    original = Two()
    other = copy.deepcopy(original)
    for name, value in changes.items():
        setattr(other, name, value)
    return original, other


def test_equal_networks_pass_at_two_sizes_of_either_parity():
    agreements = certify(*pair(), None, (X,))
    assert [a.max_abs_error for a in agreements] == [0.0, 0.0, 0.0]
    sizes = {a.input_shapes[0][2] for a in agreements}
    assert {size % 2 for size in sizes} == {0, 1}


@pytest.mark.parametrize("size", [7, 9, 10, 15, 31, 32, 64, 65, 224, 299])
def test_the_second_size_has_the_other_parity(size):
    example = torch.zeros(1, 1, size, size)
    model = nn.Conv2d(1, 1, 1)
    sizes = [a.input_shapes[0][2] for a in certify(model, copy.deepcopy(model), None, (example,))]
    assert sizes[0] == size
    assert sizes[-1] % 2 != size % 2


@pytest.mark.parametrize("off", [1e-6, float("nan"), float("inf")])
def test_an_error_in_a_later_output_is_seen(off):
    with pytest.raises(VerificationError):
        certify(*pair(off=off), None, (X,))


def test_float64_networks_are_held_to_the_float64_tolerance():
    original, other = pair(off=1e-8)
    with pytest.raises(VerificationError, match="allowed 1e-10"):
        certify(original, other, None, (X,))
    assert (
        certify(original.float(), other.float(), None, (X.float(),))[0].max_relative_error < TOLERANCES[torch.float32]
    )


def test_a_twin_in_float64_sees_what_float32_hides():
    original, other = pair(off=1e-8)
    with pytest.raises(VerificationError, match="float64"):
        certify(original.float(), copy.deepcopy(other).float(), other.double(), (X.float(),))


def test_a_size_that_the_original_refuses_is_left_out():
    original, other = pair(limit=10)
    original.limit = 10
    agreements = certify(original, other, None, (X,))
    assert {a.input_shapes[0][2] for a in agreements} == {10, 7}
    original.limit = other.limit = 10
    original.forward = lambda x: Two.forward(original, x) if x.shape[2] == 10 else 1 / 0
    assert {a.input_shapes[0][2] for a in certify(original, other, None, (X,))} == {10}


def test_a_size_that_only_the_compact_network_refuses_is_an_error():
    with pytest.raises(VerificationError, match=r"fails where the original runs .*KeyError.*too large"):
        certify(*pair(limit=10), None, (X,))


def test_outputs_of_another_shape_are_an_error():
    original, other = pair()
    other.conv = nn.Conv2d(3, 5, 3, dtype=torch.float64)
    with pytest.raises(VerificationError, match="returns shapes"):
        certify(original, other, None, (X,))


def test_outputs_are_those_of_evaluation_mode_and_the_mode_returns():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)).double().train()
    model[0].eval()
    (y,) = outputs(model, (X,))
    torch.testing.assert_close(y, X / (1 + model[1].eps) ** 0.5)
    assert (model.training, model[0].training, model[1].training) == (True, False, True)


def test_random_inputs_are_repeatable_and_keep_the_range_of_integers():
    example = (X, torch.arange(4))
    first, again = (random_inputs(example, [(2, 3, 5, 5), (4,)], 0) for _ in range(2))
    assert torch.equal(first[0], again[0])
    assert first[0].dtype == torch.float64
    assert torch.equal(first[1], again[1])
    assert first[1].dtype == torch.int64
    assert 0 <= int(first[1].min()) <= int(first[1].max()) <= 3


class Amplifying(nn.Module):
    """Loses digits in float32, as deep networks do, and is off by a constant."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.off = 0.0

    def forward(self, x):
        return (self.conv(x) + 1000) - 1000 + self.off


@pytest.mark.parametrize(("off", "passes"), [(5e-5, True), (5e-3, False)])
def test_a_network_that_loses_digits_may_differ_by_as_many(off, passes):
    torch.manual_seed(0)
    original = Amplifying()
    compact = copy.deepcopy(original)
    compact.off = off
    twin = copy.deepcopy(original).double()
    x = torch.randn(1, 3, 10, 10)
    if passes:
        own, exact, *_ = certify(original, compact, twin, (x,))
        assert 1e-5 < own.max_relative_error < 4 * own.rounding < 1e-3
        assert (exact.dtype, exact.rounding) == ("float64", None)
        assert exact.max_relative_error == 0
        with pytest.raises(VerificationError, match="allowed 1e-05"):
            certify(original, compact, None, (x,))  # without a float64 form nothing excuses the difference
    else:
        with pytest.raises(VerificationError, match="differs from the original"):
            certify(original, compact, twin, (x,))


class ByWidth(nn.Module):
    """Another layer of the same shape for wide images; and a linear layer, of which torch makes what strides allow."""

    def __init__(self, limit=None):
        super().__init__()
        self.narrow, self.wide = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.mix = nn.Linear(4, 4)
        self.limit = limit

    def forward(self, x):
        layer = self.wide if self.limit is not None and x.shape[3] > self.limit else self.narrow
        return self.mix(layer(x).flatten(2).permute(2, 0, 1)).mean(0)


def test_a_forward_that_uses_another_layer_at_other_sizes_is_noticed():
    wide = other_runs(ByWidth(limit=30), (torch.randn(1, 3, 24, 24),))
    assert [alike[0][0][3] > 30 for alike in wide] == [True]


def test_what_torch_does_for_other_strides_is_no_other_run():
    assert other_runs(ByWidth(), (torch.randn(1, 3, 24, 24),)) == []


class ByWidthAndSamples(ByWidth):
    """For wide images in a batch yet another layer."""

    def forward(self, x):
        return super().forward(x) if len(x) == 1 or x.shape[3] <= self.limit else self.wide(self.wide(x)[:, :3])


@pytest.mark.parametrize(("make", "samples"), [(ByWidth, [1]), (ByWidthAndSamples, [1, 2])])
def test_another_run_is_told_with_as_many_samples_as_given_where_it_is_the_same_with_these(make, samples):
    found = other_runs(make(limit=30), (torch.randn(1, 3, 24, 24),))
    assert [alike[0][0][0] for alike in found] == samples
    assert all(alike[0][0][3] > 30 for alike in found)


def test_a_smaller_and_a_larger_size_are_compared_and_one_for_each_thing_that_the_network_does():
    """The given one, a second one with another number of samples, one beyond, and what is done otherwise."""
    model, example = ByWidth(limit=30).double(), torch.randn(1, 3, 24, 24, dtype=torch.float64)
    shapes = [agreement.input_shapes[0] for agreement in certify(model, copy.deepcopy(model), None, (example,))]
    assert shapes == [(1, 3, 24, 24), (2, 3, 37, 37), (1, 3, 15, 15)]
