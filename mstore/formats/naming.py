"""Names of the tensors in one file, which must differ from each other."""

from mstore.errors import LimitExceededError

MAX_NAMES = 32 << 20
"""Most characters of all names of a file together. A few bytes of a file may make long names."""

MAX_COUNT = 500_000
"""Most names of a file, also of one that holds others, each of which has a limit of its own."""


class Names:
    """Makes names unique: a further tensor of one name gets `#2` after it, then `#3`."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}  # the number that a further one of this name gets
        self._length = 0

    def add(self, wanted: str) -> str:
        """`wanted`, with a number after it if that is taken.

        Raises LimitExceededError when there are too many, or all of them together are too long.
        """
        name = wanted
        while name in self._next:
            number = self._next[wanted]
            self._next[wanted] = number + 1
            name = f"{wanted}#{number}"
        if len(self._next) == MAX_COUNT:
            raise LimitExceededError(f"it has more than {MAX_COUNT} tensors")
        self._next[name] = 2
        self._length += len(name)
        if self._length > MAX_NAMES:
            raise LimitExceededError(f"the names of its tensors have over {MAX_NAMES} characters")
        return name
