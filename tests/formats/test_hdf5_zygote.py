"""The process from which those that read HDF5 files are forked: what ends it, and what outlives it."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hdf5_workers import (
    ASKS,
    TELLS_NUMBER,
    ended,
    is_gone,
    listed,
    run,
    small_file,
)

from mstore.errors import FormatError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5_process import records

pytestmark = pytest.mark.usefixtures("no_zygote_kept")


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

    @pytest.mark.parametrize("how", ["SIGSTOP", "SIGKILL"])
    @pytest.mark.parametrize("last", ["tell(b'no JSON')", "frame(b'd')", "os._exit(1)"])
    def test_a_worker_that_stops_it_and_leaves_its_group_is_killed(
        self, worker, zygotes, monkeypatch, how, last
    ):
        monkeypatch.setattr(hdf5_process, "_SECONDS_TO_END", 0.1)
        worker(
            f"if file._size < 50: return\n{TELLS_NUMBER}\nos.setsid()\nos.kill(os.getppid(), signal.{how})\n{last}\n"
            "time.sleep(60)"
        )
        assert list(records(BytesReader(bytes(10)))) == []  # another worker before that one
        found = records(small_file())
        told = next(found)
        assert zygotes[0].worker == told["worker"]
        with contextlib.suppress(FormatError):
            next(found, None)
        hdf5_process.end_kept()
        assert zygotes[0].process.returncode == -signal.SIGKILL
        assert is_gone(told["worker"])

    def test_one_that_was_stopped_is_not_waited_for(self, worker, zygotes, monkeypatch):
        monkeypatch.setattr(hdf5_process, "_SECONDS_TO_END", 0.1)
        monkeypatch.setattr(hdf5_process, "_SECONDS_TO_FORK", 0.1)
        with monkeypatch.context() as until:
            until.setattr(hdf5_process, "_WORKER", hdf5_process._WORKER)
            worker("os.kill(os.getppid(), signal.SIGSTOP)\nframe(b'd')\ntime.sleep(60)")
            assert list(records(small_file())) == []
        assert listed() == ["w"]
        assert len(zygotes) == 2
        assert zygotes[0].process.returncode == -signal.SIGKILL

    def test_nothing_is_done_to_a_process_that_got_the_number_of_a_worker(
        self, zygotes, monkeypatch
    ):
        """Once the zygote has said that the worker is gone."""
        assert listed() == ["w"]
        (zygote,) = zygotes
        zygote.control.setblocking(True)
        assert zygote.control.recv(1, socket.MSG_PEEK)
        zygote.control.setblocking(False)
        zygote.process.kill()
        killed = []
        monkeypatch.setattr(os, "kill", lambda *told: killed.append(told))
        hdf5_process.end_kept()
        assert killed == []

    def test_who_asks_ignores_the_ends_of_its_children(self):
        """And blocks signals; all that passes on to programs that it starts."""
        assert run(
            "import signal\n"
            "signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
            "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])\n"
            "seen = set()\n"
            "for _ in range(3):\n"
            "    assert len(list(hdf5_process.records(data))) == 1\n"
            "    (zygote,) = hdf5_process._ZYGOTES\n"
            "    seen.add(zygote.process.pid)\n"
            "state = pathlib.Path(f'/proc/{zygote.process.pid}/status').read_text()\n"
            "masks = dict(line.split(':') for line in state.splitlines())\n"
            "ignored = int(masks['SigIgn'], 16) >> signal.SIGCHLD - 1 & 1\n"
            "print(len(seen), int(masks['SigBlk'], 16), ignored)"
        ).split() == ["1", "0", "0"]

    def test_sockets_with_a_time_limit_by_default(self):
        socket.setdefaulttimeout(30)
        try:
            assert [listed(), listed()] == [["w"], ["w"]]
        finally:
            socket.setdefaulttimeout(None)
