"""A directory of a small model, and `mstore` run in it as a user would."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from mstore.arrayfile import pack_arrays
from mstore.cli.main import cli


@dataclass(frozen=True, slots=True)
class Ran:
    """What came of a command."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def error(self) -> str:
        """The text of the error, which is the first line on stderr."""
        label, _, said = self.err.partition("\n")[0].partition(": ")
        assert label == "error", self
        return said

    @property
    def hint(self) -> str:
        """The text of the hint, which is the last line on stderr."""
        label, _, said = self.err.rstrip("\n").rpartition("\n")[2].partition(": ")
        assert label == "hint", self
        return said


class Mstore:
    """Runs commands in this process; `ok` and those that use it also assert that they worked."""

    def __call__(self, *args: str) -> Ran:
        result = CliRunner().invoke(cli, list(args))
        assert "Traceback" not in result.output
        return Ran(result.exit_code, result.stdout, result.stderr)

    def ok(self, *args: str) -> Ran:
        ran = self(*args)
        assert ran.code == 0, ran
        return ran

    def json(self, *args: str) -> Any:
        """The document that the command prints; a diff or damage may set the exit code."""
        ran = self("--json", *args)
        assert ran.code in (0, 1, 12), ran
        return json.loads(ran.out)

    def commit(self, *args: str) -> str:
        """Commit; returns the id."""
        return str(self.json("commit", *args)["id"])

    def head(self) -> dict[str, Any]:
        head: dict[str, Any] = self.json("status")["head"]
        return head

    # As a process of its own

    def program(self, *args: str) -> list[str]:
        return [sys.executable, "-c", "from mstore.cli.main import run; run()", *args]

    def process(self, *args: str, **extra: Any) -> "subprocess.CompletedProcess[str]":
        settings: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 60}
        return subprocess.run(self.program(*args), check=False, **(settings | extra))

    def modules_after(self, *args: str) -> set[str]:
        """What a process has imported when it has run the command."""
        script = (
            "import sys\nfrom mstore.cli.main import cli\n"
            "try:\n    cli.main()\n"
            "finally:\n    print('\\n'.join(sys.modules), file=sys.stderr)"
        )
        command = [sys.executable, "-c", script, *args]
        ran = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        return set(ran.stderr.split())

    # What is committed

    def arrays(self, seed: int) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {
            "encoder.0.weight": random.standard_normal((256, 64)).astype(np.float32),
            "encoder.0.bias": random.standard_normal(256).astype(np.float32),
            "steps": np.array(seed, np.int64),
        }

    def write_model(self, path: Path | str, seed: int, **changed: np.ndarray) -> None:
        packed = pack_arrays(self.arrays(seed) | changed, {})
        Path(path).write_bytes(packed.header + b"".join(packed.buffers))


@pytest.fixture
def mstore() -> Mstore:
    return Mstore()


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mstore: Mstore) -> Path:
    """A directory of model files, which is the current one."""
    monkeypatch.setenv("NO_COLOR", "1")
    for variable in ("MSTORE_DEBUG", "PYTHONUNBUFFERED"):
        monkeypatch.delenv(variable, raising=False)
    # Not what these tests are about, and most of their time.
    monkeypatch.setattr(os, "fsync", lambda _: None)
    folder = tmp_path / "work"
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "config.json").write_text('{"layers": 2}')
    (folder / "tokenizer" / "vocab.txt").write_text("one\ntwo\n")
    mstore.write_model(folder / "model.safetensors", seed=1)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def first(work: Path, mstore: Mstore) -> str:
    """The id of the first version of `work`, which is a repository then."""
    mstore.ok("init")
    return mstore.commit("-m", "first", "--meta", "loss=0.5")


@pytest.fixture
def second(first: str, mstore: Mstore) -> str:
    """The id of a second version: one tensor changed, a file added, one deleted, one renamed."""
    arrays = mstore.arrays(1)
    arrays["encoder.0.bias"] = arrays["encoder.0.bias"] * np.float32(1.5)
    mstore.write_model("model.safetensors", 1, **arrays)
    Path("notes.txt").write_text("better")
    Path("config.json").unlink()
    Path("tokenizer/vocab.txt").rename("tokenizer/words.txt")
    return mstore.commit("-m", "second", "--meta", "loss=0.25")
