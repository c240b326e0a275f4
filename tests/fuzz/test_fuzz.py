"""Fuzz every parser for a number of inputs; `fuzz_formats.py` says what has to hold."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mstore.formats.detect import COMPANIONS, FORMATS

HERE = Path(__file__).parent
RUNS = 100_000
FEWER = {
    "hdf5": 100,  # a process is started for each input that looks like HDF5
    "keras": 300,
    "pickle": 10_000,
    "joblib": 20_000,
    "tensorflow-savedmodel": 20_000,
}
"""Inputs of each format: 1.35 million all together, in about four minutes on two cores."""

NAMES = [*dict.fromkeys(one.name for one in (*FORMATS, *COMPANIONS)), "hdf5-records"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small good files, by format."""
    folder = tmp_path_factory.mktemp("seeds")
    command = [sys.executable, HERE / "seeds.py", folder]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_fuzz(name, seeds, tmp_path):
    pytest.importorskip("atheris", reason="of the extra `fuzz`; `make test-slow` installs it")
    runs = FEWER.get(name, RUNS)
    done = fuzz("--format", name, "--runs", str(runs), "--seeds", seeds, "--artifacts", tmp_path)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"[-4000:]
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    assert executed is not None
    assert int(executed[1]) >= runs
    assert not any(tmp_path.iterdir())


def test_what_breaks_is_found(seeds, tmp_path):
    """A parser that fails where a file has one certain byte is caught."""
    pytest.importorskip("atheris", reason="of the extra `fuzz`; `make test-slow` installs it")
    done = fuzz("--format", "npy", "--seeds", seeds, "--artifacts", tmp_path, "--broken")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stdout + done.stderr
    assert [path.name.startswith("npy-crash-") for path in tmp_path.iterdir()] == [True]


def fuzz(*arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    """Run the fuzzing program."""
    command = [sys.executable, HERE / "fuzz_formats.py", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)
