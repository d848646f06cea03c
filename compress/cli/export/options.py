"""What ``compress export`` was asked for, and which of it does not go together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from compress.errors import ConfigError

FLOAT32 = "float32"
INT8 = "int8"
FLOAT16 = "float16"
INT8_WEIGHTS = "int8 weights"


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
        image_shape: Channels, height, width, for a factory.
        classes: For a factory.
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
    image_shape: tuple[int, int, int] = (3, 32, 32)
    classes: int = 10

    def __post_init__(self) -> None:
        """Refuse what makes no sense, all faults at once.

        Raises:
            ConfigError: Lists them.
        """
        wrong = []
        if self.onnx.suffix != ".onnx" and not self.onnx.is_dir():  # a slip must not overwrite the run's own files
            wrong.append(f"--onnx {self.onnx}: the file's name must end in .onnx")
        if not 0 <= self.max_drop <= 1:
            wrong.append(f"--max-drop {self.max_drop}: a share of the accuracy between 0 and 1; 0.01 is one point")
        if self.precision == INT8 and self.calibration_images < 1:
            wrong.append(f"--calibration-images {self.calibration_images}: the calibration set would be empty")
        if self.layout != "nchw" and not self.with_preprocess:
            wrong.append(f"--layout {self.layout}: goes with --with-preprocess, which takes images as they come")
        if self.layout != "nchw" and self.dynamic_size:
            wrong.append(f"--layout {self.layout} and --dynamic-size: sizes vary in images of the layout nchw only")
        if self.sparse_initializers and self.ort:
            wrong.append("--sparse-initializers and --ort: ONNX Runtime's own format holds dense weights; give one")
        if self.sparse_initializers and self.precision != FLOAT32:
            wrong.append(f"--sparse-initializers: stores float32 weights, this file holds {self.precision}; give one")
        if wrong:
            raise ConfigError("; ".join(wrong))


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
