"""Hostile pickles by themselves: what is refused, and that no byte of them is ever run."""

import pickle
import re
import subprocess

import numpy as np
import pytest
from audited import NOTHING, events
from pickled import reachable

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe, find_format
from mstore.formats.pickle_values import Dict
from mstore.formats.pickle_walk import walk
from mstore.formats.pickles import PickleFormat
from mstore.layout import opaque

FORMAT = PickleFormat()


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def calls(module, name):
    """A pickle that calls something with a text, by names on the stack."""
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text("true") + b"\x85R."


def refused(data, kind, message):
    """Fails unless a file is refused, and is stored all the same, with a warning that says so."""
    reader = BytesReader(data)
    with pytest.raises(kind, match=message):
        FORMAT.layout(reader)
    assert find_format(reader).name in ("pickle", "torch")
    layout, said = describe(reader)
    assert layout == opaque(len(data))
    assert said.startswith("looks like pickle but ")


SYSTEM = [
    b"cos\nsystem\n(S'true'\ntR.",
    b"(S'true'\nios\nsystem\n.",
    b"(cos\nsystem\nS'true'\no.",
    b"\x80\x02cos\nsystem\nX\4\0\0\0true\x85\x81.",
    b"\x80\x04cos\nsystem\n" + text("true") + b"\x85}\x92.",
    calls("os", "system"),
    b"\x80\x04}" + text("w") + calls("os", "system")[2:-1] + b"s.",
    # The function is taken from the memo, and called by way of what may be called.
    b"\x80\x04cos\nsystem\n\x940" + b"h\0" + text("true") + b"\x85R.",
    b"\x80\x02ccopy_reg\n_reconstructor\n(cos\nsystem\nc__builtin__\nobject\nNtR.",
    # Only named: something else may call it.
    b"\x80\x02]cos\nsystem\na.",
]


@pytest.mark.parametrize("data", SYSTEM)
def test_class_18_os_system(data):
    refused(data, UnsafeInputError, r"^would (call|import) os\.system when loaded$")
    dangers = [one.what for one in FORMAT.findings(BytesReader(data)) if one.danger == "dangerous"]
    assert dangers in (["calls os.system"], ["imports os.system"])


def test_class_18_as_python_writes_it():
    class Payload:
        def __reduce__(self):
            return subprocess.getoutput, ("true",)

    for protocol in range(6):
        data = pickle.dumps({"w": np.zeros(3), "x": [Payload()]}, protocol)
        name = "commands" if protocol < 3 else "subprocess"
        refused(data, UnsafeInputError, rf"^would call {name}\.getoutput when loaded$")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *[("pty", "spawn"), ("runpy", "_run_code"), ("ctypes", "CDLL"), ("pip", "main")],
        *[("timeit", "timeit"), ("code", "interact"), ("webbrowser", "open"), ("pdb", "run")],
        *[("builtins", "exec"), ("numpy.testing._private.utils", "runstring"), ("torch", "load")],
        *[("torch.hub", "load"), ("marshal", "loads"), ("pickle", "loads"), ("os", "posix_spawn")],
        *[("cloudpickle.cloudpickle", "_make_function"), ("importlib", "import_module")],
    ],
)
def test_class_19_gadgets(module, name):
    refused(calls(module, name), UnsafeInputError, f"would call {module}.{name} when loaded")


def test_class_19_what_a_call_gives_is_called():
    """getattr(module, 'name')(…), partial(…)(…), methodcaller(…)(…)."""
    unknown = b"\x80\x04cmylib\nthing\n"
    getter = b"\x80\x04cbuiltins\ngetattr\n" + unknown[2:] + text("run") + b"\x86R"
    assert describe(BytesReader(getter + b"."))[1] is None
    refused(getter + b")R.", UnsafeInputError, "would call what builtins.getattr gives when loaded")
    partial = b"\x80\x04cfunctools\npartial\n" + unknown[2:] + b"\x85R"
    refused(partial + b")R.", UnsafeInputError, "would call what functools.partial gives when")


