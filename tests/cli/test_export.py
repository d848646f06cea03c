"""``compress export`` on a run that was really trained, briefly, on the embedded digits."""

import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from rich.console import Console

from compress.cli.export.command import export_command
from compress.cli.export.facts import preprocessing, run_metadata
from compress.cli.export.following import next_command
from compress.cli.export.options import Options
from compress.errors import CheckpointError, CompressError, DataError
from compress.train.recipe import resolve
from compress.train.rundir import load_data, open_run
from compress.train.session import train
from onnx_runs import session

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """LeNet-5 on 300 digits for two epochs, with so strong a penalty that neurons die."""
    path = tmp_path_factory.mktemp("runs") / "digits"
    flags = {
        "model.name": "lenet5",
        "data.name": "digits",
        "data.limit": 300,
        "data.image_size": 16,
        "penalty.name": "l0",
        "penalty.granularity": "coupled",
        "penalty.strength": 20.0,
        "schedule.epochs": 2,
        "run.device": "cpu",
        "run.curves": False,
        "run.out": path,
    }
    train(resolve(None, flags), console=Console(quiet=True))
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """An image folder of two classes, in files of many kinds: sides, modes and formats differ, one has to be turned."""
    root = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6  # orientation: a quarter turn
    for split, count in (("train", 12), ("val", 8)):
        for level, name in ((90, "dark"), (150, "light")):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                width, height = rng.integers(12, 60, 2)
                coarse = rng.integers(level - 90, level + 90, (5, 4, 4), dtype=np.uint8)
                image = Image.fromarray(coarse).resize((width, height))  # RGBA
                image = image if i % 4 == 2 else image.convert("RGB").convert(("RGB", "L", "", "P")[i % 4])
                suffix, options = (".jpg", {"exif": turned}) if i % 4 < 2 else (".png", {})
                image.save(root / split / name / f"{i:02}{suffix}", **options)
    return root


@pytest.fixture(scope="module")
def photo_run(photos, tmp_path_factory):
    """LeNet-5 on them, scaled to 24x24."""
    path = tmp_path_factory.mktemp("runs") / "photos"
    flags = {
        "model.name": "lenet5",
        "data.name": str(photos),
        "data.image_size": 24,
        "penalty.name": "none",
        "schedule.epochs": 2,
        "run.device": "cpu",
        "run.out": path,
    }
    train(resolve(None, flags), console=Console(quiet=True))
    return path


