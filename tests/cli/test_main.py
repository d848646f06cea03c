import re
import subprocess
import sys
from collections.abc import Callable

import pytest

from compress.cli import COMMANDS


@pytest.mark.parametrize("arguments", [("--help",), ()])
def test_help_lists_every_command_and_ends_with_examples(compress_command: Callable, arguments: tuple[str, ...]):
    outcome = compress_command(*arguments)
    shown = outcome.out + outcome.err
    for name, command in COMMANDS.items():
        assert re.search(rf"^  {name} +{command.summary.split()[0]}", shown, re.MULTILINE)
    assert shown.rstrip().splitlines()[-1].startswith("    bench latency ")


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_each_command_ends_with_commands_to_paste(compress_command: Callable, name: str):
    outcome = compress_command(name, "--help")
    assert outcome.code == 0
    examples = COMMANDS[name].examples
    assert [line.strip() for line in outcome.out.rstrip().splitlines()[-len(examples) :]] == list(examples)


def test_help_does_not_load_torch():
    program = (
        "import sys; from compress.cli import build_app\n"
        "try: build_app(['--help'])(['--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout
    assert done.stdout.splitlines()[-1] == "False"


def test_an_unknown_command_or_option_exits_with_2(compress_command: Callable):
    for arguments in [("trian",), ("train", "--modle", "lenet5")]:
        outcome = compress_command(*arguments)
        assert outcome.code == 2
        assert "No such" in outcome.err
