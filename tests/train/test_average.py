"""The moving average of the weights: its formula, its zeros, compactions, and the network that is kept."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from compress.errors import ConfigError
from compress.train.average import Average, lent, live, put_, taken
from compress.train.compaction import find_compaction
from compress.train.config import Config
from compress.train.evaluate import evaluate
from compress.train.inputs import Inputs
from compress.train.learner import Learner, build_learner
from compress.train.recipe import resolve
from compress.train.rundir import load_data, open_run
from compress.train.session import train

Tiny = Callable[..., Config]
RESNET = f"{Path(__file__).parent / 'half_dead.py'}:resnet8"


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()


def shaken_(model: nn.Module) -> None:
    with torch.no_grad():
        for tensor in live(model).values():
            tensor.add_(torch.randn_like(tensor))


def test_the_average_follows_its_formula_and_forgets_the_start():
    model, decay = network(), 0.5
    average = Average(model, decay)
    expected = taken(model)
    for step in range(1, 21):
        shaken_(model)
        factor = min(decay, (1 + step) / (10 + step))
        expected = {name: factor * expected[name] + (1 - factor) * now for name, now in live(model).items()}
        average.update_()
    for name, tensor in average.weights().items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-10, atol=1e-10)
    assert "1.running_mean" in expected


def test_what_is_zero_now_is_zero_in_the_average():
    model = network()
    average = Average(model, 0.9)
    shaken_(model)
    average.update_()
    with torch.no_grad():
        model[0].weight[1] = 0.0
    weights = average.weights()
    assert not weights["0.weight"][1].any()
    assert weights["0.weight"][0].all()
    shaken_(model)  # what comes back, comes back
    assert average.weights()["0.weight"][1].all()


def test_lent_weights_are_given_back_bit_for_bit():
    model = network()
    own, other = taken(model), {name: torch.full_like(tensor, 0.5) for name, tensor in live(model).items()}
    with lent(model, other):
        assert all((tensor == 0.5).all() for tensor in live(model).values())
    assert all(torch.equal(tensor, own[name]) for name, tensor in live(model).items())


def learner_of(model: nn.Module, *settings: str) -> Learner:
    flags = {"model.name": RESNET, "data.name": "digits", "penalty.name": "l0", "penalty.granularity": "filter"}
    return build_learner(resolve(flags=flags, settings=settings), model, torch.zeros(1, 1, 8, 8))


def test_a_channel_that_still_acts_in_the_average_stays():
    """A filter is zero, and what its BatchNorm adds is cut off by the ReLU: now, but not on average."""
    model = network().float()
    with torch.no_grad():
        model[0].weight[0], model[0].bias[0] = 0.0, 0.0
        model[1].bias[0] = 2.0
    learner = learner_of(model, "average.decay=0.9")
    with torch.no_grad():
        model[1].bias[0] = -2.0
    example, images = torch.zeros(1, 1, 8, 8), torch.randn(8, 1, 8, 8)
    assert find_compaction(model, example, images).plan is not None
    found = find_compaction(model, example, images, learner.twins())
    assert found.plan is None
    assert "a dead channel still acts in averaged or in earlier weights" in found.refused
    for _ in range(50):
        learner.average.update_()
    found = find_compaction(model, example, images, learner.twins())
    assert found.refused is None
    before = copy.deepcopy(model).eval()
    put_(before, learner.average.weights())
    learner.compact_(found.plan)
    assert live(model)["0.weight"].shape == (2, 1, 3, 3)
    with learner.judged() as judged, torch.no_grad():
        torch.testing.assert_close(judged.eval()(images), before(images))
    model.train()
    shaken_(model)
    learner.average.update_()  # the new tensors are the ones that are followed
    factor = min(0.9, 52 / 61)
    expected = factor * before[3].weight[:, 1:] + (1 - factor) * model[3].weight
    torch.testing.assert_close(learner.average.weights()["3.weight"], expected.detach())


@pytest.mark.parametrize(
    "settings",
    [
        ("penalty.epochs=2",),
        ("penalty.epochs=2", "penalty.granularity=filter"),
        (f"model.name={RESNET}", "penalty.strength=0.01", "penalty.compact_every=1"),
        ("penalty.budget.target=0.5", "penalty.budget.measure=groups"),
    ],
    ids=["coupled", "filter", "compactions", "budget"],
)
def test_the_average_is_what_is_judged_and_kept_with_the_penaltys_zeros(tiny: Tiny, settings: tuple[str, ...]):
    config = tiny("average.decay=0.99", *settings)
    summary = train(config)
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["validation_accuracy"] == summary["accuracy"]["validation"]["masked"]
    assert summary["dead_share"] == pytest.approx(log[-1]["dead_share"])
    assert summary["dead_share"] > 0
    assert summary["parameters"]["compact"] < summary["parameters"]["dense"]

    run, data = open_run(config.out), load_data(config.data, config.run.seed)
    inputs = Inputs(data, config.data.augment, seed=0, device=torch.device("cpu"))
    score = evaluate(run.dense_model(), data.validation, inputs)
    assert score.loss == pytest.approx(log[-1]["validation_loss"], rel=1e-5)
    if "penalty.compact_every=1" not in settings:
        state = torch.load(config.out / "checkpoint.pt", weights_only=True)
        last, kept = state["model"], run.dense_model().state_dict()
        values = state["average"]["values"]
        for name, tensor in kept.items():
            if name in values and "running" not in name:
                torch.testing.assert_close(tensor, values[name] * (last[name] != 0), rtol=0, atol=0)
        assert any(not torch.equal(last[name], kept[name]) for name in values)


def test_an_average_of_gates_is_refused():
    with pytest.raises(ConfigError, match="average: weights before and after gates are folded"):
        learner_of(network(), "penalty.name=hard-concrete", "average.decay=0.9")
