"""The root log: one winner per number, conflicts told, pruning that loses nobody's work."""

from dataclasses import replace
from itertools import pairwise

import pytest
import xxhash
import zstandard

from mstore import root as root_module
from mstore import rootlog
from mstore.canonical import pack, unpack
from mstore.errors import (
    ConflictError,
    CorruptDataError,
    DurabilityError,
    MstoreError,
    NoRepositoryError,
    NotFoundError,
    StorageError,
    UnsupportedVersionError,
)
from mstore.ids import identify_root
from mstore.index import IndexRef
from mstore.root import Refs, Root, decode, encode
from mstore.rootlog import RootLog, root_key, update
from mstore.storage.memory import MemoryStorage

COMMIT = bytes(range(32))


@pytest.fixture
def log() -> RootLog:
    made = RootLog(MemoryStorage())
    made.create("Ada")
    return made


def set_branch(root: Root, name: str, commit: bytes = COMMIT) -> Root:
    return root.with_refs("default", root.refs("default").with_branch(name, commit))


def publish(log: RootLog, name: str) -> Root:
    return update(log, lambda root: set_branch(root, name), action=f"branch {name}", author="Ada")


def test_a_root_round_trip() -> None:
    root = Root(
        number=7,
        previous=b"p" * 32,
        nonce=b"n" * 16,
        time=123,
        author="Ada",
        action="commit",
        repository="r",
        models={"default": Refs({"main": COMMIT}, {"v1": COMMIT}), "bert": Refs({"x": COMMIT})},
        indexes=(IndexRef("a", 1, 2),),
        metadata_indexes=(IndexRef("b", 3, 4),),
        condemned=frozenset({"packs/d1"}),
        doomed=frozenset({"packs/d2", "indexes/c"}),
        forgotten=frozenset({COMMIT}),
        restores=3,
    )
    assert decode(encode(root), 7) == root


@pytest.mark.parametrize(
    "value",
    [
        *(None, -1, 1 << 63, 1.5, True, "x", b"x", [1], {"a": 1}, [[["x"], 1, 1]], [["x", 1]]),
        *([["x", 1, -1]], {"a": {"branches": {"m": b"x"}, "tags": {}}}, {"a": {"branches": [1]}}),
    ],
    ids=repr,
)
def test_a_field_of_another_type_is_malformed(log: RootLog, value: object) -> None:
    """Whatever stands there under a right checksum, a number of bytes to allocate included."""
    stored = log.storage.get(root_key(1))
    fields = unpack(zstandard.ZstdDecompressor().decompress(stored[20:]))
    for key, kept in fields.items():
        if value is kept or (type(value) is type(kept) and type(value) in (str, bytes, int)):
            continue  # such a value is as good as another
        payload = zstandard.ZstdCompressor().compress(pack({**fields, key: value}))
        checksum = xxhash.xxh3_64_intdigest(stored[:12] + payload)
        with pytest.raises(CorruptDataError, match="malformed"):
            decode(stored[:12] + checksum.to_bytes(8, "little") + payload, 1)


def with_settings(log: RootLog, settings: object) -> bytes:
    """The first root with these settings in it, under a right checksum."""
    stored = log.storage.get(root_key(1))
    fields = unpack(zstandard.ZstdDecompressor().decompress(stored[20:]))
    payload = zstandard.ZstdCompressor().compress(pack({**fields, "settings": settings}))
    checksum = xxhash.xxh3_64_intdigest(stored[:12] + payload)
    return stored[:12] + checksum.to_bytes(8, "little") + payload


def test_settings_are_kept_also_such_as_only_a_later_version_knows(log: RootLog) -> None:
    settings = {"refuse-unsafe": True, "later": "x", "other": 3}
    root = decode(with_settings(log, settings), 1)
    assert root.settings == settings
    assert decode(encode(root), 1).settings == settings


def test_a_root_without_settings_is_written_as_before_there_were_any(log: RootLog) -> None:
    stored = log.storage.get(root_key(1))
    assert b"settings" not in zstandard.ZstdDecompressor().decompress(stored[20:])
    assert decode(stored, 1).settings == {}


