"""See mstore at work on a real model: python tests/demo.py --model DIRECTORY

Takes a folder with a `model.safetensors` of float32 and whatever else belongs to it, makes a few
honest descendants of it, and keeps all of them in a repository through the `mstore` command.
Everything happens in a temporary directory. Ends with an error if any version does not come back
byte for byte, or if the space of a deleted one does not.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt

import mstore
from mstore.arrayfile import pack_arrays

Arrays = Mapping[str, npt.NDArray[np.generic]]

MSTORE = Path(sys.executable).parent / "mstore"
WEIGHTS = "model.safetensors"
RANK = 8
COLOUR = sys.stdout.isatty() and "NO_COLOR" not in os.environ


class Demo:
    """A working directory, and what every version in it looked like when it was recorded."""

    def __init__(self, model: Path, place: Path) -> None:
        self.work = place / model.name
        self.place = place
        self.versions: dict[str, dict[str, str]] = {}
        self.original: Arrays = {}
        self.problems: list[str] = []
        shutil.copytree(model, self.work)

    def run(self) -> None:
        """The whole story."""
        self.begin()
        self.fine_tune()
        self.shrink()
        self.look_back()
        self.bring_back()
        self.clean_up()

    def begin(self) -> None:
        """The first version."""
        heading(f"A model: {len(self.hashes())} files, {megabytes(size_of(self.work))}")
        self.mstore("init")
        self.commit("v1", "-m", "as downloaded", "--meta", "drift=0")
        self.mstore("tag", "v1")
        self.original = self.load("v1")

    def fine_tune(self) -> None:
        """A merged low-rank adapter, then a change of one setting."""
        tuned = with_adapter(self.original)
        changed = [name for name in tuned if tuned[name] is not self.original[name]]
        heading(f"Fine-tune it: a rank-{RANK} adapter merged into {len(changed)} matrices")
        say("drift is how far the weights are from the first version: |W - W1| / |W1|.")
        self.save(tuned)
        self.mstore("status")
        rank = f"rank={RANK}"
        self.commit("main~1", "-m", "merge adapter", "--meta", self.drift(tuned), "--meta", rank)
        say("One setting more. What did not change is not stored again.")
        self.edit_config()
        self.commit("main", "-m", "dropout 0.2", "--meta", self.drift(tuned), "--meta", rank)

    def shrink(self) -> None:
        """Two branches: fewer bits, and fewer weights."""
        arrays = self.load("main")
        heading("Make it smaller, in two ways, each on a branch of its own")
        say("Half the bits: bfloat16.")
        half = as_bfloat16(arrays)
        self.save(half)
        self.commit("bf16", "--branch", "bf16", "-m", "to bfloat16", "--meta", self.drift(half))
        say("Half the weights: the smaller half of every matrix set to zero.")
        self.mstore("checkout", "main")
        sparse = pruned(arrays)
        self.save(sparse)
        self.commit("pruned", "--branch", "pruned", "-m", "prune", "--meta", self.drift(sparse))
        self.mstore("checkout", "main")

    def look_back(self) -> None:
        """History, differences, sizes."""
        heading("Look back")
        self.mstore("log", "--all", "--graph", "--oneline")
        say("Which versions are near the first one?")
        self.mstore("log", "--all", "--where", "drift < 0.1", "--sort", "drift", "--oneline")
        say("What did fine-tuning do to the weights?")
        self.mstore("diff", "v1", "main")
        say("What all of it takes on disk:")
        self.mstore("stats")

    def bring_back(self) -> None:
        """Every version comes back as it was, byte for byte."""
        heading("Bring an old version back, and compare every file with the original")
        self.mstore("checkout", "v1", "-o", "../v1")
        for path, digest in sorted(self.versions["v1"].items()):
            same = file_hashes(self.place / "v1").get(path) == digest
            print(f"  {'identical' if same else 'DIFFERENT'}  sha256 {digest[:16]}…  {path}")
        say("All versions, each checked out in full:")
        self.compare()

    def clean_up(self) -> None:
        """Give up a branch and get its space back."""
        heading("Pruning took the weights too far: drop that branch, take its space back")
        store = self.work / ".mstore"
        before = size_of(store)
        self.mstore("branch", "--delete", "pruned")
        self.mstore("gc", "--dry-run")
        self.mstore("gc")
        after = size_of(store)
        print(f"\n  files in .mstore: {megabytes(before)} before, {megabytes(after)} after")
        self.check(after < before, "gc gave no space back")
        self.mstore("verify")
        del self.versions["pruned"]
        say("What is left is as it was:")
        self.compare()

    def mstore(self, *words: str) -> None:
        """Run a command for all to see; the demo ends where one fails."""
        shown = " ".join(f'"{word}"' if " " in word else word for word in words)
        print(f"\n{paint('$ mstore ' + shown, '1;36')}", flush=True)
        done = subprocess.run([MSTORE, *words], cwd=self.work, check=False)
        if done.returncode != 0:
            sys.exit(f"mstore {shown} ended with {done.returncode}")

    def commit(self, version: str, *words: str) -> None:
        """Commit what is there, remembering the hash of every file."""
        self.mstore("commit", *words)
        self.versions[version] = self.hashes()

    def hashes(self) -> dict[str, str]:
        """The files of the working directory."""
        return file_hashes(self.work)

    def drift(self, arrays: Arrays) -> str:
        """How far `arrays` are from the first version, as metadata of a commit."""
        change = total = 0.0
        for name, before in self.original.items():
            if before.dtype == np.float32:
                change += float(np.sum((arrays[name].astype(np.float32) - before) ** 2))
                total += float(np.sum(before**2))
        return f"drift={(change / total) ** 0.5:.4f}"

    def load(self, version: str) -> Arrays:
        """The tensors of a version in numpy, from Python."""
        loaded = mstore.open(self.work)[version].load()
        assert isinstance(loaded, dict)
        return loaded

    def save(self, arrays: Arrays) -> None:
        """Write the weights into the working directory, as a training script would."""
        packed = pack_arrays(arrays, {"format": "pt"})
        with (self.work / WEIGHTS).open("wb") as file:
            file.write(packed.header)
            for buffer in packed.buffers:
                file.write(buffer)

    def edit_config(self) -> None:
        """Change one setting in config.json."""
        path = self.work / "config.json"
        config = json.loads(path.read_text())
        config["hidden_dropout_prob"] = 0.2
        path.write_text(json.dumps(config, indent=2) + "\n")

    def compare(self) -> None:
        """Check every version out into a directory of its own and compare all its files."""
        for version, digests in self.versions.items():
            out = Path(tempfile.mkdtemp(dir=self.place)) / "out"
            subprocess.run(
                [MSTORE, "-q", "checkout", version, "-o", out], cwd=self.work, check=True
            )
            same = file_hashes(out) == digests
            print(f"  {'identical' if same else 'DIFFERENT'}  {version:7} {len(digests)} files")
            self.check(same, f"{version} did not come back as it was")

    def check(self, passed: bool, problem: str) -> None:
        """Remember what went wrong; the demo goes on."""
        if not passed:
            self.problems.append(problem)
            print(paint(f"  FAILED: {problem}", "1;31"), flush=True)


def with_adapter(arrays: Arrays) -> Arrays:
    """W + B @ A for the attention's query and value matrices in the upper half of the layers."""
    random = np.random.default_rng(0)
    names = [name for name in sorted(arrays) if name.endswith(("query.weight", "value.weight"))]
    merged = dict(arrays)
    for name in names[len(names) // 2 :]:
        rows, columns = arrays[name].shape
        b = random.normal(0, 0.01, (rows, RANK)).astype(np.float32)
        a = random.normal(0, 0.1, (RANK, columns)).astype(np.float32)
        merged[name] = arrays[name] + b @ a
    return merged


def as_bfloat16(arrays: Arrays) -> Arrays:
    """Every float32 tensor rounded to the nearest bfloat16."""
    return {
        name: array.astype(ml_dtypes.bfloat16) if array.dtype == np.float32 else array
        for name, array in arrays.items()
    }


def pruned(arrays: Arrays) -> Arrays:
    """Every float32 matrix with the half of its elements that is nearest to zero set to zero."""
    result = dict(arrays)
    for name, array in arrays.items():
        if array.dtype == np.float32 and array.ndim == 2:
            size = np.abs(array)
            result[name] = np.where(size < np.median(size), np.float32(0), array)
    return result


def file_hashes(directory: Path) -> dict[str, str]:
    """SHA-256 of every file below `directory` but those of the repository, by path."""
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and ".mstore" not in path.relative_to(directory).parts
    }


def size_of(directory: Path) -> int:
    """Bytes of all files below `directory`."""
    return sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())


def megabytes(size: int) -> str:
    """`size` bytes for people."""
    return f"{size / 1e6:.1f} MB"


def heading(text: str) -> None:
    """Begin a chapter."""
    print(f"\n{paint('== ' + text, '1')}", flush=True)


def say(text: str) -> None:
    """A word in between."""
    print(f"\n{paint('# ' + text, '2')}", flush=True)


def paint(text: str, code: str) -> str:
    """`text` in a colour, on a terminal."""
    return f"\033[{code}m{text}\033[0m" if COLOUR else text


def main() -> int:
    """Run the demo; returns the exit code."""
    parser = argparse.ArgumentParser(description="See mstore at work.")
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    start = time.monotonic()
    model = parser.parse_args().model.resolve()
    with tempfile.TemporaryDirectory(prefix="mstore-demo-") as place:
        demo = Demo(model, Path(place))
        demo.run()
    took = time.monotonic() - start
    if demo.problems:
        print(paint(f"\n{len(demo.problems)} checks failed in {took:.0f} s", "1;31"))
        return 1
    print(paint(f"\nAll checks passed, in {took:.0f} s.", "1;32"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
