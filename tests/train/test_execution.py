import copy
import shutil

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compress.errors import ConfigError
from compress.models import build
from compress.train import execution as module
from compress.train.config import Config, DataSection, ModelSection, OptimizerSection, PenaltySection, RunSection
from compress.train.execution import Execution, channels_last, execution_of, gains_from_channels_last
from compress.train.learner import Learner, build_learner

CPU = torch.device("cpu")


def network(*, dtype: torch.dtype = torch.float32, channels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(8, 4, 3)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * 9, 5)).to(dtype)


def gradients(model: nn.Module, images: torch.Tensor, execution: Execution) -> list[torch.Tensor]:
    logits = execution(model, images)
    F.cross_entropy(logits, torch.arange(len(images)) % 5).backward()
    return [logits.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_layout_changes_strides_and_no_value(channels: int):
    images = torch.randn(4, channels, 6, 5)
    laid_out = channels_last(images)
    assert laid_out.stride() == (30 * channels, 1, 5 * channels, channels)
    assert torch.equal(laid_out, images)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_last_computes_the_same(channels: int):
    images = torch.randn(6, channels, 10, 10, dtype=torch.float64)
    seen: list[bool] = []
    found = []
    for chosen in (False, True):
        model = network(dtype=torch.float64, channels=channels)
        model[2].register_forward_hook(
            lambda _, __, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
        )
        found.append(gradients(model, images, Execution(channels_last=chosen)))
        assert all(parameter.is_contiguous() for parameter in model.parameters())
    assert seen == [False, True]
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() < 1e-12


def test_bfloat16_leaves_weights_gradients_and_outputs_in_float32():
    images = torch.randn(6, 3, 10, 10)
    seen: list[torch.dtype] = []
    model = network()
    model[4].register_forward_hook(lambda _, __, output: seen.append(output.dtype))
    exact = gradients(network(), images, Execution())
    rounded = gradients(model, images, Execution(precision=torch.bfloat16))
    assert seen == [torch.bfloat16]
    assert {tensor.dtype for tensor in [*rounded, *model.parameters()]} == {torch.float32}
    difference = (rounded[0] - exact[0]).abs().max()
    assert 0 < difference < 0.05 * exact[0].abs().max()  # bfloat16 has 8 bits: some 0.4% an operation


def learner_of(execution: Execution) -> Learner:
    config = Config(
        model=ModelSection(name="lenet5"),
        data=DataSection(name="digits"),
        penalty=PenaltySection(name="group-lasso", granularity="filter", strength=1.0),
        optimizer=OptimizerSection(name="sgd", lr=0.1),
    )
    learner = build_learner(config, network(), torch.zeros(1, 3, 10, 10))
    learner.execution = execution
    return learner


@pytest.mark.parametrize(
    "execution", [Execution(channels_last=True), Execution(precision=torch.bfloat16)], ids=["layout", "precision"]
)
def test_groups_that_die_are_exact_zeros_and_stay(execution: Execution):
    learner = learner_of(execution)
    draw = torch.Generator().manual_seed(0)

    def step() -> None:
        learner.step(torch.randn(8, 3, 10, 10, generator=draw), torch.arange(8) % 5, lr=0.1, strength=0.1)

    while not learner.dead_share():
        step()
    dead = learner.dead_share()
    learner.freeze_()
    for _ in range(10):
        step()
    assert learner.dead_share() == dead
    assert dead is not None
    assert dead < 1
    filters = [row for layer in (0, 4, 6) for row in learner.model[layer].weight.flatten(1)]
    assert sum(not row.any() for row in filters) == round(dead * len(filters)) > 0


@pytest.mark.parametrize(
    ("name", "gains"), [("lenet5", True), ("resnet20", True), ("vgg11", False), ("lenet300-100", False)]
)
def test_auto_is_what_was_measured(name: str, gains: bool):
    channels, size = (1, 28) if name.startswith("lenet") else (3, 32)
    model = build(name, num_classes=10, in_channels=channels, image_size=size)
    assert gains_from_channels_last(model, CPU) is gains
    assert execution_of(RunSection(), model, CPU).channels_last is gains
    assert execution_of(RunSection(channels_last=not gains), model, CPU).channels_last is not gains
    assert not gains_from_channels_last(model, torch.device("cuda"))


@pytest.mark.parametrize(
    ("flags", "has"), [("fpu avx2 fma", False), ("avx512f avx512_bf16 amx_tile", True), ("asimd bf16", True)]
)
def test_bfloat16_needs_instructions_for_it(tmp_path, monkeypatch, flags: str, has: bool):
    (tmp_path / "cpuinfo").write_text(f"flags\t\t: {flags}\n")
    monkeypatch.setattr(module, "CPU_FLAGS", tmp_path / "cpuinfo")
    run = RunSection(precision="bfloat16")
    if has:
        assert execution_of(run, network(), CPU).precision == torch.bfloat16
    else:
        with pytest.raises(ConfigError, match=r"run\.precision: this CPU has no instructions .*use float32"):
            execution_of(run, network(), CPU)


def test_compiling_needs_a_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"run\.compile: .* a C\+\+ compiler, and there is no no-such-compiler;"):
        execution_of(RunSection(compile=True), network(), CPU)
    monkeypatch.delenv("CXX")
    if shutil.which("g++"):
        assert execution_of(RunSection(compile=True), network(), CPU).compiled


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch's own parts
def test_a_compiled_network_takes_the_same_steps():
    images = torch.randn(6, 3, 10, 10)
    model = network()
    twin = copy.deepcopy(model)
    execution = Execution(compiled=True)
    for _ in range(2):
        for one, other in zip(gradients(model, images, Execution()), gradients(twin, images, execution), strict=True):
            assert (one - other).abs().max() < 1e-5
    assert list(twin.state_dict()) == list(model.state_dict())
