"""The end of a run: remove what is dead, prove it, read the test split once, write down what came out."""

from __future__ import annotations

import platform
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

import compress
from compress.data import Data, Split
from compress.errors import ConstantOutputError, ModelError, VerificationError
from compress.files import write_json
from compress.surgery import Plan, save_weights
from compress.surgery.compose import compose
from compress.train.budget import Landing
from compress.train.config import Config
from compress.train.evaluate import evaluate, max_abs_difference
from compress.train.inputs import Inputs
from compress.train.interrupt import interrupts_kept
from compress.train.rundir import (
    MASKED,
    MODEL,
    PLAN,
    SUMMARY,
    SUMMARY_FORMAT,
    Origin,
    file_hash,
    model_file,
    run_hash,
)

AGREEMENT_TOLERANCE = 1e-5
"""Largest difference of masked and compact outputs on real images, relative to the largest output (or to 1): some ten
rounding errors of float32, since sums of different length are rounded differently."""

AGREEMENT_IMAGES = 256
"""Validation images on which they are compared."""

VERSIONS = ("edge-compress", "torch", "torchvision", "numpy", "safetensors")


@dataclass(frozen=True)
class Trained:
    """What training hands over.

    Attributes:
        masked: The network with exact zeros.
        dense: The network of the run without penalty, if there was one.
        dead_share: Share of the penalty's groups that are zero, if there was a penalty.
        best: Highest validation accuracy while training, and its epoch.
        seconds: Training time.
        budget: How near the run came to its budget, if it had one.
        biases: What gives the recipe's network the biases that ``masked`` has beyond it, if it has any.
    """

    masked: nn.Module
    dense: nn.Module | None
    dead_share: float | None
    best: dict[str, float]
    seconds: float
    biases: Plan | None = None
    budget: Landing | None = None


def finish(
    config: Config, data: Data, inputs: Inputs, trained: Trained, directory: Path, origin: Origin | None = None
) -> None:
    """Compact the trained network, verify it, and write weights, plan and summary.

    Args:
        config: The recipe.
        data: Its validation split is read, and its test split, once.
        inputs: Brings images to the network's device.
        trained: What training came to.
        directory: Exists, and holds the recipe.
        origin: The run that this one went on from.

    Raises:
        ModelError: The network returns the same for every image; masked weights are saved.
        VerificationError: The compact network computes something else on real images; masked weights are saved.
        KeyboardInterrupt: Ctrl-C; there is no summary then, and the end is computed anew when the run goes on.
    """
    with interrupts_kept():
        summary = _end(config, data, inputs, trained, directory, origin)
    write_json(directory / SUMMARY, summary)


def _end(
    config: Config, data: Data, inputs: Inputs, trained: Trained, directory: Path, origin: Origin | None
) -> dict[str, Any]:
    """Write weights and plan; the summary."""
    save_weights(trained.masked, directory / MASKED)
    trained.masked.eval()
    example, _ = inputs.plain(data.validation, torch.arange(1))
    try:
        result = compress.compact(trained.masked, (example,), round_to=config.run.round_to)
    except ConstantOutputError as error:
        raise ModelError(_nothing_left(error, config)) from error
    max_abs_error = _check_agreement(trained.masked, result.model, data, inputs)
    save_weights(result.model, directory / MODEL)
    plan = result.plan if trained.biases is None else compose(trained.biases, result.plan)
    plan.save(directory / PLAN)

    models = {"masked": trained.masked, "compact": result.model}
    if trained.dense is not None:
        models["dense"] = trained.dense
    known = {"validation": None, "test": None} if origin is None else origin.run.dense_accuracy
    dense = {split: {"dense": accuracy} for split, accuracy in known.items()}
    report = result.report.to_dict()
    masked_bytes = (directory / MASKED).stat().st_size
    file = model_file(config)
    return {
        "format": SUMMARY_FORMAT,
        "model": config.model.name,
        "dataset": config.data.name,
        "class_names": list(data.classes),
        "mean": list(data.mean),
        "std": list(data.std),
        "image_shape": list(data.image_shape),
        "images": {"train": len(data.train), "validation": len(data.validation)},
        "origin": None if origin is None else {**origin.record(), **origin.details},
        "accuracy": {
            "validation": dense["validation"] | _accuracies(models, data.validation, inputs),
            "test": dense["test"] | _accuracies(models, data.load_test(), inputs),
        },
        "parameters": {"dense": report["params_before"], "compact": report["params_after"]},
        "macs": {"dense": report["macs_before"], "compact": report["macs_after"]},
        "bytes": {
            "dense": masked_bytes,
            "masked": masked_bytes,
            "compact": (directory / MODEL).stat().st_size,
        },
        "dead_share": trained.dead_share,
        "budget": trained.budget and asdict(trained.budget),
        "best_validation": trained.best,
        "max_abs_error": max_abs_error,
        "report": report,
        "seconds": trained.seconds,
        "device": str(inputs.device),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "hash": run_hash(directory),
        "masked_hash": file_hash(directory / MASKED),
        "model_file_hash": None if file is None else file_hash(file),
    }


def _nothing_left(error: ConstantOutputError, config: Config) -> str:
    named = ", ".join(error.layers[:3]) + (f" and {len(error.layers) - 3} more layers" if len(error.layers) > 3 else "")
    return (
        f"the network returns the same output for every image: no filter is left in {named or 'any path'}. Train again "
        f"with a smaller penalty.strength (now {config.penalty.strength:g}) or a longer penalty.warmup_epochs "
        f"(now {config.penalty.warmup_epochs:g})"
    )


def _check_agreement(masked: nn.Module, compact: nn.Module, data: Data, inputs: Inputs) -> float:
    indices = torch.arange(min(AGREEMENT_IMAGES, len(data.validation)))
    images, _ = inputs.plain(data.validation, indices)
    error, largest = max_abs_difference(masked, compact, images)
    allowed = AGREEMENT_TOLERANCE * max(1.0, largest)
    if not error <= allowed:
        raise VerificationError(
            f"masked and compact network differ by {error:.3g} on {len(images)} validation images "
            f"(allowed: {allowed:.3g}, largest output: {largest:.3g}); the compact network was not written. "
            f"This is a defect of compress: please report it with the run's config.toml and {MASKED}"
        )
    return error


def _accuracies(models: dict[str, nn.Module], split: Split | None, inputs: Inputs) -> dict[str, float | None]:
    return {name: None if split is None else evaluate(model, split, inputs).accuracy for name, model in models.items()}
