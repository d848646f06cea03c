"""The loop of ``compress train``, an epoch at a time, for measurements in which two trainings take turns."""

from __future__ import annotations

import json
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from compress.data import Data
from compress.train.allocator import keep_freed_memory
from compress.train.config import Config
from compress.train.evaluate import evaluate
from compress.train.inputs import Inputs
from compress.train.interrupt import Interrupted
from compress.train.learner import build_learner
from compress.train.loop import Trainer
from compress.train.progress import ProgressView
from compress.train.rundir import METRICS, START, load_data
from compress.train.session import build_model, seed_everything


class EpochByEpoch:
    """One training on the CPU.

    Attributes:
        data: its images.
        trainer: its state.
        start_seconds: what came before the first epoch: reading and decoding all images, building the network.

    Args:
        config: the recipe, resolved.
        scratch: where its run directory is made.
    """

    def __init__(self, config: Config, scratch: Path) -> None:
        begin = time.perf_counter()
        keep_freed_memory()
        scratch.mkdir(parents=True, exist_ok=True)
        directory = Path(tempfile.mkdtemp(dir=scratch))
        seed = config.run.seed
        self.data: Data = load_data(config.data, seed)
        inputs = Inputs(self.data, config.data.augment, seed=seed, device=torch.device("cpu"))
        seed_everything(seed)
        model = build_model(config, self.data, saved=directory / START)
        learner = build_learner(config, model, torch.zeros(1, *self.data.image_shape))
        seed_everything(seed)
        self._inputs = inputs
        self.trainer = Trainer(learner, self.data, inputs, config, directory)
        self._log = directory / METRICS
        self._view = ProgressView(
            Console(quiet=True), config.model.name, epochs=config.schedule.epochs, steps_per_epoch=1
        )
        self.start_seconds = time.perf_counter() - begin

    def epoch(self) -> dict[str, Any]:
        """Train one; its line of the log, whose ``seconds`` are those of training alone, without validation."""
        before = self.trainer.position.epoch
        with suppress(Interrupted):
            self.trainer.fit(self._view, lambda: self.trainer.position.epoch > before)
        return dict(json.loads(self._log.read_text(encoding="utf-8").splitlines()[-1]))

    def accuracy(self) -> float:
        """On the test images."""
        test = self.data.load_test()
        assert test is not None
        return evaluate(self.trainer.learner.model, test, self._inputs).accuracy
