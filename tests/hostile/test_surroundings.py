"""Classes 41 and 42: what is no plain file, files that change, and names that mislead."""

import os
import socket
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hostile_archives import array, safetensors

import mstore
from mstore.errors import ConflictError, MstoreError, UnsafeInputError
from mstore.formats import detect
from mstore.formats.base import Format
from mstore.layout import opaque
from mstore.objects import FileEntry, Snapshot
from mstore.ops.opening import open_files
from mstore.ops.scan import FoundFile

SECONDS = 60
"""After which a command counts as hanging; on an idle machine each takes less than one."""

ESCAPE, BELL, TURN = "\x1b[31m", "\x07", "\u202e"


def run(tree: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    """Run a command of mstore's as a user would; it may not hang."""
    program = [sys.executable, "-c", "from mstore.cli.main import run; run()", *words]
    environment = {**os.environ, "MSTORE_AUTHOR": "Ada", "PYTHONUTF8": "1"}
    return subprocess.run(
        program,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    folder.mkdir()
    (folder / "good.npy").write_bytes(array(3, 4))
    mstore.init(folder)
    return folder


class TestNoPlainFiles:
    """Class 41."""

    def test_a_commit_passes_over_what_is_no_file(self, tree):
        os.mkfifo(tree / "pipe.npy")
        (tree / "device.npy").symlink_to("/dev/zero")
        (tree / "folder.npy").mkdir()
        (tree / "nothing.npy").symlink_to("nowhere")
        (tree / "out").symlink_to("/etc")
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(os.path.relpath(tree / "socket.npy"))
            done = run(tree, "commit", "-m", "first")
        assert done.returncode == 0
        for name in ("pipe.npy", "device.npy", "socket.npy"):
            assert f"warning: {name} is not a regular file; passed over" in done.stderr
        assert "warning: nothing.npy is a link to nothing; passed over" in done.stderr
        assert "warning: out is a link to a folder; passed over" in done.stderr
        assert set(mstore.open(tree)["main"].files) == {"good.npy"}

    @pytest.mark.parametrize("kind", ["pipe", "device"])
    def test_it_is_refused_when_named(self, tree, kind, tmp_path):
        path = tmp_path / "named"
        if kind == "pipe":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")
        with pytest.raises(UnsafeInputError, match="is not a regular file"):
            mstore.open(tree).commit(path)

    def test_a_file_that_becomes_a_pipe_is_refused(self, tree):
        """Between the look at the folder and the opening of the file."""
        found = FoundFile("good.npy", (tree / "good.npy").stat())
        (tree / "good.npy").unlink()
        os.mkfifo(tree / "good.npy")
        with pytest.raises(UnsafeInputError, match="is not a regular file"):
            list(open_files(tree, [found], []))

    @pytest.mark.parametrize("size", [1000, 1 << 20])
    @pytest.mark.parametrize("change", ["grow", "shrink", "replace"])
    def test_a_file_that_changes_is_not_recorded(self, tree, monkeypatch, size, change):
        path = tree / "changing.bin"
        path.write_bytes(bytes(size))
        os.utime(path, (1, 1))

        class Changing(Format):
            """Something else writes to the file while it is described."""

            name = "changing"

            def sniff(self, head, reader):
                if reader.size == size:
                    if change == "grow":
                        with path.open("ab") as file:
                            file.write(b"x")
                    elif change == "shrink":
                        os.truncate(path, size // 2)
                    else:
                        path.unlink()
                        path.write_bytes(bytes(size))
                return False

            def layout(self, reader):
                return opaque(reader.size)

        repo = mstore.open(tree)
        if size > 256 << 10:  # smaller ones are read whole before they are looked at
            monkeypatch.setattr(detect, "FORMATS", [Changing()])
            with pytest.raises(ConflictError, match="changed while it was read"):
                repo.commit(tree)
            assert not repo.branches
        else:
            monkeypatch.setattr(detect, "FORMATS", [Changing()])
            recorded = repo.commit(tree).files["changing.bin"].read()
            assert recorded == bytes(size)
        assert repo.verify().ok


NAMES = [
    f"{ESCAPE}red.npy",
    f"bell{BELL}.npy",
    f"{TURN}turned.npy",
    "line\nbreak.npy",
    "-rf",
    "--force.npy",
    "café.npy",
    unicodedata.normalize("NFD", "café.npy"),
    "CASE.npy",
    "case.npy",
    "~.npy",
    "con.npy",
    "n" * 250 + ".npy",
]

COMMANDS = [
    ["status"],
    ["log"],
    ["show"],
    ["show", "--tensors"],
    ["show", "main:tensor3.safetensors"],
    ["diff"],
    ["diff", "--stat"],
    ["verify"],
    ["stats"],
    ["scan", "."],
    ["checkout", "main", "-o", "../out"],
    ["checkout", "main", f"{ESCAPE}missing"],
    ["show", f"{ESCAPE}missing"],
    ["commit", "-m", "again"],
]


class TestNames:
    """Class 42."""

    @pytest.fixture
    def named(self, tree):
        """A version of misleading names, of files and of tensors in them."""
        for number, name in enumerate(NAMES):
            (tree / name).write_bytes(array(2, number + 1))
        entry = {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}
        for number, name in enumerate(
            [f"{ESCAPE}w", f"a{BELL}\n\0b", f"{TURN}w", "long" * 262_144]
        ):
            content = safetensors({name: entry}, b"x")
            (tree / f"tensor{number}.safetensors").write_bytes(content)
        np.savez(tree / "members.npz", **{f"{ESCAPE}k": np.zeros(2)})
        assert run(tree, "commit", "-m", f"first {ESCAPE}{BELL}").returncode == 0
        return tree

    def test_nothing_that_is_printed_moves_the_terminal(self, named):
        for name in NAMES:
            (named / name).write_bytes(b"\x93NUMPY changed")
        for command in COMMANDS:
            done = run(named, *command)
            said = done.stdout + done.stderr
            assert said, command
            assert "Traceback" not in said, command
            moving = {one for one in said if not (one.isprintable() or one == "\n")}
            assert not moving, command

    def test_all_files_come_back(self, named, tmp_path):
        assert run(named, "checkout", "main", "-o", str(tmp_path / "out")).returncode == 0
        for path in named.iterdir():
            if path.is_file():
                assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
        assert {path.name for path in (tmp_path / "out").iterdir()} >= set(NAMES)

    def test_bytes_that_are_no_text_come_back(self, tree, tmp_path):
        name = os.fsdecode(b"\xff\xfe.npy")
        (tree / name).write_bytes(array(5))
        done = run(tree, "commit", "-m", "bytes")
        assert done.returncode == 0
        assert run(tree, "checkout", "main", "-o", str(tmp_path / "out")).returncode == 0
        assert (tmp_path / "out" / name).read_bytes() == array(5)
        shown = run(tree, "show", "--tensors")
        assert shown.returncode == 0
        assert all(one.isprintable() or one == "\n" for one in shown.stdout)

    @pytest.mark.parametrize(
        "path", ["a\0b", "../a", "/a", "a/../../b", "", ".", "a//b", ".mstore/head", "a" * 5000]
    )
    def test_no_version_has_paths_that_lead_elsewhere(self, path):
        made = Snapshot({path: FileEntry(bytes(32), 1)})
        with pytest.raises(MstoreError):
            Snapshot.decode(made.encode())
