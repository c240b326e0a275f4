"""Encoding in other processes: nothing differs but the time, whatever becomes of a process."""

import gc
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import mstore
from mstore import encoder_client, encoder_process, encoders, threads
from mstore.chunkencoder import ChunkEncoder, Coded, Job
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.encoder_client import EncoderProcess, _fork, _spawn, is_alone
from mstore.encoders import Encoders
from mstore.errors import CorruptDataError
from mstore.repository import Repository
from mstore.sharedmemory import SharedMemory
from mstore.storage.memory import MemoryStorage

SHAPE = (3500, 1024)
"""Four portions of float32."""

Entries = list[tuple[object, ...]]


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, SHAPE).astype(np.float32)


def trained(before: np.ndarray, step: float = 1e-4) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, step, before.shape)
    return (before + noise).astype(np.float32)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return mstore.init(tmp_path / "repository", bare=True)


class Observed(EncoderProcess):
    """A process that is waited for, since the commits of these tests are over sooner."""

    made: ClassVar[list["Observed"]]

    def __init__(self, shared: SharedMemory, session: Session) -> None:
        super().__init__(shared, session)
        self.portions = self.failures = 0
        self.beside_unnamed_indexes = False
        until = time.monotonic() + 20
        while not self._is_ready():
            assert time.monotonic() < until
            time.sleep(0.001)
        self.made.append(self)

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded] | None:
        self.failures += 1
        coded = super().encode(jobs, results)
        self.failures -= 1
        self.portions += coded is not None
        self.beside_unnamed_indexes |= bool(self._session.new_indexes())
        return coded

    @property
    def number(self) -> int:
        return self._process.pid


@pytest.fixture(params=[_fork, _spawn])
def start(request: pytest.FixtureRequest) -> Callable[..., object]:
    way: Callable[..., object] = request.param
    return way


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, start: Callable[..., object]) -> list[Observed]:
    """All processes that are started, each in the same way and before there is anything to do."""
    monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(encoders, "is_alone", lambda: True)
    monkeypatch.setattr(encoder_client, "is_alone", lambda: start is _fork)
    monkeypatch.setattr(encoders, "EncoderProcess", Observed)
    Observed.made = []
    return Observed.made


