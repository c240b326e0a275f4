"""A root: what a repository holds after one operation, and its form in storage.

Byte by byte: `docs/format.md`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash
import zstandard

from mstore.canonical import checked_id, checked_size, pack, typed, unpack
from mstore.checks import check_text
from mstore.errors import (
    CorruptDataError,
    InvalidInputError,
    MstoreError,
    UnsupportedVersionError,
)
from mstore.ids import Id
from mstore.index import IndexRef
from mstore.settings import Settings, SettingValue

FORMAT_VERSION = 1
"""The version of the repository format this package writes, and the newest it reads."""

_MAGIC = b"MSTORERT"
_MAX_ROOT_SIZE = 1 << 28


@dataclass(frozen=True, slots=True)
class Refs:
    """The branches and tags of one model: name -> commit id."""

    branches: Mapping[str, Id] = field(default_factory=dict)
    tags: Mapping[str, Id] = field(default_factory=dict)

    def with_branch(self, name: str, commit: Id | None) -> "Refs":
        """These refs with branch `name` at `commit`, or without it when None."""
        return replace(self, branches=_with(self.branches, name, commit))

    def with_tag(self, name: str, commit: Id | None) -> "Refs":
        """These refs with tag `name` at `commit`, or without it when None."""
        return replace(self, tags=_with(self.tags, name, commit))


@dataclass(frozen=True, slots=True)
class SketchRef:
    """An object of sketches that the root lists: its name, how many it has, its size in bytes."""

    name: str
    count: int
    size: int

    @property
    def key(self) -> str:
        """The storage key."""
        return f"sketches/{self.name}"


@dataclass(frozen=True, slots=True)
class Root:
    """The state of a repository after one operation.

    `indexes` lists the live indexes of chunks, `metadata_indexes` those of metadata; `condemned`
    and `doomed` are keys of stored objects on their way out (see `ops.gc`), `sketches` lists what
    similar tensors are found by (see `sketches`). `forgotten` are commits
    that others name as parents but that are not kept any more. `nonce` tells two writers'
    attempts apart; `time` is microseconds since 1970-01-01 UTC. `restores` is the number
    of the root whose refs an undo brought back, else None. `settings` are those that were set,
    also such as only a later mstore knows; see `settings.Settings`.
    """

    number: int
    previous: Id
    nonce: bytes
    time: int
    author: str
    action: str
    repository: str
    models: Mapping[str, Refs]
    indexes: tuple[IndexRef, ...] = ()
    metadata_indexes: tuple[IndexRef, ...] = ()
    sketches: tuple[SketchRef, ...] = ()
    condemned: frozenset[str] = frozenset()
    doomed: frozenset[str] = frozenset()
    forgotten: frozenset[Id] = frozenset()
    restores: int | None = None
    settings: Mapping[str, SettingValue] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Root {self.number}: {self.action}, by {self.author}>"

    def refs(self, model: str) -> Refs:
        """The refs of `model`, empty when there is no such model."""
        return self.models.get(model, Refs())

    def with_refs(self, model: str, refs: Refs) -> "Root":
        """This root with other refs for `model`; a model with none left is dropped."""
        models = {name: kept for name, kept in self.models.items() if name != model}
        if refs.branches or refs.tags:
            models[model] = refs
        return replace(self, models=models)

    def tips(self) -> set[Id]:
        """Every commit that a branch or tag of any model names."""
        return {
            commit
            for refs in self.models.values()
            for names in (refs.branches, refs.tags)
            for commit in names.values()
        }

    def all_indexes(self) -> tuple[IndexRef, ...]:
        """The live indexes of both kinds."""
        return self.indexes + self.metadata_indexes


def encode(root: Root) -> bytes:
    """The bytes of a root as stored: magic, version, checksum, compressed msgpack."""
    # Left out when there are none, as before there were any.
    sketches = {"sketches": [_encode_index(ref) for ref in root.sketches]} if root.sketches else {}
    settings = {"settings": dict(root.settings)} if root.settings else {}
    body = pack(
        {
            **sketches,
            **settings,
            "action": root.action,
            "author": check_text("the author", root.author),
            "condemned": sorted(root.condemned),
            "doomed": sorted(root.doomed),
            "forgotten": sorted(root.forgotten),
            "indexes": [_encode_index(ref) for ref in root.indexes],
            "metadata_indexes": [_encode_index(ref) for ref in root.metadata_indexes],
            "models": {
                name: {"branches": dict(refs.branches), "tags": dict(refs.tags)}
                for name, refs in root.models.items()
            },
            "nonce": root.nonce,
            "number": root.number,
            "previous": root.previous,
            "repository": root.repository,
            "restores": root.restores,
            "time": root.time,
        }
    )
    payload = zstandard.ZstdCompressor(level=3).compress(body)
    head = _MAGIC + FORMAT_VERSION.to_bytes(4, "little")
    checksum = xxhash.xxh3_64_intdigest(head + payload)
    return head + checksum.to_bytes(8, "little") + payload


def encode_checked(root: Root) -> bytes:
    """The bytes of a root that are known to decode: a bad one would lock everybody out."""
    stored = encode(root)
    try:
        decode(stored, root.number)
    except CorruptDataError as error:
        raise InvalidInputError(f"this cannot be recorded: {error.message}") from error
    return stored


def decode(stored: bytes, number: int) -> Root:
    """The root in `stored`; raises CorruptDataError or UnsupportedVersionError."""
    where = f"root {number}"
    if len(stored) < 20 or not stored.startswith(_MAGIC):
        raise CorruptDataError(f"{where} does not start as a root does")
    head, checksum, payload = stored[:12], stored[12:20], stored[20:]
    # The version is looked at first: a newer format may be checked in another way.
    if (version := int.from_bytes(head[8:], "little")) > FORMAT_VERSION:
        raise UnsupportedVersionError(
            f"the repository is of format {version}; this mstore reads up to {FORMAT_VERSION}",
            hint="upgrade mstore",
        )
    if xxhash.xxh3_64_intdigest(head + payload) != int.from_bytes(checksum, "little"):
        raise CorruptDataError(f"{where} is damaged")
    try:
        size = zstandard.get_frame_parameters(payload).content_size
        if size > _MAX_ROOT_SIZE:
            raise ValueError("it claims to be too large")
        root = _root_from_map(unpack(zstandard.ZstdDecompressor().decompress(payload)))
    except (MstoreError, KeyError, TypeError, ValueError, zstandard.ZstdError) as error:
        raise CorruptDataError(f"{where} is malformed: {error}") from error
    if root.number != number:
        raise CorruptDataError(f"{where} says that it is root {root.number}")
    return root


def _root_from_map(fields: dict[str, Any]) -> Root:
    restores = fields["restores"]
    return Root(
        number=checked_size(fields["number"]),
        previous=checked_id(fields["previous"]),
        nonce=typed(fields["nonce"], bytes),
        time=typed(fields["time"], int),
        author=typed(fields["author"], str),
        action=typed(fields["action"], str),
        repository=typed(fields["repository"], str),
        models={
            name: Refs(_names(refs["branches"]), _names(refs["tags"]))
            for name, refs in typed(fields["models"], dict).items()
        },
        indexes=tuple(_index(row) for row in typed(fields["indexes"], list)),
        metadata_indexes=tuple(_index(row) for row in typed(fields["metadata_indexes"], list)),
        sketches=tuple(_sketches(row) for row in typed(fields.get("sketches", []), list)),
        condemned=frozenset(typed(key, str) for key in typed(fields["condemned"], list)),
        doomed=frozenset(typed(key, str) for key in typed(fields["doomed"], list)),
        forgotten=frozenset(checked_id(commit) for commit in typed(fields["forgotten"], list)),
        restores=None if restores is None else checked_size(restores),
        settings=_settings(fields.get("settings", {})),
    )


def _settings(stored: object) -> dict[str, SettingValue]:
    settings = typed(stored, dict)
    if not all(type(value) in (bool, int, str) for value in settings.values()):
        raise TypeError("a setting is no text, number or truth value")
    Settings.of(settings)
    return settings


def _names(stored: object) -> dict[str, Id]:
    return {name: checked_id(commit) for name, commit in typed(stored, dict).items()}


def _index(row: Sequence[object]) -> IndexRef:
    name, count, size = row
    return IndexRef(typed(name, str), checked_size(count), checked_size(size))


def _sketches(row: Sequence[object]) -> SketchRef:
    name, count, size = row
    return SketchRef(typed(name, str), checked_size(count), checked_size(size))


def _encode_index(ref: IndexRef | SketchRef) -> list[object]:
    return [ref.name, ref.count, ref.size]


def _with(names: Mapping[str, Id], name: str, commit: Id | None) -> dict[str, Id]:
    changed = {other: value for other, value in names.items() if other != name}
    if commit is not None:
        changed[name] = commit
    return changed
