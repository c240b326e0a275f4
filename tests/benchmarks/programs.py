"""The programs that are compared, as a user would call them: mstore, borg and restic."""

import shutil
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path

from measure import MSTORE, run_process


class Program(ABC):
    """One program with an empty repository, caches and settings of its own below `home`.

    It stores the file `name` of the directory `source`.
    """

    command: str

    def __init__(self, home: Path, source: Path, name: str) -> None:
        self.home = home
        self.source = source
        self.name = name
        self.repository = home / "repository"
        home.mkdir()

    @classmethod
    def installed(cls) -> bool:
        """Whether the program can be run."""
        return shutil.which(cls.command) is not None

    @classmethod
    def version(cls) -> str:
        """Name and version of the program."""
        done = subprocess.run(
            [cls.command, "--version"], capture_output=True, text=True, check=True
        )
        return " ".join(done.stdout.split()[:2])

    @abstractmethod
    def init(self) -> None:
        """Make the empty repository."""

    @abstractmethod
    def store(self) -> float:
        """Store the file; returns the wall time of the process in seconds."""

    @abstractmethod
    def restore(self, out: Path) -> float:
        """Write what was stored into the empty directory `out`; returns seconds."""

    def remove(self) -> None:
        """Delete the repository and all that goes with it."""
        shutil.rmtree(self.home)


class Mstore(Program):
    """A repository inside the directory of the model."""

    command = MSTORE

    def init(self) -> None:
        run_process(MSTORE, "init", cwd=self.source)

    def store(self) -> float:
        return run_process(MSTORE, "commit", "-m", "first", cwd=self.source)

    def restore(self, out: Path) -> float:
        return run_process(MSTORE, "checkout", "main", "-o", out, cwd=self.source)

    def remove(self) -> None:
        super().remove()
        shutil.rmtree(self.source / ".mstore")


class Borg(Program):
    """Without encryption, zstd at level 3."""

    command = "borg"

    def init(self) -> None:
        self._run("init", "--encryption", "none", self.repository, cwd=self.home)

    def store(self) -> float:
        archive = f"{self.repository}::first"
        return self._run("create", "--compression", "zstd,3", archive, self.name, cwd=self.source)

    def restore(self, out: Path) -> float:
        return self._run("extract", f"{self.repository}::first", cwd=out)

    def _run(self, *arguments: str | Path, cwd: Path) -> float:
        env = {
            "BORG_BASE_DIR": str(self.home / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return run_process("borg", *arguments, cwd=cwd, env=env)


class Restic(Program):
    """Compressing as it chooses; it always encrypts."""

    command = "restic"

    @classmethod
    def version(cls) -> str:
        done = subprocess.run(["restic", "version"], capture_output=True, text=True, check=True)
        return " ".join(done.stdout.split()[:2])

    def init(self) -> None:
        self._run("init", cwd=self.home)

    def store(self) -> float:
        return self._run("backup", "--compression", "auto", self.name, cwd=self.source)

    def restore(self, out: Path) -> float:
        return self._run("restore", "latest", "--target", out, cwd=self.home)

    def _run(self, *arguments: str | Path, cwd: Path) -> float:
        env = {
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }
        return run_process("restic", *arguments, cwd=cwd, env=env)


PROGRAMS: tuple[type[Program], ...] = (Mstore, Borg, Restic)