@pytest.fixture
def slow_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The encoders of this process are slow, so that all processes get something to do."""
    here, encode = os.getpid(), ChunkEncoder.encode

    def slowly_here(self: ChunkEncoder, jobs: Sequence[Job]) -> list[Coded]:
        time.sleep(0.2 if os.getpid() == here else 0)
        return encode(self, jobs)

    monkeypatch.setattr(ChunkEncoder, "encode", slowly_here)


def entries(repo: Repository) -> Entries:
    """What is stored of chunks, but for where."""
    found: Entries = []
    for index in repo.database.chunk_indexes():
        found += ((e.id, e.codec, e.raw, e.stored, e.dtype, e.depth, e.base) for e in index)
    return sorted(found, key=str)


def by_one_thread(folder: Path, *versions: np.ndarray) -> Entries:
    """What is stored when these versions are committed without any process."""
    repo = mstore.init(folder / "other", bare=True)
    for values in versions:
        repo.commit({"w": values}, threads=1, author="Ada")
    return entries(repo)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """What one thread stores of the first weights."""
    return by_one_thread(tmp_path_factory.mktemp("expected"), weights())


def test_the_same_is_stored(repo: Repository, tmp_path: Path, made: list[Observed]) -> None:
    versions = [weights()]
    for step in (1e-4, 1e-6):
        versions.append(trained(versions[-1], step))
    for values in versions:
        repo.commit({"w": values}, threads=2)
    assert [process.portions > 0 for process in made] == [True] * 3
    assert entries(repo) == by_one_thread(tmp_path, *versions)
    assert {entry[5] for entry in entries(repo)} == {0, 1, 2}
    assert repo.verify().ok
    assert np.array_equal(repo["main"].tensors["w"].numpy(), versions[-1])


@pytest.mark.usefixtures("slow_here")
def test_several_processes_and_files_of_all_sizes(
    repo: Repository, tmp_path: Path, made: list[Observed]
) -> None:
    folder, random = tmp_path / "model", np.random.default_rng(0)
    folder.mkdir()
    for number in range(30):
        np.save(folder / f"small{number}.npy", random.normal(size=20_000).astype(np.float32))
    np.save(folder / "large.npy", np.concatenate([weights(), weights(1)]))
    repo.commit(folder, threads=4)
    assert [process.portions > 0 for process in made] == [True] * 3
    assert repo.verify().ok
    repo["main"].checkout(tmp_path / "out")
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def test_chunks_that_are_too_large_for_shared_memory(
    repo: Repository, made: list[Observed]
) -> None:
    repo.commit({"w": weights()}, threads=2, chunk_size=8 << 20)
    assert (made[0].portions, made[0].failures) == (0, 0)
    assert repo.verify().ok


@pytest.mark.usefixtures("slow_here")
def test_bases_of_the_same_commit(repo: Repository, tmp_path: Path, made: list[Observed]) -> None:
    """No root names the indexes that these are found by."""
    values, folder = weights(), tmp_path / "model"
    folder.mkdir()
    np.savez(folder / "a.npz", w=values)
    np.savez(folder / "half.npz", w=values.astype(np.float16))
    snapshot = repo.commit(folder, threads=2)
    assert made[0].beside_unnamed_indexes
    assert snapshot.files["half.npz"].tensors["w"].stored < 0.005 * values.nbytes
    assert repo.verify().ok


class TestWhenThereAreProcesses:
    def test_one_thread_starts_none(self, repo: Repository, made: list[Observed]) -> None:
        repo.commit({"w": weights()}, threads=1)
        assert not made

    def test_little_starts_none(
        self, repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 16 << 20)
        repo.commit({"w": weights()}, threads=2)
        assert not made

    def test_a_repository_that_only_this_process_sees_starts_none(
        self, made: list[Observed]
    ) -> None:
        repo = Repository(Database.create(MemoryStorage(), "Ada"))
        repo.commit({"w": weights()}, threads=2)
        assert not made

    @pytest.mark.parametrize("start", [_spawn], indirect=True)
    def test_what_is_stored_already_starts_none(
        self, repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """But by a fork, which costs nothing."""
        monkeypatch.setattr(encoders, "is_alone", lambda: False)
        repo.commit({"w": weights()}, threads=1)
        repo.commit({"v": weights()}, threads=2)
        assert not made
        repo.commit({"w": weights(1)}, threads=2)
        assert len(made) == 1

    def test_only_the_command_line_is_forked_and_only_without_threads(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = (
            "from mstore import threads; from mstore.encoder_client import is_alone\n"
            "import threading, time; found = [is_alone()]; threads.is_own_program = True\n"
            "found.append(is_alone()); threading.Thread(target=time.sleep, args=(9,), "
            "daemon=True).start(); print(*found, is_alone())"
        )
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-c", program], env=environment, capture_output=True, text=True
        )
        assert done.stdout == "False True False\n", done.stderr
        monkeypatch.setattr(threads, "is_own_program", True)
        wait = threading.Event()
        other = threading.Thread(target=wait.wait)
        other.start()
        assert not is_alone()
        wait.set()
        other.join()


class Failing:
    """A commit whose one process fails."""

    def __init__(self, repo: Repository, made: list[Observed], expected: Entries) -> None:
        self._repo, self._made, self._expected = repo, made, expected

    @property
    def number(self) -> int:
        return self._made[0].number

    def commit(self) -> None:
        """It is asked once, and what is stored is what one thread stores."""
        self._repo.commit({"w": weights()}, threads=2)
        assert (self._made[0].portions, self._made[0].failures) == (0, 1)
        assert entries(self._repo) == self._expected


@pytest.fixture
def failing(repo: Repository, made: list[Observed], expected: Entries) -> Failing:
    return Failing(repo, made, expected)


class TestAProcessThatFails:
    """What it was to encode is encoded in this process."""

    def test_killed(self, failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
        def kill_first(link: socket.socket, message: object) -> None:
            os.kill(failing.number, signal.SIGKILL)
            encoder_process.send(link, message)

        monkeypatch.setattr(encoder_client, "send", kill_first)
        failing.commit()

    def test_stopped(self, failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
        def stop_first(link: socket.socket, message: object) -> None:
            os.kill(failing.number, signal.SIGSTOP)
            encoder_process.send(link, message)

        monkeypatch.setattr(encoder_client, "send", stop_first)
        monkeypatch.setattr(encoder_client, "_SECONDS", 0.2)
        too_late = threading.Timer(30, lambda: os.kill(failing.number, signal.SIGKILL))
        too_late.start()
        failing.commit()
        assert not too_late.finished.is_set()
        too_late.cancel()

    @pytest.mark.parametrize(
        "answer",
        [None, 7, (), ((3, None, 0, 10, 0),) * 9, ((3,),) * 4, ((3, None, 0, "x", 0),) * 4]
        + [((3, None, 0, 1 << 40, 0),) * n for n in range(1, 5)]
        + [((3, None, 0, 0, 0x2D06800538D394C2), (3, b"short", 1, 0, 0x2D06800538D394C2)) * 2],
    )
    def test_an_answer_that_cannot_be(
        self, failing: Failing, monkeypatch: pytest.MonkeyPatch, answer: object
    ) -> None:
        monkeypatch.setattr(encoder_client, "receive", lambda _: answer)
        failing.commit()

    def test_a_payload_that_changed_on_its_way(
        self,
        repo: Repository,
        made: list[Observed],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def receive(link: socket.socket) -> object:
            answers = encoder_process.receive(link)
            view = made[0]._shared.view
            for number in range(0, len(view), 1 << 16):
                view[number] ^= 1
            return answers

        monkeypatch.setattr(encoder_client, "receive", receive)
        with pytest.raises(CorruptDataError, match="changed in memory"):
            # The chunks changed as well, so that they cannot be encoded here either.
            repo.commit({"w": weights()}, threads=2)
        assert made[0].portions == 0

    def test_payloads_that_get_into_each_others_way(
        self, repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        room = SharedMemory.room
        monkeypatch.setattr(
            SharedMemory, "room", lambda self, at: room(self, at)._replace(results=4 << 20)
        )
        repo.commit({"w": np.concatenate([weights(n) for n in range(3)])}, threads=4)
        assert made
        assert repo.verify().ok

    @pytest.mark.usefixtures("slow_here")
    def test_another_version_of_mstore(
        self, repo: Repository, expected: Entries, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As when it is upgraded while a program that uses it goes on."""
        said = []

        class Other(EncoderProcess):
            def _is_ready(self) -> bool:
                while True:
                    try:
                        if super()._is_ready():
                            said.append("ready")
                            return True
                    except EOFError:
                        said.append("other")
                        raise

        monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 1)
        monkeypatch.setattr(encoders, "EncoderProcess", Other)
        monkeypatch.setattr(encoders, "is_alone", lambda: True)
        monkeypatch.setattr(encoder_client, "is_alone", lambda: False)
        monkeypatch.setattr(encoder_client, "READY", b"mstore 0.0.0\n")
        repo.commit({"w": weights()}, threads=2)
        assert said == ["other"]
        assert entries(repo) == expected

    @pytest.mark.parametrize("python", ["/no/python", "", None, "/bin/true"])
    @pytest.mark.parametrize("start", [_spawn], indirect=True)
    def test_no_python(
        self,
        repo: Repository,
        expected: Entries,
        made: list[Observed],
        monkeypatch: pytest.MonkeyPatch,
        python: str | None,
    ) -> None:
        """Programs that are made of Python and other things name themselves, or nothing."""
        monkeypatch.setattr(sys, "executable", python)
        repo.commit({"w": weights()}, threads=2)
        assert not made
        assert entries(repo) == expected

    @pytest.mark.parametrize("what", ["memfd_create", "fork"])
    @pytest.mark.parametrize("start", [_fork], indirect=True)
    def test_no_memory_or_no_fork(
        self,
        repo: Repository,
        expected: Entries,
        made: list[Observed],
        monkeypatch: pytest.MonkeyPatch,
        what: str,
    ) -> None:
        def fail(*_: object) -> int:
            raise OSError("no more")

        monkeypatch.setattr(os, what, fail)
        repo.commit({"w": weights()}, threads=2)
        assert not made
        assert entries(repo) == expected

    def test_somebody_else_has_waited_for_it(self, repo: Repository, made: list[Observed]) -> None:
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        try:
            repo.commit({"w": weights()}, threads=2)
        finally:
            signal.signal(signal.SIGCHLD, before)
        assert made[0].portions
        assert repo.verify().ok

    def test_no_signal_ends_a_program_that_leaves_it_to_the_system(self, tmp_path: Path) -> None:
        program = _COMMITTING.replace("print(", "os.kill(self._process.pid, 9) or print(")
        program = program.replace("range(1000)", "range(1)")
        program = "import signal; signal.signal(signal.SIGPIPE, signal.SIG_DFL)\n" + program
        command = [sys.executable, "-c", program, str(tmp_path / "repository")]
        assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0


