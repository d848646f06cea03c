"""The whole way from a module to a file: parity, what the file holds, and that a failure leaves nothing behind."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import export
from onnx_runs import session


class ConvNet(nn.Module):
    """Convolution without bias, BatchNorm, depthwise convolution, BatchNorm, linear; [N, 3, 8, 8] -> [N, 10]."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.bn2 = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8 * 9, 10)
        for bn in (self.bn, self.bn2):
            for values in (bn.weight, bn.bias, bn.running_mean):
                nn.init.normal_(values)
            nn.init.uniform_(bn.running_var, 0.5, 2.0)

    def forward(self, x):
        x = torch.relu(self.bn(self.conv(x)))
        x = nn.functional.max_pool2d(torch.relu(self.bn2(self.depthwise(x))), 2)
        return self.fc(x.flatten(1))


class PreActivation(nn.Module):
    """A BatchNorm behind a convolution that the residual stream reads too: it cannot be folded."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.conv2 = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.conv(x)
        return x + self.conv2(torch.relu(self.bn(x)))


class TwoByTwo(nn.Module):
    def forward(self, x, y):
        return {"sum": x + y, "parts": [x * 2, y - 1]}


class CounterNet(ConvNet):
    """Gives another output at every call."""

    def forward(self, x):
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(x) * self.calls


class AlwaysDropout(ConvNet):
    def forward(self, x):
        return super().forward(nn.functional.dropout(x, 0.5, training=True))


class OtherWhenTraced(ConvNet):
    """What users write to please an exporter, with a slip in it."""

    def forward(self, x):
        y = super().forward(x)
        return y * 1.01 if torch.compiler.is_compiling() else y


class Logarithm(nn.Module):
    def forward(self, x):
        return torch.log(x)  # NaN for every negative input


class SaturatedArgmax(nn.Module):
    """onnxsim drops the exponential in front of argmax; where it overflows, the first infinity is the right answer."""

    def forward(self, x):
        return torch.argmax(torch.exp(100 * x.flatten(1)), dim=1)


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class FixedBatch(ConvNet):
    def forward(self, x):
        return super().forward(x.reshape(2, 3, 8, 8))


def image(batch_size=1):
    return torch.randn(batch_size, 3, 8, 8, generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(file, report) of ``ConvNet`` exported with every option at its default: only to be read."""
    path = tmp_path_factory.mktemp("plain") / "m.onnx"
    return path, export.to_onnx(ConvNet(), (image(),), path)


def test_file_computes_what_torch_computes(tmp_path):
    model, path, x = ConvNet(), tmp_path / "m.onnx", image()
    report = export.to_onnx(model, (x,), path, extra_inputs=[(image(),), (image() * 2,)])
    (output,) = session(path).run(None, {"input": x.numpy()})
    model.eval()
    with torch.no_grad():
        np.testing.assert_allclose(output, model(x).numpy(), rtol=1e-4, atol=1e-5)
    assert report.random.batches == 4
    assert report.real.batches == 2
    assert 0 <= report.random.max_relative_difference < 1e-5
    assert 0 <= report.real.max_relative_difference < 1e-5
    assert report.file_bytes == path.stat().st_size
    beside = tmp_path / "m.onnx.json"
    assert sorted(tmp_path.iterdir()) == [path, beside]  # weights inside, no temporary left


def test_checker_accepts_and_no_trace_of_this_machine_is_left(plain):
    path, report = plain
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert model.ir_version == 8
    assert [entry.version for entry in model.opset_import] == [18]
    assert (report.opset, report.min_onnxruntime) == (18, "1.14")
    assert b"stack_trace" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_batch_norm_is_folded_into_the_convolutions(plain):
    path, report = plain
    ops = [node.op_type for node in onnx.load(path).graph.node]
    assert ops == ["Conv", "Relu", "Conv", "Relu", "MaxPool", "Reshape", "Gemm"]
    assert (report.batch_norm_modules, report.batch_norm_nodes, report.nodes_written) == (2, 0, 7)
    assert report.notes == ()


def test_batch_norm_that_cannot_be_folded_is_noted(tmp_path):
    report = export.to_onnx(PreActivation(), (image(),), tmp_path / "m.onnx")
    assert (report.batch_norm_modules, report.batch_norm_nodes) == (1, 1)
    assert report.notes == ("1 of 1 BatchNorm stay nodes of their own",)


def test_metadata_is_stored_in_the_file(tmp_path):
    path = tmp_path / "m.onnx"
    report = export.to_onnx(ConvNet(), (image(),), path, metadata={"run_hash": "ab12", "mean": "0.5, 0.5, 0.5"})
    stored = session(path).get_modelmeta().custom_metadata_map
    assert stored == dict(report.metadata)
    assert stored["run_hash"] == "ab12"
    assert stored["mean"] == "0.5, 0.5, 0.5"
    assert float(stored["max_abs_difference"]) == report.random.max_abs_difference
    assert float(stored["max_relative_difference"]) == report.random.max_relative_difference
    assert (stored["random_batches_checked"], stored["real_batches_checked"], stored["opset"]) == ("4", "0", "18")
    assert stored["torch_version"] == torch.__version__
    assert stored["onnxruntime_version"] == onnxruntime.__version__
    assert stored["onnx_version"] == onnx.__version__
    assert stored["onnxsim_version"] == "0.8.1"


