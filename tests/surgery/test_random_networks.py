"""Random networks with random dead channels: whatever is removed, the function stays."""

import pytest
import torch

from compress.errors import ConstantOutputError
from random_networks import RandomNetwork, kill_layer_by_layer_

SEEDS = range(30)
MORE_SEEDS = range(30, 530)


def check(seed: int, randomise_, kill_free_, compact_exactly) -> None:
    """A third of the networks each with whole classes dead, without shifts and with, and layer by layer.

    Every other one is free to be returned as a graph, and selects channels wherever it can; the widths of every fifth
    are rounded up.
    """
    options = {"prefer": "smallest", "select": "always"} if seed % 2 else {}
    round_to = 4 if seed % 5 == 0 else 1
    model = randomise_(RandomNetwork(seed), seed)
    x = torch.randn(1, 3, 10, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    y = torch.randn(2, 3, 13, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    killed = {}
    if seed % 3 == 2:
        kill_layer_by_layer_(model, seed)
    else:
        killed = kill_free_(model, x, shift=(0.0, 0.3)[seed % 3], seed=seed)
    try:
        result = compact_exactly(model, x, y, round_to=round_to, **options)
    except ConstantOutputError:
        with torch.no_grad():
            assert torch.equal(model(x), model(torch.randn_like(x)))
        return
    for layer in result.report.layers.values():
        assert layer.after % round_to == 0 or layer.after == layer.before
    if round_to == 1 and seed % 3 == 0:  # whole classes without a shift
        removed = sum(layer.after < layer.before for layer in result.report.layers.values())
        assert removed > 0 or not any(bool(rows.any()) for rows in killed.values()) or result.report.kept


@pytest.mark.usefixtures("no_second_try")
@pytest.mark.parametrize("seed", SEEDS)
def test_the_function_stays(seed, randomise_, kill_free_, compact_exactly):
    check(seed, randomise_, kill_free_, compact_exactly)


@pytest.mark.slow
@pytest.mark.usefixtures("no_second_try")
@pytest.mark.parametrize("seed", MORE_SEEDS)
def test_the_function_stays_in_many_more(seed, randomise_, kill_free_, compact_exactly):
    check(seed, randomise_, kill_free_, compact_exactly)
