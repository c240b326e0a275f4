"""How tensors are said to be stored, and where what they are coded against is found."""

from collections.abc import Callable

import numpy as np
import pytest

from mstore.chunkstore import Session
from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import CorruptDataError
from mstore.ids import Id, Kind, identify
from mstore.layout import Tensor
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.ops.coded import BaseAt, Coding, codings, find_bases
from mstore.pack import Record
from mstore.repository import Repository
from mstore.root import Refs

PIECE = 8
Coded = Callable[..., Record]
Files = dict[str, dict[str, list[bytes]]]
"""Path -> tensor -> chunks of PIECE bytes."""

A, B, C, D = (bytes([number]) * PIECE for number in range(4))


class Versions:
    """Makes versions out of chunks, and asks about them."""

    def __init__(self, db: Database) -> None:
        self.db = db

    def chunks(self, *records: Record) -> None:
        with Session(self.db) as session:
            for record in records:
                session.append(record)
            session.publish(lambda root: root, action="chunks", author="me")

    def commit(self, files: Files, *parents: Id, branch: str = "main", model: str = "m") -> Id:
        with Session(self.db) as session:
            entries = {}
            for path, tensors in files.items():
                segments = [_segment(name, chunks) for name, chunks in tensors.items()]
                size = sum(segment.length for segment in segments)
                manifest = Manifest("test", size, tuple(segments))
                entries[path] = FileEntry(session.add_object(manifest), size)
            snapshot = session.add_object(Snapshot(entries))
            made = session.add_object(Commit(snapshot, parents, "me", 0, 0, str(files), {}))
            session.publish(
                lambda root: root.with_refs(model, root.refs(model).with_branch(branch, made)),
                action="commit", author="me",
            )  # fmt: skip
        return made

    def bases(self, version: Id) -> dict[tuple[str, str], tuple[BaseAt, ...]]:
        found = [
            (path, segment, coding)
            for path, entry in self.db.snapshot(self.db.commit(version).snapshot).files.items()
            for segment, coding in _coded(self.db, entry.manifest)
        ]
        told = find_bases(self.db, version, found)
        return {
            (path, segment.tensor.name if segment.tensor else ""): bases
            for (path, segment, _), bases in zip(found, told, strict=True)
        }


def _segment(name: str, chunks: list[bytes]) -> SegmentChunks:
    ids = b"".join(identify(Kind.CHUNK, chunk) for chunk in chunks)
    length = PIECE * len(chunks)
    return SegmentChunks(length, ids, Tensor(name, BY_NAME["u8"], (length,)), PIECE)


def _coded(db: Database, manifest: Id) -> list[tuple[SegmentChunks, Coding]]:
    segments = db.manifest(manifest).segments
    return list(zip(segments, codings(db, segments), strict=True))


@pytest.fixture
def versions(repo: Repository) -> Versions:
    return Versions(repo.database)


def test_codings(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1), coded(C, B, 2), coded(D, A, 1))
    segments = [
        _segment("mixed", [A, B, D]), _segment("none", []), _segment("deep", [C, C]),
        _segment("alone", [A]),
    ]  # fmt: skip
    mixed, none, deep, alone = codings(versions.db, segments)
    a, b = (identify(Kind.CHUNK, chunk) for chunk in (A, B))
    assert (mixed.depth, mixed.bases) == (1, {a: 2})
    assert none == Coding(0, 0, {})
    assert (deep.depth, deep.bases) == (2, {b: 2})
    assert (alone.depth, alone.bases) == (0, {})
    sizes = [versions.db.find(Kind.CHUNK, identify(Kind.CHUNK, one)) for one in (A, B, D)]
    assert mixed.stored == sum(entry.record_size for entry in sizes if entry)


def test_a_missing_chunk_is_damage(versions: Versions) -> None:
    with pytest.raises(CorruptDataError, match="missing"):
        codings(versions.db, [_segment("w", [A])])


def test_the_nearest_version_that_holds_a_base(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1), coded(C, B, 2), coded(D))
    first = versions.commit({"f": {"w": [A], "v": [D]}})
    second = versions.commit({"f": {"w": [B], "v": [D]}}, first)
    third = versions.commit({"f": {"w": [C], "v": [D]}}, second)
    assert versions.bases(first) == {("f", "w"): (), ("f", "v"): ()}
    assert versions.bases(second)["f", "w"] == (BaseAt(1, first, second, 1, "f", "w"),)
    assert versions.bases(third) == {
        ("f", "w"): (BaseAt(1, second, third, 1, "f", "w"),),
        ("f", "v"): (),
    }
    # A base that stayed is in both; one that the version has itself is nearest of all.
    fourth = versions.commit({"f": {"w": [B]}, "g": {"x": [A], "y": [C]}}, third, second)
    assert versions.bases(fourth) == {
        ("f", "w"): (BaseAt(1, fourth, fourth, 0, "g", "x"),),
        ("g", "x"): (),
        ("g", "y"): (BaseAt(1, fourth, fourth, 0, "f", "w"),),
    }


