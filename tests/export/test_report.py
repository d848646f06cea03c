"""What lies on the disk afterwards: the file, the document beside it, other formats; or nothing at all."""

import gzip
import hashlib
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export
from export.errors import ExportError
from export.sparse import store_sparse, zeros_of
from full_disk import files_of


@pytest.fixture(scope="module")
def graph():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 40))
    with torch.no_grad():
        network[3].weight[torch.rand(40, 288) < 0.9] = 0
    real = [(torch.randn(1, 3, 8, 8),)]
    return export.graph_of(network, (torch.zeros(1, 3, 8, 8),), export.Interface(), extra_inputs=real)


def test_the_document_holds_the_whole_verification(graph, tmp_path):
    path = tmp_path / "m.onnx"
    report = export.write(graph, path, metadata={"accuracy": "0.5"}, details={"more": [1, 2]})
    document = json.loads(report.json_path.read_text())
    content = path.read_bytes()
    assert report.json_path.name == "m.onnx.json"
    assert document["sha256"] == hashlib.sha256(content).hexdigest()
    assert (document["file"], document["file_bytes"]) == ("m.onnx", len(content))
    assert document["gzip_bytes"] == len(gzip.compress(content, 9, mtime=0)) == report.gzip_bytes
    assert [step["name"] for step in document["verification"]] == ["exported", "simplified"]
    for step in document["verification"]:
        for which, batches in (("random", 4), ("real", 1)):
            assert step[which]["batches"] == batches
            assert step[which]["max_relative_difference"] < 1e-5
            assert step[which]["mean_abs_difference"] <= step[which]["max_abs_difference"]
            assert step[which]["argmax_agreement"] == 1.0
            assert step[which]["shapes"] == [[[1, 3, 8, 8]]]
    assert document["metadata"]["accuracy"] == "0.5"
    assert document["metadata"] == dict(report.metadata)
    assert document["more"] == [1, 2]
    assert str(tmp_path) not in report.json_path.read_text()


def test_the_document_tells_every_size_of_a_dynamic_graph(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    interface = export.Interface(dynamic_batch=True, dynamic_size=True, input_names=["image"], output_names=["scores"])
    graph = export.graph_of(network, (torch.zeros(1, 3, 16, 12),), interface)
    export.write(graph, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    (shapes,) = {step["random"]["batches"]: step["random"]["shapes"] for step in _steps(tmp_path)}.values()
    sizes = {(n, h, w) for ((n, _, h, w),) in shapes}
    assert sizes == {(n, h, w) for n in (1, 2, 5) for h, w in ((16, 12), (19, 19), (32, 24))}
    x = torch.randn(3, 3, 21, 40)
    got = session.run(["scores"], {"image": x.numpy()})[0]
    np.testing.assert_allclose(got, network(x).detach().numpy(), rtol=1e-4, atol=1e-6)


def _steps(folder):
    return json.loads((folder / "m.onnx.json").read_text())["verification"]


def test_a_size_that_the_network_does_not_take_is_refused(tmp_path):
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 2))
    interface = export.Interface(dynamic_size=True)
    with pytest.raises(ExportError, match=r"itself fails on .*\(1, 3, 11, 13\).*without --dynamic-size"):
        export.graph_of(network, (torch.zeros(1, 3, 8, 8),), interface)
    with pytest.raises(ExportError, match=r"a dynamic size needs an input of images"):
        export.graph_of(nn.Linear(3, 2), (torch.zeros(1, 3),), interface)
    with pytest.raises(ExportError, match="inputs and outputs need different names"):
        export.graph_of(nn.Linear(3, 2), (torch.zeros(1, 3),), export.Interface(input_names=["a"], output_names=["a"]))


@pytest.mark.parametrize("room", [100, 4000])
def test_a_full_disk_changes_nothing(graph, tmp_path, room):
    """Neither the document, which is written first, nor the file finds room."""
    older = {"m.onnx": b"older", "m.onnx.json": b"{}"}
    for name, content in older.items():
        (tmp_path / name).write_bytes(content)
    with files_of(room), pytest.raises(ExportError, match=r"cannot write the \d+ bytes of .*: File too large; no file"):
        export.write(graph, tmp_path / "m.onnx")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == older


def test_zeros_are_counted_and_stored_sparsely(graph, tmp_path, run_graph, rng):
    zeros = zeros_of(graph.model)
    assert zeros.values == 8 * 27 + 40 * 288
    assert 0.85 < zeros.share < 0.92
    dense = export.write(graph, tmp_path / "dense.onnx")
    assert any("so they save no time" in note and "or with sparse initializers" in note for note in dense.notes)
    sparse = export.write(graph, tmp_path / "m.onnx", sparse_initializers=True)
    assert sparse.file_bytes < 0.5 * dense.file_bytes
    assert any(note.startswith("1 weights are stored as sparse ones") for note in sparse.notes)
    assert [step["name"] for step in _steps(tmp_path)] == ["exported", "simplified", "sparse"]
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    outputs = [onnxruntime.InferenceSession(r.path).run(None, {"input": x})[0] for r in (dense, sparse)]
    np.testing.assert_array_equal(*outputs)


def test_weights_that_would_be_larger_stay_dense(make_graph, rng):
    weight = rng.normal(size=(30, 30)).astype(np.float32)
    model = make_graph([("MatMul", ["x", "w"], ["y"], {})], {"w": weight}, x=(1, 30), y=(1, 30))
    same, stored = store_sparse(model)
    assert stored is None
    assert same is model


def test_sparse_ones_are_not_praised_where_they_are_larger(make_graph, rng, tmp_path):
    weight = rng.normal(size=(30, 30)).astype(np.float32)
    weight[:12] = 0
    onnx.save(make_graph([("MatMul", ["x", "w"], ["y"], {})], {"w": weight}, x=(1, 30), y=(1, 30)), tmp_path / "x.onnx")
    graph = export.read_graph(tmp_path / "x.onnx", simplify=False)
    notes = export.write(graph, tmp_path / "m.onnx", sparse_initializers=True).notes
    assert any(note.startswith("40.0% of the weights are zero") for note in notes)
    assert any(note.startswith("no weight is smaller as a sparse one") for note in notes)
    assert not any("sparse initializers" in note for note in notes)


def test_the_runtimes_own_format(graph, tmp_path, rng):
    report = export.write(graph, tmp_path / "m.onnx", ort=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "m.onnx",
        "m.onnx.json",
        "m.ort",
        "m.required_operators.config",
    ]
    x = rng.normal(size=(1, 3, 8, 8)).astype(np.float32)
    outputs = [onnxruntime.InferenceSession(tmp_path / name).run(None, {"input": x})[0] for name in ("m.onnx", "m.ort")]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-6)
    operators = (tmp_path / "m.required_operators.config").read_text()
    assert "Gemm" in operators
    assert str(tmp_path) not in operators
    assert "/tmp" not in operators
    assert operators.splitlines()[1] == "# - m.ort"
    assert report.ort.step.random.max_relative_difference < 1e-5
    document = json.loads(report.json_path.read_text())
    assert document["ort"]["operators_file"] == "m.required_operators.config"
