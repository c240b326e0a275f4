import tracemalloc

import numpy as np
import pytest

from mstore.database import Database
from mstore.dtypes import BY_NAME
from mstore.errors import ConflictError
from mstore.ingest import FileToStore
from mstore.layout import Tensor, cover, opaque
from mstore.ops.commit import Content, Description, Target, record
from mstore.ops.describing import describe_file
from mstore.ops.hashing import is_content
from mstore.sources import BufferSource, FileSource
from mstore.storage.memory import MemoryStorage

SIZE = 6_000_000
DATA = np.random.default_rng(5).integers(0, 256, SIZE, np.uint8).tobytes()


def tensor(name, dtype, *shape):
    return Tensor(name, BY_NAME[dtype], shape)


LAYOUTS = {
    "empty": opaque(0),
    "opaque": opaque(SIZE),
    "one": cover("npy", SIZE, [(80, tensor("", "f32", 1_000_000))]),
    "many": cover("x", SIZE, [(n * 20, tensor(f"{n}", "f16", 5)) for n in range(3000)]),
    "odd": cover(
        "x",
        SIZE,
        [
            (7, tensor("a", "c128", 100_001)),
            (1_600_023, tensor("none", "f32", 0)),
            (1_600_023, tensor("b", "f6_e2m3", 2_000_004)),
            (5_500_000, tensor("c", "u8", 500_000)),
        ],
    ),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("chunk_size", [1 << 20, 99_999])
def test_like_committed(name, chunk_size):
    layout = LAYOUTS[name]
    data = memoryview(DATA)[: layout.size]
    db = Database.create(MemoryStorage(), "me")
    done = record(
        db,
        Target("default", "main", None, ()),
        Content(lambda: [FileToStore("f", BufferSource([data]), layout)], {}),
        Description("me"),
        threads=1,
        chunk_size=chunk_size,
    )
    expected = db.manifest(done.snapshot.files["f"].manifest)
    told = []
    found = describe_file(
        BufferSource([data]), layout, threads=2, chunk_size=chunk_size, progress=told.append
    )
    assert found == expected
    assert sum(told) == layout.size


@pytest.mark.parametrize("size", [SIZE, SIZE - 1])
def test_a_file_that_changes_is_told(tmp_path, size):
    path = tmp_path / "f"
    path.write_bytes(DATA)
    source = FileSource(path)
    path.write_bytes(bytes(size))
    with pytest.raises(ConflictError):
        describe_file(source, opaque(SIZE))
    source.close()


def test_no_threads_are_started_for_small_files(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("threads were started")

    monkeypatch.setattr("mstore.ops.hashing.ThreadPoolExecutor", refuse)
    path = tmp_path / "f"
    for size in (0, 1, 4 << 20):
        path.write_bytes(DATA[:size])
        source, memory = FileSource(path), BufferSource([memoryview(DATA)[:size]])
        found = describe_file(source, opaque(size), threads=2)
        assert is_content(memory, found, threads=2)
    with pytest.raises(AssertionError, match="threads"):
        describe_file(BufferSource([memoryview(DATA)]), opaque(SIZE), threads=2)


def test_memory_is_bounded(tmp_path):
    path = tmp_path / "f"
    size = 100 << 20
    with path.open("wb") as file:
        file.truncate(size)
    layout = cover("x", size, [(8, tensor("w", "f32", size // 8))])
    source = FileSource(path)
    tracemalloc.start()
    found = describe_file(source, layout, threads=2)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.size == size
    assert peak < 40 << 20
