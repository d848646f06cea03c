import math

import pytest
import torch
from torch import nn

from compress.data.split import TensorSplit
from compress.train import evaluate as module
from compress.train.config import DataSection
from compress.train.evaluate import evaluate, inference, max_abs_difference
from compress.train.inputs import Inputs
from compress.train.rundir import load_data


@pytest.fixture
def inputs() -> Inputs:
    data = load_data(DataSection(name="digits"), seed=0)
    return Inputs(data, DataSection(name="digits").augment, seed=0, device=torch.device("cpu"))


def split_of(n: int) -> TensorSplit:
    images = torch.randint(256, (n, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return TensorSplit(images, torch.arange(n) % 10)


def constant_model() -> nn.Module:
    """Says class 3, whatever it sees; its logits are 0 but for a 1."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Dropout(0.9))
    nn.init.zeros_(model[1].weight)
    model[1].bias.data = torch.eye(10)[3]
    return model


@pytest.mark.parametrize("batch", [1, 7, 256])
def test_figures_do_not_depend_on_the_batch(inputs: Inputs, monkeypatch: pytest.MonkeyPatch, batch: int):
    monkeypatch.setattr(module, "EVALUATION_BATCH", batch)
    score = evaluate(constant_model(), split_of(25), inputs)
    assert score.accuracy == 3 / 25  # labels 3, 13 mod 10, 23 mod 10
    assert score.loss == pytest.approx(math.log(9 + math.e) - 3 / 25, rel=1e-6)


def test_every_modules_mode_is_restored():
    model = constant_model()
    model[2].eval()
    with inference(model):
        assert not any(part.training for part in model.modules())
        assert not torch.is_grad_enabled()
    assert [part.training for part in model.modules()] == [True, True, True, False]
    assert torch.is_grad_enabled()


def test_the_largest_difference_and_output():
    one, other = constant_model(), constant_model()
    other[1].bias.data[7] = -0.25
    assert max_abs_difference(one, other, torch.zeros(2, 1, 8, 8)) == (0.25, 1.0)
