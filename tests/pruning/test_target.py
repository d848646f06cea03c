import pytest

from compress.errors import ConfigError
from compress.pruning import Policy, Target
from compress.pruning.target import parse_amount


@pytest.mark.parametrize(
    ("text", "amount"),
    [
        ("0.5", 0.5),
        ("50%", 0.5),
        ("12.5 %", 0.125),
        ("800k", 8e5),
        ("1.5M", 1.5e6),
        ("2G", 2e9),
        ("3e6", 3e6),
        ("7", 7),
    ],
)
def test_amounts_as_people_write_them(text, amount):
    assert parse_amount(text, "--target-macs") == pytest.approx(amount, rel=1e-15)


@pytest.mark.parametrize("text", ["", "half", "50x", "1.2.3", "-3", "k", "nan", "inf", "0x10"])
def test_what_is_no_amount_is_refused_with_what_is_one(text):
    with pytest.raises(ConfigError, match=r"--target-macs .*: expected a share \(0\.5 or 50%\) or a number"):
        parse_amount(text, "--target-macs")


@pytest.mark.parametrize("text", ["100%", "150%", "0.0005k", "0.001k"])
def test_a_share_above_all_and_a_number_below_one_are_refused(text):
    with pytest.raises(ConfigError, match="a share must be below 100%, a number above 1"):
        parse_amount(text, "--target-params")


def test_a_goal_is_a_share_or_a_number():
    assert Target("macs", 0.25).goal(1000) == 250
    assert Target("params", 400).goal(1000) == 400
    with pytest.raises(ConfigError, match=r"target macs 1,000: the network has 1,000 MACs as it is"):
        Target("macs", 1000).goal(1000)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("flops", 0.5, "unknown target 'flops'; known: threshold, keep-ratio, macs, params"),
        ("macs", 0.0, "must be a finite number above 0"),
        ("params", float("inf"), "must be a finite number above 0"),
        ("threshold", float("nan"), "must be a finite number above 0"),
        ("keep-ratio", 1.0, "must be below 1"),
        ("macs", 1.0, "the network as it is"),
    ],
)
def test_bad_targets_are_refused(kind, value, message):
    with pytest.raises(ConfigError, match=message):
        Target(kind, value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "random"}, "known: magnitude, bn-scale, taylor"),
        ({"normalise": "max"}, "known: none, size, layer"),
        ({"min_channels": 0}, "every layer must keep at least one channel"),
        ({"round_to": 0}, "round_to=0: expected a whole number of channels"),
    ],
)
def test_bad_policies_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        Policy(**settings)
