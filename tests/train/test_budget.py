"""Training to a size: within 2 % of the target, never below a floor, and the same after a stop."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import compress
from compress.errors import ConfigError
from compress.train.budget import TOLERANCE, Budget, GroupAccount, NetworkAccount
from compress.train.config import BudgetSection
from compress.train.recipe import changed_keys, resolve, to_toml
from compress.train.session import train

from .wide_net import make

WIDE_NET = f"model.name={Path(__file__).parent / 'wide_net.py'}:make"
X = torch.zeros(1, 1, 8, 8)


def account(measure: str, target: float, floor: int = 1, granularity: str = "coupled"):
    torch.manual_seed(0)
    model = make(num_classes=10, in_channels=1)
    reg = compress.Regularizer(model, "l0", granularity, 1.0, example_inputs=(X,))
    section = BudgetSection(measure=measure, target=target, floor=floor)
    kind = GroupAccount(reg.groups, section) if measure == "groups" else NetworkAccount(model, reg.groups, section, X)
    return kind, reg, model


def compact_cost(model: nn.Module, measure: str) -> int:
    report = compress.compact(model, (X,)).report
    return {"macs": report.macs_after, "params": report.params_after, "bytes": 4 * report.params_after}[measure]


@pytest.mark.parametrize("measure", ["macs", "params", "bytes"])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_what_is_counted_is_what_the_compact_network_has(measure: str, share: float) -> None:
    counted, reg, model = account(measure, 0.5)
    random = torch.Generator().manual_seed(1)
    dead = torch.rand(reg.groups.count, generator=random) < share
    reg.zero_(dead)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()  # nothing to carry: every dead channel leaves
    assert counted.cost(dead) == pytest.approx(compact_cost(model, measure), rel=1e-12)


@pytest.mark.parametrize("measure", ["macs", "params", "groups"])
def test_the_least_important_leave_first_and_floors_hold(measure: str) -> None:
    counted, reg, _ = account(measure, 0.4, floor=3)
    worth, dead = reg.importance(), torch.zeros(reg.groups.count, dtype=torch.bool)
    stays = counted.needed(counted.goal, worth, dead, math.inf)
    for layer in reg.groups.layers():
        kept, gone = worth[layer][stays[layer]], worth[layer][~stays[layer]]
        assert len(kept) >= 3
        if len(gone):
            assert kept.min() >= gone.max()
    free = [layer for layer in reg.groups.layers() if int(stays[layer].sum()) > 3]
    assert free, "the target leaves more than the floors"
    kept = torch.cat([worth[layer][stays[layer]] for layer in free])
    gone = torch.cat([worth[layer][~stays[layer]] for layer in free])
    assert kept.min() >= gone.max()


def test_dead_groups_are_never_needed() -> None:
    counted, reg, _ = account("groups", 0.5)
    dead = torch.zeros(reg.groups.count, dtype=torch.bool)
    dead[::2] = True
    worth = reg.importance().masked_fill(dead, 0.0)
    assert not bool((counted.needed(counted.given, worth, dead, 0.0) & dead).any())


@pytest.mark.parametrize("granularity", ["coupled", "weight", "filter"])
def test_reserved_groups_survive_any_strength_as_they_are(tiny, granularity: str) -> None:
    config = tiny(f"penalty.granularity={granularity}", "penalty.budget.measure=groups", "penalty.budget.target=0.5")
    torch.manual_seed(0)
    model = make(num_classes=10, in_channels=1)
    reg = compress.Regularizer(model, "l1", granularity, 1e6, example_inputs=(X,))
    budget = Budget(model, reg, config, X)
    budget.reserve[:] = False
    budget.reserve[:7] = True
    before = [parameter.detach().clone() for _, parameter in reg.groups.parameters]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    budget.prox_(reg, optimizer)
    assert torch.equal(reg.dead(), ~budget.reserve)
    masks = reg.groups.masks(budget.reserve)
    for (_, parameter), old, own in zip(reg.groups.parameters, before, masks, strict=True):
        own = own.expand_as(old)
        assert torch.equal(parameter[own], old[own])


@pytest.mark.parametrize(
    "settings",
    [
        ("penalty.name=l0", "penalty.budget.target=0.4"),
        ("penalty.name=l0", "penalty.budget.target=0.25", "penalty.budget.measure=params", "penalty.strength=1e-9"),
        ("penalty.name=group-lasso", "penalty.budget.target=0.4", "penalty.strength=1e3"),
        ("penalty.name=mcp", "penalty.budget.target=0.5", "penalty.mode=subgradient", "penalty.strength=1e-4"),
        ("penalty.name=l1", "penalty.budget.measure=groups", "penalty.budget.target=0.1", "penalty.granularity=weight"),
        ("penalty.name=l0", "penalty.budget.target=0.4", "penalty.epochs=4", "optimizer.name=adam"),
    ],
    ids=["l0", "far too weak", "far too strong", "subgradient", "single weights", "to the very end"],
)
def test_the_target_is_met_within_two_per_cent_whatever_the_strength(tiny, settings) -> None:
    config = tiny(WIDE_NET, "schedule.epochs=4", "penalty.budget.floor=2", *settings)
    summary = train(config)
    budget, section = summary["budget"], config.penalty.budget
    assert budget["target"] == pytest.approx(section.target * budget["given"])
    assert budget["reached"] == pytest.approx(budget["target"], rel=0.02)
    if section.measure == "macs":
        assert summary["macs"]["compact"] == pytest.approx(section.target * summary["macs"]["dense"], rel=0.02)
    if section.measure == "params":
        found = summary["parameters"]
        assert found["compact"] == pytest.approx(section.target * found["dense"], rel=0.02)
    if config.penalty.granularity == "coupled":
        assert min(layer["after"] for layer in summary["report"]["layers"].values()) >= 2


@pytest.mark.parametrize("name", ["l0", "hoyer"])
@pytest.mark.parametrize(("measure", "target"), [("macs", 0.3), ("params", 0.4)])
def test_the_landing_always_comes_from_above(tiny, name: str, measure: str, target: float) -> None:
    config = tiny(
        *(WIDE_NET, "schedule.epochs=2", "penalty.epochs=2", f"penalty.name={name}", "penalty.strength=1e-3"),
        *(f"penalty.budget.measure={measure}", f"penalty.budget.target={target}"),
    )
    budget = train(config)["budget"]
    assert budget["reached"] == pytest.approx(budget["target"], rel=0.02)


@pytest.mark.parametrize("target", [0.22, 0.27, 0.33, 0.36, 0.62])
@pytest.mark.parametrize("measure", ["macs", "params"])
def test_where_no_choice_of_channels_is_near_the_nearest_of_all_is_taken(tiny, measure: str, target: float) -> None:
    """Of 3 and 5 channels each layer's most important stay: 15 ways, all looked at."""
    config = tiny("penalty.name=l0", f"penalty.budget.measure={measure}", f"penalty.budget.target={target}")
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 5, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 10)),
    )
    reg = compress.Regularizer(model, "l0", "coupled", 1.0, example_inputs=(X,))
    budget = Budget(model, reg, config, X)
    worth, (first, second) = reg.importance(), reg.groups.layers()
    costs = []
    for m, n in itertools.product(range(3), range(5)):
        dead = torch.zeros(8, dtype=torch.bool)
        dead[first[worth[first].argsort()[:m]]] = True
        dead[second[worth[second].argsort()[:n]]] = True
        costs.append(budget._account.cost(dead))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    budget.land_(reg, optimizer)
    assert budget.landing is not None
    goal = budget.landing.target
    assert abs(budget.landing.reached - goal) <= max(min(abs(cost - goal) for cost in costs), TOLERANCE * goal)