def test_same_model_gives_the_same_bytes(plain, tmp_path):
    export.to_onnx(ConvNet(), (image(),), tmp_path / "again.onnx")
    assert (tmp_path / "again.onnx").read_bytes() == plain[0].read_bytes()


@pytest.mark.parametrize("example_batch", [1, 2])
def test_dynamic_batch_runs_at_every_size(tmp_path, example_batch):
    model, path = ConvNet(), tmp_path / "m.onnx"
    report = export.to_onnx(
        model, (image(example_batch),), path, dynamic_batch=True, extra_inputs=[(image(3),), (image(4),)]
    )
    assert report.random.batches == 12
    assert report.real.batches == 2
    run = session(path)
    assert run.get_inputs()[0].shape == ["batch", 3, 8, 8]
    model.eval()
    for batch_size in (1, 2, 5):
        x = image(batch_size)
        (output,) = run.run(None, {"input": x.numpy()})
        with torch.no_grad():
            np.testing.assert_allclose(output, model(x).numpy(), rtol=1e-4, atol=1e-5)


def test_static_batch_is_fixed(tmp_path):
    export.to_onnx(ConvNet(), (image(2),), tmp_path / "m.onnx")
    assert session(tmp_path / "m.onnx").get_inputs()[0].shape == [2, 3, 8, 8]


def test_several_inputs_and_nested_outputs_keep_their_order(tmp_path):
    x, y = torch.randn(2, 4), torch.randn(2, 4)
    path = tmp_path / "m.onnx"
    export.to_onnx(TwoByTwo(), (x, y), path, dynamic_batch=True, output_names=["sum", "double", "less"])
    run = session(path)
    assert [node.name for node in run.get_inputs()] == ["input_0", "input_1"]
    total, double, less = run.run(["sum", "double", "less"], {"input_0": x.numpy(), "input_1": y.numpy()})
    np.testing.assert_array_equal(total, (x + y).numpy())
    np.testing.assert_array_equal(double, (x * 2).numpy())
    np.testing.assert_array_equal(less, (y - 1).numpy())


@pytest.mark.parametrize("opset, ir_version, reader", [(20, 9, "1.17"), (21, 10, "1.18")])
def test_opset_is_the_one_asked_for(tmp_path, opset, ir_version, reader):
    path = tmp_path / "m.onnx"
    report = export.to_onnx(ConvNet(), (image(),), path, opset=opset)
    model = onnx.load(path)
    assert [entry.version for entry in model.opset_import] == [opset]
    assert (model.ir_version, report.min_onnxruntime) == (ir_version, reader)


def test_each_part_keeps_its_mode(tmp_path):
    model = ConvNet().train()
    model.bn.eval()
    export.to_onnx(model, (image(),), tmp_path / "m.onnx")
    assert model.training
    assert model.bn2.training
    assert not model.bn.training


def test_mode_and_weights_survive_an_error(tmp_path):
    model = OtherWhenTraced().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(export.ExportError):
        export.to_onnx(model, (image(),), tmp_path / "m.onnx")
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_graph_from_torch_export_can_be_exported(tmp_path):
    traced = torch.export.export(ConvNet().eval(), (image(),)).module()
    report = export.to_onnx(traced, (image(),), tmp_path / "m.onnx")
    assert report.random.max_relative_difference < 1e-5


