"""The four lines in people's own loops: plain, accumulated, clipped, in mixed precision, and with Accelerate."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import compress

X = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Y = torch.randint(0, 4, (64,), generator=torch.Generator().manual_seed(1))
STRENGTH = 0.03


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


def regularizer(model: nn.Module, strength: float = STRENGTH) -> compress.Regularizer:
    return compress.Regularizer(model, "group-lasso", "coupled", strength, example_inputs=(X[:1],))


def weights(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def has_exact_zeros_that_leave(model: nn.Module, reg: compress.Regularizer) -> bool:
    dead = sum(count.dead for count in reg.sparsity().values())
    small = compress.compact(model, (X[:1],)).model
    assert torch.allclose(small.eval()(X), model.eval()(X), rtol=0, atol=1e-5)
    return dead > 0 and weights(small).numel() < weights(model).numel()


def test_a_plain_loop() -> None:
    model = network()
    reg = regularizer(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        reg.prox_(optimizer)
    assert has_exact_zeros_that_leave(model, reg)


def test_accumulated_gradients_are_one_step() -> None:
    whole, parts = network().double().eval(), network().double().eval()  # no batch statistics
    for model, size in ((whole, 64), (parts, 16)):
        reg, optimizer = regularizer_of(model), torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(3):
            for start in range(0, 64, size):
                images, labels = X[start : start + size].double(), Y[start : start + size]
                (F.cross_entropy(model(images), labels) * size / 64).backward()
            optimizer.step()
            reg.prox_(optimizer)
            optimizer.zero_grad()
    torch.testing.assert_close(weights(parts), weights(whole), rtol=0, atol=1e-12)


def regularizer_of(model: nn.Module) -> compress.Regularizer:
    return compress.Regularizer(model, "group-lasso", "coupled", STRENGTH, example_inputs=(X[:1].double(),))


@pytest.mark.parametrize("optimizer_class", [torch.optim.SGD, torch.optim.Adam, torch.optim.RMSprop])
@pytest.mark.parametrize("frozen", [False, True])
def test_without_a_step_nothing_is_done(optimizer_class, frozen: bool) -> None:
    model = network()
    reg, optimizer = regularizer(model, 0.01), optimizer_class(model.parameters(), lr=0.01)
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        reg.prox_(optimizer)
    if frozen:
        reg.freeze_()
    before = weights(model)
    reg.prox_(optimizer)
    assert torch.equal(weights(model), before)


def test_clipping_and_several_parameter_groups() -> None:
    model = network()
    reg = regularizer(model)
    groups = [{"params": model[:4].parameters(), "lr": 0.02}, {"params": model[4:].parameters(), "lr": 0.05}]
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(X), Y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        reg.prox_(optimizer)
    assert has_exact_zeros_that_leave(model, reg)


def test_a_step_that_a_gradient_scaler_skips_is_followed_by_no_proximal_step() -> None:
    model = network()
    reg, optimizer = regularizer(model, 0.01), torch.optim.SGD(model.parameters(), 0.05)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)

    def step(scale: float) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(X), Y)
        scaler.scale(loss * scale).backward()
        scaler.step(optimizer)
        scaler.update()
        reg.prox_(optimizer)

    step(1.0)
    before = weights(model)
    step(float("inf"))
    assert torch.equal(weights(model), before)
    step(1.0)
    assert not torch.equal(weights(model), before)


def test_bfloat16_autocast_trains_to_exact_zeros() -> None:
    model = network()
    reg = regularizer(model, 0.0003)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = F.cross_entropy(model(X), Y)
        loss.backward()
        optimizer.step()
        reg.prox_(optimizer)
    assert has_exact_zeros_that_leave(model, reg)


def test_accelerate_with_accumulated_gradients() -> None:
    accelerate = pytest.importorskip("accelerate", reason="Accelerate is not installed")
    plain = network().double().eval()
    reg, optimizer = regularizer_of(plain), torch.optim.SGD(plain.parameters(), 0.05, momentum=0.9)
    for _ in range(3):
        F.cross_entropy(plain(X.double()), Y).backward()
        optimizer.step()
        reg.prox_(optimizer)
        optimizer.zero_grad()

    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    model = network().double().eval()
    reg = regularizer_of(model)
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9))
    for _ in range(3):
        for start in range(0, 64, 16):
            with accelerator.accumulate(model):
                accelerator.backward(F.cross_entropy(model(X[start : start + 16].double()), Y[start : start + 16]))
                optimizer.step()
                reg.prox_(optimizer)
                optimizer.zero_grad()
    torch.testing.assert_close(weights(accelerator.unwrap_model(model)), weights(plain), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("penalty", "granularity", "optimizer_class", "approximate"),
    [
        ("mcp", "coupled", torch.optim.Adam, True),
        ("mcp", "coupled", torch.optim.SGD, False),
        ("mcp", "weight", torch.optim.Adam, False),
        ("l0", "coupled", torch.optim.Adam, False),
        ("sparse-group-lasso", "coupled", torch.optim.RMSprop, False),
        ("hoyer", "weight", torch.optim.Adam, True),
    ],
)
def test_an_approximation_is_told_once(caplog, penalty, granularity, optimizer_class, approximate: bool) -> None:
    model = network()
    reg = compress.Regularizer(model, penalty, granularity, 1e-6, example_inputs=(X[:1],))
    optimizer = optimizer_class(model.parameters(), lr=0.01)
    caplog.clear()
    for _ in range(2):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        reg.prox_(optimizer)
    told = [record for record in caplog.records if "is approximate" in record.message]
    assert len(told) == int(approximate)
