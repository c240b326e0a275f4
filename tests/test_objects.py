"""Metadata objects: round trips, canonical form, refusal of what is malformed."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.checks import check_metadata, check_path
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError, InvalidInputError
from mstore.layout import Tensor
from mstore.objects import (
    Commit,
    FileEntry,
    Manifest,
    SegmentChunks,
    Snapshot,
    encode_object,
    pack,
    unpack,
)

identifiers = st.binary(min_size=32, max_size=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
file_names = st.text(min_size=1, max_size=10).filter(
    lambda name: (
        not set(name) & set("/\0")
        and name not in (".", "..", ".mstore")
        and all(not 0xD800 <= ord(c) < 0xDC80 and not 0xDCFF < ord(c) <= 0xDFFF for c in name)
    )
)


@st.composite
def segments(draw: st.DrawFn) -> SegmentChunks:
    if draw(st.booleans()):
        lengths = draw(st.lists(st.integers(1, 2**30), max_size=4))
        ids = b"".join(draw(identifiers) for _ in lengths)
        return SegmentChunks(sum(lengths), ids, lengths=tuple(lengths))
    dtype = draw(st.sampled_from([one for one in BY_NAME.values() if one.bits >= 8]))
    tensor = Tensor(
        draw(texts),
        dtype,
        tuple(draw(st.lists(st.integers(0, 40), max_size=3))),
        draw(st.sampled_from(["C", "F"])),
    )
    piece = dtype.itemsize * draw(st.integers(1, 1000))
    ids = b"".join(draw(identifiers) for _ in range(-(-tensor.nbytes // piece)))
    return SegmentChunks(tensor.nbytes, ids, tensor, piece)


files = st.lists(
    segments(), max_size=4, unique_by=lambda part: part.tensor.name if part.tensor else part
)


@given(files, texts)
def test_manifest_round_trip(parts: list[SegmentChunks], name: str) -> None:
    manifest = Manifest(name, sum(part.length for part in parts), tuple(parts))
    again = Manifest.decode(manifest.encode())
    assert again == manifest
    assert sum(length for _, length in again.chunks()) == manifest.size
    assert b"".join(identifier for identifier, _ in again.chunks()) == again.chunk_ids()


@given(st.dictionaries(file_names, st.tuples(identifiers, st.integers(0, 2**50), st.booleans())))
def test_snapshot_round_trip_and_one_form(files: dict[str, tuple[bytes, int, bool]]) -> None:
    entries = {path: FileEntry(*fields) for path, fields in files.items()}
    snapshot = Snapshot(entries)
    assert Snapshot.decode(snapshot.encode()) == snapshot
    assert Snapshot(dict(reversed(entries.items()))).encode() == snapshot.encode()


@given(
    identifiers,
    st.lists(identifiers, max_size=2),
    texts,
    texts,
    st.dictionaries(texts.filter(bool), json_values),
)
def test_commit_round_trip(
    snapshot: bytes, parents: list[bytes], author: str, message: str, metadata: dict[str, object]
) -> None:
    commit = Commit(snapshot, tuple(parents), author, 5, -90, message, metadata)  # type: ignore[arg-type]
    assert Commit.decode(commit.encode()) == commit
    assert encode_object(commit)[2] == commit.encode()


@pytest.mark.parametrize("kind", [Manifest, Snapshot, Commit])
@given(st.binary(max_size=60) | json_values.map(pack))
def test_decoding_anything_else_is_refused(kind: type[Manifest], raw: bytes) -> None:
    with pytest.raises(CorruptDataError):
        kind.decode(raw)


@given(segments(), st.data())
def test_a_changed_manifest_is_refused_or_read_as_another(
    part: SegmentChunks, data: st.DataObject
) -> None:
    """Nothing but our own error comes out; that the bytes are others, their id tells."""
    raw = bytearray(Manifest("f", part.length, (part,)).encode())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with contextlib.suppress(CorruptDataError):
        assert isinstance(Manifest.decode(bytes(raw)), Manifest)


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a/", "../a", "a/../b", "a//b", ".", "a/./b", "a\0b", ".mstore/x", "x" * 5000],
)
def test_paths_that_could_leave_the_directory(path: str) -> None:
    with pytest.raises(InvalidInputError):
        check_path(path)
    with pytest.raises(CorruptDataError):
        Snapshot.decode(pack({"files": [[path, bytes(32), 0, False]]}))


def test_a_path_listed_twice_is_refused() -> None:
    row = ["a", bytes(32), 0, False]
    with pytest.raises(CorruptDataError):
        Snapshot.decode(pack({"files": [row, row]}))


@pytest.mark.parametrize(
    "value",
    [{1: 2}, {"a": {1: 2}}, {"a": object()}, {"a": 2**64}, {"": 1}, {"a": "\ud800"}, {"a": (1,)}],
)
def test_metadata_that_cannot_be_recorded(value: dict[str, object]) -> None:
    with pytest.raises(InvalidInputError):
        check_metadata(value)  # type: ignore[arg-type]


def test_metadata_nested_too_deeply() -> None:
    value: object = 1
    for _ in range(40):
        value = [value]
    with pytest.raises(InvalidInputError, match="deeply"):
        check_metadata({"a": value})  # type: ignore[dict-item]


def test_file_names_that_are_not_utf8() -> None:
    snapshot = Snapshot({"caf\udce9": FileEntry(bytes(32), 1)})
    assert Snapshot.decode(snapshot.encode()) == snapshot
    assert b"caf\xe9" in snapshot.encode()


@given(json_values)
def test_pack_is_canonical(value: object) -> None:
    assert pack(unpack(pack(value))) == pack(value)


def test_tensor_ids_tell_contents_apart() -> None:
    f32, i32 = BY_NAME["f32"], BY_NAME["i32"]
    made = [
        SegmentChunks(8, b"a" * 32, Tensor("x", f32, (2,)), 8),
        SegmentChunks(8, b"b" * 32, Tensor("x", f32, (2,)), 8),
        SegmentChunks(8, b"a" * 32, Tensor("x", i32, (2,)), 8),
        SegmentChunks(8, b"a" * 32, Tensor("x", f32, (1, 2)), 8),
        SegmentChunks(8, b"a" * 32, Tensor("x", f32, (1, 2), "F"), 8),
    ]
    assert len({one.tensor_id for one in made}) == 5
    assert SegmentChunks(8, b"a" * 32, Tensor("y", f32, (2,)), 8).tensor_id == made[0].tensor_id
    assert SegmentChunks(8, b"a" * 32, lengths=(8,)).tensor_id is None


def test_shapes_and_times_out_of_range_are_refused() -> None:
    def manifest(**changes: object) -> bytes:
        segment = {"dtype": "f32", "ids": b"", "name": "x", "piece": 4, "shape": [0]} | changes
        return pack({"format": "f", "segments": [segment], "size": 0})

    assert Manifest.decode(manifest()).size == 0
    for changes in (
        {"shape": [0, 2**62]}, {"shape": [0] * 65}, {"piece": 0}, {"piece": 1 << 40},
        {"shape": [2**61], "ids": bytes(32), "piece": 2**63 - 1}, {"shape": [-1]},
    ):  # fmt: skip
        with pytest.raises(CorruptDataError):
            Manifest.decode(manifest(**changes))
    for time, zone in ((2**62, 0), (-1, 0), (0, 10**6), (0, -1441)):
        with pytest.raises(InvalidInputError):
            encode_object(Commit(bytes(32), (), "a", time, zone, "", {}))


@pytest.mark.parametrize("length", [0, 1 << 32, -1, 1.0, True])
def test_chunks_of_a_length_that_no_record_has_are_refused(length: object) -> None:
    segment = {"ids": bytes(32), "lengths": [length]}
    with pytest.raises(CorruptDataError):
        Manifest.decode(pack({"format": "x", "segments": [segment], "size": length}))


def test_tensors_called_the_same_are_refused() -> None:
    tensor = {"dtype": "u8", "ids": bytes(32), "name": "w", "piece": 4, "shape": [4]}
    view = {"dtype": "u8", "name": "w", "offset": 0, "shape": [2], "strides": [1]}
    one = {"format": "x", "segments": [tensor], "size": 4}
    two = {"format": "x", "segments": [tensor, tensor], "size": 8}
    assert Manifest.decode(pack(one)).size == 4
    assert Manifest.decode(pack(one | {"views": [view | {"name": "v"}]})).views
    for fields in (two, one | {"views": [view]}, one | {"views": [view | {"name": "v"}] * 2}):
        with pytest.raises(CorruptDataError, match="called the same"):
            Manifest.decode(pack(fields))


@given(files)
def test_chunk_ids_without_the_rest(parts: list[SegmentChunks]) -> None:
    manifest = Manifest("f", sum(part.length for part in parts), tuple(parts))
    assert Manifest.decode_chunk_ids(manifest.encode()) == manifest.chunk_ids()


def test_a_forged_object_is_not_believed() -> None:
    """An object under the id of another one, with a checksum that is right."""
    from mstore.database import Database
    from mstore.ids import Kind
    from mstore.repository import Repository
    from mstore.storage.memory import MemoryStorage

    repo = Repository(Database.create(MemoryStorage(), "Ada"))
    one = repo.commit({"a": 1}, "one")
    two = repo.commit({"a": 1}, "two", metadata={"x": 1})
    db, find = repo.database, repo.database.find
    entries = [find(Kind.COMMIT, bytes.fromhex(snapshot.id)) for snapshot in (one, two)]
    assert entries[0] is not None
    fresh = Database.open(db.storage)
    swapped = entries[1]._replace(id=entries[0].id)  # type: ignore[union-attr]
    import mstore.database as module

    read = module.read_record
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fresh, "find", lambda *_: swapped)
        patch.setattr(
            module, "read_record",
            lambda storage, entry: read(storage, entries[1])._replace(entry=swapped),  # type: ignore[arg-type]
        )  # fmt: skip
        with pytest.raises(CorruptDataError, match="not what its id says"):
            fresh.commit(entries[0].id)