def example_of(document):
    """The block of Python in ``document`` that runs the file ``runs/model.onnx`` on ``photo.jpg``."""
    blocks = re.findall(r"^```python\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), re.M | re.S)
    (block,) = (block for block in blocks if "InferenceSession" in block)
    return compile(block, document, "exec")


@pytest.fixture
def classify(tmp_path, monkeypatch, capsys):
    """``classify(code, image_file)``: what a document's example prints first, and its variables."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)

    def run(code, image_file):
        shutil.copy(image_file, "photo.jpg")
        variables = {}
        capsys.readouterr()
        exec(code, variables)
        return capsys.readouterr().out.splitlines()[0], variables

    return run


def asked(onnx, **options):
    return Options(source="a run", onnx=onnx, **options)


def write_tiny(path, metadata):
    """A file of one node that tells something about itself."""
    x, y = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    model = onnx.helper.make_model(onnx.helper.make_graph([onnx.helper.make_node("Relu", "x", "y")], "g", [x], [y]))
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


def told_by(run, **options):
    """The metadata of a file of a run."""
    return run_metadata(run, asked(Path("m.onnx"), **options), dict.fromkeys(("validation", "test"))) | {
        "precision": "float32"
    }


def test_compact_network_is_written_and_agrees_on_real_images(run_dir, tmp_path, capsys):
    path = tmp_path / "digits.onnx"
    export_command(run_dir, path)
    run = open_run(run_dir)
    images = run.validation_batch(4)
    onnx_model = session(path)
    with torch.no_grad():
        expected = run.model()(images).numpy()
    for image, logits in zip(images, expected, strict=True):
        (output,) = onnx_model.run(None, {"input": image[None].numpy()})
        np.testing.assert_allclose(output[0], logits, rtol=1e-4, atol=1e-4)
    stored = onnx_model.get_modelmeta().custom_metadata_map
    assert stored["run_hash"] == run.hash
    assert stored["variant"] == "compact"
    assert json.loads(stored["class_names"]) == list(run.class_names)
    assert json.loads(stored["mean"]) == list(run.mean)
    assert json.loads(stored["std"]) == list(run.std)
    assert json.loads(stored["test_accuracy"]) == run.summary["accuracy"]["test"]["compact"]
    assert json.loads(stored["macs"]) == run.summary["macs"]["compact"]
    assert int(stored["real_batches_checked"]) == min(32, run.summary["images"]["validation"])
    assert float(stored["max_relative_difference"]) <= 1e-4
    printed = capsys.readouterr().out
    assert f"{path.stat().st_size:,}" in printed
    assert "18 (ONNX Runtime 1.14 and later)" in printed
    assert printed.splitlines()[-1] == next_command(run, asked(path))


@pytest.mark.parametrize("document", ["README.md", "docs/export.md"])
def test_the_documents_example_computes_what_the_run_evaluated(document, photos, photo_run, classify):
    export_command(photo_run, Path("runs/model.onnx"))
    run, files = open_run(photo_run), sorted((photos / "val").rglob("*.*"))
    with torch.no_grad():
        expected = run.model()(run.validation_batch(len(files))).numpy()
    right = 0
    for file, logits in zip(files, expected, strict=True):
        named, variables = classify(example_of(document), file)
        np.testing.assert_allclose(variables["logits"][0], logits, rtol=1e-4, atol=1e-4)
        right += named == file.parent.name
    assert right / len(files) == run.summary["accuracy"]["validation"]["compact"]
    assert json.loads(variables["facts"]["preprocess"]) == {
        "color": "RGB",
        "exif_orientation": "ignored",
        "height": 24,
        "width": 24,
        "resize": "Pillow BILINEAR",
        "scale": 1 / 255,
        "normalise": "(pixels * scale - mean) / std",
        "layout": "NCHW",
        "dtype": "float32",
    }


def test_the_readmes_example_prepares_grey_images_to_one_grey_level(run_dir, classify, tmp_path):
    """Digits are scaled by torch in training; Pillow rounds otherwise."""
    export_command(run_dir, Path("runs/model.onnx"))
    run = open_run(run_dir)
    original = run.config.data.model_copy(update={"image_size": None})
    grey = load_data(original, run.config.run.seed).validation.images(torch.arange(8))
    for pixels, expected in zip(grey[:, 0], run.validation_batch(8), strict=True):
        Image.fromarray(pixels.numpy()).save(tmp_path / "digit.png")
        _, variables = classify(example_of("README.md"), tmp_path / "digit.png")
        difference = np.abs(variables["inputs"][0] - expected.numpy()).max()
        assert difference <= 1.001 / 255 / run.std[0]
    facts = variables["facts"]
    how = json.loads(facts["preprocess"])
    assert (how["color"], how["exif_orientation"], how["resize"]) == ("L", None, "torch bilinear antialias")
    assert (facts["output"], facts["batch"]) == ("logits", "1")


def test_a_run_whose_images_were_not_scaled_says_so(run_dir):
    run = open_run(run_dir)
    data = run.config.data.model_copy(update={"image_size": None})
    unscaled = replace(run, config=run.config.model_copy(update={"data": data}))
    assert preprocessing(unscaled, asked(Path("m.onnx")))["resize"] is None


@pytest.mark.parametrize("dynamic_batch", [False, True])
def test_images_are_not_needed(photos, photo_run, dynamic_batch, tmp_path, capsys):
    path, elsewhere = tmp_path / "m.onnx", photos.with_name("moved")
    photos.rename(elsewhere)
    try:
        export_command(photo_run, path, dynamic_batch=dynamic_batch)
    finally:
        elsewhere.rename(photos)
    (note,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("note: "))
    assert note.startswith(f"note: verified on random batches alone, for want of images: {photos}: there is no such")
    stored = session(path).get_modelmeta().custom_metadata_map
    assert stored["dataset"] == photos.name  # where the images lay is nobody else's business
    assert (stored["real_batches_checked"], stored["class_names"]) == ("0", '["dark", "light"]')
    assert int(stored["random_batches_checked"]) > 0


def test_a_drop_that_cannot_be_measured_is_refused(photos, photo_run, tmp_path):
    elsewhere = photos.with_name("moved")
    photos.rename(elsewhere)
    try:
        with pytest.raises(DataError, match=r"--max-drop is measured on the run's validation images: .*no such"):
            export_command(photo_run, tmp_path / "m.onnx", fp16=True, max_drop=0.01)
    finally:
        elsewhere.rename(photos)
    assert list(tmp_path.iterdir()) == []


def test_other_images_in_their_place_are_not_taken_for_them(run_dir):
    run = open_run(run_dir)
    other = replace(run, summary={**run.summary, "image_shape": [3, 16, 16]})
    with pytest.raises(DataError, match=r"the images are 1x16x16 now, those of .* were 3x16x16"):
        other.validation_batch(1)


def test_dense_network_computes_the_same_and_is_larger(run_dir, tmp_path, capsys):
    compact, dense = tmp_path / "digits.onnx", tmp_path / "digits-dense.onnx"
    export_command(run_dir, dense, dense=True, dynamic_batch=True)
    export_command(run_dir, compact, dynamic_batch=True, opset=20)
    images = open_run(run_dir).validation_batch(7).numpy()
    outputs = [session(path).run(None, {"input": images})[0] for path in (compact, dense)]
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)
    assert compact.stat().st_size < dense.stat().st_size
    assert session(dense).get_modelmeta().custom_metadata_map["variant"] == "masked"
    last = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(last) == ["bench", "latency", str(compact), "--baseline", str(dense), "--device", "cpu"]


@pytest.mark.parametrize(
    "name, dense, expected",
    [
        ("m.onnx", False, "m-dense.onnx"),
        ("m-dense.onnx", True, "m.onnx"),
        ("dense.onnx", True, "compact.onnx"),
        ("compact.onnx", False, "dense.onnx"),
        ("m_dense.v2.onnx", True, "m_compact.v2.onnx"),
        ("densenet.onnx", True, "densenet-compact.onnx"),
        ("base.onnx", True, "base-compact.onnx"),
    ],
)
def test_next_command_makes_the_missing_half(run_dir, name, dense, expected):
    run = replace(open_run(run_dir), path=Path("a run"))
    files = (expected, name) if dense else (name, expected)
    option = "" if dense else " --dense"
    bench = "bench latency {} --baseline {} --device cpu".format(*files)
    assert next_command(run, asked(Path(name), dense=dense)) == (
        f"compress export 'a run' --onnx {expected}{option} && {bench}"
    )
    assert next_command(run, asked(Path(name), dense=dense, dynamic_batch=True, opset=20)) == (
        f"compress export 'a run' --onnx {expected}{option} --dynamic-batch --opset 20 && {bench}"
    )


def test_next_command_repeats_all_that_the_other_file_must_share(run_dir):
    run = replace(open_run(run_dir), path=Path("a run"))
    flags = "--dynamic-batch --with-preprocess --layout nhwc --input-name x --output-name y"
    options = asked(
        Path("m.onnx"), dynamic_batch=True, with_preprocess=True, layout="nhwc", input_name="x", output_name="y"
    )
    assert next_command(run, options) == (
        f"compress export 'a run' --onnx m-dense.onnx --dense {flags} && "
        "bench latency m.onnx --baseline m-dense.onnx --device cpu"
    )
    assert next_command(run, asked(Path("m.onnx"), dynamic_size=True), {"input": (1, 1, 16, 16)}) == (
        "compress export 'a run' --onnx m-dense.onnx --dense --dynamic-size && "
        "bench latency m.onnx --baseline m-dense.onnx --device cpu --shape input=1,1,16,16"
    )


@pytest.mark.parametrize("precision", ["int8", "float16", "int8 weights"])
def test_smaller_numbers_are_compared_with_float32(run_dir, precision, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = replace(open_run(run_dir), path=Path("a run"))
    small = asked(Path("m-int8.onnx"), precision=precision, dense=True, with_preprocess=True)
    bench = "bench latency m-int8.onnx --baseline {} --device cpu"
    again = "compress export 'a run' --onnx m-int8-float32.onnx --dense --with-preprocess && "
    assert next_command(run, small) == again + bench.format("m-int8-float32.onnx")
    told = told_by(run, dense=True, with_preprocess=True)
    for changed in ({"variant": "compact"}, {"precision": precision}, {"preprocess": "{}"}, {"size": "dynamic"}):
        write_tiny(Path("m.onnx"), told | changed)
        assert next_command(run, small) == again + bench.format("m-int8-float32.onnx")  # m.onnx is kept
    write_tiny(Path("m.onnx"), told)
    assert next_command(run, small) == bench.format("m.onnx")


def test_next_command_of_other_sources():
    options = Options(
        source="net.py:make", onnx=Path("m.onnx"), image_size=64, classes=5, opset=20, precision="float16"
    )
    assert next_command(None, options) == (
        "compress export net.py:make --onnx m-float32.onnx --opset 20 --image-size 64 --classes 5 && "
        "bench latency m.onnx --baseline m-float32.onnx --device cpu"
    )
    plain = Options(source="my model.onnx", onnx=Path("m.onnx"))
    assert next_command(None, plain) == "bench latency m.onnx --baseline 'my model.onnx' --device cpu"


def test_next_command_exports_anew_what_cannot_be_compared(run_dir, tmp_path):
    run, compact, dense = open_run(run_dir), tmp_path / "m.onnx", tmp_path / "m-dense.onnx"
    bench = f"bench latency {compact} --baseline {dense} --device cpu"
    again = f"compress export {run_dir} --onnx {dense} --dense --dynamic-batch && {bench}"
    dense.write_text("no ONNX")
    assert next_command(run, asked(compact, dynamic_batch=True)) == again
    write_tiny(dense, told_by(run))  # the compact network, by a slip
    assert next_command(run, asked(compact)) == again.replace(" --dynamic-batch", "")
    write_tiny(dense, told_by(run, dense=True))
    assert next_command(run, asked(compact)) == bench
    assert next_command(run, asked(compact, dynamic_batch=True)) == again
    write_tiny(dense, told_by(run, dense=True, dynamic_batch=True))
    assert next_command(run, asked(compact, dynamic_batch=True)) == bench
    other_run = replace(run, summary={**run.summary, "hash": "0" * 64})
    assert next_command(other_run, asked(compact, dynamic_batch=True)) == again


def test_bad_input_is_refused_and_leaves_nothing(run_dir, tmp_path):
    with pytest.raises(CompressError, match=r"--onnx .*nowhere.m\.onnx: the folder .*nowhere does not exist"):
        export_command(run_dir, tmp_path / "nowhere" / "m.onnx")
    with pytest.raises(CompressError, match="is a folder"):
        export_command(run_dir, tmp_path)
    with pytest.raises(CompressError, match="opset 11 cannot be exported"):
        export_command(run_dir, tmp_path / "m.onnx", opset=11)
    with pytest.raises(CheckpointError, match="is no run directory"):
        export_command(tmp_path, tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_command_line_says_it_in_one_message_with_exit_code_2(tmp_path, compress_command):
    done = compress_command("export", tmp_path / "none", "--onnx", tmp_path / "m.onnx")
    assert (done.code, done.out) == (2, "")
    assert done.err == f"compress: {tmp_path / 'none'}: there is no such file or folder\n"


def test_the_runs_own_files_are_not_overwritten(run_dir):
    before = (run_dir / "masked.safetensors").read_bytes()
    with pytest.raises(CompressError, match=r"must end in \.onnx"):
        export_command(run_dir, run_dir / "masked.safetensors")
    assert (run_dir / "masked.safetensors").read_bytes() == before
