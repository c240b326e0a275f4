"""The programs that are compared, as a user would call them: mstore, restic, borg, git-lfs, DVC."""

import filecmp
import os
import shutil
import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from measure import MSTORE, run_process, stored_size


@dataclass(frozen=True, slots=True)
class Version:
    """The files of `directory`, to be stored as version `number` of a history.

    They were made from those of version `parent`. If `unrelated`, a program that knows models is
    not told so: it stores them as a model of its own. In a repository of several families, `family`
    is the name of theirs: they lie in a directory of that name.
    """

    number: int
    directory: Path
    parent: int | None = None
    unrelated: bool = False
    family: str = ""


class Peer(ABC):
    """Something that stores versions of files and gives them back, with all it has below `home`."""

    name: str

    def __init__(self, home: Path) -> None:
        self.home = home
        home.mkdir(parents=True)

    @classmethod
    @abstractmethod
    def version(cls) -> str | None:
        """Name and version of what is measured; None if it is not installed."""

    @abstractmethod
    def store(self, version: Version) -> float:
        """Store the files of the next version; returns seconds."""

    @abstractmethod
    def restore(self, number: int, out: Path) -> float:
        """Write the files of a stored version into the empty directory `out`; returns seconds."""

    @abstractmethod
    def size(self) -> int:
        """Bytes that all versions take together."""

    def remove(self) -> None:
        """Delete all that is stored."""
        shutil.rmtree(self.home)


class Program(Peer):
    """A program that stores the files in the directory `work`; times are those of its processes.

    Before each version its place there is made to hold its files, which is not measured.
    """

    command: str

    def __init__(self, home: Path) -> None:
        super().__init__(home)
        self.work = home / "work"
        self.work.mkdir()
        self.repository = home / "repository"
        self.versions: dict[int, Version] = {}
        self.init()

    @classmethod
    def version(cls) -> str | None:
        if shutil.which(cls.command) is None:
            return None
        done = subprocess.run(
            [cls.command, "--version"], capture_output=True, text=True, check=True
        )
        return f"{cls.name} {_number(done.stdout)}"

    @abstractmethod
    def init(self) -> None:
        """Make the empty repository."""

    @abstractmethod
    def commit(self, version: Version, names: list[str]) -> float:
        """Store the files of these names in its place; returns the wall time of the processes."""

    def place(self, version: Version) -> Path:
        """The directory that the files of the version are stored from."""
        return self.work / version.family

    def store(self, version: Version) -> float:
        self.versions[version.number] = version
        place = self.place(version)
        place.mkdir(exist_ok=True)
        names = lay_out(version.directory, place)
        # Nobody is to wait for the writing out of what another left behind.
        os.sync()
        return self.commit(version, names)

    def size(self) -> int:
        return stored_size(self.repository)


def lay_out(directory: Path, work: Path) -> list[str]:
    """Make `work` hold the files of `directory`, except that hidden ones stay; returns their names.

    What is the same already is not touched, as in a directory that somebody works in.
    """
    names = sorted(path.name for path in directory.iterdir())
    for path in work.iterdir():
        if path.is_file() and not path.name.startswith(".") and path.name not in names:
            path.unlink()
    for name in names:
        there = work / name
        if not there.exists() or not filecmp.cmp(directory / name, there, shallow=False):
            there.unlink(missing_ok=True)
            shutil.copyfile(directory / name, there)
    return names


def _number(text: str) -> str:
    """The first word that looks like a version number."""
    words = text.replace("/", " ").split()
    return next(word.strip("(),") for word in words if word[0].isdigit())


class Mstore(Program):
    """A repository inside the directory of the model; other models come from directories beside.

    Each family is a model of its own, and so is each version that is unrelated to the others.
    """

    name = "mstore"
    command = MSTORE

    def init(self) -> None:
        run_process(MSTORE, "init", cwd=self.work)
        self.repository = self.work / ".mstore"

    def place(self, version: Version) -> Path:
        model = self.model(version)
        return self.home / model if model else self.work

    def model(self, version: Version) -> str:
        """The name of the model that the version is one of; empty for the one of the directory."""
        if version.unrelated and version.parent is not None:
            return f"{version.family or 'model'}-{version.number}"
        return version.family

    def commit(self, version: Version, names: list[str]) -> float:
        took = self._run(version, "commit", "-m", f"version {version.number}")
        self._run(version, "tag", f"v{version.number}")
        return took

    def restore(self, number: int, out: Path) -> float:
        return self._run(self.versions[number], "checkout", f"v{number}", "-o", out)

    def repack(self) -> float | None:
        """Take more time for a smaller repository; None if this mstore cannot do so yet."""
        shown = subprocess.run([MSTORE, "repack", "--help"], capture_output=True, text=True)
        if shown.returncode != 0 or "--deep" not in shown.stdout:
            return None
        took = run_process(MSTORE, "repack", "--deep", cwd=self.work)
        return took + run_process(MSTORE, "gc", cwd=self.work)

    def _run(self, version: Version, *arguments: str | Path) -> float:
        model = self.model(version)
        where = ("--repo", self.repository, "--model", model) if model else ()
        return run_process(MSTORE, *where, *arguments, cwd=self.place(version))


