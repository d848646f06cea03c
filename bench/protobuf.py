"""As much of protobuf as reading an ONNX file takes.

Source of the wire format: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
FIXED_BYTES = {FIXED64: 8, FIXED32: 4}


def fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Number and content of each length-delimited field of a message; other fields are stepped over.

    Raises:
        IndexError: The message ends too early.
        KeyError: The wire type is unknown.
    """
    for number, content in _walk(message):
        if isinstance(content, memoryview):
            yield number, content


def inside(message: memoryview, wanted: int) -> list[memoryview]:
    """The contents of the length-delimited fields of one number; raises as `fields`."""
    return [content for number, content in fields(message) if number == wanted]


def texts(message: memoryview, wanted: int) -> list[str]:
    """The same, as text; raises as `fields`, and UnicodeDecodeError."""
    return [bytes(content).decode() for content in inside(message, wanted)]


def numbers(message: memoryview, wanted: int) -> list[int]:
    """Whole numbers of a field, repeated ones packed or not; raises as `fields`."""
    found = []
    for number, content in _walk(message):
        if number == wanted and isinstance(content, int):
            found.append(content)
        elif number == wanted and isinstance(content, memoryview):
            place = 0
            while place < len(content):
                value, place = _varint(content, place)
                found.append(value)
    return found


def _walk(message: memoryview) -> Iterator[tuple[int, memoryview | int | None]]:
    """Number and content of every field; None for fixed-width ones, which no field that we read has."""
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = divmod(tag, 8)
        if wire == LENGTH_DELIMITED:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise IndexError(f"a field of {size} bytes has {len(message) - place}")
            yield number, message[place : place + size]
            place += size
        elif wire == VARINT:
            value, place = _varint(message, place)
            yield number, value
        else:
            place += FIXED_BYTES[wire]
            yield number, None


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number that starts at `place`, and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place
