"""What is stripped and what is stored."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper

from export.errors import ExportError
from export.metadata import OWN_KEYS, embed, provenance, read_metadata, require_valid, strip_traces
from export.proof import Cases, Graph, Step
from export.verify import Parity


def noted_model():
    """Notes at a node, a value, the graph, and inside the branch of an If."""
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    branch = helper.make_graph([helper.make_node("Identity", ["x"], ["y"], doc_string="/home/someone")], "b", [], [y])
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1], doc_string="/home/someone"),
        helper.make_tensor_value_info("c", TensorProto.BOOL, []),
    ]
    graph = helper.make_graph([node], "g", inputs, [y])
    for message in (node, graph, graph.node[0], graph.input[0]):
        message.metadata_props.add(key="trace", value="/home/someone")
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def test_notes_are_stripped_everywhere_and_nothing_else():
    model = noted_model()
    strip_traces(model)
    assert b"/home/someone" not in model.SerializeToString()
    assert [attribute.name for attribute in model.graph.node[0].attribute] == ["else_branch", "then_branch"]
    onnx.checker.check_model(model, full_check=True)


def a_graph(precision, real, *, first="exported"):
    """A graph that differs on random batches by 1e-6, and so on."""
    random = Parity(4, 1e-6, 3e-7, 1e-8, 1.0, ())
    steps = (Step(first, random, real), Step("simplified", random, real))
    return Graph(noted_model(), 18, Cases([], [], 1e-4), steps, precision, nodes_before=1, batch_norms_before=0)


FIGURES = ("compared_on", "max_abs_difference", "max_relative_difference", "mean_abs_difference", "argmax_agreement")


@pytest.mark.parametrize(
    "precision, real, expected",
    [
        ("float32", True, ("random batches and real images", "1e-06", "9e-07", "2e-08", "0.75")),
        ("int8", True, ("real images", "5e-07", "9e-07", "2e-08", "0.75")),
        ("float16", True, ("real images", "5e-07", "9e-07", "2e-08", "0.75")),
        ("int8", False, ("random batches", "1e-06", "3e-07", "1e-08", "1.0")),
    ],
)
def test_figures_are_of_what_they_say(precision, real, expected):
    """Float32: the worse of both groups. Smaller numbers are made for real images: theirs, where there are any."""
    entries = provenance(a_graph(precision, Parity(2, 5e-7, 9e-7, 2e-8, 0.75, ()) if real else None))
    assert tuple(entries[key] for key in FIGURES) == expected
    assert (entries["random_batches_checked"], entries["real_batches_checked"]) == ("4", "2" if real else "0")
    assert (entries["precision"], entries["opset"], entries["torch_version"]) == (precision, "18", torch.__version__)
    assert set(entries) == set(OWN_KEYS)
    model = noted_model()
    embed(model, entries)
    assert {entry.key: entry.value for entry in model.metadata_props} == entries


def test_torch_is_not_named_where_it_had_no_part():
    entries = provenance(a_graph("float32", None, first="read"))
    assert set(OWN_KEYS) - set(entries) == {"torch_version"}


def test_metadata_are_read_back(tmp_path):
    path, model = tmp_path / "m.onnx", noted_model()
    embed(model, {"a": "1", "b": "é"})
    onnx.save(model, path)
    assert read_metadata(path) == {"a": "1", "b": "é"}
    path.write_text("no ONNX")
    for unreadable in (path, tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ExportError, match="cannot be read as an ONNX file"):
            read_metadata(unreadable)


def test_figures_cannot_be_given_and_values_are_text():
    require_valid({"accuracy": "0.99"})
    with pytest.raises(ExportError, match=r"\['max_abs_difference', 'opset'\] are measured"):
        require_valid({"opset": "1", "max_abs_difference": "0"})
    with pytest.raises(ExportError, match=r"text to text; these do not: \['accuracy'\]"):
        require_valid({"accuracy": 0.99})
