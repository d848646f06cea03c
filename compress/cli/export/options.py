"""What ``compress export`` was asked for, and which of it does not go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from compress.cli.places import place_faults
from compress.errors import ConfigError

FLOAT32 = "float32"
INT8 = "int8"
FLOAT16 = "float16"
INT8_WEIGHTS = "int8 weights"

WEIGHT_BITS = (7, 8)
"""As ``export/quantise/int8.py`` has it; that file is not imported before the options are known to be right."""

RUN, FACTORY, ONNX_FILE = "a run", "a factory", "an ONNX file"
"""What a network comes from."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """The command line.

    Attributes:
        source: A run directory, ``FILE.py:factory`` or an ONNX file.
        onnx: The file to write.
        opset: Of the file; None for the default, or that of the source.
        dynamic_batch: Let the number of images vary.
        dynamic_size: Let height and width vary.
        input_name: Of the graph's input; None for ``input``.
        output_name: Of its output; None for ``output``.
        dense: The network before removal.
        with_preprocess: Take uint8 images.
        layout: Of these, ``nchw`` or ``nhwc``.
        precision: One of the four above.
        calibration: How ranges of values are found for int8.
        calibration_images: On how many training images.
        max_drop: Validation accuracy that may be lost, as a share.
        weight_bits: Of int8.
        latency: Whether the variant is timed beside float32.
        ort: Write ONNX Runtime's own format too.
        sparse_initializers: Store weights sparsely where that is smaller.
        image_size: Height and width, for a factory.
        channels: For a factory.
        classes: For a factory.
        given: Names of those above that the command line holds, though it be with their defaults.
    """

    source: str
    onnx: Path
    opset: int | None = None
    dynamic_batch: bool = False
    dynamic_size: bool = False
    input_name: str | None = None
    output_name: str | None = None
    dense: bool = False
    with_preprocess: bool = False
    layout: str = "nchw"
    precision: str = FLOAT32
    calibration: str = "min-max"
    calibration_images: int = 128
    max_drop: float = 0.01
    weight_bits: int = 7
    latency: bool = True
    ort: bool = False
    sparse_initializers: bool = False
    image_size: int = 32
    channels: int = 3
    classes: int = 10
    given: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Refuse what makes no sense, all faults at once.

        Raises:
            ConfigError: Lists them.
        """
        wrong = place_faults("--onnx", self.onnx, self.source_path, self.beside)
        wrong += _misplaced(self)
        if not 0 <= self.max_drop <= 1:
            wrong.append(f"--max-drop {self.max_drop}: a share of the accuracy between 0 and 1; 0.01 is one point")
        if self.precision == INT8 and self.calibration_images < 1:
            wrong.append(f"--calibration-images {self.calibration_images}: the calibration set would be empty")
        if self.weight_bits not in WEIGHT_BITS:
            wrong.append(f"--weight-bits {self.weight_bits}: expected 7 or 8")
        if self.layout != "nchw" and self.dynamic_size:
            wrong.append(f"--layout {self.layout} and --dynamic-size: sizes vary in images of the layout nchw only")
        if self.sparse_initializers and self.ort:
            wrong.append("--sparse-initializers and --ort: ONNX Runtime's own format holds dense weights; give one")
        if self.sparse_initializers and self.precision != FLOAT32:
            wrong.append(f"--sparse-initializers: stores float32 weights, this file holds {self.precision}; give one")
        if wrong:
            raise ConfigError("; ".join(wrong))

    @property
    def kind(self) -> str:
        """What the source is: ``RUN``, ``FACTORY`` or ``ONNX_FILE``."""
        if Path(self.source).suffix == ".onnx":
            return ONNX_FILE
        return FACTORY if self.source.rpartition(":")[0].endswith(".py") else RUN

    @property
    def source_path(self) -> Path:
        """The file or folder that is read."""
        return Path(self.source.rpartition(":")[0]).expanduser() if self.kind == FACTORY else Path(self.source)

    @property
    def beside(self) -> list[Path]:
        """What is written beside the file (``export/report.py``, ``export/ort_format.py``)."""
        endings = (".ort", ".required_operators.config") if self.ort else ()
        names = (f"{self.onnx.name}.json", *(f"{self.onnx.stem}{ending}" for ending in endings))
        return [self.onnx.parent / name for name in names]

    def holds(self, name: str) -> bool:
        """Whether the command line holds an option."""
        return name in self.given or getattr(self, name) != getattr(type(self), name)


def _of_run(options: Options) -> bool:
    return options.kind == RUN


def _of_factory(options: Options) -> bool:
    return options.kind == FACTORY


def _of_torch(options: Options) -> bool:
    return options.kind != ONNX_FILE


def _is_int8(options: Options) -> bool:
    return options.precision == INT8


def _is_smaller(options: Options) -> bool:
    return options.precision != FLOAT32


def _may_be_timed(options: Options) -> bool:
    return _is_smaller(options) or not options.latency


def _takes_pixels(options: Options) -> bool:
    return options.with_preprocess


GOES_WITH: tuple[tuple[tuple[str, ...], Callable[[Options], bool], str], ...] = (
    (("dense", "with_preprocess"), _of_run, "a run knows the network before removal, and its images; this is no run"),
    (
        ("dynamic_batch", "dynamic_size", "input_name", "output_name"),
        _of_torch,
        "an ONNX file has its interface already",
    ),
    (("image_size", "channels", "classes"), _of_factory, "only a factory has to be told; this source has its own"),
    (("layout",), _takes_pixels, "goes with --with-preprocess, which takes images as they come"),
    (("calibration", "calibration_images", "weight_bits"), _is_int8, "goes with --int8"),
    (("max_drop",), _is_smaller, "goes with --int8, --fp16 or --weights-int8; float32 loses nothing"),
    (("latency",), _may_be_timed, "goes with --int8, --fp16 or --weights-int8, which are timed beside float32"),
    (("max_drop",), _of_run, "the accuracy is measured on the images of a run; this is no run"),
)
"""Options, where they have a meaning, and what to say elsewhere: what would be ignored is refused."""


def _misplaced(options: Options) -> Iterator[str]:
    """Options that would change nothing."""
    for names, applies, reason in GOES_WITH:
        given = [f"--{name.replace('_', '-')}" for name in names if options.holds(name)]
        if given and not applies(options):
            yield f"{', '.join(given)} cannot be given for {options.source}: {reason}"
    if options.precision == INT8 and options.kind != RUN:
        yield (
            f"--int8 needs a run directory: it calibrates on the run's training images, and {options.source} has none; "
            "--fp16 and --weights-int8 need no images; in Python, export.to_int8 takes any"
        )


def precision_of(*, int8: bool, fp16: bool, weights_int8: bool) -> str:
    """The one variant that was asked for; a file holds one.

    Raises:
        ConfigError: Two were.
    """
    asked = {"--int8": (int8, INT8), "--fp16": (fp16, FLOAT16), "--weights-int8": (weights_int8, INT8_WEIGHTS)}
    chosen = {flag: precision for flag, (given, precision) in asked.items() if given}
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)}: a file holds one of them; run the command once for each")
    return next(iter(chosen.values()), FLOAT32)
