"""The root log: numbered immutable objects that say which version of everything is current.

Root n+1 is published by creating it only if absent, so there is no lock, and no stale lock. The
newest number wins. Every root names the hash of the one before it, so the log is a chain, and
it is also the history of the repository itself (`reflog`, `undo`).
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace

from mstore.errors import (
    CorruptDataError,
    DurabilityError,
    NoRepositoryError,
    NotFoundError,
    StorageError,
)
from mstore.ids import ID_SIZE, identify_root
from mstore.root import Root, decode, encode_checked
from mstore.storage.base import Storage

KEEP_ROOTS = 500
"""How many roots stay as the history of the repository; older ones are pruned."""

_PRUNE_EVERY = 50
_ATTEMPTS = 8
_STEPS = 4
_PREFIX = "roots/"


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
        if self.numbers() or not self.storage.put(root_key(1), [encode_checked(root)]):
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
        key, stored = root_key(root.number), encode_checked(root)
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
