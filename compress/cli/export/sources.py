"""Where a network to export comes from: a run directory, a factory in a Python file, an ONNX file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from compress.cli.export.facts import factory_metadata, interface_of
from compress.cli.export.options import FACTORY, FLOAT32, INT8, ONNX_FILE, RUN, Options
from compress.errors import DataError

if TYPE_CHECKING:
    from compress.cli.export.images import RunImages
    from compress.train.rundir import Run
    from export import Graph, Interface

REAL_IMAGES = 32
"""Validation images on which the file is held against the torch model; a second or two for 224x224 images."""

REAL_BATCH = 8
"""Images at a time where the batch is dynamic; one where it is not."""


@dataclass(frozen=True)
class Source:
    """A network, verified in memory.

    Attributes:
        graph: The network in float32.
        run: Where it comes from, if it comes from a run.
        images: Of that run; None where they are gone.
        metadata: Of a factory's network, or of an ONNX file that was read, without what is measured anew.
    """

    graph: Graph
    run: Run | None = None
    images: RunImages | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)


def open_source(options: Options) -> Source:
    """Export or read the network.

    Raises:
        CompressError: It cannot be opened.
        ExportError: It cannot be exported or verified.
    """
    return OPENERS[options.kind](options)


def _from_onnx(options: Options) -> Source:
    from export import given_metadata, read_graph, read_metadata

    path = Path(options.source)
    graph = read_graph(path, opset=options.opset)
    return Source(graph, metadata={**given_metadata(read_metadata(path)), **interface_of(graph)})


def _from_factory(options: Options) -> Source:
    import torch

    from compress.models import build
    from export import graph_of

    side, channels = options.image_size, options.channels
    model = build(options.source, num_classes=options.classes, in_channels=channels, image_size=side).eval()
    example = torch.zeros(1, channels, side, side)
    graph = graph_of(model, (example,), _interface(options))
    return Source(graph, metadata={**factory_metadata(model, example, options), **interface_of(graph)})


def _from_run(options: Options) -> Source:
    import torch

    from compress.train.rundir import open_run
    from export import Preprocess, WithPreprocess, graph_of

    run = open_run(Path(options.source))
    images, note = _images(run, options)
    example = torch.zeros(1, *run.image_shape)
    model = run.dense_model() if options.dense else run.model()
    if options.with_preprocess:
        preprocess = Preprocess(run.mean, run.std, options.layout)
        model = WithPreprocess(model, preprocess)
        example = preprocess.arranged(example.to(torch.uint8))
        example.view(-1)[-1] = 255  # random images take the same range
    real = images.first(REAL_IMAGES) if images is not None else example[:0]
    size = REAL_BATCH if options.dynamic_batch else 1
    batches = [(real[start : start + size],) for start in range(0, len(real), size)]
    graph = graph_of(model.eval(), (example,), _interface(options), extra_inputs=batches)
    return Source(graph.noting(*note), run, images)


OPENERS = {RUN: _from_run, FACTORY: _from_factory, ONNX_FILE: _from_onnx}
"""What a network comes from -> how it gets here."""


def _images(run: Run, options: Options) -> tuple[RunImages | None, list[str]]:
    """The run's images; none, and a note, where the data set is gone and can be done without."""
    from compress.cli.export.images import RunImages

    try:
        return RunImages(run, options), []
    except DataError as error:
        if options.precision == INT8:
            raise DataError(f"--int8 calibrates on the run's training images: {error}") from error
        if options.holds("max_drop"):
            raise DataError(f"--max-drop is measured on the run's validation images: {error}") from error
        unmeasured = "" if options.precision == FLOAT32 else ", and the accuracy is not known"
        return None, [f"verified on random batches alone{unmeasured}, for want of images: {error}"]


def _interface(options: Options) -> Interface:
    from export import Interface

    return Interface(
        opset=options.opset,
        dynamic_batch=options.dynamic_batch,
        dynamic_size=options.dynamic_size,
        input_names=None if options.input_name is None else [options.input_name],
        output_names=None if options.output_name is None else [options.output_name],
    )
