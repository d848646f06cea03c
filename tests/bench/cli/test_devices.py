from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.cli import build_app
from bench.cli.devices import DEVICES, SETUPS
from bench.errors import BenchError
from bench.targets import TARGETS


def test_every_target_has_a_line() -> None:
    assert set(DEVICES) == set(TARGETS)
    assert set(SETUPS) <= set(TARGETS)


def test_the_list_tells_what_missing_devices_need(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    printed = CliRunner().invoke(build_app(), ["devices"], catch_exceptions=False)
    assert printed.exit_code == 0
    for text in ("cpu", "arm64:cortex-a53|", "not set up", "ssh://user@host", "openssh-client", "adb[:SERIAL]"):
        assert text in printed.output


def test_a_space_without_its_plugin_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    from bench.targets.qemu.space import default_space

    default_space().folder.mkdir(parents=True)
    found = DEVICES["arm64"]()
    assert (found.state, found.about.partition(":")[0]) == ("no plugin", "cannot count yet")
    default_space().counter.touch()
    assert DEVICES["arm64"]().state == "ready"


@pytest.mark.parametrize("words", [["setup"], ["setup", "ssh"], ["build", "arm64"]])
def test_other_words_are_refused(words: list[str]) -> None:
    with pytest.raises(
        BenchError, match=r"is no command; there is bench devices, the list, and bench devices setup arm64$"
    ):
        CliRunner().invoke(build_app(), ["devices", *words], catch_exceptions=False)
