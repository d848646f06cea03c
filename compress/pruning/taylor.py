"""First-order Taylor: what the loss would lose with a channel, judged from its slope.

``score_g = mean over batches of (sum_{i in g} w_i dL/dw_i)^2`` (Molchanov et al., Importance estimation for neural
network pruning, 2019, equation 8). The sum is minus the slope of the loss as the whole group is scaled towards zero, so
the score is the square of the change that a straight line predicts for its removal. The network is in evaluation mode,
with the BatchNorm statistics that it will be used with. Where many channels share a layer's work, each has a small
score; by default scores are taken relative to the mean of their layer.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from compress.errors import ConfigError
from compress.graph.aten.trace import evaluating
from compress.groups import Groups
from compress.pruning.criterion import Batch, Criterion


def score(model: nn.Module, groups: Groups, batches: Iterable[Batch]) -> Tensor:
    """The mean square of each group's predicted change of the loss (cross-entropy, in nats), float64 ``[count]``.

    Raises:
        ConfigError: there is no batch.
    """
    total, count = torch.zeros(groups.count, dtype=torch.float64), 0
    with evaluating(model):
        for images, labels in batches:
            total += slopes(model, groups, images, labels).double().cpu().square()
            count += 1
    if not count:
        raise ConfigError("criterion taylor judges by images: pass batches of training data")
    return total / count


def slopes(model: nn.Module, groups: Groups, images: Tensor, labels: Tensor) -> Tensor:
    """``sum_{i in g} w_i dL/dw_i`` of every group, ``[count]``; nothing is left in ``.grad``."""
    weights = {name: parameter.detach().requires_grad_() for name, parameter in groups.parameters}
    with torch.enable_grad():
        loss = F.cross_entropy(functional_call(model, weights, (images,)), labels)
        found = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
    gradients = dict(zip(weights, found, strict=True))
    return groups.gather(lambda part: part.parameter.detach() * gradients[part.name])


TAYLOR = Criterion(score, normalise="layer", reads_images=True)
