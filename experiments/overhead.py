"""What a penalty adds to the time of a training step, beside what the peers' penalties add.

    pip install torch-pruning==1.6.1      # optional: the peer's row is left out without it
    python experiments/overhead.py --markdown docs/results/overhead.md

One step is forward, backward and the optimizer's own step, on random images. Each measured step is followed by every
penalty in turn, on the same network, each timed by itself: so the ratios are of one run, and a machine that becomes
busier slows both sides. Each figure is the median over the steps of (penalty's time / step's time), with the range of
its middle half. ``group-lasso`` is as strong as in training: with each step a typical group loses 3e-4 of its norm. The
work of the others does not depend on their strength; it is so small that nothing dies.

``network slimming`` is the loop over BatchNorm layers that adds the sign of each scale to its gradient;
``GroupNormPruner`` is that of Torch-Pruning, whose ``regularize`` adds a pull on coupled groups to the gradients.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from page import Page, about, environment
from torch import Tensor, nn
from torch.nn import functional as F

import compress
from compress.models import build

STRENGTH = 1e-12
"""Next to nothing."""

PULL = 3e-4
"""The share of its norm that the median group loses with a step of ``group-lasso``."""

PENALTIES = ("l0", "group-lasso", "mcp")
LEARNING_RATE = 1e-6
HEADINGS = ("network", "step, s", "penalty", "after SGD", "after Adam")

Act = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """A network at work.

    Attributes:
        model: name for ``compress.models.build``.
        batch: images in a step; ``image_size``: their height and width; ``channels`` of them.
        classes: outputs.
        target: the share of a step that a penalty may take.
    """

    model: str
    batch: int
    image_size: int
    channels: int
    classes: int
    target: float


CASES = {
    "lenet5": Case("lenet5", 128, 28, 1, 10, 0.10),
    "vgg16": Case("vgg16", 128, 32, 3, 10, 0.03),
    "resnet50": Case("torchvision:resnet50", 32, 224, 3, 1000, 0.03),
}


class Bench:
    """One network with both optimizers, and every penalty on it.

    Attributes:
        acts: (penalty, optimizer) -> its work after a step.
    """

    def __init__(self, case: Case) -> None:
        torch.manual_seed(0)
        size, channels = case.image_size, case.channels
        self.model = build(case.model, num_classes=case.classes, in_channels=channels, image_size=size).train()
        self.images = torch.randn(case.batch, channels, size, size)
        self.labels = torch.randint(case.classes, (case.batch,))
        parameters = list(self.model.parameters())
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            "SGD": torch.optim.SGD(parameters, LEARNING_RATE, momentum=0.9),
            "Adam": torch.optim.Adam(parameters, LEARNING_RATE),
        }
        self.acts: dict[tuple[str, str], Act] = {}
        self.step()
        for penalty, (name, optimizer) in itertools.product(PENALTIES, self.optimizers.items()):
            reg = compress.Regularizer(
                self.model, penalty, "coupled", STRENGTH, example_inputs=(self.images[:1],), group_weights="sqrt-size"
            )
            if penalty == "group-lasso":
                reg.strength = strength_in_training(reg, optimizer)
            self.acts[penalty, name] = lambda reg=reg, optimizer=optimizer: reg.prox_(optimizer)
        for peer, act in peers(self.model, self.images[:1]):
            for name in self.optimizers:
                self.acts[peer, name] = act

    def step(self) -> dict[str, float]:
        """One training step, once with each optimizer's update: seconds for each."""
        start = time.perf_counter()
        self.model.zero_grad(set_to_none=True)
        F.cross_entropy(self.model(self.images), self.labels).backward()
        common = time.perf_counter() - start
        return {name: common + seconds(optimizer.step) for name, optimizer in self.optimizers.items()}

    def shares(self) -> tuple[dict[str, float], dict[tuple[str, str], float]]:
        """Seconds of one step, by optimizer, and each penalty's time as a share of it."""
        step = self.step()
        return step, {key: seconds(act) / step[key[1]] for key, act in self.acts.items()}


def strength_in_training(reg: compress.Regularizer, optimizer: torch.optim.Optimizer) -> float:
    """The strength with which the median group loses ``PULL`` of its norm, to within a tenth."""
    kept = [parameter.detach().clone() for _, parameter in reg.groups.parameters]
    strength, loss = 1.0, math.inf
    while not 0.9 * PULL < loss < 1.1 * PULL:
        reg.strength = strength
        optimizer.step()  # without one there is no proximal step
        before = reg.groups.squared_norms().sqrt()
        reg.prox_(optimizer)
        loss = float((1 - reg.groups.squared_norms().sqrt() / before)[before > 0].median())
        strength *= min(max(PULL / max(loss, PULL / 100), 1e-3), 1e3)
        for (_, parameter), old in zip(reg.groups.parameters, kept, strict=True):
            parameter.detach().copy_(old)
    return reg.strength


def seconds(act: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def peers(model: nn.Module, example: Tensor) -> Iterator[tuple[str, Act]]:
    """The penalties of others, as their authors write them."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]

    def network_slimming() -> None:
        for module in norms:
            assert module.weight.grad is not None
            module.weight.grad.data.add_(STRENGTH * torch.sign(module.weight.data))

    if norms:
        yield "network slimming", network_slimming
    try:
        import torch_pruning
    except ImportError:
        return
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    pruner = torch_pruning.pruner.GroupNormPruner(
        model,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        reg=STRENGTH,
        pruning_ratio=0.5,
        ignored_layers=[last],
    )
    pruner.update_regularizer()
    yield "Torch-Pruning GroupNormPruner", lambda: pruner.regularize(model)


def rows(name: str, case: Case, steps: int) -> Iterator[tuple[str, ...]]:
    """One row for each penalty."""
    bench = Bench(case)
    for _ in range(2):
        bench.shares()  # memory is allocated, caches are warm
    measured = [bench.shares() for _ in range(steps)]
    typical = statistics.median(step["SGD"] for step, _ in measured)
    for penalty in dict.fromkeys(penalty for penalty, _ in bench.acts):
        found = [spread([shares[penalty, optimizer] for _, shares in measured]) for optimizer in bench.optimizers]
        yield (f"{name}, batch {case.batch} (asked: {case.target:.0%})", f"{typical:.3f}", penalty, *found)


def spread(shares: list[float]) -> str:
    """Median and middle half, in per cent."""
    low, middle, high = statistics.quantiles(shares, n=4)
    return f"{100 * middle:.2f} % [{100 * low:.2f}, {100 * high:.2f}]"


def measured(arguments: argparse.Namespace) -> Iterator[Iterator[tuple[str, ...]]]:
    """The rows of each network."""
    for name in arguments.networks or CASES:
        yield rows(name, CASES[name], arguments.steps * (20 if name == "lenet5" else 1))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", choices=[*CASES, []], help="default: all")
    parser.add_argument("--steps", type=int, default=11, help="measured steps of each network (LeNet-5: 20 times that)")
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    arguments = parser.parse_args()
    page = Page(
        "What a penalty adds to a training step", "python experiments/overhead.py", about(__doc__), environment()
    )
    page.table(HEADINGS, itertools.chain.from_iterable(measured(arguments)))
    page.save(arguments.markdown)


if __name__ == "__main__":
    main()
