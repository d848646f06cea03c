import pytest

from compress.train.config import Config, ScheduleSection
from compress.train.schedule import lr_at, strength_at


def lr(time_epochs: float, **schedule: object) -> float:
    return lr_at(time_epochs, 0.8, ScheduleSection(epochs=8, **schedule), step_epochs=0.5)


@pytest.mark.parametrize(
    ("name", "at_0", "at_3", "at_4", "at_6", "at_7_5"),
    [
        ("constant", 0.8, 0.8, 0.8, 0.8, 0.8),
        ("step", 0.8, 0.8, 0.08, 0.008, 0.008),
        ("cosine", 0.8, 0.553073, 0.4, 0.117157, 0.007686),
    ],
)
def test_lr_schedules(name: str, at_0: float, at_3: float, at_4: float, at_6: float, at_7_5: float):
    got = [lr(time_epochs, lr_schedule=name) for time_epochs in (0, 3, 4, 6, 7.5)]
    assert got == pytest.approx([at_0, at_3, at_4, at_6, at_7_5], rel=1e-4)


def test_lr_warm_up_starts_above_zero_and_ends_at_full_rate():
    got = [lr(time_epochs, warmup_epochs=2.0) for time_epochs in (0, 0.5, 1.5, 2)]
    assert got == pytest.approx([0.2, 0.4, 0.8, 0.8])


def config(**penalty: object) -> Config:
    sections = {"model": {"name": "lenet5"}, "data": {"name": "digits"}, "schedule": {"epochs": 8}}
    return Config.model_validate({**sections, "penalty": {"strength": 0.3, **penalty}})


def strength(time_epochs: float, **penalty: object) -> float:
    return strength_at(time_epochs, config(**penalty))


def test_strength_rises_linearly_from_zero():
    got = [strength(t, warmup_epochs=3.0) for t in (0, 1, 3, 5)]
    assert got == pytest.approx([0, 0.1, 0.3, 0.3])
    assert strength(0) == 0.3


@pytest.mark.parametrize(
    ("name", "at_3", "at_4", "at_5", "at_6"),
    [("constant", 0.3, 0.3, 0.3, 0.3), ("step", 0.3, 0.03, 0.003, 0.003), ("cosine", 0.256066, 0.15, 0.043934, 0.0)],
)
def test_strength_schedules_run_from_the_warm_up_to_the_end_of_the_penalty(name, at_3, at_4, at_5, at_6):
    got = [strength(t, warmup_epochs=2.0, strength_schedule=name, epochs=6) for t in (3, 4, 5, 6)]
    assert got == pytest.approx([at_3, at_4, at_5, at_6], abs=1e-6)


def test_with_a_budget_the_penalty_ends_at_half_of_the_epochs():
    assert config(budget={"target": 0.5}).penalty_epochs == 4
    assert config(budget={"target": 0.5}, epochs=6).penalty_epochs == 6
    assert config().penalty_epochs == 8
