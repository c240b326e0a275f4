"""The process that reads HDF5 files: what happens when it dies, hangs or lies, and what it may do."""

import os
import shutil
import subprocess
import sys

import pytest
from hdf5_workers import (
    ZYGOTE,
    ended,
    put_zygote,
    small_file,
)

from mstore.errors import FormatError, LimitExceededError, StorageError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5_process import records

pytestmark = pytest.mark.usefixtures("no_zygote_kept")


@pytest.mark.parametrize(
    "code",
    [
        "os._exit(0)",  # without a word
        "os.kill(os.getpid(), signal.SIGSEGV)",
        "os._exit(1)",
        "frame(b'r', 0, 8); os.read(0, 3); os._exit(1)",
        "os.write(0, b'no frame')",
        "frame(b'x')",
        "frame(b'r', 1, 8); os.read(0, 8)",  # no block
        "frame(b'r', 0, 0)",
        "frame(b'l', 0, (1 << 20) + 1); time.sleep(60)",
        "frame(b'c', 0, (16 << 20) + 1); time.sleep(60)",
        "frame(b'c', 2, 2, b'{}')",
        "frame(b'c', 0, 1, b'\\xff')",
        "frame(b'l', 0, 0xFFFFFFFF); time.sleep(60)",
        "tell(b'no JSON')",
        "tell(b'\\xff')",
        "tell(b'[1]')",
        "tell(b'NaN')",
    ],
)
def test_what_it_says_is_not_believed(worker, zygotes, code):
    worker(code)
    with pytest.raises(FormatError):
        list(records(small_file()))
    assert ended(zygotes[0])


def test_it_gets_only_so_much_at_once(worker):
    worker("frame(b'r', 0, 8193); time.sleep(60)")
    with pytest.raises(FormatError, match="the HDF5 library failed on it"):
        list(records(BytesReader(bytes(10_000))))


@pytest.mark.parametrize("code", ["frame(b'r', 1 << 40, 8)", "frame(b'r', 2**64 - 8192, 8)"])
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
def test_it_has_only_so_much_time(worker, zygotes, monkeypatch, code):
    monkeypatch.setattr(hdf5_process, "SECONDS", 0.3)
    worker(code)
    with pytest.raises(LimitExceededError, match="took too long"):
        for _ in records(small_file()):
            pass
    assert ended(zygotes[0])


def test_parts_of_the_file_give_time_only_once():
    deadline = hdf5_process._Deadline(4)
    before = deadline.left()
    deadline.extend(0, 1 << 20)
    once = deadline.left()
    deadline.extend(0, 1 << 20)
    assert once > before
    assert deadline.left() <= once


def test_only_so_many_parts_are_remembered(monkeypatch):
    monkeypatch.setattr(hdf5_process, "_MAX_BLOCKS", 2)
    deadline = hdf5_process._Deadline(4)
    for block in range(3):
        deadline.extend(block << 20, 1 << 20)
    assert 4 + 2 * hdf5_process.SECONDS_PER_MIB >= deadline.left() > 4


def test_what_it_tells_of_a_model(worker):
    worker("frame(b'c', 1, 3, b'{ }')\nframe(b'c', 0, 2, b'{}')\ntell(b'{\"a\": 1}\\n{\"b\": 2}')")
    assert list(records(small_file())) == [
        {"config": "{ }", "path": "training_config"},
        {"config": "{}", "path": "model_config"},
        {"a": 1},
        {"b": 2},
    ]


def test_the_time_of_a_file_does_not_begin_before_its_worker_is_ready(
    worker, tmp_path, monkeypatch
):
    put_zygote(tmp_path, monkeypatch, "import time\ntime.sleep(1.5)")
    monkeypatch.setattr(hdf5_process, "SECONDS", 1.0)
    worker("tell(b'{\"a\": 1}')")
    assert list(records(small_file())) == [{"a": 1}]


