"""What a user is told of the part of a file that is not understood."""

from collections.abc import Collection
from itertools import islice

from mstore.formats.base import quote

_MAX_TOLD = 2


def note_on(left: Collection[tuple[str, str]], what: str) -> str | None:
    """How many there are of `what` ("{} of its tensors are not listed"), and why; None without any.

    `left` has the name of each and why it is left out, which continues it: "is of type 7".
    """
    if not left:
        return None
    # What has no name is the only one of its file.
    told = ", ".join(
        f"{quote(name) if name else 'it'} {why}" for name, why in islice(left, _MAX_TOLD)
    )
    more = ", …" if len(left) > _MAX_TOLD else ""
    return f"{what.format(len(left))}: {told}{more}"


def opaque_note(left: Collection[tuple[str, str]], count: int, things: str) -> str | None:
    """`note_on` those of `count` things (tensors, arrays) that stay opaque."""
    return note_on(left, f"opaque bytes for {{}} of {count} {things}")
