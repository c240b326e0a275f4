"""The process that reads HDF5 files: what happens when it dies, hangs or lies, and what it may do."""

import io
import re
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import h5py
import numpy as np
import pytest

from mstore.errors import FormatError, LimitExceededError, StorageError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5_process import records

ZYGOTE = Path(hdf5_process.__file__).with_name("hdf5_zygote.py")


def small_file(name="w"):
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file[name] = np.arange(4.0)
    return BytesReader(data.getvalue())


@pytest.fixture(autouse=True)
def _none_kept(monkeypatch):
    """No test gets the zygote of another."""
    monkeypatch.setattr(hdf5_process, "_ZYGOTES", [])
    yield
    hdf5_process.end_kept()


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
            "count = 0\n"
            "def rehearse(report): pass\n"
            "def list_file(file, report):\n" + textwrap.indent(code, "    ")
        )
        monkeypatch.setattr(hdf5_process, "_WORKER", path)

    return put


@pytest.fixture
def zygotes(monkeypatch):
    """Every zygote that is started."""
    started = []
    start = hdf5_process._start

    def noted():
        started.append(start())
        return started[-1]

    monkeypatch.setattr(hdf5_process, "_start", noted)
    return started


def ended(zygote):
    """Whether it ended in good order, after the end of its worker."""
    return zygote.process.returncode == 0


