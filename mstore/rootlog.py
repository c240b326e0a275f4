"""The root log: numbered immutable objects that say which version of everything is current.

Root n+1 is published by creating it only if absent, so there is no lock, and no stale lock. The
newest number wins. Every root names the hash of the one before it, so the log is a chain, and
it is also the history of the repository itself (`reflog`, `undo`).
"""

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import xxhash
import zstandard

from mstore.checks import check_text
from mstore.errors import (
    CorruptDataError,
    DurabilityError,
    InvalidInputError,
    MstoreError,
    NoRepositoryError,
    NotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from mstore.ids import ID_SIZE, Id, identify_root
from mstore.index import IndexRef
from mstore.objects import checked_id, checked_size, pack, typed, unpack
from mstore.storage.base import Storage

FORMAT_VERSION = 1
"""The version of the repository format this package writes, and the newest it reads."""

KEEP_ROOTS = 500
"""How many roots stay as the history of the repository; older ones are pruned."""

_PRUNE_EVERY = 50
_ATTEMPTS = 8
_STEPS = 4
_MAGIC = b"MSTORERT"
_PREFIX = "roots/"
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
class Root:
    """The state of a repository after one operation.

    `indexes` lists the live indexes of chunks, `metadata_indexes` those of metadata; `condemned`
    and `doomed` are keys of stored objects on their way out (see `ops.gc`). `forgotten` are commits
    that others name as parents but that are not kept any more. `nonce` tells two writers'
    attempts apart; `time` is microseconds since 1970-01-01 UTC. `restores` is the number
    of the root whose refs an undo brought back, else None.
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
    condemned: frozenset[str] = frozenset()
    doomed: frozenset[str] = frozenset()
    forgotten: frozenset[Id] = frozenset()
    restores: int | None = None

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


class RootLog:
    """The log of one repository in a storage."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._known: Root | None = None

    def create(self, author: str) -> Root:
        """Publish the first root; raises StorageError if a repository is already here."""
        root = Root(
            number=1,
            previous=bytes(ID_SIZE),
            nonce=os.urandom(16),
            time=now(),
            author=author,
            action="init",
            repository=os.urandom(16).hex(),
            models={},
        )
        where = self.storage.location
        if not self.numbers() and any(
            next(self.storage.list(folder), None) for folder in ("packs/", "indexes/")
        ):
            raise StorageError(
                f"{where} holds the packs of a repository whose root log is gone",
                hint="bring its roots/ back from a backup, or make a repository elsewhere",
            )
        if self.numbers() or not self.storage.put(root_key(1), [_checked(root)]):
            raise StorageError(f"there is already a repository in {where}")
        return root

    def numbers(self) -> list[int]:
        """The numbers of the roots there are, ascending."""
        return [
            int(info.key.removeprefix(_PREFIX))
            for info in self.storage.list(_PREFIX)
            if info.key.removeprefix(_PREFIX).isdecimal()
        ]

    def newest(self) -> Root:
        """The current root; raises NoRepositoryError when there is none."""
        for _attempt in range(_ATTEMPTS):
            try:
                root = self._following(self._known) if self._known else self._listed()
            except NotFoundError:
                # Pruned since it was listed or last seen: then there is a newer one.
                self._known = None
                continue
            if root is None:
                break
            self._known = root
            return root
        raise NoRepositoryError(
            f"no mstore repository in {self.storage.location}", hint="make one with: mstore init"
        )

    def _listed(self) -> Root | None:
        numbers = self.numbers()
        return self.read(max(numbers)) if numbers else None

    def _following(self, known: Root) -> Root | None:
        """The newest root, seen from one that was the newest before; quicker than listing all.

        Raises NotFoundError when that has been pruned. While it is still there, so is every later
        one, because roots are pruned in ascending order; and none of them is a writer's that slept
        (see `_is_linked`).
        """
        for number in range(known.number, known.number + _STEPS):
            if not self.storage.head(root_key(number + 1)):
                root = self.read(number)
                still = root if number == known.number else self.read(known.number)
                if still.nonce != known.nonce:
                    raise NotFoundError(f"root {known.number} was pruned")
                return root
        return self._listed()

    def read(self, number: int) -> Root:
        """Root `number`; raises NotFoundError (pruned or never there) or CorruptDataError."""
        return decode(self.storage.get(root_key(number)), number)

    def history(self) -> Iterator[Root]:
        """The roots that are kept, newest first, each named by the one yielded before it."""
        follower: Root | None = None
        for number in reversed(self.numbers()):
            try:
                stored = self.storage.get(root_key(number))
            except NotFoundError:
                return
            root = decode(stored, number)
            # What a writer left that slept across a prune (see `_is_linked`) is no history.
            if follower is not None and not _follows(follower, number, stored):
                return
            yield (follower := root)

    def publish(self, base: Root, changed: Root, *, action: str, author: str) -> Root | None:
        """Publish `changed` as the successor of `base`; None when somebody else was first.

        The new root is durable when this returns it. Raises DurabilityError when it may not be.
        """
        try:
            stored = self.storage.get(root_key(base.number))
        except NotFoundError:
            return None
        if decode(stored, base.number).nonce != base.nonce:
            # We slept across a prune, and so did another: this number was used again.
            return None
        root = replace(
            changed,
            number=base.number + 1,
            previous=identify_root(stored),
            nonce=os.urandom(16),
            time=now(),
            author=author,
            action=action,
        )
        key, stored = root_key(root.number), _checked(root)
        try:
            created = self.storage.put(key, [stored])
        except DurabilityError:
            raise
        except StorageError:
            # A lost response is not a lost write: asking again tells whether it is there.
            created = self.storage.put(key, [stored])
        if not created and not self._is_ours(root):
            return None
        if not self._is_linked(root):
            return None
        if root.number % _PRUNE_EVERY == 0:
            self._prune(root.number - KEEP_ROOTS)
        return root

    def _is_ours(self, root: Root) -> bool:
        try:
            return self.read(root.number).nonce == root.nonce
        except NotFoundError:
            return False

    def _is_linked(self, root: Root) -> bool:
        """Whether `root` stands in the chain.

        A writer that slept while the log moved on and was pruned can create a number that was
        used before. Roots are pruned in ascending order, so then the root before it is gone too,
        or is such a late one itself. If the one that `root` names is gone, `root` counts only if
        it is the newest or its successor names it.
        """
        with suppress(NotFoundError):
            before = self.storage.get(root_key(root.number - 1))
            if _follows(root, root.number - 1, before):
                return True
        if max(self.numbers()) == root.number:
            return True
        with suppress(NotFoundError):
            stored = self.storage.get(root_key(root.number))
            return _follows(self.read(root.number + 1), root.number, stored)
        return False

    def _prune(self, last: int) -> None:
        for number in self.numbers():
            if number > last:
                return
            self.storage.delete(root_key(number))


def _follows(root: Root, number: int, stored: bytes) -> bool:
    """Whether `root` is the successor of the root `number` whose bytes are `stored`."""
    return root.number == number + 1 and root.previous == identify_root(stored)


def update(
    log: RootLog, change: Callable[[Root], Root | None], *, action: str, author: str
) -> Root:
    """Publish what `change` makes of the newest root, again from the top after a lost race.

    `change` raises ConflictError when what it relied on has moved; it returns None when there is
    nothing to do, and then the newest root is returned unchanged.
    """
    while True:
        base = log.newest()
        try:
            changed = change(replace(base, restores=None))
        except (NotFoundError, CorruptDataError):
            # Something that this root names may be gone because there is a newer one by now.
            if log.newest().number == base.number:
                raise
            continue
        if changed is None:
            return base
        if (published := log.publish(base, changed, action=action, author=author)) is not None:
            return published


def now() -> int:
    """Microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def root_key(number: int) -> str:
    """The storage key of root `number`."""
    return f"{_PREFIX}{number:020}"


def encode(root: Root) -> bytes:
    """The bytes of a root as stored: magic, version, checksum, compressed msgpack."""
    body = pack(
        {
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


def _checked(root: Root) -> bytes:
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
        condemned=frozenset(typed(key, str) for key in typed(fields["condemned"], list)),
        doomed=frozenset(typed(key, str) for key in typed(fields["doomed"], list)),
        forgotten=frozenset(checked_id(commit) for commit in typed(fields["forgotten"], list)),
        restores=None if restores is None else checked_size(restores),
    )


def _names(stored: object) -> dict[str, Id]:
    return {name: checked_id(commit) for name, commit in typed(stored, dict).items()}


def _index(row: Sequence[object]) -> IndexRef:
    name, count, size = row
    return IndexRef(typed(name, str), checked_size(count), checked_size(size))


def _encode_index(ref: IndexRef) -> list[object]:
    return [ref.name, ref.count, ref.size]


def _with(names: Mapping[str, Id], name: str, commit: Id | None) -> dict[str, Id]:
    changed = {other: value for other, value in names.items() if other != name}
    if commit is not None:
        changed[name] = commit
    return changed
