"""Encoding in other processes: nothing differs but the time, whatever becomes of a process."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import mstore
from mstore import encoder_process, encoders
from mstore.chunkencoder import ChunkEncoder, Coded, Job
from mstore.chunkstore import Session
from mstore.database import Database
from mstore.encoders import _fork, _Process, _spawn
from mstore.errors import CorruptDataError
from mstore.repository import Repository
from mstore.storage.memory import MemoryStorage

SHAPE = (3500, 1024)
"""Four portions of float32."""


def weights(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.02, SHAPE).astype(np.float32)


def trained(before: np.ndarray, step: float = 1e-4) -> np.ndarray:
    noise = np.random.default_rng(1).normal(0, step, before.shape)
    return (before + noise).astype(np.float32)


@pytest.fixture
def repo(tmp_path: Path) -> Repository:
    return mstore.init(tmp_path / "repository", bare=True)


@pytest.fixture(params=[_fork, _spawn])
def start(request: pytest.FixtureRequest) -> Callable[..., object]:
    way: Callable[..., object] = request.param
    return way


class Observed(_Process):
    """A process that is waited for, since the commits of these tests are over sooner."""

    made: ClassVar[list["Observed"]]
    portions = 0
    beside_unnamed_indexes = 0

    def __init__(self, shared: encoders._SharedMemory, session: Session) -> None:
        super().__init__(shared, session)
        assert self._link.recv(len(encoder_process.READY)) == encoder_process.READY
        self._ready = True
        self.made.append(self)

    def encode(self, jobs: Sequence[Job], results: int) -> list[Coded] | None:
        coded = super().encode(jobs, results)
        self.portions += coded is not None
        self.beside_unnamed_indexes += bool(self._session.new_indexes())
        return coded

    @property
    def number(self) -> int:
        started = self._process
        return started.pid if isinstance(started, subprocess.Popen) else started._number


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch, start: Callable[..., object]) -> list[Observed]:
    """All processes that are started, each in the same way."""
    monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(encoders, "_is_alone", lambda: start is _fork)
    monkeypatch.setattr(encoders, "_Process", Observed)
    Observed.made = []
    return Observed.made


def entries(repo: Repository) -> list[tuple[object, ...]]:
    """What is stored of chunks, but for where."""
    found: list[tuple[object, ...]] = []
    for index in repo.database.chunk_indexes():
        found += ((e.id, e.codec, e.raw, e.stored, e.dtype, e.depth, e.base) for e in index)
    return sorted(found, key=str)


def by_one_thread(folder: Path, *versions: np.ndarray) -> list[tuple[object, ...]]:
    """What is stored when these versions are committed without any process."""
    repo = mstore.init(folder / "other", bare=True)
    for values in versions:
        repo.commit({"w": values}, threads=1)
    return entries(repo)


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


def test_bases_of_the_same_commit(
    repo: Repository, tmp_path: Path, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No root names the indexes that these are found by."""
    here, encode = os.getpid(), ChunkEncoder.encode

    def slowly_here(self: ChunkEncoder, jobs: Sequence[Job]) -> list[Coded]:
        # So that each of two portions goes to another seat.
        time.sleep(0.2 if os.getpid() == here else 0)
        return encode(self, jobs)

    monkeypatch.setattr(ChunkEncoder, "encode", slowly_here)
    values, folder = weights(), tmp_path / "model"
    folder.mkdir()
    np.savez(folder / "a.npz", w=values)
    np.savez(folder / "half.npz", w=values.astype(np.float16))
    snapshot = repo.commit(folder, threads=2)
    assert made[0].beside_unnamed_indexes
    assert snapshot.files["half.npz"].tensors["w"].stored < 0.005 * values.nbytes
    assert repo.verify().ok


def test_a_process_ends_with_the_commit(repo: Repository, made: list[Observed]) -> None:
    repo.commit({"w": weights()}, threads=2)
    assert len(made) == 1
    with pytest.raises(ProcessLookupError):
        os.kill(made[0].number, 0)


def test_one_thread_starts_none(repo: Repository, made: list[Observed]) -> None:
    repo.commit({"w": weights()}, threads=1)
    assert not made


def test_little_starts_none(
    repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 16 << 20)
    repo.commit({"w": weights()}, threads=2)
    assert not made


def test_a_repository_that_only_this_process_sees_starts_none(made: list[Observed]) -> None:
    repo = Repository(Database.create(MemoryStorage(), "Ada"))
    repo.commit({"w": weights()}, threads=2)
    assert not made


