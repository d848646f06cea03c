import pytest

from compress.train.config import PenaltySection, ScheduleSection
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


def test_strength_rises_linearly_from_zero():
    penalty = PenaltySection(strength=0.3, warmup_epochs=3.0)
    assert [strength_at(t, penalty) for t in (0, 1, 3, 5)] == pytest.approx([0, 0.1, 0.3, 0.3])
    assert strength_at(0, PenaltySection(strength=0.3)) == 0.3
