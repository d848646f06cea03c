"""ONNX files from anywhere: made smaller and held against themselves, or refused with the reason."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import export
from export import passes
from export.errors import ExportError
from export.load import load


@pytest.fixture
def model(make_graph, rng):
    """Conv, BatchNorm, a branch of zeros, a constant made of two."""

    def normal(*shape):
        return rng.normal(size=shape).astype(np.float32)

    nodes = [
        ("Conv", ["x", "w"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"], {}),
        ("Relu", ["n"], ["r"], {}),
        ("Conv", ["r", "dead"], ["d"], {}),
        ("Add", ["r", "d"], ["s"], {}),
        ("Mul", ["k", "k"], ["kk"], {}),
        ("Mul", ["s", "kk"], ["t"], {}),
        ("GlobalAveragePool", ["t"], ["p"], {}),
        ("Flatten", ["p"], ["y"], {}),
    ]
    weights = {"w": normal(4, 3, 3, 3), "dead": np.zeros((4, 4, 1, 1), np.float32), "k": normal(4, 1, 1)}
    weights |= {"g": normal(4), "b": normal(4), "m": normal(4), "v": rng.uniform(1, 2, 4).astype(np.float32)}
    return make_graph(nodes, weights, x=("n", 3, 8, 8), y=("n", 4))


@pytest.fixture
def file(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    return tmp_path / "m.onnx"


def test_the_smaller_graph_computes_what_the_file_says(file, model, tmp_path, run_graph, ops, rng):
    graph = export.read_graph(file)
    report = export.write(graph, tmp_path / "small.onnx")
    small = onnx.load(report.path)
    assert "BatchNormalization" not in ops(small)
    assert ops(small).count("Conv") == 1
    assert (report.batch_norm_modules, report.batch_norm_nodes, report.nodes_exported) == (1, 0, 9)
    assert [step.name for step in report.steps] == ["read", "optimised", "simplified"]
    assert report.random.batches == 12
    assert {shapes[0][0] for shapes in report.random.shapes} == {1, 2, 5}
    for n in (1, 4):
        x = rng.normal(size=(n, 3, 8, 8)).astype(np.float32)
        np.testing.assert_allclose(run_graph(small, x, optimise=True), run_graph(model, x), rtol=1e-4, atol=1e-5)


def test_open_sizes_are_verified_where_the_file_takes_them(make_graph, tmp_path, rng):
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    shape = {"x": ("n", 3, "h", "w"), "y": ("n", 4)}
    nodes = [("Conv", ["x", "w"], ["c"], {}), ("GlobalAveragePool", ["c"], ["p"], {}), ("Flatten", ["p"], ["y"], {})]
    onnx.save(make_graph(nodes, {"w": weight}, **shape), tmp_path / "any.onnx")
    graph = export.read_graph(tmp_path / "any.onnx")
    assert {shapes[0][2:] for shapes in graph.steps[-1].random.shapes} == {(64, 64), (67, 97), (128, 128)}
    assert graph.notes == ()
    nodes = [("Reshape", ["x", "s"], ["r"], {}), ("ReduceMean", ["r"], ["m"], {"axes": [2, 3, 4], "keepdims": 0})]
    nodes += [("Slice", ["m", "0", "4", "1"], ["y"], {})]
    weights = {"s": np.array([0, 3, -1, 8, 8]), "0": np.array([0]), "4": np.array([4]), "1": np.array([1])}
    onnx.save(make_graph(nodes, weights, x=("n", 3, "h", "w"), y=("n", 3), opset=13), tmp_path / "eights.onnx")
    graph = export.read_graph(tmp_path / "eights.onnx")
    refused = "1x3x67x97, 2x3x67x97, 5x3x67x97"
    assert graph.notes[0] == f"not verified on inputs of {refused}: the file itself does not take them"
    assert {shapes[0][2:] for shapes in graph.steps[-1].random.shapes} == {(64, 64), (128, 128)}


@pytest.mark.parametrize(
    "shapes, expected",
    [
        ({"x": ("n", 3, 8, 8), "z": (1, 4, 1, 1)}, {((n, 3, 8, 8), (1, 4, 1, 1)) for n in (1, 2, 5)}),
        ({"x": (1, 3, 8, "w"), "z": (1, 4, 1, 1)}, {((1, 3, 8, w), (1, 4, 1, 1)) for w in (64, 97, 128)}),
        ({"x": ("n", "c", 8, 8), "z": ("n", 4, 1, 1)}, {((n, 3, 8, 8), (n, 4, 1, 1)) for n in (1, 2, 5)}),
    ],
)
def test_what_one_input_leaves_open_varies(tmp_path, rng, shapes, expected):
    """Also where another one is fixed; channels are those that the first layer takes."""
    weight = rng.normal(size=(4, 3, 3, 3)).astype(np.float32)
    nodes = [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "z"], ["y"])]
    inputs = [helper.make_tensor_value_info(name, 1, shape) for name, shape in shapes.items()]
    out = helper.make_tensor_value_info("y", 1, (None, 4, None, None))
    graph = helper.make_graph(nodes, "g", inputs, [out], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8), tmp_path / "m.onnx")
    graph = export.read_graph(tmp_path / "m.onnx")
    assert set(graph.steps[-1].random.shapes) == expected
    assert graph.notes == ()


def test_channels_may_come_last(make_graph, tmp_path, rng):
    nodes = [("Transpose", ["x"], ["t"], {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "w"], ["y"], {})]
    weights = {"w": rng.normal(size=(4, 3, 3, 3)).astype(np.float32)}
    onnx.save(make_graph(nodes, weights, x=("n", "h", "w", 3), y=("n", 4, "a", "b")), tmp_path / "m.onnx")
    shapes = export.read_graph(tmp_path / "m.onnx").steps[-1].random.shapes
    assert {shape for (shape,) in shapes} == {(n, 64, w, 3) for n in (1, 2, 5) for w in (64, 67, 128)}


NO_NUMBERS = {
    "sequence": (
        helper.make_node("SequenceConstruct", ["y", "y"], ["o"]),
        helper.make_tensor_sequence_value_info("o", 1, None),
    ),
    "text": (helper.make_node("Cast", ["y"], ["o"], to=8), helper.make_tensor_value_info("o", 8, ("n", 4))),
}


@pytest.mark.parametrize("node, value", NO_NUMBERS.values(), ids=NO_NUMBERS)
def test_outputs_that_are_no_numbers_are_refused(file, model, node, value):
    model.graph.node.append(node)
    model.graph.output.append(value)
    onnx.save(model, file)
    with pytest.raises(ExportError, match=r"output 1 is .*; only tensors of numbers can be compared"):
        export.read_graph(file)


def test_nodes_out_of_order_are_sorted(file, model):
    """As ONNX Runtime's converter to float16 writes them."""
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, file)
    assert export.read_graph(file).steps[-1].random.max_relative_difference < 1e-5


