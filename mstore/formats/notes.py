"""What a user is told of the part of a file that is not understood."""

from collections.abc import Collection
from itertools import islice

from mstore.formats.base import quote

_MAX_TOLD = 2


def opaque_note(left: Collection[tuple[str, str]], count: int, things: str) -> str | None:
    """The note on those of `count` things (tensors, arrays) that stay opaque; None without any.

    `left` has the name of each and why it is left out, which continues it: "is of type 7".
    """
    if not left:
        return None
    told = ", ".join(f"{quote(name)} {why}" for name, why in islice(left, _MAX_TOLD))
    more = ", …" if len(left) > _MAX_TOLD else ""
    return f"opaque bytes for {len(left)} of {count} {things}: {told}{more}"
