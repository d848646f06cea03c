"""A run's images as the exported network takes them: normalised, or as they are where it does that itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compress.cli.export.options import Options
from compress.data import Data, Split
from compress.data.stratified import stratified_choice
from compress.errors import DataError
from compress.train.evaluate import EVALUATION_BATCH
from compress.train.inputs import Inputs
from compress.train.rundir import Run

Array = npt.NDArray[Any]

SPLITS = ("validation", "test")

RANKING_IMAGES = 128
"""Validation images on which layers are ranked by what int8 does to them."""


class RunImages:
    """The splits of a run's data set, each for its purpose.

    Args:
        run: Gives them, and the mean and deviation that they are normalised with.
        options: Whether the network takes them as they are, and in which layout.

    Raises:
        DataError: The data set is not where it was.
    """

    def __init__(self, run: Run, options: Options) -> None:
        self._run, self._options = run, options
        self._data: Data = run.data()
        self._test: Split | None = None
        self._inputs = Inputs(self._data, run.config.data.augment, seed=0, device=torch.device("cpu"))

    def first(self, count: int) -> Tensor:
        """Validation images to verify on, at most ``count``."""
        split = self._data.validation
        return self._taken(split, torch.arange(min(count, len(split))))

    def ranking(self) -> Array:
        """Validation images to rank layers on."""
        return self._chosen(self._data.validation, RANKING_IMAGES)

    def calibration(self, count: int) -> Array:
        """Training images to calibrate on, chosen by class in proportion."""
        return self._chosen(self._data.train, count)

    def has(self, split: str) -> bool:
        """Whether the data set has such a split."""
        return self._split(split) is not None

    def labelled(self, split: str) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
        """All images of a split with their classes, portion by portion; none where there is no such split."""
        found = self._split(split)
        if found is None:
            return
        for indices in torch.split(torch.arange(len(found)), EVALUATION_BATCH):
            yield self._taken(found, indices).numpy(), found.labels[indices].numpy()

    def _split(self, name: str) -> Split | None:
        if name == "validation":
            return self._data.validation
        if self._test is None:
            self._test = self._data.load_test()
        return self._test

    def _chosen(self, split: Split, count: int) -> Array:
        if len(split) == 0:
            raise DataError(f"{self._run.path}: a split of its data set is empty")
        return self._taken(split, stratified_choice(split.labels, min(count, len(split)), seed=0)).numpy()

    def _taken(self, split: Split, indices: Tensor) -> Tensor:
        if not self._options.with_preprocess:
            return self._inputs.plain(split, indices)[0]
        images = split.images(indices)
        return images if self._options.layout == "nchw" else images.permute(0, 2, 3, 1).contiguous()
