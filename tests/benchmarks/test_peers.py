"""The peers of the benchmark give back what they were given, and count what they keep."""

import importlib
import json
import sys
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

TENSOR_BYTES = 64 * 64 * (4 + 2) + 8 * 8

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def peers():
    """The module; scripts of this directory import each other by bare names."""
    sys.path.insert(0, str(HERE))
    try:
        yield importlib.import_module("peers")
    finally:
        sys.path.remove(str(HERE))


@pytest.fixture(scope="module")
def programs(peers):
    return importlib.import_module("programs")


def write_model(directory: Path, seed: int, rows: int = 64) -> Path:
    """A safetensors file of a matrix near one that is always the same, some of it in bfloat16."""
    matrix = np.random.default_rng(0).normal(0, 0.05, (rows, 64)).astype(np.float32)
    matrix += np.random.default_rng(seed).normal(0, 1e-5, matrix.shape).astype(np.float32)
    half = np.ascontiguousarray(matrix.view(np.uint16)[:, 1::2])
    small = np.arange(8, dtype=np.int64)
    header, end, parts = {}, 0, []
    for name, dtype, array in (("w", "F32", matrix), ("h", "BF16", half), ("p", "I64", small)):
        start, end = end, end + array.nbytes
        header[name] = {"dtype": dtype, "shape": array.shape, "data_offsets": (start, end)}
        parts.append(array.tobytes())
    text = json.dumps(header).encode()
    directory.mkdir()
    path = directory / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(parts))
    return directory


def store_all(peer, programs, directories) -> list[int]:
    """Store the directories as versions, each made from the one before; returns what each added."""
    added = []
    for number, directory in enumerate(directories):
        before = peer.size()
        peer.store(programs.Version(number, directory, number - 1 if number else None))
        added.append(peer.size() - before)
    return added


def assert_restored(peer, directories, out: Path) -> None:
    for number in reversed(range(len(directories))):
        place = out / str(number)
        place.mkdir(parents=True)
        peer.restore(number, place)
        (file,) = place.iterdir()
        assert file.read_bytes() == (directories[number] / file.name).read_bytes()


class PlainZipNN:
    """What ZipNN offers, by zlib; with the real one's habit of spoiling its input."""

    def __init__(self, bytearray_dtype: str) -> None:
        assert bytearray_dtype in ("float32", "float16", "bfloat16")

    def compress(self, data: bytearray) -> bytes:
        payload = zlib.compress(data)
        data[:] = bytes(len(data))
        return payload

    def decompress(self, payload: bytes) -> bytearray:
        return bytearray(zlib.decompress(payload))


@pytest.fixture
def plain_zipnn(monkeypatch) -> None:
    """Without ZipNN, which needs torch."""
    monkeypatch.setitem(sys.modules, "zipnn", SimpleNamespace(ZipNN=PlainZipNN))


@pytest.mark.usefixtures("plain_zipnn")
def test_xor_round_trip(tmp_path, peers, programs) -> None:
    directories = [write_model(tmp_path / str(seed), seed) for seed in range(3)]
    directories.append(write_model(tmp_path / "wider", 4, rows=80))
    peer = peers.Xor(tmp_path / "peer")
    first, second, third, wider = store_all(peer, programs, directories)
    assert second < 0.8 * first
    assert third < 0.8 * first
    assert wider > first, "a tensor of another shape has no base"
    assert_restored(peer, directories, tmp_path / "out")


@pytest.mark.usefixtures("plain_zipnn")
def test_xor_counts_only_entries_of_tensors_that_stay(tmp_path, peers, programs) -> None:
    first, second = (write_model(tmp_path / name, seed=1) for name in "ab")
    with (second / "model.safetensors").open("ab") as file:
        file.write(b"!")
    peer = peers.Xor(tmp_path / "peer")
    _, same, longer = store_all(peer, programs, [first, first, second])
    assert same == 0
    data = (first / "model.safetensors").read_bytes()
    header = len(peers._compressed(data[:-TENSOR_BYTES], 3))
    assert longer == 5 * peers.ENTRY + header + len(b"!")


def test_chunks_round_trip(tmp_path, peers, programs) -> None:
    pytest.importorskip("lz4")
    directories = [write_model(tmp_path / str(seed), seed, rows=2048) for seed in range(2)]
    peer = peers.Chunks(tmp_path / "peer")
    first, second = store_all(peer, programs, directories)
    raw = (directories[0] / "model.safetensors").stat().st_size
    assert first < raw
    assert 0 < second <= first + 1000
    assert_restored(peer, directories, tmp_path / "out")