def test_nodes_in_a_circle_are_refused(file, model):
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]
    onnx.save(model, file)
    with pytest.raises(ExportError, match=r"do not stand behind those that they read, and cannot be sorted: .*cycle"):
        export.read_graph(file)


def test_names_that_are_no_text_are_refused(file):
    file.write_bytes(file.read_bytes().replace(b"dead", b"d\x8fad"))
    with pytest.raises(ExportError, match="cannot read the graph"):
        export.read_graph(file)


def test_sparse_weights_are_read(file, model, tmp_path, rng):
    """What ``--sparse-initializers`` writes can be given to the next command."""
    sparse = np.where(rng.random((4, 3, 3, 3)) < 0.9, 0, 1).astype(np.float32)
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(sparse, "w"))
    onnx.save(model, file)
    report = export.write(export.read_graph(file, simplify=False), tmp_path / "s.onnx", sparse_initializers=True)
    assert len(onnx.load(report.path).graph.sparse_initializer) > 0
    again = export.read_graph(report.path)
    assert again.steps[-1].random.max_relative_difference < 1e-5
    assert not again.model.graph.sparse_initializer


@pytest.mark.parametrize(
    "places, sizes",
    [([1, 99], [4, 4]), ([-1, 1], [4, 4]), ([[0, 1], [9, 9]], [4, 4]), ([0, 1, 2], [4, 4]), ([0, 1], [10**7, 10**7])],
)
def test_sparse_weights_that_are_damaged_are_refused(make_graph, tmp_path, places, sizes):
    model = make_graph([("MatMul", ["x", "w"], ["y"], {})], x=(1, 4), y=(1, 4))
    values = numpy_helper.from_array(np.ones(2, np.float32), "w")
    model.graph.sparse_initializer.append(
        helper.make_sparse_tensor(values, numpy_helper.from_array(np.array(places), "places"), sizes)
    )
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"m\.onnx: its sparse weights cannot be read: \w+"):
        export.read_graph(tmp_path / "m.onnx")


