"""A run directory: what ``compress train``, ``prune`` and ``finetune`` leave behind, and how it is opened.

==================== =================================================================================
config.toml          the resolved recipe
origin.json          the run that this one goes on from, if it is no first one
start.safetensors    the weights that it started from, if they came from a file; the file is not needed any more
metrics.jsonl        one line an epoch; ``metrics.csv`` is the same as a table
curves.png           accuracy, strength and widths over the epochs, where matplotlib is installed
tensorboard/         with ``run.tensorboard``: the log as event files
checkpoint.pt        the state to resume from
masked.safetensors   the weights in the shapes of the recipe's network, channels that have left as exact zeros
model.safetensors    the compact weights
plan.json            how the compact network comes from the first one
summary.json         accuracies, sizes, hashes; written last, so that it marks a complete run
dense/               with ``run.dense_baseline``: the same recipe trained without penalty
==================== =================================================================================
"""

from __future__ import annotations

import hashlib
import json
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import compress
from compress.data import DATASETS, FOLDER, Data, load
from compress.errors import CheckpointError, ConfigError, DataError
from compress.files import leftovers, write_json
from compress.models import build
from compress.surgery.compose import restore_
from compress.surgery.plan import Plan, load_weights, put_weights_
from compress.train.config import NO_PENALTY, Config, DataSection
from compress.train.inputs import Inputs
from compress.train.recipe import changed_keys, resolve

CONFIG = "config.toml"
ORIGIN = "origin.json"
START = "start.safetensors"
METRICS = "metrics.jsonl"
CHECKPOINT = "checkpoint.pt"
MASKED = "masked.safetensors"
MODEL = "model.safetensors"
PLAN = "plan.json"
SUMMARY = "summary.json"
DENSE = "dense"

PRUNE = "prune"
"""The act of a run that appears when it is complete, so that there is never something to continue."""

SUMMARY_FORMAT = 3
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
        memory_gib=section.memory_gib,
        seed=seed,
    )


def images_at(config: Config, data_dir: Path | None) -> dict[str, object]:
    """Keys of a recipe that say where a run's images are now; none where they were not moved."""
    if data_dir is None:
        return {}
    return {"data.name": config.data.name if config.data.name in DATASETS else FOLDER, "data.dir": data_dir}


def check_new(directory: Path) -> None:
    """Refuse a run directory that holds something already.

    Raises:
        ConfigError: It is a file, or is not empty.
    """
    if directory.exists() and not directory.is_dir():
        raise ConfigError(f"--out {directory}: is a file; give the name of a new directory")
    if directory.is_dir() and set(directory.iterdir()) - set(leftovers(directory)):
        line = resume_command(directory) if (directory / CONFIG).is_file() else None
        how = "Give" if line is None else f"To continue the run in it: {line}; else give"
        raise ConfigError(f"--out {directory}: is not empty. {how} another name or remove it")


def saved_recipe(directory: Path) -> Path:
    """The resolved recipe of a run, complete or not.

    Raises:
        CheckpointError: There is no run in ``directory``.
    """
    if not (directory / CONFIG).is_file():
        raise CheckpointError(f"{directory}: no run to resume ({CONFIG} is missing); start it without --resume")
    return directory / CONFIG


def resume_command(directory: Path) -> str | None:
    """The line to paste that continues the run in ``directory``; None for one that ``prune`` made, whole as it came."""
    origin = _saved_origin(directory)
    if origin is not None and origin["act"] == PRUNE:
        return None
    command = ["train"] if origin is None else [origin["act"], origin["run"]]
    return shlex.join(["compress", *command, "--out", str(directory), "--resume"])


def _how_to_continue(directory: Path) -> str:
    line = resume_command(directory)
    return "compress prune makes it anew, with another --out" if line is None else f"continue it with: {line}"


def check_same(directory: Path, config: Config, origin: Origin | None = None) -> None:
    """Refuse to resume a run with another recipe, or from another origin.

    Raises:
        CheckpointError: There is no run in ``directory``.
        ConfigError: The recipe differs from the saved one; every change is listed. Or the origin does.
    """
    saved = resolve(saved_recipe(directory))
    before, now = _saved_origin(directory), None if origin is None else origin.record()
    if before != now and (before is None or now is None or before["hash"] != now["hash"]):
        raise ConfigError(
            f"--resume {directory}: that run goes on from {before['run'] if before else 'no other run'}, "
            f"not from {now['run'] if now else 'none'}; {_how_to_continue(directory)}"
        )
    changes = changed_keys(saved, config)
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise ConfigError(
            f"--resume {directory}: the recipe is not the one that the run was started with\n{listed}\n"
            "leave these as they were, or start a new run with another --out"
        )


