"""The one base class of every error that a user can cause.

The commands print the message of a ``CompressError`` and exit with code 2; any other exception is a defect of ours and
keeps its traceback. A message says what is wrong, where (the layer's, file's or key's name), what was got and what was
expected, and what to do next.
"""


class CompressError(Exception):
    """Something the caller can mend; the message says how."""


class ConfigError(CompressError):
    """A recipe or a command line that cannot be run; the message lists every fault at once."""


class DataError(CompressError):
    """A data set that is missing, empty or unreadable."""


class ModelError(CompressError):
    """A model that cannot be built, traced or loaded."""


class UnknownModelError(ModelError):
    """A name that no model has."""


class ConstantOutputError(ModelError):
    """A network whose output no longer depends on its input; ``layers`` are those without a filter that is left."""

    def __init__(self, message: str, layers: tuple[str, ...] = ()):
        super().__init__(message)
        self.layers = layers


class CheckpointError(CompressError):
    """A run directory, checkpoint or plan that cannot be read."""


class WriteError(CheckpointError):
    """A file that cannot be written, on a full disk for example; what it held before is still there."""


class VerificationError(CompressError):
    """A compact model that does not compute what the original computes; it is never returned."""


def first_line(error: BaseException) -> str:
    """What an exception of somebody else says, in one line; its kind, where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
