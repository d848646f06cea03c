import re
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from compress.errors import ModelError
from compress.models import build
from compress.models.weights import start_from_


class Net(nn.Module):
    def __init__(self, classes=3, width=4):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(1, width, 3), nn.BatchNorm2d(width)
        self.head = nn.Linear(width, classes)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)
        self.b.weight = self.a.weight


def trained(classes=3, width=4):
    """A network none of whose numbers are those of a new one."""
    model = Net(classes, width)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) * 9 + 1)
    return model


def refusal(path, model=None, **options):
    model = Net() if model is None else model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        start_from_(model, path, **{"num_classes": 3, **options})
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert str(path) in str(caught.value)
    return str(caught.value)


def saved(path, content):
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    return path


def prefixed(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


FLAT = (
    dict,
    OrderedDict,
    lambda state: prefixed(state, "module."),
    lambda state: prefixed(state, "module._orig_mod."),
    lambda state: prefixed(state, "_orig_mod.module."),
)
NESTED = (
    lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
    lambda state: {"model": prefixed(state, "module."), "args": {"arch": "net"}},
    lambda state: {"model_state_dict": state, "loss": 0.5},
)


@pytest.mark.parametrize(
    ("ending", "wrap"),
    [*(("safetensors", wrap) for wrap in FLAT), *(("pth", wrap) for wrap in (*FLAT, *NESTED)), ("pt", dict)],
)
def test_every_tensor_of_the_file_is_in_the_network(tmp_path, ending, wrap):
    model = Net()
    start_from_(model, saved(tmp_path / f"weights.{ending}", wrap(trained().state_dict())), num_classes=3)
    expected = trained().state_dict()
    assert all(torch.equal(expected[name], tensor) for name, tensor in model.state_dict().items())


def test_the_networks_own_prefix_stays(tmp_path):
    inner = trained()
    path = saved(tmp_path / "weights.pth", {f"module.{name}": tensor for name, tensor in inner.state_dict().items()})
    model = nn.Sequential(OrderedDict(module=Net()))
    start_from_(model, path, num_classes=3)
    assert torch.equal(model.module.conv.weight, inner.conv.weight)


def test_precisions_are_converted(tmp_path):
    state = {name: tensor.half() if tensor.ndim else tensor for name, tensor in trained().state_dict().items()}
    model = Net()
    start_from_(model, saved(tmp_path / "weights.pth", state), num_classes=3)
    assert model.conv.weight.dtype == torch.float32
    assert torch.equal(model.conv.weight, trained().conv.weight.half().float())


def test_counters_of_batches_may_be_missing(tmp_path):
    """Files from before torch 0.4.1 have none."""
    state = trained().state_dict()
    del state["bn.num_batches_tracked"]
    model = Net()
    start_from_(model, saved(tmp_path / "weights.pth", state), num_classes=3)
    assert torch.equal(model.bn.running_var, trained().bn.running_var)
    assert model.bn.num_batches_tracked == 0


def test_one_name_of_tied_weights_is_enough(tmp_path):
    weight = torch.rand(3, 3)
    model = Tied()
    start_from_(model, saved(tmp_path / "weights.safetensors", {"a.weight": weight}), num_classes=3)
    assert torch.equal(model.b.weight, weight)


def test_every_fault_is_told(tmp_path):
    state = trained(width=5).state_dict() | {"extra.weight": torch.ones(2), "extra.bias": torch.ones(2)}
    del state["bn.running_mean"]
    told = refusal(saved(tmp_path / "weights.pth", state)).splitlines()
    assert told[0].endswith("weights.pth: does not fit Net")
    assert told[1:4] == [
        "  1 missing in the file: bn.running_mean",
        "  2 not in the network: extra.weight, extra.bias",
        "  6 of another shape: conv.weight [5, 1, 3, 3] in the file, [4, 1, 3, 3] here, conv.bias [5] in the file, [4] "
        "here, bn.weight [5] in the file, [4] here, bn.bias [5] in the file, [4] here, and 2 more",
    ]
    assert told[4].startswith("Give the state dict of this very network")


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = saved(tmp_path / "resnet20.pth", build("resnet20", num_classes=10).state_dict())
    told = refusal(path, build("resnet32", num_classes=10), num_classes=10)
    assert "does not fit ResNet\n  60 missing in the file: stages.0.3.conv1.weight, " in told


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (torch.full((4,), torch.nan), "not finite as torch.float32"),
        (torch.full((4,), 1e300, dtype=torch.float64), "not finite as torch.float32"),
        (torch.ones(4, dtype=torch.int8), "torch.int8, expected torch.float32"),
        (torch.ones(4).to_sparse(), "torch.sparse_coo, expected a dense tensor"),
    ],
)
def test_numbers_that_are_none_are_refused(tmp_path, value, why):
    state = trained().state_dict() | {"bn.running_var": value}
    assert f"1 unusable: bn.running_var ({why})" in refusal(saved(tmp_path / "weights.pth", state))