def test_layers_beside_a_graph_from_torch_export_are_in_evaluation_mode(tmp_path):
    """Such a graph refuses ``eval()``, and its neighbours must not stay in training mode for that."""
    traced = torch.export.export(nn.Linear(4, 4), (torch.zeros(2, 4),)).module()
    model = nn.Sequential(traced, nn.BatchNorm1d(4)).requires_grad_(False)
    model[1].running_mean.fill_(3.0)
    model[1].training = True
    path, x = tmp_path / "m.onnx", torch.randn(2, 4)
    export.to_onnx(model, (x,), path)
    assert model[1].training
    assert model[1].num_batches_tracked == 0
    (got,) = session(path).run(None, {"input": x.numpy()})
    model[1].eval()
    np.testing.assert_allclose(got, model(x).numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "model, message",
    [
        (CounterNet(), r"CounterNet does not give the same output twice .* \d\.\d\de[+-]\d+ relative"),
        (AlwaysDropout(), "AlwaysDropout does not give the same output twice"),
        (
            OtherWhenTraced(),
            r"exported graph on random batches and the torch model disagree: .* 1\.00e-02 relative, .* over 4 batches",
        ),
        (
            Logarithm(),
            r"Logarithm on inputs of shape \[\(1, 3, 8, 8\)\]: output 0 holds \d+ values that are not finite",
        ),
        (Branching(), "torch.export cannot trace Branching"),
        (nn.Linear(5, 2), r"Linear itself fails on inputs of shape \[\(1, 3, 8, 8\)\]"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_failure_leaves_no_file(tmp_path, model, message):
    with pytest.raises(export.ExportError, match=message):
        export.to_onnx(model, (image(),), tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_failure_leaves_an_older_file_as_it_was(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"an older file")
    with pytest.raises(export.ExportError, match="disagree"):
        export.to_onnx(OtherWhenTraced(), (image(),), path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"an older file"]


class OtherOnlyWhenBright(ConvNet):
    """Agrees on normal values; a slip shows only on inputs that no random batch holds."""

    def forward(self, x):
        y = super().forward(x)
        return y + (x.mean() > 50) if torch.compiler.is_compiling() else y


def test_real_inputs_are_verified_too(tmp_path):
    with pytest.raises(export.ExportError, match="exported graph on real inputs and the torch model disagree"):
        export.to_onnx(OtherOnlyWhenBright(), (image(),), tmp_path / "m.onnx", extra_inputs=[(image() + 100,)])
    assert list(tmp_path.iterdir()) == []


def test_hard_coded_batch_is_refused_when_the_batch_is_to_be_dynamic(tmp_path):
    with pytest.raises(export.ExportError, match="FixedBatch"):
        export.to_onnx(FixedBatch(), (image(2),), tmp_path / "m.onnx", dynamic_batch=True)
    assert list(tmp_path.iterdir()) == []


def test_falls_back_to_the_exported_graph_where_onnxsim_changes_the_function(tmp_path):
    model, path, x = SaturatedArgmax(), tmp_path / "m.onnx", image()
    report = export.to_onnx(model, (x,), path)
    assert not report.simplified
    (note,) = report.notes
    assert "not simplified: the simplified graph on random batches and the torch model disagree" in note
    assert report.metadata["onnxsim_version"] == "none"
    assert "Exp" in [node.op_type for node in onnx.load(path).graph.node]
    np.testing.assert_array_equal(session(path).run(None, {"input": x.numpy()})[0], model(x).numpy())


def test_simplification_can_be_switched_off(tmp_path):
    report = export.to_onnx(ConvNet(), (image(),), tmp_path / "m.onnx", simplify=False)
    assert not report.simplified
    assert report.steps[0].name == "exported"
    assert report.nodes_written == report.nodes_exported
    assert report.notes == ("not simplified: switched off",)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"example_inputs": ()}, "one tensor for each argument of forward"),
        ({"example_inputs": (1.0,)}, r"got \['float'\]"),
        ({"example_inputs": (torch.zeros(0, 3, 8, 8),)}, "must not be empty"),
        ({"example_inputs": (image().bfloat16(),)}, "torch.bfloat16"),
        ({"example_inputs": (torch.tensor(1.0),), "dynamic_batch": True}, "share dimension 0"),
        ({"extra_inputs": [(torch.zeros(1, 3, 9, 9),)]}, r"\(1, 3, 8, 8\).*got.*\(1, 3, 9, 9\)"),
        ({"extra_inputs": [(image().double(),)]}, "float32.*got.*float64"),
        ({"opset": 17}, r"opset 17 cannot be exported; choose one of 18 \(ONNX Runtime 1.14\+\)"),
        ({"opset": 99}, "opset 99"),
        ({"input_names": ["a", "b"]}, "input_names must be 1 different names"),
        ({"metadata": {"opset": "7"}}, r"\['opset'\] are measured"),
        ({"metadata": {"accuracy": 0.5}}, r"\['accuracy'\]"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, arguments, message):
    arguments = {"example_inputs": (image(),), **arguments}
    with pytest.raises(export.ExportError, match=message):
        export.to_onnx(ConvNet(), path=tmp_path / "m.onnx", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_unwritable_path_is_refused_before_the_model_runs(tmp_path):
    class NeverRun(nn.Module):
        def forward(self, x):
            raise AssertionError("the long work has started")

    with pytest.raises(export.ExportError, match="does not exist"):
        export.to_onnx(NeverRun(), (image(),), tmp_path / "nowhere" / "m.onnx")


@pytest.mark.filterwarnings("default")  # a warning that leaks shall reach the terminal, where it is found
def test_nothing_is_printed(tmp_path, capfd):
    export.to_onnx(ConvNet(), (image(),), tmp_path / "m.onnx", dynamic_batch=True)
    assert capfd.readouterr() == ("", "")


def test_importing_the_package_is_cheap():
    code = "import sys, export; print(sorted({'torch', 'onnx', 'onnxruntime', 'onnxsim', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'to_tflite'"):
        export.to_tflite  # noqa: B018
