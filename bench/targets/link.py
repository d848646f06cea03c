"""How a device is reached: the command here, its shell there, the Python that it names."""

import re
from dataclasses import dataclass

from bench.errors import BenchError

# Shells differ in what these mean within quotes (fish: backslash, csh: exclamation mark).
UNQUOTABLE = re.compile(r"['\"\\!]")
PLAIN = re.compile(r"[A-Za-z0-9_./+-]+")


@dataclass(frozen=True, kw_only=True)
class Link:
    """A way to a device.

    Attributes:
        device: As the user wrote it.
        words: The command here that runs one more word, a line for the device's shell, there.
        program: What the user installs here if the command is missing.
        variables: ``NAME=VALUE`` for the device's shell, of plain characters.
        python: The Python there, as the user wrote it.
        by_hand: A command that must work for the user, without a question.
        install: How onnxruntime comes there.
    """

    device: str
    words: tuple[str, ...]
    program: str
    variables: tuple[str, ...] = ()
    python: str
    by_hand: str
    install: str

    def command(self, code: str) -> list[str]:
        """What runs Python code there; the code has neither quotes of shells nor other characters special in them.

        Raises:
            BenchError: The Python's path is none.
        """
        return [*self.words, " ".join([*self.variables, "exec", shell_word(self.python), "-c", f"'{code}'"])]


def shell_word(path: str) -> str:
    """A path as a word of the device's shell, whichever that is; a leading ``~/`` keeps its meaning.

    Raises:
        BenchError: It has characters that shells understand differently, or would be taken for an option.
    """
    if not path or path.startswith("-") or not path.isprintable() or UNQUOTABLE.search(path):
        raise BenchError(
            f"?python={path!r}: expected the path of a Python on the device, without quotes, backslashes, "
            "exclamation marks and control characters"
        )
    home, rest = ("~/", path[2:]) if path.startswith("~/") else ("", path)
    return home + (rest if PLAIN.fullmatch(rest) else f"'{rest}'")