def test_a_pass_that_changes_the_function_is_left_out(file, monkeypatch):
    class Wrong(passes.RemoveIdentities):
        def call(self, model):
            weight = model.graph.initializers["w"]
            weight.const_value = passes.onnx_ir.tensor(weight.const_value.numpy() * 1.01, name="w")
            return passes.onnx_ir.passes.PassResult(model, modified=True)

    monkeypatch.setattr(passes, "PASSES", {"wrong": Wrong})
    graph = export.read_graph(file, simplify=False)
    assert [step.name for step in graph.steps] == ["read"]
    assert graph.notes[0].startswith("passes left out: the optimised graph on random batches and the file disagree")
    assert "BatchNormalization" in {node.op_type for node in graph.model.graph.node}


def test_a_pass_that_fails_is_left_out(file, monkeypatch):
    class Failing(passes.RemoveIdentities):
        def call(self, model):
            raise RuntimeError("no such op")

    monkeypatch.setattr(passes, "PASSES", {"failing": Failing})
    (note, _) = export.read_graph(file, simplify=False).notes
    assert note.startswith("passes left out: the pass failing failed: ")


def test_opset_is_kept_or_converted(make_graph, tmp_path):
    model = make_graph([("Relu", ["x"], ["y"], {})], x=(1, 3), y=(1, 3), opset=11)
    onnx.save(model, tmp_path / "m.onnx")
    assert export.read_graph(tmp_path / "m.onnx").opset == 11
    converted = export.read_graph(tmp_path / "m.onnx", opset=18)
    assert converted.opset == 18
    assert [entry.version for entry in converted.model.opset_import] == [18]
    with pytest.raises(ExportError, match="opset 12 cannot be exported"):
        export.read_graph(tmp_path / "m.onnx", opset=12)


def test_old_opsets_have_no_int8_with_a_scale_for_each_channel(make_graph, tmp_path, rng):
    weight = rng.normal(size=(8, 40)).astype(np.float32)
    model = make_graph([("Gemm", ["x", "w"], ["y"], {"transB": 1})], {"w": weight}, x=(1, 40), y=(1, 8), opset=11)
    onnx.save(model, tmp_path / "m.onnx")
    graph = export.read_graph(tmp_path / "m.onnx")
    images = rng.normal(size=(4, 40)).astype(np.float32)
    with pytest.raises(ExportError, match=r"needs opset 13 or later, this graph has 11; convert it with --opset 18"):
        export.to_int8(graph, export.Calibration(images), export.Judge(lambda model: 1.0, images))
    with pytest.raises(ExportError, match="int8 weights need opset 13"):
        export.to_int8_weights(graph)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.05])
def test_a_file_cut_short_is_refused(file, kept):
    content = file.read_bytes()
    file.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ExportError, match=r"m\.onnx: (is no ONNX file, or is damaged|is refused|holds no graph)"):
        load(file)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is empty, no ONNX file"),
        (b"\xff\xd8\xff\xe0 a photo" * 9, "is no ONNX file, or is damaged or cut short"),
        (onnx.ModelProto(ir_version=8).SerializeToString(), "holds no graph with nodes"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path, content, message):
    (tmp_path / "m.onnx").write_bytes(content)
    with pytest.raises(ExportError, match=rf"m\.onnx: {message}"):
        load(tmp_path / "m.onnx")


def test_no_file_and_folders_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(ExportError, match=r"cannot be read: (Is a directory|No such file)"):
            load(path)


@pytest.mark.parametrize("opset", [0, 99])
def test_unknown_opsets_are_refused(file, model, opset):
    model.opset_import[0].version = opset
    onnx.save(model, file)
    with pytest.raises(ExportError, match=rf"has opset {opset or 'none'}; onnx .* know 1 to \d+"):
        load(file)


