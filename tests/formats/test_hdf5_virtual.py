"""Virtual datasets of HDF5: described if made of plain datasets of the same file, else refused."""

import re
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from h5py import h5s
from hdf5_files import examine, findings, write

from mstore.errors import LimitExceededError, UnsafeInputError
from mstore.formats import hdf5_process
from mstore.formats.base import Finding


def virtual(file, path, sources, *, unlimited=False):
    """A virtual dataset, a row for each source, or one that grows with its one source."""
    end = (None,) if unlimited and len(sources) == 1 else None
    shape = (4,) if end else (len(sources), 4)
    parts = h5py.VirtualLayout(shape, "f8", maxshape=end)
    for row, name in enumerate(sources):
        source = h5py.VirtualSource(".", name, (4,), maxshape=end)
        if end:
            parts[: h5s.UNLIMITED] = source[: h5s.UNLIMITED]
        else:
            parts[row] = source
    file.create_virtual_dataset(path, parts)


def test_virtual_dataset(tmp_path):
    other = tmp_path / "other.h5"
    other.write_bytes(write(lambda file: file.create_dataset("w", data=np.arange(4.0)), "latest"))
    parts = h5py.VirtualLayout((4,), "f8", maxshape=(None,))
    parts[:] = h5py.VirtualSource(other, "w", (4,), maxshape=(None,))
    data = write(lambda file: file.create_virtual_dataset("v", parts), "latest")
    with pytest.raises(UnsafeInputError, match="puts a dataset together from other files"):
        examine(data)
    assert [found.danger for found in findings(data)] == ["dangerous"]


@pytest.mark.parametrize("stranger", [False, True])
def test_virtual_dataset_of_its_own_file(stranger):
    def make(file):
        parts = h5py.VirtualLayout((2, 4), "f8")
        for row, name in enumerate("ab"):
            file[name] = np.arange(4.0)
            where = "other.h5" if stranger and row else "."
            parts[row] = h5py.VirtualSource(where, name, (4,))
        file.create_virtual_dataset("v", parts)

    data = write(make, "latest")
    if stranger:
        with pytest.raises(UnsafeInputError, match="puts a dataset together from other files"):
            examine(data)
    else:
        layout, note = examine(data)
        assert note == "opaque bytes for 1 of 3 datasets: 1 put together from others"
        assert [one.tensor.name for one in layout.segments if one.tensor] == ["a", "b"]
        assert findings(data) == []


@pytest.mark.parametrize("unlimited", [False, True])
@pytest.mark.parametrize(
    "source",
    [
        *("v", "/v", "./v/", "u", "soft", "up/a", "g/soft", "g/up/v", "%%b", "nowhere", "g"),
        *("a/a", "/", "g/../a"),
    ],
)
def test_virtual_dataset_of_what_is_no_plain_dataset(source, unlimited):
    """Reading such a one that leads back to itself ends h5py, and with it whoever called it."""

    def make(file):
        for path in ("a", "g/a", "%%b", "%b"):
            file[path] = np.arange(4.0)
        file["up"] = file["g/up"] = h5py.SoftLink("/")
        file["soft"], file["g/soft"] = h5py.SoftLink("a"), h5py.SoftLink("/v")
        for path, name in (("v", source), ("u", "a")):
            virtual(file, path, [name], unlimited=unlimited)

    data = write(make, "latest")
    with pytest.raises(UnsafeInputError, match="that may go in a circle to read it: 'v'"):
        examine(data)
    told = "follows virtual datasets that may go in a circle"
    assert findings(data) == [Finding("dangerous", told, "v")]


@pytest.mark.parametrize("unlimited", [False, True])
def test_virtual_dataset_of_plain_datasets_in_groups(unlimited):
    def make(file):
        file["g/a"] = np.arange(4.0)
        file["again"] = file["g"]
        virtual(file, "v", ["g/a", "/g/a", "//g/./a", "again/a"], unlimited=unlimited)
        virtual(file, "g/v", ["g/a"], unlimited=unlimited)

    data = write(make, "latest")
    assert examine(data)[1] == "opaque bytes for 2 of 3 datasets: 2 put together from others"
    assert findings(data) == []


@pytest.mark.parametrize("most", ["MAX_SOURCES = 10", "MAX_CHARACTERS = 200"])
def test_virtual_datasets_of_very_many(most, monkeypatch, tmp_path):
    """The limit is set so low that one name more is too many."""
    for part in Path(hdf5_process.__file__).parent.glob("hdf5_*.py"):
        shutil.copy(part, tmp_path)
    worker = tmp_path / "hdf5_worker.py"
    worker.write_text(re.sub(rf"(?m)^{most.split()[0]} = .*", most, worker.read_text()))
    monkeypatch.setattr(hdf5_process, "_WORKER", worker)
    monkeypatch.setattr(hdf5_process, "_ZYGOTES", [])

    def make(file):
        file["a"] = np.arange(4.0)
        virtual(file, "v", ["/" * number + "a" for number in range(count)] * 2)

    count = 10 if "SOURCES" in most else 19
    assert "put together" in examine(write(make, "latest"))[1]
    count += 1
    with pytest.raises(LimitExceededError, match="virtual datasets have more than"):
        examine(write(make, "latest"))
    hdf5_process.end_kept()