def test_a_process_that_is_killed_costs_time_alone(
    repo: Repository, tmp_path: Path, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill_first(link: socket.socket, message: object) -> None:
        os.kill(made[0].number, signal.SIGKILL)
        encoder_process.send(link, message)

    monkeypatch.setattr(encoders, "send", kill_first)
    repo.commit({"w": weights()}, threads=2)
    assert made[0].portions == 0
    assert entries(repo) == by_one_thread(tmp_path, weights())


@pytest.mark.parametrize(
    "answer",
    [None, 7, (), ((3, None, 0, 10),) * 9, ((3,),) * 4, ((3, None, 0, "x"),) * 4]
    + [((3, None, 0, 1 << 40),) * n for n in range(1, 5)],
)
def test_an_answer_that_cannot_be_is_not_believed(
    repo: Repository,
    tmp_path: Path,
    made: list[Observed],
    monkeypatch: pytest.MonkeyPatch,
    answer: object,
) -> None:
    monkeypatch.setattr(encoders, "receive", lambda _: answer)
    repo.commit({"w": weights()}, threads=2)
    assert made[0].portions == 0
    assert entries(repo) == by_one_thread(tmp_path, weights())


def test_a_process_of_another_version_is_not_used(
    repo: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when mstore is upgraded while a program that uses it goes on."""
    monkeypatch.setattr(encoders, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(encoders, "_is_alone", lambda: False)
    monkeypatch.setattr(encoders, "READY", b"mstore 0.0.0\n")
    repo.commit({"w": weights()}, threads=2)
    assert entries(repo) == by_one_thread(tmp_path, weights())


@pytest.mark.parametrize(
    ("where", "what"), [(sys, "executable"), (encoders, "_nameless_file"), (os, "fork")]
)
def test_a_process_that_cannot_be_started_is_done_without(
    repo: Repository, tmp_path: Path, made: list[Observed], monkeypatch: pytest.MonkeyPatch,
    where: object, what: str,
) -> None:  # fmt: skip
    def fail() -> int:
        raise OSError("no more")

    monkeypatch.setattr(where, what, fail if callable(getattr(where, what)) else "/no/python")
    repo.commit({"w": weights()}, threads=2)
    assert entries(repo) == by_one_thread(tmp_path, weights())


def test_memory_that_changes_meanwhile_is_not_stored(
    repo: Repository, made: list[Observed], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = encoders._SharedMemory.place

    def altered(self: encoders._SharedMemory, job: Job) -> object:
        job.raw[100] ^= 1
        return place(self, job)

    monkeypatch.setattr(encoders._SharedMemory, "place", altered)
    with pytest.raises(CorruptDataError, match="changed in memory"):
        repo.commit({"w": weights()}, threads=2)
    assert "main" not in repo.branches


def test_no_module_of_the_working_directory_is_imported(tmp_path: Path) -> None:
    """There anybody's files may lie, with models in them."""
    folder = tmp_path / "model"
    folder.mkdir()
    np.save(folder / "w.npy", np.concatenate([weights(), weights(1), weights(2)]))
    for name in ("numpy", "msgpack", "socket", "json", "sitecustomize"):
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()")
    program = (
        "from mstore import encoders; from mstore.cli.main import run\n"
        "encoders._is_alone = lambda: False\n"
        "import sys; sys.argv = ['mstore', *sys.argv[1:]]; run()"
    )
    for words in (("init",), ("commit", "-m", "x")):
        subprocess.run([sys.executable, "-P", "-c", program, *words], cwd=folder, check=True)
    assert not (tmp_path / "imported").exists()


_COMMITTING = """
import sys, numpy, mstore
from mstore import encoders

encoders.WORTH_A_PROCESS = 1
repo = mstore.init(sys.argv[1], bare=True)

class Told(encoders._Process):
    def __init__(self, *words):
        super().__init__(*words)
        print(getattr(self._process, "pid", 0) or self._process._number, flush=True)

encoders._Process = Told
for seed in range(1000):
    repo.commit({"w": numpy.random.default_rng(seed).normal(size=1 << 22)}, threads=3)
"""


def test_processes_end_when_the_one_that_commits_is_killed(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _COMMITTING, str(tmp_path / "repository")], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        numbers = [int(process.stdout.readline()) for _ in range(2)]
        process.kill()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{number}").exists() for number in numbers):
        assert time.monotonic() < until
        time.sleep(0.01)