@pytest.mark.parametrize(
    "code",
    [
        "os._exit(0)",  # without a word
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
def test_what_it_says_is_not_believed(worker, zygotes, code):
    worker(code)
    with pytest.raises(FormatError):
        list(records(small_file()))
    assert ended(zygotes[0])


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
def test_it_has_only_so_much_time(worker, zygotes, monkeypatch, code):
    monkeypatch.setattr(hdf5_process, "SECONDS", 0.3)
    worker(code)
    with pytest.raises(LimitExceededError, match="took too long"):
        for _ in records(small_file()):
            pass
    assert ended(zygotes[0])


def test_parts_of_the_file_give_time_only_once():
    deadline = hdf5_process._Deadline()
    before = deadline.left()
    deadline.extend(0, 1 << 20)
    once = deadline.left()
    deadline.extend(0, 1 << 20)
    assert once > before
    assert deadline.left() <= once


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


@pytest.fixture
def soon_idle(monkeypatch, tmp_path):
    """A zygote ends soon after the last file."""
    path = tmp_path / "zygote.py"
    path.write_text(re.sub(r"(?m)^IDLE_SECONDS = .*", "IDLE_SECONDS = 0.05", ZYGOTE.read_text()))
    monkeypatch.setattr(hdf5_process, "_ZYGOTE", path)


def listed(name="w"):
    """What is reported of a small file."""
    return [record["path"] for record in records(small_file(name))]


def is_gone(process, seconds=10.0):
    """Whether a process that is not ours ends in this time, or has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # who started it is gone, and nobody has taken note yet
            return True
        time.sleep(0.01)
    return False


ASKS = """
import json, os, pathlib
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
"""


def run(code):
    """What a program prints that has a file in `data`; any warning is an error."""
    start = f"{ASKS}data = BytesReader({small_file().read(0, small_file().size)!r})\n"
    command = [sys.executable, "-W", "error", "-X", "dev", "-c", start + code]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


TELLS_NUMBER = "tell(json.dumps({'worker': os.getpid(), 'parent': os.getppid()}).encode())"


class TestZygote:
    """The process from which workers are forked: kept while all is well, and touched by no file."""

    def test_it_is_kept_for_the_next_file(self, zygotes):
        assert [listed(name) for name in "abc"] == [["a"], ["b"], ["c"]]
        assert len(zygotes) == 1

    def test_each_file_has_a_worker_of_its_own_which_leaves_no_trace(self, worker):
        worker(
            "global count\n"
            "count += 1\n"
            "os.environ['SEEN'] = os.environ.get('SEEN', '') + 'x'\n"
            "tell(json.dumps({'count': count, 'seen': os.environ['SEEN']}).encode())"
        )
        for _ in range(3):
            assert list(records(small_file())) == [{"count": 1, "seen": "x"}]

    def test_the_worker_is_gone_when_all_is_told(self, worker, zygotes):
        worker(TELLS_NUMBER + "\nframe(b'd')\ntime.sleep(60)")
        first, second = (next(iter(list(records(small_file())))) for _ in range(2))
        assert first["parent"] == second["parent"] == zygotes[0].process.pid
        assert first["worker"] != second["worker"]
        assert all(is_gone(told["worker"]) for told in (first, second))

    def test_a_failure_ends_it_and_the_next_file_is_read(self, zygotes):
        with pytest.raises(FormatError, match="cannot read it"):
            list(records(BytesReader(bytes(1000))))
        assert ended(zygotes[0])
        assert listed() == ["w"]
        assert len(zygotes) == 2

    def test_it_ended_in_the_meantime(self, zygotes):
        for _ in range(2):
            assert listed() == ["w"]
            zygotes[-1].process.kill()
            zygotes[-1].process.wait()
        assert listed() == ["w"]
        assert len(zygotes) == 3

    def test_it_ends_when_it_is_idle(self, zygotes, soon_idle):
        assert listed() == ["w"]
        assert zygotes[0].process.wait(10) == 0
        assert listed() == ["w"]
        assert len(zygotes) == 2

    def test_it_does_not_end_while_a_worker_is_at_work(self, worker, zygotes, soon_idle):
        worker("time.sleep(0.3)\n" + TELLS_NUMBER)
        (told,) = records(small_file())
        assert told["parent"] == zygotes[0].process.pid

    def test_another_who_holds_its_connection_does_not_keep_it(self, zygotes):
        assert listed() == ["w"]
        with zygotes[0].control.dup():
            hdf5_process.end_kept()
        assert ended(zygotes[0])

    def test_threads_do_not_share_it(self, zygotes):
        names = [f"w{number}" for number in range(40)]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(listed, names)) == [[name] for name in names]
        assert len(hdf5_process._ZYGOTES) == 1
        assert [ended(zygote) for zygote in zygotes].count(False) == 1

    def test_two_files_at_once(self, zygotes):
        first, second = records(small_file("a")), records(small_file("b"))
        assert (next(first)["path"], next(second)["path"]) == ("a", "b")
        assert (list(first), list(second)) == ([], [])
        assert len(zygotes) == 2
        assert len(hdf5_process._ZYGOTES) == 1

    def test_a_fork_of_this_process_has_its_own(self):
        """In a process without threads: others must not be forked."""
        done = run(
            "list(hdf5_process.records(data))\n"
            "ours = hdf5_process._ZYGOTES[0].process.pid\n"
            "child = os.fork()\n"
            "assert bool(child) == bool(hdf5_process._ZYGOTES)\n"
            "assert len(list(hdf5_process.records(data))) == 1\n"
            "assert (hdf5_process._ZYGOTES[0].process.pid == ours) == bool(child)\n"
            "if child: os.waitpid(child, 0)\n"
            "assert len(list(hdf5_process.records(data))) == 1\n"
            "print(hdf5_process._ZYGOTES[0].process.pid, ours)\n"
        )
        (child, childs_ours), (own, ours) = map(str.split, done.splitlines())
        assert own == ours == childs_ours != child
        assert not Path(f"/proc/{child}").exists()

    @pytest.mark.parametrize("code", ["time.sleep(60)", "while True: pass"])
    def test_all_end_when_who_asked_is_killed(self, worker, tmp_path, code):
        worker(f"{TELLS_NUMBER}\n{code}")
        asks = ASKS + (
            f"hdf5_process._WORKER = pathlib.Path({str(tmp_path / 'worker.py')!r})\n"
            "for record in hdf5_process.records(BytesReader(bytes(100))):\n"
            "    print(json.dumps(record), flush=True)\n"
        )
        with subprocess.Popen([sys.executable, "-c", asks], stdout=subprocess.PIPE) as process:
            told = hdf5_process.parse_json(process.stdout.readline().decode())
            process.kill()
        assert is_gone(told["worker"])
        assert is_gone(told["parent"])

    def test_it_ends_with_the_process(self):
        process = run(
            "assert len(list(hdf5_process.records(data))) == 1\n"
            "print(hdf5_process._ZYGOTES[0].process.pid)\n"
        )
        assert not Path(f"/proc/{int(process)}").exists()

    def test_one_that_is_stopped_is_killed(self, worker, zygotes, monkeypatch):
        monkeypatch.setattr(hdf5_process, "_SECONDS_TO_END", 0.1)
        worker(
            f"{TELLS_NUMBER}\nos.kill(os.getppid(), signal.SIGSTOP)\ntell(b'no JSON')\ntime.sleep(60)"
        )
        found = records(small_file())
        told = next(found)
        with pytest.raises(FormatError):
            next(found)
        assert zygotes[0].process.returncode == -signal.SIGKILL
        assert is_gone(told["worker"])

    def test_sockets_with_a_time_limit_by_default(self):
        socket.setdefaulttimeout(30)
        try:
            assert [listed(), listed()] == [["w"], ["w"]]
        finally:
            socket.setdefaulttimeout(None)


def test_nothing_heavy_is_imported_before_it_is_needed():
    code = (
        "import sys, mstore.formats.hdf5, mstore.formats.keras;"
        "sys.exit(' '.join({'h5py', 'numpy', 'keras'} & sys.modules.keys()) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
