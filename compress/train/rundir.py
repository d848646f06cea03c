"""A run directory: what ``compress train`` leaves behind, and how the other commands open it.

==================== =================================================================================
config.toml          the resolved recipe
metrics.jsonl        one line an epoch
checkpoint.pt        the state to resume from
masked.safetensors   the trained weights in their first shapes, dead channels as exact zeros
model.safetensors    the compact weights
plan.json            how the compact network comes from the first one
summary.json         accuracies, sizes, hashes; written last, so that it marks a complete run
dense/               with ``run.dense_baseline``: the same recipe trained without penalty
==================== =================================================================================
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import compress
from compress.data import Data, load
from compress.errors import CheckpointError, ConfigError
from compress.models import build
from compress.surgery.plan import load_weights, put_weights_
from compress.train.config import Config, DataSection
from compress.train.inputs import Inputs
from compress.train.recipe import changed_keys, resolve

CONFIG = "config.toml"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
MASKED = "masked.safetensors"
MODEL = "model.safetensors"
PLAN = "plan.json"
SUMMARY = "summary.json"
DENSE = "dense"

SUMMARY_FORMAT = 2
"""Raised when keys of ``summary.json`` are added or change their meaning."""


def run_hash(directory: Path) -> str:
    """SHA-256 of the compact weights' file followed by the plan's, in hexadecimal."""
    return file_hash(directory / MODEL, directory / PLAN)


def file_hash(*files: Path) -> str:
    """SHA-256 of the files one after another, in hexadecimal."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def model_file(config: Config) -> Path | None:
    """The user's file that makes the model, if it comes from one."""
    file, colon, _ = config.model.name.rpartition(":")
    return Path(file) if colon and file.endswith(".py") else None


def load_data(section: DataSection, seed: int) -> Data:
    """The data set of a recipe."""
    return load(
        section.name,
        section.dir,
        download=section.download,
        image_size=section.image_size,
        validation_share=section.validation_share,
        limit=section.limit,
        seed=seed,
    )


def check_new(directory: Path) -> None:
    """Refuse a run directory that holds something already.

    Raises:
        ConfigError: It is a file, or is not empty.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--out {directory}: is a file; give the name of a new directory")
    if directory.is_dir() and any(directory.iterdir()):
        raise ConfigError(
            f"--out {directory}: is not empty. To continue the run in it: "
            f"compress train --out {directory} --resume; else give another name or remove it"
        )


def saved_recipe(directory: Path) -> Path:
    """The resolved recipe of a run, complete or not.

    Raises:
        CheckpointError: There is no run in ``directory``.
    """
    if not (directory / CONFIG).is_file():
        raise CheckpointError(f"{directory}: no run to resume ({CONFIG} is missing); start it without --resume")
    return directory / CONFIG


def check_same(directory: Path, config: Config) -> None:
    """Refuse to resume a run with another recipe.

    Raises:
        CheckpointError: There is no run in ``directory``.
        ConfigError: The recipe differs from the saved one; every change is listed.
    """
    changes = changed_keys(resolve(saved_recipe(directory)), config)
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise ConfigError(
            f"--resume {directory}: the recipe is not the one that the run was started with\n{listed}\n"
            "leave these as they were, or start a new run with another --out"
        )


@dataclass(frozen=True)
class Run:
    """A complete run directory.

    Attributes:
        path: The directory.
        config: The resolved recipe.
        summary: The content of ``summary.json``.
    """

    path: Path
    config: Config
    summary: dict[str, Any]

    @property
    def hash(self) -> str:
        """SHA-256 of the compact weights and the plan."""
        return str(self.summary["hash"])

    @property
    def class_names(self) -> tuple[str, ...]:
        """By index of the logits."""
        return tuple(self.summary["class_names"])

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel of the training images, in units where 255 is 1."""
        return tuple(self.summary["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise."""
        return tuple(self.summary["std"])

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.summary["image_shape"]
        return channels, height, width

    def model(self) -> nn.Module:
        """The compact network, in eval mode on the CPU.

        Raises:
            CheckpointError: Its files are damaged.
            ModelError: The original network cannot be built any more.
        """
        return compress.load(self.path / PLAN, self.path / MODEL, base=self._base).eval()

    def dense_model(self) -> nn.Module:
        """The trained network in its first shapes, dead channels as exact zeros; in eval mode on the CPU.

        Raises:
            CheckpointError: Its file is damaged or does not fit the network.
            ModelError: The network cannot be built any more.
        """
        model, path = self._base(), self.path / MASKED
        put_weights_(model, load_weights(path), source=str(path))
        return model.eval()

    def validation_batch(self, n: int) -> Tensor:
        """The first ``n`` validation images (all, if there are fewer), normalised: float32 ``[n, C, H, W]``.

        Raises:
            DataError: The data set is not where it was.
        """
        section = self.config.data
        data = load_data(section, self.config.run.seed)
        inputs = Inputs(data, section.augment, seed=0, device=torch.device("cpu"))
        return inputs.plain(data.validation, torch.arange(min(n, len(data.validation))))[0]

    def _base(self) -> nn.Module:
        channels, height, _ = self.image_shape
        file = model_file(self.config)
        if file is not None and file.is_file() and file_hash(file) != self.summary["model_file_hash"]:
            raise CheckpointError(
                f"{file}: is not the file that {self.path} was trained with; bring the old one back, or train again"
            )
        return build(self.config.model.name, num_classes=len(self.class_names), in_channels=channels, image_size=height)


def open_run(path: Path) -> Run:
    """Open what ``compress train`` has finished.

    Raises:
        CheckpointError: It is no run directory, is incomplete, or its files are not those that the run wrote.
        ConfigError: Its configuration is no longer valid.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: is no run directory ({CONFIG} is missing); make one with compress train")
    missing = [name for name in (SUMMARY, MODEL, PLAN, MASKED) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: the run is not complete ({', '.join(missing)} missing); "
            f"finish it: compress train --out {path} --resume"
        )
    summary = read_summary(path)
    if (run_hash(path), file_hash(path / MASKED)) != (summary["hash"], summary["masked_hash"]):
        raise CheckpointError(f"{path}: {MODEL}, {PLAN} or {MASKED} is not the file that the run wrote; train it again")
    return Run(path, resolve(path / CONFIG), summary)


def read_summary(path: Path) -> dict[str, Any]:
    """The summary of the complete run in ``path``.

    Raises:
        CheckpointError: It is damaged, or of another version of this program.
    """
    file = path / SUMMARY
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: cannot be read: {error}") from error
    if not isinstance(summary, dict) or summary.get("format") != SUMMARY_FORMAT:
        got = summary.get("format") if isinstance(summary, dict) else None
        raise CheckpointError(f"{file}: format {got}, expected {SUMMARY_FORMAT}; train again with this version")
    return summary