@pytest.mark.parametrize(
    ("name", "setting"), [("l0", "penalty.budget.target=0.4"), ("hard-concrete", "penalty.gate_lr_factor=50")]
)
def test_a_penalty_that_acts_to_the_end_is_settled_all_the_same(tiny, name: str, setting: str) -> None:
    config = tiny(
        *(WIDE_NET, f"penalty.name={name}", setting, "penalty.epochs=3", "schedule.epochs=3"),
        *("optimizer.name=adam", "optimizer.lr=0.01", "penalty.strength=0.1"),
    )
    summary = train(config)
    assert summary["parameters"]["compact"] < summary["parameters"]["dense"]
    log = [json.loads(line) for line in (config.out / "metrics.jsonl").read_text().splitlines()]
    assert log[-1]["validation_accuracy"] == pytest.approx(summary["accuracy"]["validation"]["masked"])
    assert name != "l0" or summary["budget"]["reached"] == pytest.approx(summary["budget"]["target"], rel=0.02)


def test_the_strength_is_corrected_towards_the_plan(tiny) -> None:
    weak = tiny(
        *(WIDE_NET, "schedule.epochs=4", "penalty.name=l0", "penalty.budget.target=0.3", "penalty.strength=1e-6")
    )
    train(weak)
    log = [json.loads(line) for line in (weak.out / "metrics.jsonl").read_text().splitlines()]
    assert log[1]["strength"] > 10 * log[0]["strength"]


