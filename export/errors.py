"""The one error of this package.

`export` stands alone: it does not know the packages that call it, so its error has no base class of theirs. Callers
turn it into their own kind.
"""


class ExportError(Exception):
    """No file was written; the message says what, where, the figures got and expected, and what to do."""