def test_memory_that_changes_meanwhile_is_not_stored(
    repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    offset = SharedMemory.offset

    def altered(self: SharedMemory, part: memoryview) -> int | None:
        part[100] ^= 1
        return offset(self, part)

    monkeypatch.setattr(SharedMemory, "offset", altered)
    with pytest.raises(CorruptDataError, match="changed in memory"):
        repo.commit({"w": weights()}, threads=2)
    assert made
    assert "main" not in repo.branches


def test_nothing_is_left_of_a_commit(
    repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the process nor memory, though no garbage is collected."""
    left: list[weakref.ref[Encoders]] = []
    begin = Encoders.__init__

    def noted(self: Encoders, session: Session, threads: int) -> None:
        begin(self, session, threads)
        left.append(weakref.ref(self))

    monkeypatch.setattr(Encoders, "__init__", noted)
    gc.collect()
    gc.disable()
    try:
        repo.commit({"w": weights()}, threads=2)
        assert [encoder() for encoder in left] == [None]
    finally:
        gc.enable()
    with pytest.raises(ProcessLookupError):
        os.kill(made[0].number, 0)


def test_no_module_of_the_working_directory_is_imported(tmp_path: Path) -> None:
    """There anybody's files may lie, with models in them."""
    folder = tmp_path / "model"
    folder.mkdir()
    np.save(folder / "w.npy", np.concatenate([weights(), weights(1), weights(2)]))
    for name in ("numpy", "msgpack", "socket", "json", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    program = (
        "from mstore import encoder_client, encoders; from mstore.cli.main import run\n"
        "import sys; sys.argv = ['mstore', *sys.argv[1:]]\n"
        "encoders.is_alone = encoder_client.is_alone = lambda: False\n"
        "spawn = encoder_client._spawn\n"
        "def told(*words): print('spawned'); return spawn(*words)\n"
        "encoder_client._spawn = told; run()"
    )
    for words, said in ((("init", "-q"), b""), (("commit", "-m", "x"), b"spawned")):
        command = [sys.executable, "-P", "-c", program, *words]
        done = subprocess.run(command, cwd=folder, check=True, capture_output=True)
        assert done.stdout[: len(said)] == said
    assert not (tmp_path / "imported").exists()


_COMMITTING = """
import os, sys, time, numpy, mstore
from mstore import encoders, threads

encoders.WORTH_A_PROCESS = 1
repo = mstore.init(sys.argv[1], bare=True)
threads.is_own_program = len(sys.argv) > 2

class Told(encoders.EncoderProcess):
    def __init__(self, *words):
        super().__init__(*words)
        while not self._is_ready():
            time.sleep(0.001)
        print(self._process.pid, flush=True)

encoders.EncoderProcess = Told
encoders.is_alone = lambda: True
for seed in range(1000):
    values = numpy.random.default_rng(seed).standard_normal(1 << 25, numpy.float32)
    repo.commit({"w": values}, threads=3)
"""


@pytest.fixture(params=[(), ("fork",)])
def committing(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """A program that commits, and tells of the processes that it starts."""
    process = subprocess.Popen(
        [sys.executable, "-c", _COMMITTING, str(tmp_path / "repository"), *request.param],
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    with process:
        yield process
        process.kill()


@pytest.fixture
def helping(committing: "subprocess.Popen[bytes]") -> list[int]:
    """The first two of these processes."""
    assert committing.stdout is not None
    return [int(committing.stdout.readline()) for _ in range(2)]


def wait_until_gone(numbers: Sequence[int]) -> None:
    until = time.monotonic() + 20
    while any(is_there(number) for number in numbers):
        assert time.monotonic() < until
        time.sleep(0.01)


def is_there(number: int) -> bool:
    """Whether a process runs or is stopped; one that has ended may be waited for by nobody."""
    try:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_processes_end_when_the_one_that_commits_is_killed(
    committing: "subprocess.Popen[bytes]", helping: list[int]
) -> None:
    for number in helping:
        # Who waits for the end of what is printed is not to wait for these.
        assert {str(Path(f"/proc/{number}/fd/{n}").readlink()) for n in (1, 2)} == {os.devnull}
    committing.kill()
    wait_until_gone(helping)


def test_an_interruption_does_not_wait_for_a_process_that_hangs(
    committing: "subprocess.Popen[bytes]", helping: list[int]
) -> None:
    # No key that is pressed in the terminal reaches them.
    assert [os.getpgid(number) for number in helping] == helping
    for number in helping:
        os.kill(number, signal.SIGSTOP)
    time.sleep(0.3)
    committing.send_signal(signal.SIGINT)
    _, errors = committing.communicate(timeout=20)
    assert b"KeyboardInterrupt" in errors
    wait_until_gone(helping)
