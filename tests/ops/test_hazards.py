"""What loading a file would do: the judgement of one file, of many, and of those in a version."""

import io
import json
import os
import pickle
import random
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch

import mstore
from mstore.errors import (
    CorruptDataError,
    FormatError,
    LimitExceededError,
    NotFoundError,
    UnsafeInputError,
)
from mstore.filebytes import StoredBytes
from mstore.formats import detect, pickle_file, torch_legacy
from mstore.formats.base import BytesReader, Finding, Format
from mstore.formats.detect import describe, find_format
from mstore.formats.hazards import MAX_FINDINGS, Hazards, _Sparing, find_hazards, judge
from mstore.layout import ByteReader, Layout, opaque
from mstore.ops.hazards import refuse_unsafe, scan_directory, scan_snapshot
from mstore.ops.scan import Scan
from mstore.ops.storedfolder import CachedBytes, StoredFolders


class Plain(Format):
    """Files that begin with PLAIN; the rest is the name of an error in their structure, if any."""

    name = "plain"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        return head.startswith(b"PLAIN")

    def layout(self, reader: ByteReader) -> Layout:
        raise_named(reader, 5)
        return opaque(reader.size)


class Coded(Plain):
    """Files that begin with CODED: a line of the error, and then one for each finding."""

    name = "coded"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        return head.startswith(b"CODED")

    def findings(self, reader: ByteReader) -> list[Finding]:
        lines = reader.read(5, reader.size).decode().splitlines()[1:]
        raise_named(reader, 5)
        return [Finding(*line.split("|")) for line in lines]


ERRORS = {"format": FormatError, "limit": LimitExceededError, "unsafe": UnsafeInputError}


def raise_named(reader: ByteReader, start: int) -> None:
    first = reader.read(start, 10).decode().split("\n")[0]
    if first in ERRORS:
        raise ERRORS[first](f"it is {first}")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """With these two formats before all others."""
    made = [Plain(), Coded()]
    detect.FORMATS[:0] = made
    yield
    for one in made:
        detect.FORMATS.remove(one)


def look(content: bytes) -> Hazards:
    return find_hazards(BytesReader(content))


@pytest.mark.usefixtures("known")
class TestOneFile:
    def test_a_sound_file_that_can_do_nothing(self) -> None:
        assert look(b"PLAIN") == Hazards("plain")
        assert look(b"PLAIN").verdict == "ok"

    def test_a_file_of_no_known_format(self) -> None:
        assert look(b"something") == Hazards("")
        assert look(b"something").verdict == "opaque"

    @pytest.mark.parametrize("error", ["format", "limit"])
    def test_a_malformed_file(self, error: str) -> None:
        found = look(b"PLAIN" + error.encode())
        assert (found.verdict, found.problem) == ("malformed", f"it is {error}")
        assert not found.unsafe

    @pytest.mark.parametrize("error", ["format", "limit"])
    def test_of_one_that_could_run_code_nobody_knows_then_what_it_does(self, error: str) -> None:
        found = look(f"CODED{error}\nallowed|sleeps".encode())
        assert (found.verdict, found.problem) == ("malformed", f"it is {error}")
        assert found.unsafe

    @pytest.mark.parametrize("magic", [b"PLAIN", b"CODED"])
    def test_what_is_unsafe_to_read_is_dangerous(self, magic: bytes) -> None:
        found = look(magic + b"unsafe")
        assert (found.verdict, found.problem) == ("dangerous", None)
        assert found.findings == (Finding("dangerous", "it is unsafe"),)
        assert found.unsafe

    def test_the_worst_comes_first_and_each_once(self) -> None:
        told = "allowed|a|1\nunknown|u|1\ndangerous|d|1\nunknown|u|1\nunknown|u|2\ndangerous|c|1"
        found = look(f"CODED\n{told}".encode())
        assert [(f.danger, f.what, f.where) for f in found.findings] == [
            ("dangerous", "d", "1"),
            ("dangerous", "c", "1"),
            ("unknown", "u", "1"),
            ("unknown", "u", "2"),
            ("allowed", "a", "1"),
        ]
        assert found.of("unknown") == list(found.findings[2:4])
        assert found.verdict == "dangerous"

    @pytest.mark.parametrize(
        ("told", "verdict"), [("allowed|a", "ok"), ("unknown|u\nallowed|a", "unknown")]
    )
    def test_what_is_not_dangerous(self, told: str, verdict: str) -> None:
        found = look(f"CODED\n{told}".encode())
        assert found.verdict == verdict
        assert not found.unsafe

    def test_there_are_at_most_so_many_and_the_dangerous_are_among_them(self) -> None:
        told = [f"unknown|calls {n}" for n in range(MAX_FINDINGS + 5)] + ["dangerous|does harm"]
        found = look("\n".join(["CODED", *told]).encode())
        assert (len(found.findings), found.left_out) == (MAX_FINDINGS, 6)
        assert found.findings[0].what == "does harm"

    def test_of_a_file_that_can_do_nothing_hardly_anything_is_read(self) -> None:
        class Counted(BytesReader):
            read_bytes = 0

            def read(self, offset: int, length: int) -> bytes:
                self.read_bytes += length
                return super().read(offset, length)

        for found in (Plain(), None):
            reader = Counted(b"PLAIN" + bytes(10 << 20))
            assert judge(reader, found) == Hazards(found.name if found else "")
            assert reader.read_bytes < 100_000