@pytest.mark.parametrize(
    "settings",
    [
        *(None, 1, "x", [], [["refuse-unsafe", True]], {"refuse-unsafe": 1}),
        *({"refuse-unsafe": "true"}, {"refuse-unsafe": None}, {"later": None}, {"later": [1]}),
    ],
    ids=repr,
)
def test_settings_of_another_type_are_malformed(log: RootLog, settings: object) -> None:
    with pytest.raises(CorruptDataError, match="malformed"):
        decode(with_settings(log, settings), 1)


def test_there_is_no_repository() -> None:
    with pytest.raises(NoRepositoryError, match="mstore init"):
        RootLog(MemoryStorage()).newest()


def test_a_repository_is_made_once(log: RootLog) -> None:
    with pytest.raises(StorageError, match="already"):
        log.create("Bob")


def test_each_root_names_the_one_before(log: RootLog) -> None:
    for name in "abc":
        publish(log, name)
    roots = list(log.history())
    assert [root.number for root in roots] == [4, 3, 2, 1]
    for newer, older in pairwise(roots):
        assert newer.previous == identify_root(log.storage.get(root_key(older.number)))


def test_the_second_of_two_writers_loses(log: RootLog) -> None:
    base = log.newest()
    first = log.publish(base, set_branch(base, "one"), action="one", author="Ada")
    assert first is not None
    assert log.publish(base, set_branch(base, "two"), action="two", author="Bob") is None
    assert set(log.newest().refs("default").branches) == {"one"}


def test_update_applies_again_after_a_lost_race(log: RootLog) -> None:
    seen = []

    def change(root: Root) -> Root:
        if not seen:
            publish(log, "other")
        seen.append(root.number)
        return set_branch(root, "mine")

    update(log, change, action="branch mine", author="Ada")
    assert seen == [1, 2]
    assert set(log.newest().refs("default").branches) == {"other", "mine"}


def test_what_change_raises_is_passed_on(log: RootLog) -> None:
    def change(root: Root) -> Root:
        raise ConflictError("moved")

    with pytest.raises(ConflictError):
        update(log, change, action="x", author="Ada")
    assert log.newest().number == 1


def test_nothing_to_do_publishes_nothing(log: RootLog) -> None:
    assert update(log, lambda _: None, action="x", author="Ada").number == 1
    assert log.numbers() == [1]


def test_something_gone_is_looked_for_in_a_newer_root(log: RootLog) -> None:
    tries = []

    def change(root: Root) -> Root:
        tries.append(root.number)
        if len(tries) == 1:
            publish(log, "other")
            raise NotFoundError("an index is gone")
        return set_branch(root, "mine")

    update(log, change, action="x", author="Ada")
    assert tries == [1, 2]


def test_something_gone_for_good_is_told(log: RootLog) -> None:
    def change(root: Root) -> Root:
        raise NotFoundError("an index is gone")

    with pytest.raises(NotFoundError):
        update(log, change, action="x", author="Ada")


class LossyStorage(MemoryStorage):
    """Creates an object, but says that it failed."""

    error: type[StorageError] | None = None

    def put(self, key: str, parts: object) -> bool:  # type: ignore[override]
        created = super().put(key, parts)  # type: ignore[arg-type]
        error, self.error = self.error, None
        if error is not None:
            raise error("no answer")
        return created


def test_a_lost_response_is_not_a_lost_write() -> None:
    storage = LossyStorage()
    log = RootLog(storage)
    base = log.create("Ada")
    storage.error = StorageError
    published = log.publish(base, set_branch(base, "main"), action="x", author="Ada")
    assert published is not None
    assert log.newest() == published


def test_what_may_not_be_durable_is_not_called_published() -> None:
    storage = LossyStorage()
    log = RootLog(storage)
    base = log.create("Ada")
    storage.error = DurabilityError
    with pytest.raises(DurabilityError):
        log.publish(base, set_branch(base, "main"), action="x", author="Ada")


def test_old_roots_are_pruned_and_history_ends_there(
    log: RootLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rootlog, "KEEP_ROOTS", 5)
    monkeypatch.setattr(rootlog, "_PRUNE_EVERY", 2)
    for number in range(20):
        publish(log, f"b{number}")
    assert log.numbers() == list(range(16, 22))
    assert [root.number for root in log.history()] == list(range(21, 15, -1))
    assert len(log.newest().refs("default").branches) == 20


