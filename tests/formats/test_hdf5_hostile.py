"""HDF5 files that are made to do harm: each kind ends as it should, soon, and the file is stored."""

import os

import h5py
import numpy as np
import pytest
from h5py import h5d, h5p, h5s, h5t, h5z
from hdf5_files import examine, findings, write

from mstore.errors import FormatError, LimitExceededError, MstoreError, UnsafeInputError
from mstore.formats import hdf5_process
from mstore.formats.base import BytesReader, Finding
from mstore.formats.hdf5 import Hdf5Format

SECONDS = 5


@pytest.fixture(autouse=True)
def _soon(request):
    """What a test takes of a processor, workers included, however busy the machine is."""
    started = sum(os.times()[:4])
    yield
    if not request.node.get_closest_marker("slow"):
        assert sum(os.times()[:4]) - started < 3 * SECONDS  # a test makes several files


class TestOtherFiles:
    """Classes 31 and 32: a file that makes its reader open another."""

    def test_external_link(self, tmp_path):
        other = tmp_path / "other.h5"
        other.write_bytes(write(lambda file: file.create_dataset("w", data=np.arange(3.0))))

        def make(file):
            file["fine"] = np.arange(3)
            file["a/there"] = h5py.ExternalLink(os.fspath(other), "/w")

        data = write(make)
        with pytest.raises(UnsafeInputError, match=r"opens another file through a link.*a/there"):
            examine(data)
        assert findings(data) == [
            Finding("dangerous", "opens another file through a link", "a/there")
        ]

    def test_link_of_an_unknown_kind(self):
        def make(file):
            file["e"] = h5py.ExternalLink("other.h5", "/w")

        data = write(make)
        # A link message: version, flags (a type is given), type, length of the name, name.
        assert data.count(b"\x01\x08\x40\x01e") == 1
        data = data.replace(b"\x01\x08\x40\x01e", b"\x01\x08\x80\x01e")
        with pytest.raises(UnsafeInputError, match="only a plug-in knows"):
            examine(data)
        assert [found.danger for found in findings(data)] == ["unknown"]

    def test_external_storage(self):
        def make(file):
            file.create_dataset("e", (4,), "f4", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])

        data = write(make)
        with pytest.raises(UnsafeInputError, match="reads data of a dataset from other files"):
            examine(data)
        assert [found.danger for found in findings(data)] == ["dangerous"]

    @pytest.mark.parametrize("name", [b"a/w", b"/aw", b"."])
    def test_links_by_names_that_none_can_have(self, name):
        data = write(lambda file: file.create_dataset("a-w", data=np.arange(3.0)))
        assert data.count(b"a-w\0") == 1
        data = data.replace(b"a-w\0", name.ljust(4, b"\0"))
        with pytest.raises(FormatError, match="a link cannot be called"):
            examine(data)

    def test_hazards_are_sorted_and_all_told(self):
        def make(file):
            for name in "cab":
                file[name] = h5py.ExternalLink("x", "/")

        assert [found.where for found in findings(write(make))] == ["a", "b", "c"]