def test_the_start_takes_too_long(tmp_path, monkeypatch, zygotes):
    put_zygote(tmp_path, monkeypatch, "import time\ntime.sleep(60)")
    monkeypatch.setattr(hdf5_process, "_SECONDS_TO_START", 0.2)
    monkeypatch.setattr(hdf5_process, "_SECONDS_TO_END", 0.1)
    with pytest.raises(LimitExceededError, match=r"h5py, .*, took too long to start"):
        list(records(small_file()))
    assert zygotes[0].process.returncode is not None


def test_no_worker_can_be_started(tmp_path, monkeypatch, zygotes):
    code = "import os\ndef fork(): raise BlockingIOError(11, 'no')\nos.fork = fork"
    put_zygote(tmp_path, monkeypatch, code)
    with pytest.raises(FormatError, match=f"started to read it: {os.strerror(11)}"):
        list(records(small_file()))
    assert ended(zygotes[0])


def test_it_ends_when_nobody_listens(zygotes):
    found = records(small_file())
    next(found)
    found.close()
    assert ended(zygotes[0])


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


def test_what_reading_raises_comes_through(zygotes):
    class Broken(BytesReader):
        def read(self, offset, length):
            raise StorageError("the disk is gone")

    with pytest.raises(StorageError, match="the disk is gone"):
        list(records(Broken(small_file().read(0, 1 << 20))))
    assert ended(zygotes[0])


def test_it_may_do_nothing(tmp_path, monkeypatch):
    """The limits that are set before it looks at the file, with h5py loaded."""
    for part in ZYGOTE.parent.glob("hdf5_*.py"):
        shutil.copy(part, tmp_path)
    path = tmp_path / "worker.py"
    path.write_text(f"""{(tmp_path / "hdf5_worker.py").read_text()}
import os, socket
list_really = list_file
def list_file(file, report):
    told = []
    for attempt in (
        lambda: open("/dev/null"),
        lambda: open({str(tmp_path / "made")!r}, "w"),
        lambda: socket.socket(),
        lambda: bytearray(1 << 30),
    ):
        try:
            attempt()
        except (OSError, MemoryError) as error:
            told.append(type(error).__name__)
    told.append(len(os.environ.get("HDF5_PLUGIN_PATH", "")))
    told.append(os.getcwd())
    for number in range(100):
        try:
            os.fstat(number)
            told.append(number)
        except OSError:
            pass
    report.add(told=told)
    list_really(file, report)
""")
    monkeypatch.setattr(hdf5_process, "_WORKER", path)
    monkeypatch.setenv("HDF5_PLUGIN_PATH", str(tmp_path))
    told, listed = records(small_file())
    assert told == {"told": ["OSError", "OSError", "OSError", "MemoryError", 0, "/", 0, 1, 2]}
    assert listed["path"] == "w"
    assert not (tmp_path / "made").exists()


READS_MEMORY = """
class Part(ctypes.Structure):
    _fields_ = [('start', ctypes.c_void_p), ('length', ctypes.c_size_t)]
library = ctypes.CDLL(None)
number = ctypes.c_int(0)
own, other = Part(ctypes.addressof(number), 4), Part(id(int), 4)
read = library.process_vm_readv(os.getppid(), ctypes.byref(own), 1, ctypes.byref(other), 1, 0)
tell(json.dumps({'read': read, 'dumpable': library.prctl(3, 0, 0, 0, 0)}).encode())
"""  # a fork has all that is older than it at the same place


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there are no such calls")
def test_it_cannot_read_the_memory_of_what_it_was_forked_from(worker):
    worker(READS_MEMORY)
    (told,) = records(small_file())
    assert told["dumpable"] == 0
    assert told["read"] == -1 or os.geteuid() == 0  # whom nothing is forbidden


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, mstore.formats.hdf5, mstore.formats.keras;"
        "sys.exit(' '.join({'h5py', 'numpy', 'keras'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