@pytest.mark.parametrize(
    ("module", "name"),
    [
        *[("os.path", "os.system"), ("torch", "os.system"), ("numpy", "f2py.os.system")],
        *[("collections", "abc.sys.modules"), ("builtins", "eval.__call__"), ("", "os.system")],
        *[("collections", "OrderedDict.__init__.__globals__"), ("pathlib", "Path.unlink")],
    ],
)
def test_class_20_dotted_names(module, name):
    refused(calls(module, name), UnsafeInputError, "would call")
    assert describe(BytesReader(calls("mylib", "Outer.Inner")))[1] is None


@pytest.mark.parametrize("tail", [b"", b"\xff.", b"t.", b"h\x07.", b"\x95\0", b"0" * 9, b"}b}s."])
def test_class_21_a_payload_before_a_broken_tail(tail):
    for payload in (b"cos\nsystem\n(S'true'\ntR0", calls("os", "system")[:-1] + b"0"):
        refused(payload + tail, UnsafeInputError, r"would call os\.system when loaded")
        (finding,) = FORMAT.findings(BytesReader(payload + tail))
        assert (finding.danger, finding.what) == ("dangerous", "calls os.system")


def test_class_21_a_payload_in_the_next_pickle():
    first = pickle.dumps({"w": np.zeros(3)}, 4)
    for second in (SYSTEM[0], calls("os", "system"), calls("os", "system")[:-1]):
        refused(first + second, UnsafeInputError, r"would call os\.system when loaded")


def frame(size):
    return b"\x95" + size.to_bytes(8, "little")


GOOD = pickle.dumps({"w": np.arange(9.0), "n": list(range(30))}, 4)
BODY = GOOD[11:]


@pytest.mark.parametrize(
    "data",
    [
        GOOD[:2] + frame(len(BODY) + 9) + BODY,
        GOOD[:2] + frame(4) + BODY,
        GOOD[:2] + frame(2**63) + BODY,
        GOOD[:2] + frame(2**64 - 1) + BODY,
        GOOD[:11] + frame(4) + BODY,
        GOOD[:2] + frame(len(BODY) + 9) + frame(len(BODY)) + BODY,
        b"\x80\x04" + frame(6) + b"C\x0a" + bytes(10) + b".",
    ],
)
def test_class_22_frames(data):
    refused(data, FormatError, "frame|cut short")


def test_class_22_frames_that_python_writes():
    """Large bytes lie between frames; what comes after the last one needs none."""
    large = {"a": b"x" * 100_000, "w": np.zeros(20_000), "b": [b"y" * 70_000, "z" * 80_000]}
    for protocol in (4, 5):
        layout, said = describe(BytesReader(pickle.dumps(large, protocol)))
        assert (layout.format, said) == ("pickle", None)
    unframed = GOOD[:2] + BODY
    assert describe(BytesReader(unframed))[1] is None
    assert describe(BytesReader(GOOD[:2] + frame(0) + frame(len(BODY)) + BODY))[1] is None


def laughs(opener, levels):
    """Each value holds the one before twice."""
    steps = [b"](" + 2 * (b"h" + bytes([n])) + b"eq" + bytes([n + 1]) for n in range(levels)]
    return b"\x80\x02" + opener + b"q\0" + b"".join(steps) + b"."


def test_class_23_expansion():
    """What doubles at each step costs no more than it is long, and is refused beyond reason."""
    layout, said = describe(BytesReader(laughs(b"]", 39)))
    assert (layout.format, said) == ("pickle", None)  # 2**40 - 1 lists
    for levels in (40, 250):
        told = "its lists hold each other so often that it would be more than 2^40 values if "
        refused(laughs(b"]", levels), LimitExceededError, re.escape(told))


def test_class_23_objects_that_know_each_other():
    """A hundred objects, each with a list of all before it: no tree, and nobody prints it as one."""
    data = b"\x80\x02("
    for n in range(100):
        known = b"".join(b"h" + bytes([one]) for one in range(n))
        data += b"cm\nC\n)R(" + known + b"lbq" + bytes([n])
    layout, said = describe(BytesReader(data + b"l."))
    assert (layout.format, said) == ("pickle", None)


