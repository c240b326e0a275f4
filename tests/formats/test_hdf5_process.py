"""The process that reads HDF5 files: what happens when it dies, hangs or lies, and what it may do."""

import io
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, LimitExceededError, MstoreError, StorageError
from mstore.formats import hdf5_listing, hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5 import Hdf5Format
from mstore.formats.hdf5_process import records


def small_file():
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file["w"] = np.arange(4.0)
    return BytesReader(data.getvalue())


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Puts a program in the place of the real one; it gets `frame` and `ask` for the protocol."""

    def put(code):
        path = tmp_path / "worker.py"
        path.write_text(
            "import os, struct, time, json, signal\n"
            "def frame(kind, offset=0, length=0, payload=b''):\n"
            "    os.write(0, struct.pack('<cQI', kind, offset, length) + payload)\n"
            "def tell(text): frame(b'l', 0, len(text), text)\n"
            "frame(b'h')\n"
            "os.read(0, 8)\n" + code
        )
        monkeypatch.setattr(hdf5_process, "_WORKER", path)

    return put


@pytest.fixture
def processes(monkeypatch):
    """Every process that is started."""
    started = []
    start = hdf5_process._start

    def noted():
        process, link = start()
        started.append(process)
        return process, link

    monkeypatch.setattr(hdf5_process, "_start", noted)
    return started


@pytest.mark.parametrize(
    "code",
    [
        "",  # ends without a word
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(1)",
        "frame(b'r', 0, 8); os.read(0, 3); os._exit(1)",
        "os.write(0, b'no frame')",
        "frame(b'x')",
        "frame(b'l', 0, 0xFFFFFFFF); time.sleep(60)",
        "tell(b'no JSON')",
        "tell(b'\\xff')",
        "tell(b'[1]')",
        "tell(b'NaN')",
    ],
)
def test_what_it_says_is_not_believed(worker, processes, code):
    worker(code)
    with pytest.raises(FormatError):
        list(records(small_file()))
    assert processes[0].returncode is not None


def test_it_gets_only_so_much_at_once(worker):
    worker("frame(b'r', 0, 8193); time.sleep(60)")
    with pytest.raises(FormatError, match="the HDF5 library failed on it"):
        list(records(BytesReader(bytes(10_000))))


@pytest.mark.parametrize("code", ["frame(b'r', 1 << 40, 8)", "frame(b'r', 2**64 - 1, 8)"])
def test_it_gets_no_bytes_from_outside_the_file(worker, code):
    worker(code)
    with pytest.raises(FormatError, match="the file ends"):
        list(records(small_file()))


def test_json_nested_too_deeply(worker):
    worker("tell(b'{\"a\":' + b'[' * 100_000 + b'\\n')")
    with pytest.raises(LimitExceededError):
        list(records(small_file()))


@pytest.mark.parametrize(
    "code",
    [
        "time.sleep(60)",
        "while True: pass",
        "while True: frame(b'r', 0, 64); os.read(0, 64)",
        "while True: tell(b'{\"a\": 1}')",
        "while True: frame(b'r', 0, 64)",  # never takes an answer
    ],
)
def test_it_has_only_so_much_time(worker, processes, monkeypatch, code):
    monkeypatch.setattr(hdf5_process, "SECONDS", 0.3)
    worker(code)
    with pytest.raises(LimitExceededError, match="took too long"):
        for _ in records(small_file()):
            pass
    assert processes[0].returncode == -signal.SIGKILL


def test_parts_of_the_file_give_time_only_once():
    deadline = hdf5_process._Deadline()
    before = deadline.left()
    deadline.extend(0, 1 << 20)
    once = deadline.left()
    deadline.extend(0, 1 << 20)
    assert once > before
    assert deadline.left() <= once


def test_it_ends_when_nobody_listens(processes):
    found = records(small_file())
    next(found)
    found.close()
    assert processes[0].returncode is not None


def test_h5py_does_not_work(monkeypatch, tmp_path):
    path = tmp_path / "worker.py"
    path.write_text("raise ImportError")
    monkeypatch.setattr(hdf5_process, "_WORKER", path)
    with pytest.raises(FormatError, match="h5py, which reads such files, does not work here"):
        list(records(small_file()))


def test_it_cannot_be_started(monkeypatch):
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(FormatError, match="no process can be started to read it: No such file"):
        list(records(small_file()))


def test_what_reading_raises_comes_through(processes):
    class Broken(BytesReader):
        def read(self, offset, length):
            raise StorageError("the disk is gone")

    with pytest.raises(StorageError, match="the disk is gone"):
        list(records(Broken(small_file().read(0, 1 << 20))))
    assert processes[0].returncode is not None


def test_it_may_do_nothing(worker, tmp_path):
    """The limits that the real program sets before it looks at the file."""
    real = Path(hdf5_process.__file__).with_name("hdf5_worker.py").read_text()
    code = real.replace("    try:\n        Lister(", f"""    told = []
    for attempt in (
        lambda: open("/dev/null"),
        lambda: open({str(tmp_path / "made")!r}, "w"),
        lambda: __import__("socket").socket(),
        lambda: bytearray(1 << 30),
    ):
        try:
            attempt()
        except (OSError, MemoryError) as error:
            told.append(type(error).__name__)
    told.append(len(os.environ.get("HDF5_PLUGIN_PATH", "")))
    told.append(os.getcwd())
    report.add(told=told)
    try:
        Lister(""")  # fmt: skip
    assert code != real
    path = tmp_path / "worker.py"
    path.write_text(code)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_process, "_WORKER", path)
        patch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
        patch.setenv("SECRET", "x")
        told = next(record["told"] for record in records(small_file()) if "told" in record)
    assert told == ["OSError", "OSError", "OSError", "MemoryError", 0, "/"]
    assert not (tmp_path / "made").exists()


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, mstore.formats.hdf5, mstore.formats.keras;"
        "sys.exit(' '.join({'h5py', 'numpy', 'keras'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


numbers = st.integers(-1, 100) | st.sampled_from([2**31, 2**62, 2**63, 2**70]) | st.none()
lists = st.lists(numbers, max_size=3)
strings = st.text(max_size=5)
said = st.fixed_dictionaries(
    {},
    optional={
        "path": strings | numbers,
        "address": numbers,
        "dtype": st.sampled_from(["f32", ">f64", "f4", "nothing", 3, None]),
        "shape": lists | numbers,
        "layout": st.sampled_from(["contiguous", "chunked", "filtered", "compact", "x", 1]),
        "offset": numbers,
        "tile": lists | st.none(),
        "fill": st.sampled_from(["00000000", "", "x", 1, None]),
    },
)
tiles = st.fixed_dictionaries({"tiles": st.lists(lists | numbers, max_size=3) | numbers})
others = st.sampled_from(
    [{"same": 1, "path": "a"}, {"hazard": "x", "path": "y"}, {"config": 1}, {"hazard": 1}, {}]
)


@settings(max_examples=500)
@given(st.lists(said | tiles | others, max_size=6))
def test_any_lies_end_in_a_layout_or_an_error_of_ours(spoken):
    reader = small_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_listing, "records", lambda _: iter(spoken))
        try:
            layout = Hdf5Format().layout(reader)
        except MstoreError:
            return
    assert sum(segment.length for segment in layout.segments) == reader.size


class TestLies:
    """Each check of what is said, one by one."""

    GOOD = {  # noqa: RUF012
        "path": "w", "address": 1, "dtype": "f32", "shape": [4, 4], "layout": "chunked",
        "offset": None, "tile": [2, 2], "fill": "00000000",
    }  # fmt: skip

    def layout(self, monkeypatch, *spoken):
        monkeypatch.setattr(hdf5_listing, "records", lambda _: iter(spoken))
        return Hdf5Format().layout(small_file())

    def test_good(self, monkeypatch):
        tiles = [[64, 16, 0, 0], [80, 16, 2, 2], [200, 16, 0, 2]]
        layout = self.layout(monkeypatch, self.GOOD, {"tiles": tiles})
        (view,) = layout.views
        assert view.place.offsets == (64, 200, -1, 80)
        assert [s.tensor.shape for s in layout.segments if s.hidden] == [(2, 2, 2), (1, 2, 2)]

    @pytest.mark.parametrize(
        "tiles",
        [
            [[64, 15, 0, 0]],  # another size
            [[64, 16, 1, 0]],  # between two places
            [[64, 16, 4, 0]],  # outside
            [[64, 16, 0]],
            [[64, 16, 0, 0, 0]],
            [[64]],
            [[64, 16, 0, 0], [80, 16, 0, 0]],  # twice the same
            [[64, 16, 0, 0], [72, 16, 0, 2]],  # bytes shared
            [[10**6, 16, 0, 0]],
            [[-1, 16, 0, 0]],
            [[True, 16, 0, 0]],
        ],
    )
    def test_tiles(self, monkeypatch, tiles):
        with pytest.raises(FormatError):
            self.layout(monkeypatch, self.GOOD, {"tiles": tiles})

    @pytest.mark.parametrize(
        "change",
        [
            {"tile": [2]},
            {"tile": [0, 2]},
            {"tile": [-1, 2]},
            {"dtype": None},
            {"shape": [-4, 4]},
            {"shape": [2**62, 4]},
            {"layout": "contiguous", "tile": None, "offset": 10**6},
            {"path": None},
            {"fill": "0"},
        ],
    )
    def test_datasets(self, monkeypatch, change):
        with pytest.raises(FormatError):
            self.layout(monkeypatch, {**self.GOOD, **change})

    def test_too_many_chunks(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_TILES", 7)
        again = {**self.GOOD, "path": "v", "address": 2}
        with pytest.raises(LimitExceededError, match="chunks"):
            self.layout(monkeypatch, self.GOOD, again)
        with pytest.raises(LimitExceededError, match="chunks"):
            self.layout(monkeypatch, self.GOOD, {"path": "v", "same": 1})

    def test_too_many_datasets(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_DATASETS", 2)
        with pytest.raises(LimitExceededError, match="datasets"):
            self.layout(monkeypatch, *({**self.GOOD, "path": str(n)} for n in range(3)))

    def test_paths_too_long(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_PATHS", 10)
        with pytest.raises(LimitExceededError, match="long paths"):
            self.layout(monkeypatch, {**self.GOOD, "path": "w" * 11})

    @pytest.mark.parametrize("fill", [None, "00", "0000000000000000"])
    def test_fill_values_that_are_none(self, monkeypatch, fill):
        spoken = {**self.GOOD, "fill": fill}
        monkeypatch.setattr(hdf5_listing, "records", lambda _: iter([spoken]))
        layout, note = Hdf5Format().examine(small_file())
        assert not layout.views
        assert note == "opaque bytes for 1 of 1 datasets: 1 with fill values unknown"

    def test_one_path_twice(self, monkeypatch):
        layout = self.layout(monkeypatch, self.GOOD, {**self.GOOD, "address": 2})
        assert [view.tensor.name for view in layout.views] == ["w", "w#2"]
