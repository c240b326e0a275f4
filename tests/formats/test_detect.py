"""Detection by content: every known file finds its parser, and no content at all raises."""

import io
import subprocess
import sys
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
from damage import changed_bytes, flipped
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import ConflictError, MstoreError, StorageError
from mstore.formats.base import HEAD_SIZE, BytesReader, WindowReader
from mstore.formats.detect import FORMATS, describe
from mstore.layout import opaque

ARRAYS = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.zeros((0, 2), np.int16)}


def written(write, *args, **kwargs):
    file = io.BytesIO()
    write(file, *args, **kwargs)
    return file.getvalue()


def zipped(**members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
    return file.getvalue()


FILES = {
    "safetensors": safetensors.numpy.save(ARRAYS, {"format": "np"}),
    "npy": written(np.save, np.asfortranarray(ARRAYS["w"])),
    "npz": written(np.savez, **ARRAYS),
    "npz deflated": written(np.savez_compressed, **ARRAYS),
    "zip": zipped(model=safetensors.numpy.save(ARRAYS)),
    "torch": (Path(__file__).parent / "torch_files" / "alone.pt").read_bytes(),
}
PARSERS = {parser.name: parser for parser in FORMATS}


OTHER_ZIP = zipped(**{"model/data.pkl": b"x"})


@pytest.mark.parametrize("name", FILES)
def test_known_files(name):
    layout, warning = describe(BytesReader(FILES[name]))
    assert (layout.format, warning) == (name.split()[0], None)
    found = [s.tensor for s in (*layout.segments, *layout.views) if s.tensor is not None]
    counts = {"safetensors": 2, "npy": 1, "npz": 2, "npz deflated": 2, "zip": 2, "torch": 1}
    assert len(found) == counts[name]


@pytest.mark.parametrize("data", [b"", b"x", b"{}", b'{"a": 1}', b"\0" * 5000, OTHER_ZIP])
def test_unknown_files_are_opaque_without_a_warning(data):
    assert describe(BytesReader(data)) == (opaque(len(data)), None)


@pytest.mark.parametrize(
    ("data", "warning"),
    [
        (FILES["safetensors"][:-1], "looks like safetensors but the data_offsets of "),
        (FILES["npy"][:-1], "looks like npy but its array needs 24 bytes"),
        (FILES["npz"][:-1], "looks like npz but it has no end record"),
        (FILES["torch"][:-1], "looks like torch but it has no end record"),
        (written(np.save, np.array([None])), "looks like npy but it holds Python objects"),
        (b"\xff" * 8 + b'{"', "looks like safetensors but its header claims 18446744073709551615"),
    ],
)
def test_rejected_files_are_opaque_with_a_warning(data, warning):
    layout, said = describe(BytesReader(data))
    assert layout == opaque(len(data))
    assert said.startswith(warning)
    assert said.endswith("; stored as opaque bytes")


@pytest.mark.parametrize("error", [StorageError("read error"), ConflictError("file changed")])
def test_errors_of_reading_pass_through(error):
    class Failing(BytesReader):
        reads = 0

        def read(self, offset, length):
            self.reads += 1
            if self.reads > 1:
                raise error
            return super().read(offset, length)

    for data in FILES.values():
        with pytest.raises(type(error)):
            describe(Failing(data))


@pytest.mark.parametrize("name", FILES)
def test_truncation_at_every_length(name):
    data = FILES[name]
    for size in range(len(data)):
        layout, _ = describe(WindowReader(BytesReader(data), 0, size))
        assert layout.size == size


@pytest.mark.parametrize("name", FILES)
@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_changed_bytes(name, data):
    """Whatever is done to a file, only this package's errors come out of its parser."""
    changed = data.draw(changed_bytes(FILES[name], more=8))
    layout, _ = describe(BytesReader(changed))
    assert layout.size == len(changed)
    with suppress(MstoreError):
        PARSERS[name.split()[0]].layout(BytesReader(changed))


@pytest.mark.parametrize("name", FILES)
def test_flipped_bits(name):
    for _, changed in flipped(FILES[name], (0, 3, 7)):
        assert describe(BytesReader(changed))[0].size == len(changed)


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([b"\x93NUMPY\1\0", b"PK\3\4", b"\x10" + bytes(7)]))
def test_random_bytes(data, start):
    for content in (data, start + data, start + b'{"' + data):
        assert describe(BytesReader(content))[0].size == len(content)


def test_windows_do_not_leak():
    window = WindowReader(BytesReader(b"0123456789"), 2, 5)
    assert window.read(0, 100) == b"23456"
    assert window.read(4, 1) == b"6"
    assert window.read(5, 1) == window.read(9, 1) == b""


GOOD = [
    *FILES.values(),
    *(p.read_bytes() for p in Path(__file__).parent.glob("*_files/**/*") if p.is_file()),
]


@given(data=st.data())
@settings(max_examples=300)
def test_what_a_file_begins_with_rules_out_no_parser_that_knows_it(data):
    """A parser that is not loaded for a file would not have recognised it either."""
    good = bytearray(data.draw(st.sampled_from(GOOD)))
    for _ in range(data.draw(st.integers(0, 3))):
        good[data.draw(st.integers(0, min(len(good) - 1, 40)))] = data.draw(st.integers(0, 255))
    reader = BytesReader(good)
    head = reader.read(0, HEAD_SIZE)
    for parser in FORMATS:
        assert parser.sniff(head, reader) == parser.load().sniff(head, reader), parser.name


def test_parsers_are_imported_for_files_that_may_be_theirs_and_no_others():
    code = """
import sys
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
for data in (b'{"a": 1}', b"# notes", b"\\x89PNG\\r\\n", bytes.fromhex(sys.argv[1])):
    describe(BytesReader(data))
    find_hazards(BytesReader(data))
loaded = {name.rpartition(".")[2] for name in sys.modules if name.startswith("mstore.formats.")}
assert loaded >= {"safetensors", "later"}, loaded
assert not loaded & {"torch_zip", "npz", "hdf5", "onnx", "protobuf"}, loaded
"""
    subprocess.run([sys.executable, "-c", code, FILES["safetensors"].hex()], check=True)
