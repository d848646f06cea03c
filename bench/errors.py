"""The one error of this package; it has no base class of another package's, since `bench` stands alone."""


class BenchError(Exception):
    """Nothing was measured or written; the message says what, where, the figures got and expected, and what to do."""