class TestTooMuch:
    """Classes 33 and 34: links that never end, and more of anything than a file can hold."""

    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    @pytest.mark.parametrize("path", ["self", "a/root", "a/b/self", "a/b/above"])
    def test_groups_that_hold_themselves(self, libver, path):
        def make(file):
            file["a/b/w"] = 1.0
            held = {"self": "a/b", "above": "a"}.get(path.rpartition("/")[2], "/")
            file[path] = file["/" if path == "self" else held]

        with pytest.raises(LimitExceededError, match=f"its group '{path}' holds itself"):
            examine(write(make, libver))

    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    def test_groups_with_many_paths_that_hold_no_group_twice(self, libver):
        def make(file):
            inner = file.create_group("shared/inner")
            inner["w"] = 1.0
            for number in range(50):
                file[f"{number}/x"] = inner
                file[f"{number}/y"] = file["shared"]

        layout, _ = examine(write(make, libver))
        assert [s.tensor.name for s in layout.segments if s.tensor] == ["0/x/w"]

    @pytest.mark.parametrize(("count", "described"), [(21, True), (22, False), (60, False)])
    def test_one_dataset_by_many_paths(self, count, described):
        """Two lead from each group into the next, so 2^n to each of the four: 6 * 2^n in all."""

        def make(file):
            group = file
            for _ in range(count):
                inner = group.create_group("a")
                group["b"] = inner
                group = inner
            for name in "vwxy":
                group[name] = 1.0

        data = write(make)
        if described:
            assert len(examine(data)[0].segments) > 4
        else:
            with pytest.raises(LimitExceededError, match="it has more than 16777216 paths"):
                examine(data)

    @pytest.mark.parametrize(
        "links",
        [
            {"a": "a"},
            {"a": "/a"},
            {"a": "./b", "b": "/c", "c": "a"},
            {"g/a": "b", "g/b": "/g/a"},
            {"g/a": "/g/h/../h/b/x", "g/h/b": "/g/a", "g/h/..": "/g"},
            {"a": "/b/c", "b": "/a"},  # a, b/c, a/c, b/c/c, ...
            {f"{number}": f"{number + 1}" for number in range(200)},
        ],
    )
    def test_soft_links_that_never_end(self, links):
        def make(file):
            file["w"] = 1.0
            for group in ("g/h", "g/h/b/x"):
                if not any(group.startswith(link) for link in links):
                    file.create_group(group)
            for path, target in links.items():
                file[path] = h5py.SoftLink(target)

        with pytest.raises(LimitExceededError, match=r"its soft link '.*' never ends"):
            examine(write(make))

    def test_soft_links_that_end(self):
        """Also above, nowhere, through others, in others' names, and in datasets."""

        def make(file):
            file["g/h/w"] = 1.0
            for path, target in {
                "g/h/up": "/g",
                "g/h/self": ".",
                "root": "/",
                "dangling": "/nowhere/a",
                "g/dangling": "a/b",
                "g/dataset": "h/w",
                "beyond": "/g/dataset/w",
                **{f"{number}": f"{number + 1}" for number in range(80)},
                "80": "root/g/h/up/h/self/w",
            }.items():
                file[path] = h5py.SoftLink(target)

        layout, note = examine(write(make))
        assert [s.tensor.name for s in layout.segments if s.tensor] == ["g/h/w"]
        assert note is None

    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    @pytest.mark.parametrize("depth", [200, 201, 5000])
    def test_depth(self, libver, depth):
        def make(file):
            group = file
            for _ in range(depth):
                group = group.create_group("g")
            group["w"] = 1.0

        data = write(make, libver)
        if depth == 200:
            assert examine(data)[0].segments[1].tensor.name == "g/" * 200 + "w"
        else:
            with pytest.raises(LimitExceededError, match="nested more than 200 deep"):
                examine(data)

    def test_many_names_of_one_dataset(self):
        def make(file):
            file["w"] = np.arange(4.0)
            for number in range(5000):
                file[f"{number}"] = file["w"]

        layout, _ = examine(write(make, "latest"))
        assert len(layout.views) == 5000

    def test_more_chunks_than_a_list_can_hold(self):
        with pytest.raises(LimitExceededError, match="chunks"):
            examine(write(lambda file: file.create_dataset("w", (1 << 40,), "f4", chunks=(1,))))

    @pytest.mark.parametrize("chunks", [None, (1 << 20,)])
    def test_much_more_data_than_the_file_has(self, chunks):
        def make(file):
            file.create_dataset("w", (1 << 38,), "f4", chunks=chunks)

        layout, note = examine(write(make))
        assert not layout.views
        assert note == "opaque bytes for 1 of 1 datasets: 1 much larger than the file"

    def test_compressed_bomb_is_not_inflated(self):
        def make(file):
            zeros = np.zeros(1 << 24, np.uint8)
            file.create_dataset("w", data=zeros, chunks=(1 << 24,), compression="gzip")

        layout, note = examine(write(make))
        assert not layout.views
        assert note == "opaque bytes for 1 of 1 datasets: 1 compressed"

    @pytest.mark.parametrize("number", [32001, 32015, 256, 12345])
    def test_filter_that_is_a_plug_in(self, number):
        def make(file):
            settings = h5p.create(h5p.DATASET_CREATE)
            settings.set_chunk((4,))
            settings.set_filter(number, h5z.FLAG_OPTIONAL, (1, 2))
            h5d.create(file.id, b"w", h5t.IEEE_F32LE, h5s.create_simple((4,)), settings)

        data = write(make)
        with pytest.raises(UnsafeInputError, match=r"needs a plug-in to read a dataset.*'w'"):
            examine(data)
        assert findings(data) == [Finding("unknown", "needs a plug-in to read a dataset", "w")]

    def test_long_attribute_is_not_taken_for_a_model(self):
        def make(file):
            file.attrs["model_config"] = "x" * (17 << 20)

        with pytest.raises(LimitExceededError, match="model_config has more than"):
            examine(write(make, "latest"))

    def test_it_needs_too_much_memory(self):
        """A text of 2 GiB, of which the file has but the length."""

        def make(file):
            file.attrs["model_config"] = "y" * 50_000

        data = write(make)
        # The text lies in a heap; its length stands before that.
        text, size = data.index(b"y" * 50_000), data.index((50_000).to_bytes(4, "little"))
        assert size < text
        vast = data[:size] + (2**31).to_bytes(4, "little") + data[size + 4 :]
        with pytest.raises(FormatError, match="memory allocation failed"):
            examine(vast)


