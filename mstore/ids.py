"""Names of stored things: BLAKE3-256 of their raw bytes, apart for each kind.

The kinds are kept apart by BLAKE3's own key-derivation mode (BLAKE3 specification, section 2.3):
bytes that are both a chunk and a manifest have two different ids, so one can never be passed off
as the other.
"""

from enum import IntEnum

from blake3 import blake3

ID_SIZE = 32
"""Bytes in an id."""

Buffer = bytes | bytearray | memoryview
"""Contiguous bytes in memory."""

Id = bytes
"""A 32-byte id; which kind of thing it names is known from where it stands."""


class Kind(IntEnum):
    """What a stored record holds; the number is part of the repository format."""

    CHUNK = 1
    MANIFEST = 2
    SNAPSHOT = 3
    COMMIT = 4

    @property
    def is_metadata(self) -> bool:
        """Whether records of this kind live in metadata packs, apart from weights."""
        return self is not Kind.CHUNK


_CONTEXTS = {kind: f"mstore v1 {kind.name.lower()}" for kind in Kind}
_ROOT_CONTEXT = "mstore v1 root"
_TENSOR_CONTEXT = "mstore v1 tensor"


def identify(kind: Kind, raw: Buffer) -> Id:
    """The id of `raw`, the canonical bytes of one thing of `kind`."""
    return blake3(raw, derive_key_context=_CONTEXTS[kind]).digest()


def identify_root(stored: Buffer) -> Id:
    """The hash by which a root names the root before it, over its bytes as stored."""
    return blake3(stored, derive_key_context=_ROOT_CONTEXT).digest()


def identify_tensor(description: Buffer) -> Id:
    """The id of a tensor's content: its dtype, shape and chunk ids in canonical form."""
    return blake3(description, derive_key_context=_TENSOR_CONTEXT).digest()