class Restic(Program):
    """Compressing as it chooses; it always encrypts."""

    name = "restic"
    command = "restic"

    @classmethod
    def version(cls) -> str | None:
        if shutil.which(cls.command) is None:
            return None
        done = subprocess.run(["restic", "version"], capture_output=True, text=True, check=True)
        return f"restic {_number(done.stdout)}"

    def init(self) -> None:
        self._run("init", cwd=self.home)

    def commit(self, version: Version, names: list[str]) -> float:
        options = ("--compression", "auto", "--tag", f"v{version.number}")
        return self._run("backup", *options, *names, cwd=self.place(version))

    def restore(self, number: int, out: Path) -> float:
        which = ("latest", "--tag", f"v{number}")
        return self._run("restore", *which, "--target", out, cwd=self.home)

    def _run(self, *arguments: str | Path, cwd: Path) -> float:
        env = {
            "RESTIC_PASSWORD": "benchmark",
            "RESTIC_REPOSITORY": str(self.repository),
            "RESTIC_CACHE_DIR": str(self.home / "cache"),
        }
        return run_process("restic", *arguments, cwd=cwd, env=env)


class Borg(Program):
    """Without encryption, zstd at level 3."""

    name = "borg"
    command = "borg"

    def init(self) -> None:
        self._run("init", "--encryption", "none", self.repository, cwd=self.home)

    def commit(self, version: Version, names: list[str]) -> float:
        archive = f"{self.repository}::v{version.number}"
        options = ("--compression", "zstd,3")
        return self._run("create", *options, archive, *names, cwd=self.place(version))

    def restore(self, number: int, out: Path) -> float:
        return self._run("extract", f"{self.repository}::v{number}", cwd=out)

    def _run(self, *arguments: str | Path, cwd: Path) -> float:
        env = {
            "BORG_BASE_DIR": str(self.home / "borg"),
            "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes",
            "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes",
        }
        return run_process("borg", *arguments, cwd=cwd, env=env)


class _OverGit(Program):
    """What the programs share that keep the history in git and the large files beside it."""

    def commit_all(self, version: Version) -> float:
        """Commit all that git sees, and tag it; the tagging is not measured."""
        took = self.git("add", "--all")
        took += self.git("commit", "-q", "-m", f"version {version.number}")
        self.git("tag", f"v{version.number}")
        return took

    def git(self, *arguments: str | Path) -> float:
        """Run git in the directory, with no settings but those given here."""
        return run_process("git", *arguments, cwd=self.work, env=self.environment())

    def environment(self) -> dict[str, str]:
        """Nothing of the user's settings, which may say anything."""
        who = {f"GIT_{role}_{part}": "bench@localhost" for role in _ROLES for part in _PARTS}
        return who | {"HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}


_ROLES = ("AUTHOR", "COMMITTER")
_PARTS = ("NAME", "EMAIL")


class GitLfs(_OverGit):
    """`git add` and `git commit`, with all model files tracked by git-lfs."""

    name = "git-lfs"
    command = "git-lfs"

    def init(self) -> None:
        self.git("init", "-q")
        self.git("lfs", "install", "--local")
        self.repository = self.work / ".git"
        # Not in .gitattributes: that file would come back with every version.
        (self.repository / "info/attributes").write_text("* filter=lfs diff=lfs merge=lfs -text\n")

    def commit(self, version: Version, names: list[str]) -> float:
        return self.commit_all(version)

    def restore(self, number: int, out: Path) -> float:
        family = self.versions[number].family
        what = ("checkout", "-q", "-f", f"v{number}", "--", family or ".")
        took = self.git("--work-tree", out, *what)
        if family:
            for path in (out / family).iterdir():
                path.rename(out / path.name)
            (out / family).rmdir()
        return took


class Dvc(_OverGit):
    """`dvc add` of the model files and a git commit of what it says of them."""

    name = "DVC"
    command = str(Path(sys.executable).parent / "dvc")

    def init(self) -> None:
        self.git("init", "-q")
        self._dvc("init", "-q")
        self._dvc("config", "core.analytics", "false")
        self.git("commit", "-q", "-m", "a repository")

    def commit(self, version: Version, names: list[str]) -> float:
        place = Path(version.family)
        return self._dvc("add", "-q", *(place / name for name in names)) + self.commit_all(version)

    def restore(self, number: int, out: Path) -> float:
        place = self.place(self.versions[number])
        for path in _visible_files(place):
            path.unlink()
        os.sync()
        took = self.git("checkout", "-q", "-f", f"v{number}")
        listed = [path.relative_to(self.work) for path in place.glob("*.dvc") if path.is_file()]
        took += self._dvc("checkout", "-q", *listed)
        for path in _visible_files(place):
            if path.suffix != ".dvc":
                path.rename(out / path.name)
        return took

    def size(self) -> int:
        return stored_size(self.work / ".git") + stored_size(self.work / ".dvc/cache")

    def _dvc(self, *arguments: str | Path) -> float:
        return run_process(self.command, *arguments, cwd=self.work, env=self.environment())

    def environment(self) -> dict[str, str]:
        own = {name: str(self.home / "dvc") for name in _DVC_DIRECTORIES}
        return super().environment() | own | {"DVC_NO_ANALYTICS": "1"}


def _visible_files(directory: Path) -> list[Path]:
    return [one for one in directory.iterdir() if one.is_file() and not one.name.startswith(".")]


_DVC_DIRECTORIES = ("DVC_GLOBAL_CONFIG_DIR", "DVC_SYSTEM_CONFIG_DIR", "DVC_SITE_CACHE_DIR")

PROGRAMS: tuple[type[Program], ...] = (Mstore, Restic, Borg, GitLfs, Dvc)
