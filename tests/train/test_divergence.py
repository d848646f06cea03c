"""Where numbers stop being finite."""

import json
import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.train.checkpoint import load_checkpoint
from compress.train.config import Config
from compress.train.divergence import FIRST, DivergenceError, check_finite, where_not_finite
from compress.train.session import train

Tiny = Callable[..., Config]
Failing = Callable[[int, str], str]
IMAGES = torch.ones(2, 3, 4, 4)


class Exponential(nn.Module):
    def forward(self, values: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        return values, {"large": values.exp()}


class Joined(nn.Module):
    """What goes wrong here does so in no layer of its own, but between two."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 2, 1)

    def forward(self, images: Tensor) -> Tensor:
        between = self.first(images) / torch.zeros(())
        return self.second(between)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))


def test_a_layer_whose_weights_are_not_finite_is_named():
    model = network()
    model[3].weight.data[1, 2] = torch.nan
    assert where_not_finite(model, [IMAGES]) == (f"{FIRST} 3 (Conv2d): its weight is not finite, after earlier steps")


def test_a_layer_that_overflows_is_named_with_its_weights_and_inputs():
    model = network()
    nn.init.constant_(model[3].weight, -3e38)
    nn.init.constant_(model[1].bias, 1.0)
    told = where_not_finite(model, [IMAGES])
    assert told.startswith(f"{FIRST} 3 (Conv2d), of weights up to 3e+38 and inputs up to ")


def test_a_running_statistic_counts_in_evaluation():
    model = network().eval()
    model[1].running_mean[0] = torch.inf
    assert "1 (BatchNorm2d): its running_mean is not finite" in where_not_finite(model, [IMAGES])


def test_outputs_in_tuples_and_dictionaries_are_seen():
    model = nn.Sequential(nn.Identity(), Exponential())
    assert where_not_finite(model, [IMAGES, 100 * IMAGES]) == (f"{FIRST} 1 (Exponential), of inputs up to 1e+02")


def test_what_happens_between_layers_shows_in_the_next_one():
    told = where_not_finite(Joined(), [IMAGES])
    assert told.startswith(f"{FIRST} second (Conv2d), of weights up to ")
    assert told.endswith("inputs up to inf")


def test_images_that_are_not_finite_are_told():
    assert where_not_finite(network(), [IMAGES / 0]).startswith("the images themselves are not finite")


def test_nothing_found_is_told_and_no_hook_is_left():
    model = network()
    assert "every layer's output is finite" in where_not_finite(model, [IMAGES])
    assert not any(module._forward_hooks for module in model.modules())


def test_a_state_that_is_not_finite_is_refused():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(IMAGES).sum().backward()
    optimizer.step()
    check_finite(model, optimizer)
    optimizer.state[model[0].bias]["momentum_buffer"][1] = torch.inf
    with pytest.raises(DivergenceError, match=r"the optimizer's momentum_buffer of 0\.bias is not finite"):
        check_finite(model, optimizer)
    model[1].running_var[0] = torch.inf
    with pytest.raises(DivergenceError, match=r"^1\.running_var is not finite"):
        check_finite(model, optimizer)


def test_infinities_in_other_buffers_are_left_alone():
    model = network()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    check_finite(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_a_run_that_diverges_keeps_its_last_checkpoint_and_says_where(tiny: Tiny, failing: Failing):
    """Six steps an epoch; in the third epoch numbers are too large."""
    net = failing(15, "features = features * 1e39")
    config = tiny(f"model.name={net}", "penalty.name=none", "schedule.epochs=4")
    with pytest.raises(DivergenceError) as caught:
        train(config)
    told = str(caught.value)
    assert re.match(r"training diverged at step \d of epoch 3 \(learning rate .*: the loss is (nan|inf): ", told)
    assert f"{FIRST} classifier (Linear), of weights up to " in told
    assert f"the state after epoch 2, step 0 is kept in {config.out / 'checkpoint.pt'}" in told
    assert "--set optimizer.lr=0.005, or a slower start, --set schedule.warmup_epochs=1" in told
    state = load_checkpoint(config.out / "checkpoint.pt")
    assert state["position"]["epoch"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert len((config.out / "metrics.jsonl").read_text().splitlines()) == 2


def test_weights_that_are_not_finite_are_never_saved(tiny: Tiny, failing: Failing, monkeypatch: pytest.MonkeyPatch):
    """The step before the one that would find out writes a checkpoint."""
    monkeypatch.setattr("compress.train.loop.CHECKPOINT_INTERVAL_S", 0.0)
    net = failing(9, "features.register_hook(lambda gradient: gradient * float('nan'))")
    config = tiny(f"model.name={net}", "penalty.name=none")
    with pytest.raises(DivergenceError) as caught:
        train(config)
    state = load_checkpoint(config.out / "checkpoint.pt")
    step = state["position"]["step"]
    assert state["position"]["epoch"] == 1
    assert f"convolution.weight is not finite; the state after epoch 1, step {step} is kept" in str(caught.value)
    assert f"at step {step + 2} of epoch 2" in str(caught.value)  # one step was taken since
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    assert len([json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]) == 1
