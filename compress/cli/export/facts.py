"""What an exported file tells about the run that it came from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.cli.export.options import FLOAT32, Options

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compress.train.rundir import Run
    from export import Graph

COLORS = {1: "L", 3: "RGB"}
"""Pillow's mode of images with so many channels."""


def run_metadata(run: Run, options: Options, accuracy: dict[str, float | None]) -> dict[str, str]:
    """What the file tells about the run; everything but plain text is JSON.

    Args:
        run: That was exported.
        options: How.
        accuracy: By split, of the network in the file.
    """
    counted = "dense" if options.dense else "compact"
    values = {
        "run_hash": run.hash,
        "variant": variant(dense=options.dense),
        "model": _without_folders(run.summary["model"]),
        "dataset": _without_folders(run.summary["dataset"]),
        "class_names": list(run.class_names),
        # A file that takes pixels as they are has nothing to be normalised with: null is an error where it is tried.
        "mean": None if options.with_preprocess else list(run.mean),
        "std": None if options.with_preprocess else list(run.std),
        "preprocess": preprocessing(run, options),
        "output": "logits",
        "batch": batch(dynamic=options.dynamic_batch),
        "size": size(dynamic=options.dynamic_size),
        "validation_accuracy": accuracy["validation"],
        "test_accuracy": accuracy["test"],
        "parameters": run.summary["parameters"][counted],
        "macs": run.summary["macs"][counted],
    }
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in values.items()}


def interface_of(graph: Graph) -> dict[str, str]:
    """``batch`` and ``size``, from the inputs of a graph of any origin."""
    sizes = [sides[0].dim_value for sides in _sides(graph).values() if sides]
    return {
        "batch": "dynamic" if not all(sizes) else str(sizes[0] if sizes else 1),
        "size": size(dynamic=bool(open_shapes(graph))),
    }


def open_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    """Of the inputs whose sizes behind the batch are open, those that the graph was verified with first."""
    sides = _sides(graph)
    return {name: shape for name, shape in graph.shapes.items() if not all(side.dim_value for side in sides[name][1:])}


def _sides(graph: Graph) -> dict[str, Any]:
    """The dimensions of each input; ``dim_value`` is 0 where one is open."""
    declared = {value.name: value.type.tensor_type.shape.dim for value in graph.model.graph.input}
    return {name: declared[name] for name in graph.shapes}


def factory_metadata(model: nn.Module, example: Tensor, options: Options) -> dict[str, str]:
    """What a factory's network tells; it has seen no images, so that classes and preprocessing are nobody's yet."""
    from compress.errors import ModelError
    from compress.graph import count_macs

    counted = {"parameters": sum(parameter.numel() for parameter in model.parameters())}
    with suppress(ModelError):  # what only torch's exporter can follow is exported without
        counted["macs"] = count_macs(model, (example,))
    return {"model": Path(options.source).name, **{key: str(value) for key, value in counted.items()}}


def carried(metadata: Mapping[str, str], options: Options) -> dict[str, str]:
    """What the source tells about its network, as far as it holds for the file that is written."""
    measured = () if options.precision == FLOAT32 else ("validation_accuracy", "test_accuracy")
    return {key: value for key, value in metadata.items() if key not in measured}


def torch_accuracy(run: Run, *, dense: bool) -> dict[str, float | None]:
    """By split, what the run measured of the network in torch."""
    return {split: run.summary["accuracy"][split][variant(dense=dense)] for split in ("validation", "test")}


def _without_folders(name: str) -> str:
    """A model's or data set's name, of a path the last part: where it lay on the machine is nobody else's business."""
    return Path(name).name if Path(name).is_absolute() else name


def variant(*, dense: bool) -> str:
    """As ``summary.json`` calls the network."""
    return "masked" if dense else "compact"


def batch(*, dynamic: bool) -> str:
    """As the file calls its batch."""
    return "dynamic" if dynamic else "1"


def size(*, dynamic: bool) -> str:
    """As the file calls its height and width."""
    return "dynamic" if dynamic else "fixed"


def preprocessing(run: Run, options: Options) -> dict[str, object]:
    """What became of the run's images, besides ``mean`` and ``std``, before the network saw them.

    docs/export.md tells what each key means. Images of the data sets that have a name come as pixels, not as files, and
    are resized by torch (``compress/data/split.py``); those of folders by Pillow (``compress/data/folder.py``).
    """
    from compress.data import DATASETS

    channels, height, width = run.image_shape
    from_files = run.config.data.name not in DATASETS
    resize = "Pillow BILINEAR" if from_files else "torch bilinear antialias"
    inside = options.with_preprocess
    return {
        "color": COLORS[channels],
        "exif_orientation": "ignored" if from_files else None,
        "height": height,
        "width": width,
        "resize": None if run.config.data.image_size is None else resize,
        "scale": None if inside else 1 / 255,
        "normalise": None if inside else "(pixels * scale - mean) / std",
        "layout": options.layout.upper(),
        "dtype": "uint8" if inside else "float32",
    }
