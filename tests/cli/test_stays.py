"""What train and inspect say of channels that are zero and can't leave the network's class."""

import pytest

from compress.cli.tables import stays_note
from compress.cli.train import _compare_with_budget
from compress.surgery.suspects import HELD_BY_FORWARD


def report(**kept):
    return {"layers": {name: {"kept": reasons} for name, reasons in kept.items()}}


def test_what_forward_holds_is_counted_and_the_way_out_is_named():
    carried = "constant 2, carried for the padded b"
    note = stays_note("runs/a", report(a={HELD_BY_FORWARD: 3, carried: 1}, b={HELD_BY_FORWARD: 2}, c={}))
    assert note is not None
    assert note.startswith("note: 5 channels are zero and stay in the network")
    assert note.splitlines()[-2:] == [
        "  compress export runs/a --onnx model.onnx",
        "  compress compact model.onnx --out smaller.onnx",
    ]
    assert stays_note("runs/a", report(a={carried: 1})) is None


@pytest.mark.parametrize(("compact", "told"), [(310, False), (400, True)])
def test_a_budget_that_the_compact_network_misses_is_told(capsys, compact, told):
    budget = {"measure": "params", "target": 300, "reached": 300, "given": 1000}
    _compare_with_budget({"budget": budget, "parameters": {"dense": 1000, "compact": compact}})
    out = capsys.readouterr().out
    assert ("the compact network has 40.0% of the params, more than was asked" in out) == told
