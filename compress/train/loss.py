"""What a step minimises on its images, beside the penalty."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from compress.train.distill import Distillation, Teacher


class Loss:
    """``(1 - w) CE(y, q) + w T^2 KL(p || q)``; without a teacher ``CE(y, q)``.

    ``q`` are the network's logits and ``y`` the labels, smoothed: a share ``s`` of each label is spread evenly over all
    classes (Szegedy et al. 2016, "Rethinking the Inception architecture"). The second term is ``Distillation``.

    Args:
        label_smoothing: ``s``.
        distillation: What a teacher adds, if there is one.
    """

    def __init__(self, label_smoothing: float = 0.0, distillation: Distillation | None = None) -> None:
        self._label_smoothing = label_smoothing
        self._distillation = distillation

    @property
    def teacher(self) -> Teacher | None:
        """Whose answers are followed, if anyone's."""
        return None if self._distillation is None else self._distillation.teacher

    def __call__(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """The mean over images, in nats: a scalar.

        Args:
            images: Normalised, ``[N, C, H, W]``.
            logits: Of the network, ``[N, classes]``.
            labels: int64 ``[N]``, or the share of each class, ``[N, classes]``.
        """
        loss = F.cross_entropy(logits, labels, label_smoothing=self._label_smoothing)
        if self._distillation is None:
            return loss
        weight = self._distillation.weight
        return (1.0 - weight) * loss + weight * self._distillation(images, logits)
