"""saved_model.pb: what its graphs would do, in files of TensorFlow and in graphs made here."""

import contextlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, LimitExceededError, MstoreError
from mstore.formats import savedmodel
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.savedmodel import SavedModelFormat
from mstore.layout import opaque

GOLDEN = Path(__file__).parent / "tensorflow_files"
FILES = {
    name: (GOLDEN / name / "saved_model.pb").read_bytes()
    for name in ("saved", "exported", "outside")
}


def findings(data):
    return SavedModelFormat().findings(BytesReader(data))


def told(data):
    return {(one.danger, one.what) for one in findings(data)}


@pytest.mark.parametrize("name", FILES)
def test_golden(name):
    layout, note = describe(BytesReader(FILES[name]))
    assert (layout.format, note) == ("tensorflow-savedmodel", None)
    assert [segment.tensor for segment in layout.segments] == [None]


def test_what_golden_files_would_do():
    """Saving, restoring and computing is nothing to tell; files, Python and printing to files is."""
    assert findings(FILES["exported"]) == []
    assert told(FILES["saved"]) == {
        (
            "unknown",
            "reads a file of words, which should be among its assets"
            " (InitializeTableFromTextFileV2)",
        )
    }
    assert told(FILES["outside"]) == {
        ("dangerous", "reads files when it is run (ReadFile)"),
        ("dangerous", "reads files when it is run (MatchingFiles)"),
        ("dangerous", "writes files when it is run (WriteFile)"),
        ("dangerous", "writes to 'file:///dev/null' when it is run (PrintV2)"),
        ("dangerous", "calls functions of Python when it is run (PyFunc)"),
    }
    assert all(one.where.startswith("__inference___call___") for one in findings(FILES["outside"]))


def field(number, value):
    if isinstance(value, int):
        return bytes([number << 3, value])
    return bytes([number << 3 | 2]) + _length(len(value)) + value


def _length(size):
    return bytes([size]) if size < 128 else bytes([size & 127 | 128, size >> 7])


def node(name, operation, *attributes):
    pairs = (field(5, field(1, key) + field(2, field(2, text))) for key, text in attributes)
    return field(1, name) + field(2, operation) + b"".join(pairs)


def saved(*nodes, functions=()):
    graph = b"".join(field(1, one) for one in nodes) + field(2, b"".join(functions))
    return field(1, 1) + field(2, field(1, b"") + field(2, graph))


def function(name, *nodes):
    return field(1, field(1, field(1, name)) + b"".join(field(3, one) for one in nodes))


@pytest.mark.parametrize(
    ("operation", "what"),
    [
        ("ReadFile", "reads files"),
        ("ImmutableConst", "reads files"),
        ("ExperimentalCSVDataset", "reads files"),
        ("WriteFile", "writes files"),
        ("DebugIdentityV3", "writes files"),
        ("EagerPyFunc", "calls functions of Python"),
        ("PyFuncStateless", "calls functions of Python"),
        ("RpcCall", "talks to other machines"),
    ],
)
def test_operations(operation, what):
    add = node(b"a", b"AddV2")
    whole = f"{what} when it is run ({operation})"
    for data, where in [
        (saved(add, node(b"n", operation.encode()), node(b"m", operation.encode())), "n"),
        (saved(add, functions=[function(b"f", add, node(b"n", operation.encode()))]), "f/n"),
    ]:
        (found,) = findings(data)
        assert (found.danger, found.what, found.where) == ("dangerous", whole, where)
    assert findings(saved(add, node(operation.encode(), b"SaveV2"))) == []


def test_prints():
    """Only printing to a file is told, wherever the attribute stands."""
    to_file, to_error = (b"output_stream", b"file:///x"), (b"output_stream", b"stderr")
    many = [(b"end%d" % number, b"\n") for number in range(60)]
    assert findings(saved(node(b"p", b"PrintV2", to_error, (b"end", b"\n")))) == []
    for data in (
        saved(node(b"p", b"PrintV2", *many, to_file)),
        saved(field(5, field(2, field(2, b"file:///x")) + field(1, b"o")) + node(b"p", b"PrintV2")),
    ):
        assert told(data) == {("dangerous", "writes to 'file:///x' when it is run (PrintV2)")}


def test_the_last_operation_of_a_node_counts():
    """As in the libraries of Protocol Buffers, so that nothing hides behind an earlier one."""
    assert told(saved(node(b"n", b"Add") + field(2, b"ReadFile")))
    assert not told(saved(node(b"n", b"ReadFile") + field(2, b"Add")))


def test_nothing_is_imported_opened_or_run():
    """In a process of its own, no event that Python audits happens while files are described."""
    indexes = [path.read_bytes() for path in GOLDEN.rglob("*.index")]
    script = textwrap.dedent(
        f"""
        import sys
        from mstore.formats.base import BytesReader
        from mstore.formats.detect import describe
        from mstore.formats.savedmodel import SavedModelFormat
        from mstore.formats.tensorbundle import TensorBundleCompanion
        events = []
        def hook(event, arguments):
            if watching:
                events.append((event, arguments))
        watching = False
        graphs = {[FILES["outside"], FILES["saved"]]!r}
        indexes = {indexes!r}
        sys.addaudithook(hook)
        before = set(sys.modules)
        watching = True
        for data in graphs:
            describe(BytesReader(data))
            SavedModelFormat().findings(BytesReader(data))
        for data in indexes:
            describe(BytesReader(data))
            TensorBundleCompanion().parse(BytesReader(data), "x.index")
        watching = False
        print(events, set(sys.modules) - before)
        """
    )
    done = subprocess.run(
        [sys.executable, "-"], input=script, capture_output=True, text=True, check=False, timeout=60
    )
    assert (done.stderr, done.stdout) == ("", "[] set()\n")


@pytest.mark.parametrize(
    "data",
    [
        field(1, 2) + saved(node(b"n", b"Add"))[2:],  # another version
        saved(),  # no node to tell it by
        field(1, 1) + field(2, b"pytorch") + field(7, field(1, field(4, b"Add"))),
        field(1, 1),
        b"\x08\x01\x12",
        b"\x08\x01\x12\x02\n\0",
        (GOLDEN / "saved" / "fingerprint.pb").read_bytes(),
        (GOLDEN / "saved" / "variables" / "variables.data-00000-of-00001").read_bytes(),
    ],
)
def test_other_files(data):
    assert not SavedModelFormat().sniff(data[:4096], BytesReader(data))


def test_cut_and_malformed_files():
    data = FILES["outside"]
    layout, note = describe(BytesReader(data[:-1]))
    assert layout == opaque(len(data) - 1)
    assert note.startswith("looks like tensorflow-savedmodel but ")
    for bad in (data[:-1], data + b"\0", saved(node(b"n", b"Add") + b"\x0b")):
        with pytest.raises(FormatError):
            findings(bad)


def test_too_many_fields(monkeypatch):
    monkeypatch.setattr(savedmodel, "MAX_FIELDS", 100)
    with pytest.raises(LimitExceededError):
        findings(FILES["outside"])


@settings(max_examples=200)
@given(data=st.data(), name=st.sampled_from(["saved", "outside"]))
def test_changed_bytes(data, name):
    """Whatever is done to a file, only this package's errors come out."""
    changed = bytearray(FILES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        changed[data.draw(st.integers(0, len(changed) - 1))] = data.draw(st.integers(0, 255))
    del changed[data.draw(st.integers(0, len(changed))) :]
    assert describe(BytesReader(changed))[0].size == len(changed)
    with contextlib.suppress(MstoreError):
        findings(changed)