# --- the last layer --------------------------------------------------------------------------------------------------


def test_another_number_of_classes_is_refused_with_what_to_do(tmp_path):
    path = saved(tmp_path / "weights.pth", trained(classes=7).state_dict())
    told = refusal(path)
    assert (
        "2 of another shape: head.weight [7, 4] in the file, [3, 4] here, head.bias [7] in the file, [3] here" in told
    )
    assert (
        "The last layer alone differs: the file has it for 7 classes. To start with a new one: new_head = true" in told
    )


def test_a_new_head_stays_as_it_was_drawn(tmp_path):
    path = saved(tmp_path / "weights.pth", trained(classes=7).state_dict())
    model = Net()
    drawn = {name: tensor.clone() for name, tensor in model.head.state_dict().items()}
    start_from_(model, path, num_classes=3, new_head=True)
    assert all(torch.equal(drawn[name], tensor) for name, tensor in model.head.state_dict().items())
    expected = trained(classes=7).state_dict()
    body = [name for name in expected if not name.startswith("head.")]
    assert all(torch.equal(expected[name], model.state_dict()[name]) for name in body)


def test_a_hidden_layer_is_no_head(tmp_path):
    """Its width happens to be the number of classes."""
    path = saved(tmp_path / "weights.pth", trained(classes=4, width=5).state_dict())
    told = refusal(path, Net(classes=4, width=4), num_classes=4, new_head=True)
    assert "7 of another shape: conv.weight" in told
    assert "new_head" not in told


def test_a_new_head_in_place_of_one_that_fits_is_refused(tmp_path):
    path = saved(tmp_path / "weights.pth", trained().state_dict())
    assert "has as many classes as the data set, 3, and would be used" in refusal(path, new_head=True)


def test_a_new_head_excuses_nothing_else(tmp_path):
    state = trained(classes=7).state_dict()
    del state["conv.bias"]
    told = refusal(saved(tmp_path / "weights.pth", state), new_head=True)
    assert "  1 missing in the file: conv.bias\n" in told
    assert "another shape" not in told


# --- files -----------------------------------------------------------------------------------------------------------


class Runs:
    """Pickled so that reading it would run a command."""

    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (trained(), "it is damaged, or holds more than tensors (a whole model, say)"),
        ({"state_dict": Runs()}, "it is damaged, or holds more than tensors (a whole model, say)"),
        ([1, 2], "holds a list, expected a state dict: tensors by name"),
        ({}, "holds nothing, expected a state dict"),
        ({"epoch": 3, "net": {}}, "holds entries that are no tensors (epoch, net), expected a state dict"),
        ({"state_dict": {"conv.weight": 3}}, "holds entries that are no tensors (conv.weight)"),
    ],
    ids=["a module", "code", "a list", "nothing", "an unknown checkpoint", "numbers"],
)
def test_a_file_that_holds_something_else_is_refused(tmp_path, monkeypatch, content, told):
    monkeypatch.chdir(tmp_path)
    refused = refusal(saved(tmp_path / "weights.pth", content))
    assert told in refused
    assert "two options" not in refused  # torch's advice, one of which would run the code
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pth"]


@pytest.mark.parametrize(
    ("ending", "damage"),
    [
        *((ending, damage) for ending in ("safetensors", "pth") for damage in ("truncated", "empty", "text")),
        ("pth", "a bit"),  # safetensors has no checksums
    ],
)
def test_a_damaged_file_is_refused(tmp_path, ending, damage):
    path = saved(tmp_path / f"weights.{ending}", trained().state_dict())
    content = bytearray(path.read_bytes())
    if damage == "a bit":
        content[content.index(trained().conv.weight.detach().numpy().tobytes())] ^= 1
    path.write_bytes({"truncated": content[:-90], "empty": b"", "text": b"weights\n" * 9, "a bit": content}[damage])
    assert "cannot be read as weights: " in refusal(path)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert "cannot read the weights" in refusal(tmp_path / "none.safetensors")
    assert "cannot read the weights" in refusal(tmp_path / "none.pth")
    (tmp_path / "folder.pth").mkdir()
    assert "cannot read the weights" in refusal(tmp_path / "folder.pth")


def test_an_unknown_ending_is_refused(tmp_path):
    assert re.search(
        r"weights\.onnx: weights are read from files that end in \.safetensors, ", refusal(tmp_path / "weights.onnx")
    )