def external(model, tmp_path, location):
    """The model in m.onnx, its weights named to lie in `location`; they do lie in weights.bin."""
    path = tmp_path / "m.onnx"
    moved = onnx.ModelProto()
    moved.CopyFrom(model)  # which onnx changes
    onnx.save(moved, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    named = onnx.load(path, load_external_data=False)
    for tensor in named.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = location
    path.write_bytes(named.SerializeToString())
    return path


def test_weights_beside_the_file_are_read(model, tmp_path):
    read = load(external(model, tmp_path, "weights.bin"))
    expected = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for tensor in read.graph.initializer:
        np.testing.assert_array_equal(numpy_helper.to_array(tensor), expected[tensor.name])


@pytest.mark.parametrize(
    "location, message",
    [
        ("gone.bin", r"its weights lie in gone\.bin, and .* does not exist; copy both together"),
        ("../weights.bin", r"lie in \.\./weights\.bin, outside of its folder: that file is not read"),
        ("/etc/passwd", r"lie in /etc/passwd, outside of its folder"),
        ("link.bin", r"lie in link\.bin, outside of its folder"),
    ],
)
def test_weights_elsewhere_are_refused(model, tmp_path, location, message):
    folder = tmp_path / "inner"
    folder.mkdir()
    (folder / "link.bin").symlink_to("/etc/passwd")
    with pytest.raises(ExportError, match=message):
        load(external(model, folder, location))


def test_weights_cut_short_are_refused(model, tmp_path):
    path = external(model, tmp_path, "weights.bin")
    weights = tmp_path / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ExportError, match=r"m\.onnx: (its weights in weights\.bin cannot be read|is refused)"):
        load(path)


@pytest.mark.parametrize(
    "smaller, precision", [(export.to_float16, "float16"), (export.to_int8_weights, "int8 weights")]
)
def test_smaller_numbers_are_known_again(make_graph, tmp_path, rng, smaller, precision):
    weight = rng.normal(size=(16, 40)).astype(np.float32)
    model = make_graph([("Gemm", ["x", "w"], ["y"], {"transB": 1})], {"w": weight}, x=(1, 40), y=(1, 16))
    onnx.save(model, tmp_path / "m.onnx")
    export.write(smaller(export.read_graph(tmp_path / "m.onnx")), tmp_path / "small.onnx")
    again = export.read_graph(tmp_path / "small.onnx")
    assert again.precision == precision
    with pytest.raises(ExportError, match=f"starts? from float32, this graph is {precision}"):
        smaller(again)


def test_float16_weights_of_constant_nodes_are_known_again(make_graph, tmp_path, rng):
    weight = numpy_helper.from_array(rng.normal(size=(8, 3, 3, 3)).astype(np.float16))
    nodes = [("Constant", [], ["w"], {"value": weight}), ("Cast", ["x"], ["h"], {"to": 10})]
    nodes += [("Conv", ["h", "w"], ["c"], {}), ("Cast", ["c"], ["y"], {"to": 1})]
    onnx.save(make_graph(nodes, x=(1, 3, 8, 8), y=(1, 8, 6, 6)), tmp_path / "m.onnx")
    assert export.read_graph(tmp_path / "m.onnx").precision == "float16"


def test_inputs_that_cannot_be_made_up_are_refused(tmp_path, make_graph):
    text = make_graph([("Cast", ["x"], ["y"], {"to": 1})], x=(1, 3), y=(1, 3), kind=onnx.TensorProto.INT64)
    onnx.save(text, tmp_path / "m.onnx")
    with pytest.raises(ExportError, match="the input x is int64; only images"):
        export.read_graph(tmp_path / "m.onnx")


def test_a_network_of_bytes_is_verified_on_bytes(tmp_path, make_graph):
    nodes = [("Cast", ["x"], ["f"], {"to": 1}), ("Div", ["f", "k"], ["y"], {})]
    weights = {"k": np.float32(255)}
    model = make_graph(nodes, weights, x=(1, 3, 4, 4), y=(1, 3, 4, 4), kind=onnx.TensorProto.UINT8)
    onnx.save(model, tmp_path / "m.onnx")
    graph = export.read_graph(tmp_path / "m.onnx")
    assert {case.inputs[0].dtype for case in graph.cases.random} == {np.dtype(np.uint8)}
    assert max(case.expected[0].max() for case in graph.cases.random) > 0.8


def test_initializers_that_are_inputs_too_are_weights(tmp_path, rng):
    """As files of IR version 3 list them."""
    weight = rng.normal(size=(2, 3)).astype(np.float32)
    values = [helper.make_tensor_value_info(n, 1, s) for n, s in (("x", (1, 3)), ("w", (2, 3)))]
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=1)
    out = helper.make_tensor_value_info("y", 1, (1, 2))
    graph = helper.make_graph([node], "g", values, [out], [numpy_helper.from_array(weight, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    assert export.read_graph(tmp_path / "m.onnx").steps[-1].random.max_relative_difference < 1e-5
