from dataclasses import dataclass

import pytest

from bench import codec
from bench.errors import BenchError

HEADER = ("thing", 3)


@dataclass(frozen=True)
class Part:
    size: int


@dataclass(frozen=True)
class Thing:
    name: str
    share: float
    parts: tuple[Part, ...]
    shapes: dict[str, tuple[int, ...]]
    note: str | None = None


THING = Thing("a", 0.5, (Part(1), Part(2)), {"x": (1, 2)})


def test_a_value_comes_back_equal() -> None:
    assert codec.loads(Thing, codec.dumps(THING, HEADER), HEADER, "doc") == THING


def test_the_document_names_its_format_and_version() -> None:
    assert codec.dumps(THING, HEADER).startswith('{"format":"thing","version":3,')


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"version":3', '"version":4', "doc: thing version 4, but this bench reads version 3"),
        ('"version":3', '"version":"3"', "version '3'"),
        ('"format":"thing"', '"format":"other"', "expected a document of format 'thing', got 'other'"),
        ('"size":2', '"size":2.5', r"doc: parts\[1\]: size: expected int, got 2.5"),
        ('"size":2', '"size":true', "expected int, got True"),
        ('"share":0.5', '"share":"half"', "doc: share: expected float, got 'half'"),
        ('"share":0.5', f'"share":1{"0" * 400}', "doc: share: expected float, got 1000"),
        ('"name":"a",', "", "doc: missing name"),
        ('"name":"a"', '"name":"a","colour":1', "doc: unknown colour; the keys are name, share"),
        ('"x":[1,2]', '"x":[1,null]', r"doc: shapes.x\[1\]: expected int, got None"),
        ('"note":null', '"note":1', "doc: note: expected str, got 1"),
    ],
)
def test_a_fault_is_told_by_its_place(old: str, new: str, message: str) -> None:
    text = codec.dumps(THING, HEADER)
    assert old in text
    with pytest.raises(BenchError, match=message):
        codec.loads(Thing, text.replace(old, new), HEADER, "doc")


@pytest.mark.parametrize("text", ["", "[]", "3", "rubbish", '{"format": "thing"', "[" * 100_000])
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(BenchError, match="doc: expected"):
        codec.loads(Thing, text, HEADER, "doc")


def test_whole_numbers_are_read_as_floats() -> None:
    assert codec.loads(Thing, codec.dumps(THING, HEADER).replace("0.5", "2"), HEADER, "doc").share == 2.0
