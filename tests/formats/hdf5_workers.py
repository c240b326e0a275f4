"""Programs in the place of those that read HDF5 files, and what becomes of their processes."""

import io
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import h5py
import numpy as np

from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader
from mstore.formats.hdf5_process import records

ZYGOTE = Path(hdf5_process.__file__).with_name("hdf5_zygote.py")


def small_file(name="w"):
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file[name] = np.arange(4.0)
    return BytesReader(data.getvalue())


def listed(name="w"):
    """What is reported of a small file."""
    return [record["path"] for record in records(small_file(name))]


def put_worker(folder, monkeypatch, code):
    """Puts a program in the place of the real one; it gets `frame` and `tell` for the protocol."""
    path = folder / "worker.py"
    path.write_text(
        "import ctypes, os, struct, time, json, signal\n"
        "def frame(kind, offset=0, length=0, payload=b''):\n"
        "    os.write(0, struct.pack('<cQI', kind, offset, length) + payload)\n"
        "def tell(text): frame(b'l', 0, len(text), text)\n"
        "count = 0\n"
        "def rehearse(report): pass\n"
        "def list_file(file, report):\n" + textwrap.indent(code, "    ")
    )
    monkeypatch.setattr(hdf5_process, "_WORKER", path)


def put_zygote(folder, monkeypatch, code):
    """Lets a zygote do something before all else."""
    path = folder / "zygote.py"
    path.write_text(f"{code}\nimport runpy\nrunpy.run_path({str(ZYGOTE)!r}, run_name='__main__')")
    monkeypatch.setattr(hdf5_process, "_ZYGOTE", path)


def note_zygotes(monkeypatch):
    """Every zygote that is started from now on."""
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
