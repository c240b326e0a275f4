"""How far a long operation is; whoever wants to know passes one of these."""


class Progress:
    """Told how much there is to do and what has been done; this one ignores it."""

    def begin(self, total: int) -> None:
        """`total` bytes are to be done."""

    def advance(self, done: int) -> None:
        """`done` more bytes are done."""


SILENT = Progress()
"""For those who do not want to know."""
