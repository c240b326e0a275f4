"""docs/format.md is enough to read a repository, and the golden repository stays readable."""

import hashlib
import importlib.util
import json
import random
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import independent_codecs
import independent_reader as reader
import numpy as np
import pytest
from independent_planes import RefusedError

import mstore
from mstore.chunkstore import Session
from mstore.codecs.delta import Delta
from mstore.codecs.order import BY_MAGNITUDE
from mstore.database import Database
from mstore.dtypes import BY_CODE, BY_NAME
from mstore.errors import MstoreError
from mstore.ids import Kind, identify
from mstore.objects import Commit, FileEntry, Manifest, SegmentChunks, Snapshot
from mstore.pack import Record, scan
from mstore.root import Refs

TESTS = Path(__file__).parents[1]
GOLDEN = TESTS / "golden" / "repository"
EXPECTED: dict[str, Any] = json.loads((TESTS / "golden" / "expected.json").read_text())
READER = ("independent_reader.py", "independent_codecs.py", "independent_planes.py")


def listing(directory: Path) -> dict[str, dict[str, object]]:
    """Path -> hash, size and executable bit of every file below `directory`."""
    return {
        path.relative_to(directory).as_posix(): {
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "size": path.stat().st_size,
            "executable": bool(path.stat().st_mode & 0o100),
        }
        for path in directory.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("name", READER)
def test_the_reader_is_short_and_uses_nothing_of_mstore(name: str) -> None:
    text = (Path(__file__).parent / name).read_text()
    assert "import mstore" not in text
    assert "from mstore" not in text
    assert sum(bool(line.strip()) for line in text.splitlines()) < 200


def test_golden_bytes_have_not_changed() -> None:
    stored = {
        path.relative_to(GOLDEN).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in GOLDEN.rglob("*")
        if path.is_file()
    }
    assert stored == EXPECTED["stored"]


@pytest.mark.parametrize("version", ["v1", "main"])
def test_independent_reader_restores_golden(version: str, tmp_path: Path) -> None:
    reader.restore(GOLDEN, "default", version, tmp_path)
    assert listing(tmp_path) == EXPECTED["versions"][version]


@pytest.mark.parametrize("version", ["v1", "main"])
def test_mstore_restores_golden(version: str, tmp_path: Path) -> None:
    snapshot = mstore.open(GOLDEN)[version]
    assert snapshot.id == EXPECTED["commits"][version]
    snapshot.checkout(tmp_path)
    assert listing(tmp_path) == EXPECTED["versions"][version]


def test_golden_is_clean_and_says_what_it_said() -> None:
    repo = mstore.open(GOLDEN)
    report = repo.verify()
    assert report.ok, report.damages
    assert repo.models == ["default", "other"]
    assert [version.message for version in repo.log()] == ["The version main", "The version v1"]
    assert repo["v1"].metadata == {"loss": 0.5, "step": 100, "notes": ["first", None, {"good": 1}]}
    assert repo["main"].author == "Ada Lovelace <ada@example.com>"
    assert repo["main"].parents == (repo["v1"].id,)
    loaded = repo.model("other")["main"].load()
    assert isinstance(loaded, dict)
    np.testing.assert_array_equal(loaded["w"], np.arange(10.0))


def test_golden_covers_the_format() -> None:
    """All codecs, modes, word sizes, kinds and element types that this version can store."""
    db = mstore.open(GOLDEN).database
    records = [
        found for path in (GOLDEN / "packs").iterdir() for found in scan(db.storage, path.name)
    ]
    assert {found.entry.codec for found in records} == {0, 1, 2, 3}
    assert {found.entry.kind for found in records} == {int(kind) for kind in Kind}
    # No file format that is understood so far has big-endian bfloat16.
    unused = {code for code, dtype in BY_CODE.items() if dtype.name == ">bf16"}
    assert {found.entry.dtype for found in records} == {0, *BY_CODE} - unused
    planes = [bytes(found.payload) for found in records if found.entry.codec == 3]
    assert {(payload[0], payload[1]) for payload in planes} >= {
        (1, 0), (2, 0), (2, 1), (2, 2), (2, 3), (4, 1), (4, 3), (8, 1), (8, 3)
    }  # fmt: skip
    modes = {payload[2 + 5 * plane] for payload in planes for plane in range(payload[0])}
    assert modes == {0, 1, 2}
    assert sum(path.stat().st_size for path in GOLDEN.rglob("*") if path.is_file()) < 300_000


def test_the_making_script_refuses_to_run_again() -> None:
    spec = importlib.util.spec_from_file_location("make_golden", TESTS / "golden/make_golden.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with pytest.raises(SystemExit, match="never made again"):
        module.main()


def random_files(rng: random.Random, rounds: int) -> dict[str, bytes]:
    """Paths and contents of many kinds, some with tensors in them."""
    files: dict[str, bytes] = {}
    for number in range(rounds):
        size = rng.choice([0, 1, 100, 5000, 70_000])
        kind = rng.randrange(4)
        if kind == 0:
            content = rng.randbytes(size)
        elif kind == 1:
            content = bytes([rng.randrange(256)]) * size
        elif kind == 2:
            content = b"".join(b"line %d\n" % (n * rng.randrange(3)) for n in range(size // 8))
        else:
            values = np.random.default_rng(rng.randrange(1 << 30)).normal(0, 0.1, size // 8)
            dtype = rng.choice(["<f4", ">f8", "<f2", "<i4", "|b1"])
            content = mstore_npy(values.astype(dtype))
        files[f"{'abc'[number % 3]}/{number} é.bin"] = content
    return files


def mstore_npy(array: np.ndarray[Any, Any]) -> bytes:
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


@pytest.mark.parametrize("seed", range(4))
def test_independent_reader_restores_new_repositories(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    files: dict[str, bytes] = {}
    repo = mstore.init(tmp_path / "repo", bare=True)
    for number in range(6):
        files |= random_files(rng, 4)
        for path in rng.sample(sorted(files), rng.randrange(3)):
            del files[path]
        work = tmp_path / f"work{number}"
        for path, content in files.items():
            (work / path).parent.mkdir(parents=True, exist_ok=True)
            (work / path).write_bytes(content)
        work.mkdir(exist_ok=True)
        repo.commit(work, f"{number}", chunk_size=rng.choice([512, 4096, 1 << 20]))
        repo.create_tag(f"t{number}")
    repo.delete_tag("t1")
    repo.gc()
    for name in ("t0", "t3", "main"):
        out = tmp_path / f"out-{name}"
        out.mkdir()
        reader.restore(tmp_path / "repo", "default", name, out)
        repo[name].checkout(tmp_path / f"mine-{name}")
        assert listing(out) == listing(tmp_path / f"mine-{name}")
    assert listing(tmp_path / "out-main") == listing(tmp_path / "work5")


def store_chunks(db: Database, records: list[Record], raws: list[bytes]) -> None:
    """A version of branch main whose one file is these chunks."""
    lengths = tuple(map(len, raws))
    ids = b"".join(identify(Kind.CHUNK, raw) for raw in raws)
    segments = (SegmentChunks(sum(lengths), ids, lengths=lengths),)
    with Session(db) as session:
        for record in records:
            session.append(record)
        manifest = session.add_object(Manifest("opaque", sum(lengths), segments))
        snapshot = session.add_object(Snapshot({"f": FileEntry(manifest, sum(lengths))}))
        refs = Refs({"main": session.add_object(Commit(snapshot, (), "me", 0, 0, "", {}))})
        session.publish(lambda root: root.with_refs("default", refs), action="", author="")


def test_independent_reader_decodes_bases(
    coded: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A codec of the test's own, and several records of one chunk, of which the right one counts."""

    def xor(payload: bytes, length: int, base: bytes) -> bytes:
        return bytes(a ^ b for a, b in zip(payload, base, strict=True))

    monkeypatch.setitem(independent_codecs.WITH_BASE, 200, xor)
    db = mstore.init(tmp_path / "repo", bare=True).database
    a, b, c, d = (random.Random(seed).randbytes(100) for seed in range(4))
    writers = [Session(db) for _ in range(2)]
    store_chunks(db, [coded(a), coded(b, a, 1), coded(c, b, 2), coded(d, c, 3)], [d])
    for number, (session, records) in enumerate(
        zip(writers, ([coded(b)], [coded(a), coded(c, a, 1)]), strict=True)
    ):
        with session:
            for record in records:
                session.append(record)
            session.publish(lambda root: root, action=f"{number}", author="")
    (tmp_path / "out").mkdir()
    reader.restore(tmp_path / "repo", "default", "main", tmp_path / "out")
    assert (tmp_path / "out" / "f").read_bytes() == d
    found = reader.Repository(tmp_path / "repo")
    assert [found.places[identify(Kind.CHUNK, raw)][0] for raw in (a, b, c, d)] == [0, 0, 1, 3]


def test_independent_reader_refuses_circles(
    coded: Callable[..., Record], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Session, "_check_relied", lambda *_: None)
    db = mstore.init(tmp_path / "repo", bare=True).database
    store_chunks(db, [coded(b"one", b"two", 1), coded(b"two", b"one", 1)], [b"one"])
    (tmp_path / "out").mkdir()
    with pytest.raises(RefusedError, match="depth"):
        reader.restore(tmp_path / "repo", "default", "main", tmp_path / "out")
    with pytest.raises(MstoreError, match="circle"):
        mstore.open(tmp_path / "repo")["main"].checkout(tmp_path / "mine")


@pytest.mark.skipif(sys.platform == "darwin", reason="file names are always text there")
def test_a_path_that_is_not_text_keeps_its_bytes(tmp_path: Path) -> None:
    name = b"caf\xe9.bin".decode("utf-8", "surrogateescape")
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / name).write_bytes(b"1234")
    mstore.init(tmp_path / "repo", bare=True).commit(tmp_path / "work")
    (tmp_path / "out").mkdir()
    reader.restore(tmp_path / "repo", "default", "main", tmp_path / "out")
    assert (tmp_path / "out" / name).read_bytes() == b"1234"


def test_neither_reader_ever_gives_wrong_bytes(tmp_path: Path) -> None:
    """One flipped bit anywhere: both refuse, or give the right bytes."""
    rng = random.Random(5)
    repository = tmp_path / "repository"
    shutil.copytree(GOLDEN, repository)
    paths = sorted(path for path in repository.rglob("*") if path.is_file())
    refused = 0
    for number in range(40):
        path = paths[number % len(paths)]
        path.chmod(0o644)
        whole = path.read_bytes()
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        out = tmp_path / f"out{number}"
        out.mkdir()
        try:
            reader.restore(repository, "default", "main", out)
        except RefusedError:
            refused += 1
        else:
            assert listing(out) == EXPECTED["versions"]["main"]
        try:
            mstore.open(repository)["main"].checkout(tmp_path / f"mine{number}")
        except MstoreError:
            pass
        else:
            assert listing(tmp_path / f"mine{number}") == EXPECTED["versions"]["main"]
        path.write_bytes(whole)
    assert refused > 10


@pytest.mark.parametrize("name", ["f16", "f32", "f64"])
def test_independent_reader_decodes_orders_by_magnitude(name: str) -> None:
    """As deep encoders make them."""
    rng, dtype, count = np.random.default_rng(0), BY_NAME[name], 140_000
    # Neither the exponent nor the mantissa tells all: what is near a power of two moves.
    old = 2 ** rng.uniform(-8, -4, count) * rng.choice([-1, 1], count)
    far = np.abs(np.log2(np.abs(old)) + 6)
    new = old + 1e-2 * far**3 * np.abs(old) * rng.normal(0, 0.1, count)
    raw, base = (memoryview(one.astype(f"f{dtype.word}").tobytes()) for one in (new, old))
    parts = Delta(deep=True).encode(raw, dtype, base, dtype)
    assert parts is not None
    payload = b"".join(parts)
    assert payload[2] == BY_MAGNITUDE
    assert independent_codecs.decode_delta(payload, len(raw), base) == raw
