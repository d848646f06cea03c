"""Plans and weights: what is saved comes back, and what does not belong together is refused."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import compress
from compress.errors import CheckpointError
from compress.surgery import Plan, compact, load, load_weights, save_weights, weights_hash
from compress.surgery.kept import Kept


class Small(nn.Module):
    def __init__(self, width=6, classes=2):
        super().__init__()
        self.a = nn.Conv2d(3, width, 3)
        self.b = nn.Conv2d(width, 5, 3, bias=False)
        self.bn = nn.BatchNorm2d(5)
        self.head = nn.Linear(5, classes)

    def forward(self, x):
        y = self.b(F.relu(self.a(x)))
        return self.head(F.relu(self.bn(y) + y).mean((2, 3)))


@pytest.fixture
def saved(tmp_path, randomise_, kill_):
    """(model, result, plan file, weights file) of a network with a cut, a fold and a new bias."""
    model = randomise_(Small()).float()
    kill_(model.a, [1, 4], 0.5)
    result = compact(model, (torch.randn(1, 3, 9, 9),))
    assert result.plan.new_biases == ("b.bias",)
    plan, weights = tmp_path / "plan.json", tmp_path / "weights.safetensors"
    result.plan.save(plan)
    save_weights(result.model, weights)
    return model, result, plan, weights


def edited(path, change):
    """The plan file with one change; its path."""
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    return path


def test_a_plan_comes_back_equal(saved):
    _, result, plan, _ = saved
    assert Plan.load(plan) == result.plan
    assert result.plan.parameters["a.weight"] == Kept((6, 3, 3, 3), {0: [0, 2, 3, 5]})
    assert result.plan.parameters["b.weight"].indices == {1: [0, 2, 3, 5]}
    assert result.plan.architecture.endswith("Small")


def test_hashes_are_those_of_the_weights(saved):
    model, result, _, weights = saved
    assert result.plan.hash_before == weights_hash(model.state_dict())
    assert result.plan.hash_after == weights_hash(result.model.state_dict()) == weights_hash(load_weights(weights))
    other = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    other["a.bias"][0] += 1e-7
    assert weights_hash(other) != result.plan.hash_before


def test_a_network_is_rebuilt_in_its_own_class(saved):
    _, result, plan, weights = saved
    rebuilt = compress.load(plan, weights, base=Small)
    assert type(rebuilt) is Small
    assert not rebuilt.training
    assert (rebuilt.a.out_channels, rebuilt.b.in_channels) == (4, 4)
    x = torch.randn(2, 3, 12, 9)
    assert torch.equal(rebuilt(x), result.model.eval()(x))


def test_files_are_whole_and_hold_no_code(saved):
    _, _, plan, weights = saved
    assert sorted(path.name for path in plan.parent.iterdir()) == ["plan.json", "weights.safetensors"]
    for path in (plan, weights):
        assert path.read_bytes()[:2] not in (b"\x80\x02", b"\x80\x04", b"PK")
    assert json.loads(plan.read_text())["version"] == 2


def test_a_write_that_fails_leaves_nothing(saved, tmp_path):
    _, result, _, _ = saved
    target = tmp_path / "taken"
    target.mkdir()
    for save in (result.plan.save, lambda path: save_weights(result.model, path), result.report.save):
        with pytest.raises(CheckpointError, match="cannot write"):
            save(target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json", "taken", "weights.safetensors"]


def test_a_plan_of_another_version_is_refused(saved):
    *_, plan, _ = saved
    edited(plan, lambda d: d.update(version=99))
    with pytest.raises(CheckpointError, match="plan version 99, this release reads version 2"):
        Plan.load(plan)


DAMAGES = {
    "no parameters": lambda d: d.pop("parameters"),
    "an index too large": lambda d: d["parameters"]["a.weight"]["indices"]["0"].append(6),
    "a negative index": lambda d: d["parameters"]["a.weight"]["indices"]["0"].insert(0, -1),
    "an index twice": lambda d: d["parameters"]["a.weight"]["indices"]["0"].insert(0, 0),
    "no index": lambda d: d["parameters"]["a.weight"]["indices"].update({"0": []}),
    "a dimension too many": lambda d: d["parameters"]["a.weight"]["indices"].update({"7": [0]}),
    "a word": lambda d: d["parameters"]["a.weight"].update(shape=["six"]),
    "half an index": lambda d: d["parameters"]["a.weight"]["indices"]["0"].insert(1, 0.5),
    "no groups": lambda d: d["parameters"]["a.weight"].update(groups=0),
    "an unknown type": lambda d: d.update(inputs=[[[1, 3, 8, 8], "float99"]]),
    "a module for a type": lambda d: d.update(inputs=[[[1, 3, 8, 8], "nn"]]),
    "a word for a truth": lambda d: d.update(fixed_samples="false"),
    "a graph without inputs": lambda d: d.update(form="graph", inputs=[]),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_plan_is_refused(saved, damage):
    *_, plan, _ = saved
    edited(plan, DAMAGES[damage])
    with pytest.raises(CheckpointError, match=r"plan\.json: the plan is damaged"):
        Plan.load(plan)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": "other"}', "\x80\x04", "[" * 200_000])
def test_what_is_no_plan_is_refused(tmp_path, text):
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"plan\.json"):
        Plan.load(path)


def test_a_missing_file_is_refused(saved, tmp_path):
    *_, plan, weights = saved
    with pytest.raises(CheckpointError, match=r"none\.json"):
        load(tmp_path / "none.json", weights, base=Small)
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        load(plan, tmp_path / "none.safetensors", base=Small)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (lambda: Small(width=8), r"a\.weight has shape \(8, 3, 3, 3\), the plan expects \(6, 3, 3, 3\)"),
        (lambda: Small(classes=3), r"does not fit Small"),
        (lambda: nn.Conv2d(3, 6, 3), r"the plan cuts a\.\w+, which this Conv2d lacks"),
        (lambda: Small().double(), r"a\.\w+ is torch\.float32, the base model's is torch\.float64"),
    ],
    ids=["width", "classes", "class", "precision"],
)
def test_another_base_model_is_refused(saved, base, message):
    *_, plan, weights = saved
    with pytest.raises(CheckpointError, match=message):
        load(plan, weights, base=base)


def test_a_bias_for_a_layer_that_has_one_is_refused(saved):
    _, result, *_ = saved
    model = Small()
    model.b.bias = nn.Parameter(torch.zeros(5))
    with pytest.raises(CheckpointError, match="the plan gives b a bias"):
        result.plan.reshape_(model)


def test_weights_of_another_run_are_refused(saved):
    _, result, plan, weights = saved
    other = copy.deepcopy(result.model)
    other.a.weight.data += 1
    save_weights(other, weights)
    with pytest.raises(CheckpointError, match="not the weights that the plan was made with"):
        load(plan, weights, base=Small)


def test_weights_cut_short_are_refused(saved):
    *_, plan, weights = saved
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=r"weights\.safetensors: can't be read"):
        load(plan, weights, base=Small)