class Beside:
    """A folder of nothing but the file itself."""

    known: dict[str, object] = {}  # noqa: RUF012

    def __init__(self, name: str) -> None:
        self.name = name

    def names(self) -> list[str]:
        return [self.name]

    def open(self, name: str) -> None:
        raise AssertionError(name)


def configured(config: object, name: str = "config.json") -> Hazards:
    text = config if isinstance(config, bytes) else json.dumps(config).encode()
    return find_hazards(BytesReader(text), Beside(name))  # type: ignore[arg-type]


def test_a_configuration_that_names_code() -> None:
    found = configured(
        {
            "auto_map": {
                "AutoModel": "modeling_x.Model",
                "AutoTokenizer": ["sub.tok.Slow", None],
                "AutoConfig": "owner/repo--configuration_x.Config",
            },
            "custom_pipelines": {"chat": {"impl": "talk.Pipeline", "type": "text"}},
        }
    )
    run = "run, where that is trusted"
    assert found.verdict == "unknown"
    assert [(finding.what, finding.where) for finding in found.findings] == [
        (f"has the code in 'modeling_x.py' {run}", "auto_map.AutoModel"),
        (f"has the code in 'sub/tok.py' {run}", "auto_map.AutoTokenizer"),
        (f"has the code in 'configuration_x.py' of 'owner/repo' {run}", "auto_map.AutoConfig"),
        (f"has the code in 'talk.py' {run}", "custom_pipelines.chat"),
    ]


@pytest.mark.parametrize(
    "config",
    [
        {"layers": 2},
        {"auto_map": None, "custom_pipelines": {"chat": {"impl": 3}, "talk": None}},
        {"auto_map": {"AutoModel": 3, "AutoTokenizer": [None, 4]}},
        {"auto_map": ["modeling_x.Model"]},
        [{"auto_map": {"AutoModel": "modeling_x.Model"}}],
        b"{",
        b'{"auto_map": "\xff"}',
        b"[" * 100_000,
        b"",
    ],
    ids=repr,
)
def test_any_other_json_is_no_configuration_that_does(config: object) -> None:
    assert configured(config) == Hazards("")


def test_only_what_is_called_json_is_one() -> None:
    assert configured({"auto_map": {"AutoModel": "x.Model"}}, "config.txt") == Hazards("")


# Many files


@pytest.fixture
def repo(tmp_path_factory: pytest.TempPathFactory) -> mstore.Repository:
    return mstore.init(tmp_path_factory.mktemp("repository") / "bare", bare=True)


def scanned(directory: Path) -> dict[str, Hazards | None]:
    files = Scan(directory).files()
    return {one.path: one.hazards for one in scan_directory(directory, files)}


@pytest.fixture
def model(tmp_path: Path, known: None) -> Path:
    (tmp_path / "sub").mkdir()
    (tmp_path / "plain").write_bytes(b"PLAIN")
    (tmp_path / "cut").write_bytes(b"PLAINformat")
    (tmp_path / "sub" / "coded").write_bytes(b"CODED\ndangerous|calls os.system|a.b")
    (tmp_path / "sub" / "config.json").write_text('{"auto_map": {"AutoModel": "x.Model"}}')
    (tmp_path / "text").write_text("some words")
    return tmp_path


def test_files_of_a_directory(model: Path) -> None:
    found = {path: hazards.verdict for path, hazards in scanned(model).items() if hazards}
    assert found == {
        "cut": "malformed",
        "plain": "ok",
        "sub/coded": "dangerous",
        "sub/config.json": "unknown",
        "text": "opaque",
    }


def test_a_file_that_cannot_be_read_keeps_none_of_the_others(model: Path) -> None:
    files = Scan(model).files()
    (model / "plain").unlink()
    found = list(scan_directory(model, files))
    assert [one.path for one in found] == [file.path for file in files]
    (failed,) = [one for one in found if one.hazards is None]
    assert failed.path == "plain"
    assert isinstance(failed.error, NotFoundError)