@pytest.mark.parametrize("step", [9, 17], ids=["before the target is met", "after it"])
def test_a_stopped_run_goes_on_to_the_same_end(tiny, tmp_path: Path, stopping, step: int) -> None:
    settings = (WIDE_NET, "penalty.name=l0", "penalty.budget.target=0.4", "schedule.epochs=4")
    whole, config = tiny(*settings, out=tmp_path / "whole"), tiny(*settings, out=tmp_path / "parts")
    train(whole)
    with stopping(step):
        train(config)
    resumed = train(config, resume=True)
    assert resumed["budget"] == json.loads((whole.out / "summary.json").read_text())["budget"]
    for name in ("masked.safetensors", "model.safetensors", "plan.json"):
        assert (config.out / name).read_bytes() == (whole.out / name).read_bytes()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("penalty.budget.target=1e12",), "as it is; below 1 it is a share"),
        (("penalty.budget.target=0.01", "penalty.budget.floor=6"), "is out of reach"),
        (("penalty.budget.target=0.001", "penalty.budget.measure=groups"), "is out of reach"),
    ],
)
def test_a_target_that_cannot_be_met_is_refused_before_training(tiny, settings, told: str) -> None:
    config = tiny(WIDE_NET, *settings)
    with pytest.raises(ConfigError, match=told):
        train(config)
    assert not config.out.exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("penalty.budget.target=0.5", "penalty.granularity=filter"), "counts whole channels"),
        (("penalty.budget.target=0.5", "penalty.strength=0"), "where the search for the strength starts"),
        (("penalty.budget.target=0.5", "penalty.compact_every=1"), "stays whole to the end"),
        (("penalty.budget.target=0.5", "penalty.warmup_epochs=2"), "expected fewer"),
        (("penalty.budget.target=0.5", "penalty.strength_schedule=cosine"), "follows the budget"),
        (("penalty.budget.target=0",), "greater than 0"),
        (("penalty.budget.targe=0.5",), "did you mean penalty.budget.target"),
        (("penalty.budget.measure=flops", "penalty.budget.target=0.5"), "'macs', 'params'"),
    ],
)
def test_what_makes_no_sense_is_refused(tiny, settings, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        tiny(*settings)


def test_a_recipe_with_a_budget_survives_being_saved(tiny, tmp_path: Path) -> None:
    config = tiny("penalty.budget.target=0.5", "penalty.budget.floor=4")
    (tmp_path / "saved.toml").write_text(to_toml(config))
    assert resolve(tmp_path / "saved.toml") == config


def test_what_differs_from_a_recipe_without_a_budget_is_told(tiny) -> None:
    changes = changed_keys(tiny(), tiny("penalty.budget.target=0.5"))
    assert "penalty.budget.target: None -> 0.5" in changes
    assert "penalty.budget.target: 0.5 -> None" in changed_keys(tiny("penalty.budget.target=0.5"), tiny())


@pytest.mark.parametrize(
    ("measure", "weights"), [("macs", "macs"), ("params", "size"), ("bytes", "size"), ("groups", None)]
)
def test_groups_are_weighed_by_what_is_counted(tiny, measure: str, weights: str | None) -> None:
    settings = ("penalty.budget.target=0.5", f"penalty.budget.measure={measure}")
    assert tiny(*settings).group_weights == weights
    assert tiny(*settings, "penalty.group_weights=none").group_weights == "none"
