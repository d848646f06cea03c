import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from compress.cli import main


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@pytest.fixture
def compress_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Outcome]:
    """Run the command line in this process; whatever is no clean exit is raised, as a traceback would be."""
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # main would set it for good

    def run(*arguments: object) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["compress", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exit_:
            main()
        code = exit_.value.code
        assert isinstance(code, int)
        return Outcome(code, *capsys.readouterr())

    return run