def _saved_origin(directory: Path) -> dict[str, str] | None:
    path = directory / ORIGIN
    if not path.is_file():
        return None
    origin = _read_json(path)
    if not {"act", "run", "hash"} <= origin.keys():
        raise CheckpointError(f"{path}: is damaged: expected act, run and hash, got {', '.join(origin) or 'nothing'}")
    return origin


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from error
    return value if isinstance(value, dict) else {}


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
    def dense_accuracy(self) -> dict[str, float | None]:
        """By split, the accuracy of the network before anything became zero; None where there was no such network."""
        is_dense = self.config.penalty.name == NO_PENALTY and self.summary["origin"] is None
        return {
            split: accuracy["masked"] if accuracy["dense"] is None and is_dense else accuracy["dense"]
            for split, accuracy in self.summary["accuracy"].items()
        }

    def dense_baseline(self) -> nn.Module | None:
        """The dense network that this run trained, beside its own or as its own; in eval mode on the CPU.

        Raises:
            CheckpointError: Its file is damaged or does not fit the network.
        """
        if self.summary["origin"] is not None:
            return None
        if self.config.penalty.name == NO_PENALTY:
            return self.dense_model()
        path = self.path / DENSE / MODEL
        if not path.is_file():
            return None
        model = self._base()
        put_weights_(model, load_weights(path), source=str(path))
        return model.eval()

    def origin_path(self) -> Path | None:
        """The run that this one goes on from, if it is no first one."""
        origin = _saved_origin(self.path)
        return None if origin is None else Path(origin["run"])

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

    def plan(self) -> Plan:
        """From the recipe's network to the compact one.

        Raises:
            CheckpointError: Its file is damaged.
        """
        return Plan.load(self.path / PLAN)

    def dense_model(self) -> nn.Module:
        """The network in the recipe's shapes, channels that have left as exact zeros; in eval mode on the CPU.

        Raises:
            CheckpointError: Its file is damaged or does not fit the network.
            ModelError: The network cannot be built any more.
        """
        model, path = self._base(), self.path / MASKED
        self.biases().reshape_(model)
        put_weights_(model, load_weights(path), source=str(path))
        return model.eval()

    def biases(self) -> Plan:
        """What gives the recipe's network the biases that ``dense_model`` has beyond it; mostly nothing.

        They hold what constant channels added before an earlier compaction took them out.
        """
        plan, weights = self.plan(), load_weights(self.path / MASKED)
        return Plan(plan.architecture, {}, new_biases=tuple(name for name in plan.new_biases if name in weights))

    def restored(self, model: nn.Module) -> tuple[nn.Module, Plan]:
        """A network of the compact shapes in the recipe's shapes: what has left is back, as exact zeros.

        Args:
            model: Of the class and shapes of ``model()``; it is not changed.

        Returns:
            The network, on the CPU, and the plan that gives the recipe's network the biases it has beyond it.
        """
        base = self._base()
        return base, restore_(base, self.plan(), {name: tensor.cpu() for name, tensor in model.state_dict().items()})

    def data(self) -> Data:
        """The data set that it was trained on.

        Raises:
            DataError: The data set is not where it was, or its images have another shape now.
        """
        section = self.config.data
        data = load_data(section, self.config.run.seed)
        if data.image_shape != self.image_shape:
            now, then = ("x".join(map(str, shape)) for shape in (data.image_shape, self.image_shape))
            raise DataError(f"{section.name}: the images are {now} now, those of {self.path} were {then}")
        return data

    def validation_batch(self, n: int) -> Tensor:
        """The first ``n`` validation images (all, if there are fewer), normalised: float32 ``[n, C, H, W]``.

        Raises:
            DataError: See ``data``.
        """
        data = self.data()
        inputs = Inputs(data, self.config.data.augment, seed=0, device=torch.device("cpu"))
        return inputs.plain(data.validation, torch.arange(min(n, len(data.validation))))[0]

    def _base(self) -> nn.Module:
        channels, height, _ = self.image_shape
        file = model_file(self.config)
        if file is not None and file.is_file() and file_hash(file) != self.summary["model_file_hash"]:
            raise CheckpointError(
                f"{file}: is not the file that {self.path} was trained with; bring the old one back, or train again"
            )
        return build(self.config.model.name, num_classes=len(self.class_names), in_channels=channels, image_size=height)


@dataclass(frozen=True)
class Origin:
    """The run that another one goes on from.

    Attributes:
        act: The command that does so: ``prune`` or ``finetune``.
        run: Where the network comes from.
        details: What the act has to tell, for the summary.
    """

    act: str
    run: Run
    details: dict[str, Any] = field(default_factory=dict)

    def record(self) -> dict[str, str]:
        """What identifies it."""
        return {"act": self.act, "run": str(self.run.path.absolute()), "hash": self.run.hash}

    def save(self, directory: Path) -> None:
        """Write it into the directory of the new run.

        Raises:
            CheckpointError: It cannot be written.
        """
        write_json(directory / ORIGIN, self.record())


def open_run(path: Path) -> Run:
    """Open a complete run.

    Raises:
        CheckpointError: It is no run directory, is incomplete, or its files are not those that the run wrote.
        ConfigError: Its configuration is no longer valid.
    """
    if not (path / CONFIG).is_file():
        raise CheckpointError(f"{path}: is no run directory ({CONFIG} is missing); make one with compress train")
    missing = [name for name in (SUMMARY, MODEL, PLAN, MASKED) if not (path / name).is_file()]
    if missing:
        raise CheckpointError(
            f"{path}: the run is not complete ({', '.join(missing)} missing); {_how_to_continue(path)}"
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
    summary = _read_json(file)
    if summary.get("format") != SUMMARY_FORMAT:
        raise CheckpointError(
            f"{file}: format {summary.get('format')}, expected {SUMMARY_FORMAT}; train again with this version"
        )
    return summary