def test_class_23_arrays_in_what_doubles():
    """Each array has a name in each place."""
    made = pickle.dumps(np.zeros(3), 2)[2:-1]
    found = FORMAT.layout(BytesReader(laughs(made, 10))).views
    assert len({view.tensor.name for view in found}) == 2**10


def test_class_23_arrays_in_very_many_places(monkeypatch):
    """Each place has a name until there are too many to look at."""
    from mstore.formats import pickle_paths

    array = pickle.dumps(np.zeros(3), 2, fix_imports=True)[2:-1]
    ends = b"r\0\1\0\0"  # in the memo at 256
    data = b"\x80\x02" + array + ends + b"0j\0\1\0\0" + b"q\xf0"
    for n in range(12):
        data += b"](" + 2 * (b"h" + bytes([0xF0 + n])) + b"eq" + bytes([0xF1 + n])
    layout = FORMAT.layout(BytesReader(data + b"."))
    assert len(layout.views) == 2**12
    monkeypatch.setattr(pickle_paths, "MAX_REPEATS", 100)
    refused(data + b".", LimitExceededError, "more than 100 places")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02" + b"}" * 600_000 + b".",
        b"\x80\x02)" + b"\x85" * 600_000 + b".",
        b"\x80\x02" + b"(" * 20_000 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x02N" + b"2" * 4_100_000 + b".",
    ],
)
def test_class_23_depth_and_counts(data):
    refused(data, LimitExceededError, "its pickle|its values|pickle has")


def test_bombs_are_shared_not_copied():
    """Values that are 2**2000 long when written out, or hold themselves, stay as small as written."""
    doubling = b")" + b"2\x86" * 2000 + b"."
    assert len(reachable(walk(doubling))) == 2001
    lists = b"(l" + b"".join(b"q%c(h%ch%cl" % ((i,) * 3) for i in range(200)) + b"."
    assert len(reachable(walk(lists))) == 201
    (itself,) = walk(b"]q\0h\0a.")
    assert itself[0] is itself
    own = walk(b"}q\0K\1h\0s.")
    assert own.pairs[0][1] is own


def test_deep_values_and_colliding_keys():
    deep = walk(b")" + b"\x85" * 100_000 + b".")
    del deep
    deepest_key = walk(b"}" + b")" + b"\x85" * 100_000 + b"K\1s.")
    assert isinstance(deepest_key, Dict)
    collide = b"".join(
        b"\x8a\x10" + (i * (2**61 - 1)).to_bytes(16, "little") for i in range(20_000)
    )
    assert len(walk(b"}(" + collide + b"u.").pairs) == 10_000


def test_class_23_cycles():
    for data in (b"\x80\x02]q\0h\0a.", b"\x80\x02}q\0K\1h\0s.", b"\x80\x02cm\nC\n)\x81q\0h\0b."):
        assert describe(BytesReader(data))[0].format == "pickle"


@pytest.mark.parametrize(
    "opcode",
    [
        *[b"\x8e" + (2**60).to_bytes(8, "little"), b"\x8d" + (2**63).to_bytes(8, "little")],
        *[b"\x96" + (2**60).to_bytes(8, "little"), b"B" + b"\xff" * 4, b"X" + b"\xff" * 4],
        *[b"T" + (-5).to_bytes(4, "little", signed=True), b"\x8b" + b"\xff" * 4],
        *[b"\x8b\xff\xff\xff\x7f", b"\x8b\1\1\0\0" + bytes(257), b"L" + b"9" * 700 + b"L\n"],
    ],
)
def test_class_24_lengths(opcode):
    data = b"\x80\x04" + opcode + b"x."
    refused(data, (FormatError, LimitExceededError), "its pickle")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02cmylib\nthing\n}X\1\0\0\0aK\1sb.",
        b"\x80\x02K\1}b.",
        b"\x80\x02]}b.",
        b"\x80\x02cmylib\nthing\nX\1\0\0\0aX\1\0\0\0bs.",
        b"\x80\x02]K\1K\2s.",
        b"\x80\x02X\1\0\0\0aK\1a.",
        b"\x80\x02}(K\1\x90.",
        b"\x80\x02K\1)R.",
    ],
)
def test_class_25_state_of_a_wrong_type(data):
    refused(data, UnsafeInputError, "its pickle")