def test_of_several_places_the_one_called_the_same(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1))
    first = versions.commit({"a": {"v": [A], "w": [A]}, "f": {"v": [A], "w": [A]}})
    second = versions.commit({"f": {"v": [B], "w": [B], "x": [B]}, "z": {"w": [B]}}, first)
    told = {key: (base.path, base.name) for key, (base,) in versions.bases(second).items()}
    assert told["f", "w"] == ("f", "w")
    assert told["f", "v"] == ("f", "v")
    assert told["f", "x"] == ("f", "v")
    assert told["z", "w"] == ("a", "w")


def test_chunks_of_one_tensor_against_several(versions: Versions, coded: Coded) -> None:
    e, f = b"e" * PIECE, b"f" * PIECE
    versions.chunks(coded(A), coded(B, A, 1), coded(C, A, 1), coded(D), coded(e, D, 1), coded(f))
    first = versions.commit({"f": {"w": [D], "v": [A]}})
    second = versions.commit({"f": {"w": [B, f, e, C]}}, first)
    assert versions.bases(second)["f", "w"] == (
        BaseAt(2, first, second, 1, "f", "v"),
        BaseAt(1, first, second, 1, "f", "w"),
    )


def test_other_branches_and_models(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1), coded(C, A, 1), coded(D))
    first = versions.commit({"f": {"w": [A]}}, model="other")
    tip = versions.commit({"f": {"w": [D]}}, first, model="other")
    mine = versions.commit({"g": {"w": [B]}})
    assert versions.bases(mine)["g", "w"] == (BaseAt(1, first, tip, 1, "f", "w"),)
    merged = versions.commit({"g": {"w": [C]}}, mine, first)
    assert versions.bases(merged)["g", "w"] == (BaseAt(1, first, None, 1, "f", "w"),)


def test_a_base_that_no_version_holds(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1), coded(C), coded(D, C, 1))
    versions.commit({"f": {"w": [C]}}, branch="side")
    made = versions.commit({"f": {"w": [B, B, D]}})
    (lost, held) = versions.bases(made)["f", "w"]
    assert lost == BaseAt(2)
    assert (held.chunks, held.path) == (1, "f")


def test_after_gc(repo: Repository) -> None:
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    for factor in (1.0, 1.0001):
        repo.commit({"w": weights * np.float32(factor)})
    repo.gc(keep_last=1)
    made = bytes.fromhex(repo["main"].id)
    (bases,) = [found for found in Versions(repo.database).bases(made).values() if found]
    assert bases == (BaseAt(1),)
    assert repo["main"].tensors["w"].depth == 1


def test_looks_no_further_than_it_must(
    versions: Versions, coded: Coded, monkeypatch: pytest.MonkeyPatch
) -> None:
    chunks = [bytes([number]) * PIECE for number in range(20)]
    chained = zip(chunks[1:], chunks, range(1, 20), strict=False)
    versions.chunks(coded(chunks[0]), *(coded(raw, base, depth) for raw, base, depth in chained))
    frozen = {"frozen": {"v": [chunks[0]]}}
    parents: tuple[Id, ...] = ()
    for chunk in chunks:
        parents = (versions.commit({"f": {"w": [chunk]}} | frozen, *parents),)
    reads: list[tuple[Kind, Id]] = []
    original = Database.read_metadata

    def read_metadata(self: Database, kind: Kind, identifier: Id) -> bytes:
        reads.append((kind, identifier))
        return original(self, kind, identifier)

    fresh = Versions(Database.open(versions.db.storage))
    monkeypatch.setattr(Database, "read_metadata", read_metadata)
    fresh.bases(parents[0])
    assert [kind for kind, _ in reads].count(Kind.COMMIT) == 2

    # To the end of the history, for a base of which nothing is left but the chunk.
    monkeypatch.setattr("mstore.ops.coded.codings", None)
    fresh = Versions(Database.open(versions.db.storage))
    lost = [("f", _segment("w", [A]), Coding(1, 1, {bytes(32): 1}))]
    reads.clear()
    assert find_bases(fresh.db, parents[0], lost) == [(BaseAt(1),)]
    assert len(reads) == len(set(reads)) == 20 + 20 + 20 + 1


def test_refs_of_nothing(versions: Versions, coded: Coded) -> None:
    versions.chunks(coded(A), coded(B, A, 1))
    made = versions.commit({"f": {"w": [B]}})
    versions.db.publish(lambda root: root.with_refs("m", Refs()), action="delete", author="me")
    assert versions.bases(made)["f", "w"] == (BaseAt(1),)