def test_a_stored_version_is_judged_as_the_files_are(model: Path, repo: mstore.Repository) -> None:
    version = repo.commit(model)
    stored = scan_snapshot(repo.database, version.record, version.record.files)
    assert {one.path: one.hazards for one in stored} == scanned(model)


def test_damage_of_one_stored_file_keeps_none_of_the_others(
    model: Path, repo: mstore.Repository
) -> None:
    (model / "text").write_bytes(random.Random(0).randbytes(100_000))
    version = repo.commit(model)
    storage = repo.database.storage
    key = max(storage.list("packs/"), key=lambda info: info.size).key
    content = bytearray(storage.get(key))
    content[50_000] ^= 1
    storage.delete(key)
    assert storage.put(key, [bytes(content)])
    found = list(scan_snapshot(repo.database, version.record, version.record.files))
    assert [one.path for one in found if isinstance(one.error, CorruptDataError)] == ["text"]
    assert len(found) == 5


def test_refusing_names_every_file(model: Path) -> None:
    (model / "second").write_bytes(b"CODED\ndangerous|calls os.system\ndangerous|calls eval")
    (model / "third").write_bytes(b"CODEDlimit")
    with pytest.raises(UnsafeInputError) as refused:
        refuse_unsafe(model, Scan(model).files())
    assert refused.value.message == (
        "second: dangerous to load (calls os.system, and 1 more); "
        "sub/coded: dangerous to load (calls os.system); "
        "third: cannot be judged (looks like coded but it is limit); nothing was recorded"
    )
    for path in ("second", "third", "sub/coded"):
        (model / path).unlink()
    refuse_unsafe(model, Scan(model).files())


def test_refusing_many_files_names_some(tmp_path: Path, known: None) -> None:
    for number in range(7):
        (tmp_path / f"{number}").write_bytes(b"CODEDunsafe")
    with pytest.raises(UnsafeInputError, match=r"^0: .*4: .*\); and 2 more; nothing was recorded"):
        refuse_unsafe(tmp_path, Scan(tmp_path).files())


# Commits from Python


def test_a_commit_is_refused_and_nothing_recorded(model: Path, repo: mstore.Repository) -> None:
    before = stored_keys(repo)
    with pytest.raises(UnsafeInputError, match=r"sub/coded: dangerous to load"):
        repo.commit(model, refuse_unsafe=True)
    with pytest.raises(UnsafeInputError, match=r"coded: dangerous to load"):
        repo.commit(model / "sub" / "coded", refuse_unsafe=True)
    assert stored_keys(repo) == before
    assert not repo.branches
    assert len(repo.commit(model / "plain", refuse_unsafe=True).files) == 1


def test_the_setting_of_the_repository_decides_where_the_commit_does_not(
    model: Path, repo: mstore.Repository
) -> None:
    repo.model("any").configure(refuse_unsafe=True)
    with pytest.raises(UnsafeInputError):
        mstore.open(repo.database.storage.location).commit(model)
    assert repo.commit(model, refuse_unsafe=False).files
    repo.configure(refuse_unsafe=False)
    assert repo.commit(model, branch="again").files