@pytest.mark.parametrize("behind", [1, 2, 10])
def test_a_writer_that_slept_across_a_prune_starts_over(
    log: RootLog, monkeypatch: pytest.MonkeyPatch, behind: int
) -> None:
    monkeypatch.setattr(rootlog, "KEEP_ROOTS", 5)
    monkeypatch.setattr(rootlog, "_PRUNE_EVERY", 1)
    stale = log.newest()
    for number in range(20):
        if log.newest().number == 16 - behind:
            stale = log.newest()
        publish(log, f"b{number}")
    assert stale.number + 1 not in log.numbers()
    assert log.publish(stale, set_branch(stale, "mine"), action="x", author="Bob") is None
    assert log.newest().number == 21
    assert "mine" not in log.newest().refs("default").branches


class PruningStorage(MemoryStorage):
    """Lets a callback run just after a root was created."""

    after_put = staticmethod(lambda key: None)

    def put(self, key: str, parts: object) -> bool:  # type: ignore[override]
        created = super().put(key, parts)  # type: ignore[arg-type]
        self.after_put(key)
        return created


def test_a_number_used_again_beside_the_kept_roots_is_told_by_its_successor() -> None:
    """The writer read root 4 and sleeps; 1 to 5 are pruned; its new root 5 stands before 6."""
    storage = PruningStorage()
    log = RootLog(storage)
    log.create("Ada")
    for name in "abc":
        publish(log, name)
    stale = log.newest()
    for name in "def":
        publish(log, name)
    base_bytes = storage.get(root_key(4))
    for number in range(1, 6):
        storage.delete(root_key(number))
    # The base was still there when the writer looked for it, and is pruned before it checks.
    MemoryStorage.put(storage, root_key(4), [base_bytes])
    storage.after_put = lambda key: storage.delete(root_key(4))  # type: ignore[method-assign]
    assert log.publish(stale, set_branch(stale, "mine"), action="x", author="Bob") is None


def test_pruned_just_after_publishing_still_counts() -> None:
    storage = PruningStorage()
    log = RootLog(storage)
    base = log.create("Ada")
    storage.after_put = lambda key: storage.delete(root_key(1))  # type: ignore[method-assign]
    published = log.publish(base, set_branch(base, "mine"), action="x", author="Ada")
    assert published is not None


def test_every_damaged_byte_of_a_root_is_found(log: RootLog) -> None:
    stored = log.storage.get(root_key(1))
    for position in range(len(stored)):
        for change in (1, 0x80, 0xFF):
            damaged = bytearray(stored)
            damaged[position] ^= change
            with pytest.raises(MstoreError):
                decode(bytes(damaged), 1)
    for length in range(len(stored)):
        with pytest.raises(CorruptDataError):
            decode(stored[:length], 1)
    with pytest.raises(CorruptDataError):
        decode(stored + b"x", 1)
    with pytest.raises(CorruptDataError, match="says that it is"):
        decode(stored, 2)


def test_a_newer_format_is_named(log: RootLog) -> None:
    stored = bytearray(log.storage.get(root_key(1)))
    stored[8] = root_module.FORMAT_VERSION + 1
    with pytest.raises(UnsupportedVersionError, match="upgrade"):
        decode(bytes(stored), 1)


def test_a_root_that_claims_to_be_huge() -> None:
    import xxhash

    frame = zstandard.ZstdCompressor().compress(bytes(root_module._MAX_ROOT_SIZE + 1))
    head = b"MSTORERT" + (1).to_bytes(4, "little")
    check = xxhash.xxh3_64_intdigest(head + frame).to_bytes(8, "little")
    with pytest.raises(CorruptDataError, match="too large"):
        decode(head + check + frame, 1)


def test_a_model_without_refs_is_dropped(log: RootLog) -> None:
    root = set_branch(log.newest(), "main")
    assert set(root.models) == {"default"}
    assert root.tips() == {COMMIT}
    emptied = root.with_refs("default", root.refs("default").with_branch("main", None))
    assert emptied.models == {}
    assert replace(root, models={}).tips() == set()