def sample(libver):
    """A file with some of everything."""

    def make(file):
        file["a/b/w"] = np.arange(6.0)
        file["a/again"] = file["a/b/w"]
        file["big"] = np.arange(5, dtype=">i2")
        data = np.arange(30, dtype="f4").reshape(5, 6)
        file.create_dataset("tiles", data=data, chunks=(2, 4), maxshape=(None, 6))
        file.create_dataset("fixed", data=data, chunks=(2, 4))
        file.create_dataset("gzip", data=data, chunks=(2, 4), compression="gzip")
        file.create_dataset("never", (3,), "f4", fillvalue=2)
        file["marked"] = np.zeros(2, "u2")
        file["marked"].attrs["dtype"] = "bfloat16"
        file["bool"], file["complex"], file["text"] = [True], [1j], "text"
        file.attrs["model_config"] = '{"class_name": "Dense"}'
        for number in range(20):
            file[f"many/{number}"] = number

    return write(make, libver)


def outcome(data):
    """What becomes of a file: a layout that covers it, or the name of the error."""
    reader = BytesReader(data)
    started = sum(os.times()[:4])
    try:
        layout, _ = Hdf5Format().examine(reader)
    except MstoreError as error:
        return type(error).__name__
    finally:
        assert sum(os.times()[:4]) - started < SECONDS
    assert sum(segment.length for segment in layout.segments) == len(data)
    return "layout"


def damaged(libver, count):
    """Copies of a small file, each with up to three bytes changed."""
    data, random = sample(libver), np.random.default_rng([3, len(libver)])
    for _ in range(count):
        copy = bytearray(data)
        for _ in range(random.integers(1, 4)):
            at = random.integers(len(copy))
            copy[at] = random.choice(
                [0, 255, random.integers(256), copy[at] ^ 1 << random.integers(8)]
            )
        yield bytes(copy)


class TestDamage:
    """Class 35: whatever is wrong inside, it ends in a layout or in an error of ours."""

    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    def test_changed_bytes(self, libver):
        found = {outcome(data) for data in damaged(libver, 25)}
        assert {"layout", "FormatError"} <= found <= {"layout", "FormatError", "LimitExceededError"}

    @pytest.mark.slow
    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    def test_many_changed_bytes(self, libver):
        for data in damaged(libver, 1000):
            outcome(data)

    @pytest.mark.parametrize("libver", ["earliest", "latest"])
    def test_cut_off(self, libver):
        data = sample(libver)
        for length in np.linspace(8, len(data) - 1, 8, dtype=int):
            assert outcome(data[:length]) == "FormatError"
        assert outcome(data + bytes(100)) == "layout"

    @pytest.mark.parametrize(
        "end",
        [
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "os.kill(os.getpid(), signal.SIGKILL)",  # as the system does when memory runs out
            "os.abort()",  # as libraries do then, or when they find their memory spoilt
            "resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n    while True: pass",
            "bytes(1 << 40)",
        ],
        ids=["memory-fault", "killed", "abort", "processor-limit", "memory-limit"],
    )
    def test_the_library_dies(self, monkeypatch, tmp_path, end):
        path = tmp_path / "worker.py"
        path.write_text(
            "import os, resource, signal, sys\n"
            "def rehearse(report): pass\n"
            "def list_file(file, report):\n"
            f"    {end}\n"
        )
        monkeypatch.setattr(hdf5_process, "_WORKER", path)
        monkeypatch.setattr(hdf5_process, "_ZYGOTES", [])
        with pytest.raises(FormatError, match="the HDF5 library failed on it"):
            examine(sample("latest"))
        assert not hdf5_process._ZYGOTES