@pytest.mark.parametrize("suffix", ["safetensors", "npy", "h5", "txt", "msgpack", ""])
def test_class_29_under_another_name(suffix, tmp_path):
    """What a file is, is told by what is in it."""
    from mstore.sources import FileSource

    path = tmp_path / f"model.{suffix}"
    path.write_bytes(SYSTEM[0])
    source = FileSource(path)
    assert "would call os.system when loaded" in describe(source)[1]
    source.close()


def test_torch_loads_what_is_inside():
    """A tensor in a pickle has a file of torch in it, which may hold anything."""
    inner = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)

    def outer(content, protocol=4):
        made = pickle.dumps(content, protocol)
        made = made[11:-1] if protocol == 4 else made[2:-1]
        return b"\x80\x04" + b"ctorch.storage\n_load_from_bytes\n" + made + b"\x85R."

    assert "would call" not in str(describe(BytesReader(outer(inner)))[1])
    refused(outer(inner + SYSTEM[0]), UnsafeInputError, r"would call os\.system when loaded")
    refused(outer(inner + SYSTEM[0], 2), UnsafeInputError, "have torch load a file that is inside")
    older = b"\x80\x02" + outer(inner + SYSTEM[0], 2)[2:]
    refused(older, UnsafeInputError, r"would call os\.system when loaded")
    older = b"\x80\x02" + outer(inner, 2)[2:]
    assert "would call" not in str(describe(BytesReader(older))[1])
    refused(outer(inner + outer(SYSTEM[5])), UnsafeInputError, r"would call os\.system when loaded")
    for hidden in (b"PK\3\4", b"", b"\0" * 600):
        refused(outer(hidden), UnsafeInputError, "have torch load a file that is inside")


class Model:
    """A class of which nobody else knows."""


def test_what_is_only_unknown_is_described():
    made = Model()
    made.w = np.arange(3.0)
    layout, said = describe(BytesReader(pickle.dumps(made, 4)))
    assert said is None
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["w"]


def test_nothing_is_imported_opened_or_run():
    """In a process of its own, no event that Python audits happens while pickles are described."""
    payloads = [
        *SYSTEM,
        calls("this_module_is_not_there", "name"),
        calls("antigravity", "fly"),
        GOOD,
        b"c__builtin__\neval\n(V__import__('antigravity')\ntR.",
        b"ccopyreg\n_reconstructor\n(csubprocess\nPopen\nc__builtin__\nobject\nNtR(K\1lb.",
        b"(Pfile:///etc/passwd\nl.",
        b"(V\\u0041\n0S'\\x41\\q'\n0U\1\xff0F1.5\n0L3L\np0\nl.",
        b"\x80\x02\x82\1)R.",
    ]
    prepare = f"""
import importlib
from mstore.formats.base import BytesReader
from contextlib import suppress
from mstore.errors import MstoreError
from mstore.formats.detect import describe
from mstore.formats.pickles import PickleFormat
import encodings.latin_1, encodings.raw_unicode_escape
ignored = ["builtins.id"]  # which only looks
payloads = {payloads!r}
for name in ("pickles", "joblib", "torch_legacy", "flax", "onnx"):  # imported late
    importlib.import_module("mstore.formats." + name)
"""
    watched = """
for payload in payloads:
    reader = BytesReader(payload)
    describe(reader)
    with suppress(MstoreError):
        PickleFormat().findings(reader)
"""
    assert events(prepare, watched) == NOTHING
