"""A cut network back as the ONNX file that it came from: the same operations and names, with fewer channels."""

from compress.surgery.onnx_cut.emit import Unwritable
from compress.surgery.onnx_cut.numbers import Statics, moving_numbers, numbers_at
from compress.surgery.onnx_cut.writer import Writer

__all__ = ["Statics", "Unwritable", "Writer", "moving_numbers", "numbers_at"]