def test_a_file_that_became_unsafe_while_the_others_were_looked_at_is_refused(
    model: Path, repo: mstore.Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look_and_then_spoil(directory: Path, files: object) -> None:
        (directory / "plain").write_bytes(b"CODED\ndangerous|calls os.system")

    (model / "sub" / "coded").unlink()
    monkeypatch.setattr("mstore.ops.opening.refuse_unsafe", look_and_then_spoil)
    with pytest.raises(UnsafeInputError, match=r"plain: dangerous to load"):
        repo.commit(model, refuse_unsafe=True)
    assert not repo.branches


def saved(kind: str) -> bytes:
    """A file with an array in it, and with something that is on no list."""
    file = io.BytesIO()
    value = {"w": np.arange(6.0), "x": statistics.NormalDist(0, 1)}
    if kind == "pickle":
        pickle.dump(value, file)
    elif kind == "joblib":
        joblib.dump(value, file)
    else:
        value["w"] = torch.arange(6)
        torch.save(value, file, _use_new_zipfile_serialization=kind == "torch")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pickle", "joblib", "torch", "old torch"])
def test_what_has_been_described_is_not_followed_again_to_be_judged(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = saved(kind)
    fresh, described = BytesReader(content), BytesReader(content)
    expected = judge(fresh, find_format(fresh))
    assert expected.of("unknown")
    describe(described)
    followed = []
    for module, name in ((pickle_file, "read_pickles"), (torch_legacy, "_read")):
        read = getattr(module, name)
        monkeypatch.setattr(
            module, name, lambda *a, read=read: followed.append(type(a[0])) or read(*a)
        )
    assert judge(described, find_format(described)) == expected
    # What is no pickle by its format is tried as one, of which little is read.
    assert set(followed) <= {_Sparing}


@pytest.mark.parametrize("kind", ["pickle", "joblib"])
@pytest.mark.parametrize("look", [find_hazards, lambda reader: judge(reader, find_format(reader))])
def test_a_pickle_is_followed_once_to_be_judged(
    kind: str, look: Callable[[BytesReader], Hazards], monkeypatch: pytest.MonkeyPatch
) -> None:
    followed = []
    read = pickle_file.read_pickles
    monkeypatch.setattr(pickle_file, "read_pickles", lambda *a: followed.append(1) or read(*a))
    look(BytesReader(saved(kind)))
    assert len(followed) == 1


def stored_keys(repo: mstore.Repository) -> set[str]:
    folder = Path(repo.database.storage.location)
    return {str(path) for path in folder.rglob("*") if path.is_file()}


# Reading stored files


@pytest.fixture
def stored(tmp_path: Path, repo: mstore.Repository) -> tuple[bytes, CachedBytes]:
    """A file of some 15 MB, and its content read from the repository."""
    chance = random.Random(1)
    content = chance.randbytes(300_000) + bytes(3 << 20) + chance.randbytes(12 << 20)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(content)
    version = repo.commit(tmp_path)
    folders = StoredFolders(repo.database, version.record)
    beside = folders.beside("folder/file")
    assert (beside.name, list(beside.names())) == ("file", ["file"])
    with beside.open("file") as reader:
        assert reader.read(0, 100) == content[:100]
    with pytest.raises(NotFoundError), beside.open("other"):
        pass
    return content, folders.read(version.record.files["folder/file"])


def test_stored_bytes_are_those_of_the_file(stored: tuple[bytes, CachedBytes]) -> None:
    content, reader = stored
    chance = random.Random(2)
    assert reader.size == len(content)
    for _ in range(200):
        offset = chance.randrange(len(content) + 10)
        length = chance.choice((0, 1, 30, 4096, 100_000, 3 << 20, 9 << 20))
        assert reader.read(offset, length) == content[offset : offset + length]


def test_a_stored_file_read_in_small_steps_is_decoded_once(
    stored: tuple[bytes, CachedBytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    content, reader = stored
    decoded: list[int] = []
    read = StoredBytes.read

    def counted(self: StoredBytes, offset: int, length: int) -> bytes:
        decoded.append(offset)
        return read(self, offset, length)

    monkeypatch.setattr(StoredBytes, "read", counted)
    pieces = [reader.read(offset, 100) for offset in range(0, 1 << 20, 100)]
    assert b"".join(pieces)[: 1 << 20] == content[: 1 << 20]
    assert len(decoded) == len(set(decoded)) < 100


def test_small_chunks_of_a_stored_file_are_read_together(
    repo: mstore.Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    np.savez(folder / "m.npz", **{f"w{number}": np.arange(number) for number in range(400)})
    version = repo.commit(folder, "many")
    (entry,) = version.record.files.values()
    content = (folder / "m.npz").read_bytes()
    reads: list[int] = []
    read = StoredBytes.read

    def counted(self: StoredBytes, offset: int, length: int) -> bytes:
        reads.append(length)
        return read(self, offset, length)

    monkeypatch.setattr(StoredBytes, "read", counted)
    reader = StoredFolders(repo.database, version.record).read(entry)
    assert b"".join(reader.read(at, 10) for at in range(0, reader.size, 10)) == content
    assert sum(reads) == len(content)
    assert len(reads) < 20

    # What is damaged is in nobody's way who does not ask for it.
    chunks = list(version.files["m.npz"].manifest.chunks())
    number = next(n for n in range(50, 400) if chunks[n][1] > 100)
    place = repo.database.chunk_indexes()[0].find(chunks[number][0])
    assert place is not None
    pack = Path(repo.database.storage.location) / "packs" / place.pack
    pack.chmod(0o644)
    with pack.open("r+b") as file:
        file.seek(place.offset + place.record_size - 1)
        last = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([last[0] ^ 1]))
    start = sum(length for _, length in chunks[:number])
    reader = StoredFolders(repo.database, version.record).read(entry)
    assert reader.read(start - 10, 10) == content[start - 10 : start]
    with pytest.raises(CorruptDataError):
        reader.read(start - 10, 11)