def test_zipnn_round_trip(tmp_path, peers, programs) -> None:
    pytest.importorskip("zipnn")
    directories = [write_model(tmp_path / str(seed), seed) for seed in range(2)]
    peer = peers.ZipNN(tmp_path / "peer")
    store_all(peer, programs, directories)
    assert_restored(peer, directories, tmp_path / "out")


def test_mstore_round_trip_of_a_history_and_of_an_unrelated_model(tmp_path, programs) -> None:
    directories = [write_model(tmp_path / str(seed), seed) for seed in range(3)]
    peer = programs.Mstore(tmp_path / "peer")
    peer.store(programs.Version(0, directories[0]))
    peer.store(programs.Version(1, directories[1], 0))
    peer.store(programs.Version(2, directories[2], 0, unrelated=True))
    assert peer.size() > 0
    assert [peer.model(version) for version in peer.versions.values()] == ["", "", "model-2"]
    assert_restored(peer, directories, tmp_path / "out")


def two_families(tmp_path, programs) -> list:
    """A history, and one beside it that begins with the same file and goes on in two directions."""
    first, second, other, more = (write_model(tmp_path / str(seed), seed) for seed in range(4))
    return [
        programs.Version(0, first, None, False, "a"),
        programs.Version(1, second, 0, False, "a"),
        programs.Version(2, first, None, True, "b"),
        programs.Version(3, other, 2, True, "b"),
        programs.Version(4, more, 2, True, "b"),
    ]


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("Restic", "Borg", "Dvc")]


@pytest.mark.parametrize("name", ["Mstore", "GitLfs", *SLOW])
def test_several_families_in_one_repository(name, tmp_path, programs) -> None:
    kind = getattr(programs, name)
    if kind.version() is None:
        pytest.skip(f"{kind.name} is not installed")
    peer = kind(tmp_path / "peer")
    versions = two_families(tmp_path, programs)
    sizes = []
    for version in versions:
        peer.store(version)
        sizes.append(peer.size())
    raw = (versions[0].directory / "model.safetensors").stat().st_size
    assert sizes[2] - sizes[1] < raw / 2, "the same file again"
    assert_restored(peer, [version.directory for version in versions], tmp_path / "out")


def test_mstore_has_a_model_for_each_family_and_each_unrelated_version(tmp_path, programs) -> None:
    peer = programs.Mstore(tmp_path / "peer")
    models = [peer.model(version) for version in two_families(tmp_path, programs)]
    assert models == ["a", "a", "b", "b-3", "b-4"]


@pytest.mark.usefixtures("plain_zipnn")
def test_codecs_count_the_same_file_of_several_families_once(tmp_path, peers, programs) -> None:
    peer = peers.Xor(tmp_path / "peer")
    versions = two_families(tmp_path, programs)
    # The second family begins with what the first one coded as a difference.
    versions[2] = programs.Version(2, versions[1].directory, None, True, "b")
    sizes = []
    for version in versions:
        peer.store(version)
        sizes.append(peer.size())
    assert sizes[2] == sizes[1]
    assert sizes[3] > sizes[2]
    assert_restored(peer, [version.directory for version in versions], tmp_path / "out")


def test_a_directory_is_made_to_hold_a_version(tmp_path, programs) -> None:
    work = tmp_path / "work"
    version = write_model(tmp_path / "version", 1)
    work.mkdir()
    for name in ("old.bin", ".hidden"):
        (work / name).write_text(name)
    assert programs.lay_out(version, work) == ["model.safetensors"]
    assert sorted(path.name for path in work.iterdir()) == [".hidden", "model.safetensors"]
    laid = (work / "model.safetensors").stat()
    programs.lay_out(version, work)
    assert (work / "model.safetensors").stat().st_mtime_ns == laid.st_mtime_ns


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 1000])
def test_byte_groups(length, peers) -> None:
    data = bytes(range(256)) * 4
    grouped = peers._grouped(data[:length], 4)
    assert peers._ungrouped(grouped, 4) == data[:length]
    assert length < 5 or grouped[:2] == bytes((0, 4))


def test_spans_of_a_torch_file(tmp_path, peers) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(100, dtype=torch.float32)
    path = tmp_path / "checkpoint.pt"
    torch.save({"a": tensor, "b": tensor + 1}, path)
    data = path.read_bytes()
    found = sys.modules["tensor_files"].spans(path.name, data)
    assert b"".join(data[span.start : span.end] for span in found) == data
    named = [data[span.start : span.end] for span in found if span.name]
    assert tensor.numpy().tobytes() in named
    assert (tensor + 1).numpy().tobytes() in named
