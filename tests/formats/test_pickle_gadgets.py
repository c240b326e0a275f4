"""Pickles that run code by way of harmless names, each of which did when it was loaded.

What a pickle calls may call what it is given; modules hold other modules; and what joblib reads
between the opcodes is not there for the reader of pickles. No such file may pass as harmless.
"""

import datetime
import functools
import io
import pickle
import random
import struct
import zoneinfo

import joblib
import numpy as np
import pytest
import scipy.sparse
import torch

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.pickle_policy import judge

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def text(value):
    return b"\x8c" + bytes([len(value)]) + value.encode()


def name(dotted):
    module, _, last = dotted.rpartition(".")
    return text(module) + text(last) + b"\x93"


def call(function, *arguments):
    return (name(function) if isinstance(function, str) else function) + tuple_(*arguments) + b"R"


def tuple_(*members):
    return b"(" + b"".join(members) + b"t"


def dict_(**items):
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def attribute(owner, of):
    return call("builtins.getattr", name(owner) if isinstance(owner, str) else owner, text(of))


NONE, ONE = b"N", b"K\1"
RUN = attribute(attribute("torch.serialization", "os"), "system")
MEMMAP = name("numpy.memmap")
CALLED_BEFORE = attribute("collections.OrderedDict", "fromkeys") + b"0"

GADGETS = {
    "a maker of generators": call("numpy.random._pickle.__generator_ctor", text("true"), RUN),
    "a generator by way of a name": call(
        "numpy.random._pickle.__generator_ctor",
        text("true"),
        call("torch._utils._import_dotted_name", text("os.system")),
    ),
    "a class of bits": call("numpy.random._pickle.__bit_generator_ctor", RUN),
    "a tensor of another type": call(
        "torch._tensor._rebuild_from_type_v2", RUN, name("builtins.int"), tuple_(text("x")), NONE
    ),
    "a copy": call("copy._reconstruct", NONE, NONE, RUN, tuple_(text("true"))),
    "getattr where it is given": CALLED_BEFORE
    + call(
        "torch._tensor._rebuild_from_type_v2",
        name("builtins.getattr"),
        name("builtins.type"),
        tuple_(name("collections.OrderedDict"), text("__class__")),
        NONE,
    ),
    "partial of what an attribute is": call("functools.partial", name("mylib.f"))
    + tuple_(attribute("mylib.thing", "run"), b")", b"}", NONE)
    + b"b",
    "partial given to a dictionary": call("functools.partial", name("mylib.f"))
    + b"0"
    + call("collections.defaultdict", name("functools.partial")),
    "a new object that opens a file": call(
        "copyreg.__newobj__", MEMMAP, text("/tmp/x"), text("u1"), text("w+"), ONE, ONE
    ),
    "an array that opens a file": call("copyreg._reconstructor", MEMMAP, MEMMAP, text("/etc/x")),
    "a new object of what an attribute is": call("copyreg.__newobj__", RUN, text("true")),
    "a class of another module": call(
        attribute(attribute("http.cookiejar", "threading"), "Thread"), NONE
    ),
    "a class from elsewhere": call("sklearn.utils._testing.TemporaryDirectory"),
    "a function from elsewhere": call("sklearn.utils.discovery.import_module", text("antigravity")),
    "a module from elsewhere": name("torch.serialization.io"),
    "an expression of pandas": call("pandas.core.computation.expr.Expr", text("@os.system")),
    "the globals of a generator": attribute(attribute("mylib.f", "gi_frame"), "f_globals"),
    "an attribute of an attribute of an object": attribute(
        attribute(call("mylib.Model"), "module"), "run"
    ),
}


def hazards(data):
    return find_hazards(BytesReader(data))


@pytest.mark.parametrize("data", GADGETS.values(), ids=GADGETS)
def test_gadgets(data):
    found = hazards(b"\x80\x04" + data + b".")
    assert found.verdict == "dangerous"
    assert describe(BytesReader(b"\x80\x04" + data + b"."))[1].startswith("looks like pickle but ")


def test_what_is_handed_over_is_told():
    found = hazards(b"\x80\x04" + call("copyreg.__newobj__", MEMMAP, text("x")) + b".")
    assert found.findings[0].what == "hands over numpy.memmap"


# Files of joblib, which takes for an array what others take for opcodes.

EVIL = call("os.system", text("true")) + b"."
HIDDEN = b"B" + struct.pack("<I", len(EVIL)) + EVIL + b"."
WRAPPER = name("joblib.numpy_pickle.NumpyArrayWrapper")
BYTE = call("numpy.dtype", text("u1"))
SIX_BYTES = call("numpy.dtype", text("V1"), b"\x89", b"\x88") + (
    tuple_(b"K\3", text("|"), NONE, NONE, NONE, b"K\6", ONE, b"K\0") + b"b"
)
OBJECTS = call("numpy.dtype", text("V1"), b"\x89", b"\x88") + (
    tuple_(b"K\3", text("|"), NONE, NONE, NONE, ONE, ONE, b"\x88") + b"b"
)


def said(dtype=BYTE, count=5, **more):
    shape = b"K" + bytes([count]) + b"\x85"
    return dict_(shape=shape, order=text("C"), dtype=dtype, allow_mmap=b"\x89", **more) + b"b"


JOBLIB = {
    "made by a function": call("copyreg.__newobj__", WRAPPER) + said() + HIDDEN,
    "made as in protocol 0": call("copyreg._reconstructor", WRAPPER, name("builtins.object"), NONE)
    + said()
    + HIDDEN,
    "made by an attribute": attribute("joblib.numpy_pickle", "NumpyArrayWrapper")
    + b")\x81"
    + said()
    + HIDDEN,
    "a size in the state of a type": WRAPPER + b")\x81" + said(SIX_BYTES, 1) + b"N" + HIDDEN,
    "said before": WRAPPER
    + b")\x81\x94"
    + said(count=1, numpy_array_alignment_bytes=b"K\x10")
    + b"\0\0"
    + b"0h\0"
    + said(count=1)
    + b"\5"
    + HIDDEN,
}


@pytest.mark.parametrize("data", JOBLIB.values(), ids=JOBLIB)
def test_arrays_of_joblib_that_hide_opcodes(data):
    assert hazards(b"\x80\x04" + data).unsafe


def test_a_flag_that_is_true_tells_of_objects():
    """An array of objects is a pickle of its own, whatever type of number the flag is."""
    data = b"\x80\x04" + WRAPPER + b")\x81" + said(OBJECTS, 1) + EVIL + b"."
    assert hazards(data).verdict == "dangerous"


@pytest.mark.parametrize(
    "before",
    [
        b"\x95" + struct.pack("<Q", 4) + b"N0N0N0",  # a frame that an opcode crosses
        b"\x95" + struct.pack("<Q", 9) + b"\x95" + struct.pack("<Q", 1) + b"N0",
        name("collections.OrderedDict") + dict_(x=ONE) + b"b0",
        b"](Ne" + b"K\0Ns0",
        b"](NNe}b0",
    ],
)
def test_what_only_the_reader_in_c_takes(before):
    """Where torch and pickle go on, so does the search for harm."""
    inner = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
    inner += pickle.dumps({}, 2) + b"\x80\x04" + before + EVIL
    outer = b"B" + struct.pack("<I", len(inner)) + inner
    data = b"\x80\x04" + call("torch.storage._load_from_bytes", outer) + b"."
    assert [one.what for one in hazards(data).of("dangerous")] == ["calls os.system"]
    # To pickle the bytes of an array of joblib's are opcodes.
    made = WRAPPER + b")\x81" + said(count=len(before + EVIL)) + before + EVIL
    assert hazards(b"\x80\x04" + made + b".").verdict == "dangerous"


class Net(torch.nn.Module):
    """As models of timm: with a partial of a class, a function and a method of a type."""

    def __init__(self):
        super().__init__()
        self.norm = functools.partial(torch.nn.LayerNorm, eps=1e-6)
        self.act = torch.nn.functional.gelu
        self.case = str.upper


def harmless():
    generators = [np.random.default_rng(1), np.random.RandomState(2), np.random.SeedSequence(3)]
    formats = ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"]
    yield "ok", [*generators, np.random.get_state(), random.getstate(), random.Random(3)]
    yield "ok", [scipy.sparse.random(4, 4, 0.5, one) for one in formats]
    yield "ok", datetime.datetime(2026, 1, 1, tzinfo=zoneinfo.ZoneInfo("UTC"))
    yield "ok", torch.nn.TransformerEncoderLayer(4, 2).activation
    yield "unknown", functools.partial(np.mean, axis=0)
    yield "unknown", Net().norm


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_what_is_often_in_files_is_not_dangerous(protocol, tmp_path):
    np.save(tmp_path / "saved.npy", np.arange(9.0))
    mapped = np.load(tmp_path / "saved.npy", mmap_mode="r")
    for verdict, one in [*harmless(), ("ok", mapped)]:
        value = [one]
        stream = io.BytesIO()
        joblib.dump(value, stream, protocol=protocol)
        for data in (pickle.dumps(value, protocol), stream.getvalue()):
            found = hazards(data)
            assert (found.verdict, found.unsafe) == (verdict, False), found
    saved = io.BytesIO()
    torch.save(Net(), saved)
    assert hazards(saved.getvalue()).verdict == "unknown"


@pytest.mark.parametrize("protocol", range(6))
def test_joblib_in_any_protocol(protocol):
    """In the first two a function makes the wrappers."""
    stream = io.BytesIO()
    joblib.dump({"w": np.arange(4.0), "o": np.array([None, "x"])}, stream, protocol=protocol)
    layout, said = describe(BytesReader(stream.getvalue()))
    assert (layout.format, said) == ("joblib", None)
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["w"]


def test_names_of_other_modules():
    for dotted in ("mylib.CDLL", "mylib.check_output", "statistics.reduce", "mylib.memmap"):
        assert judge(*dotted.rsplit(".", 1)) == "dangerous"
    assert judge("numpy.core.memmap", "memmap") == "allowed"


def test_a_name_that_only_loading_makes():
    """In the bytes of an array, which are opcodes to pickle; objects that lie there are no names."""
    made = call("builtins.str", name("builtins.int")) + text("system") + b"\x93" + text("true")
    evil = made + b"\x85R."
    data = b"\x80\x04" + WRAPPER + b")\x81" + said(count=len(evil)) + evil + b"."
    assert hazards(data).verdict == "dangerous"
    odd = call("mylib.Model") + text("x") + b"\x93."
    data = b"\x80\x04" + WRAPPER + b")\x81" + said(count=len(odd)) + odd + b"."
    assert hazards(data).verdict == "unknown"


class Model:
    """An object that holds others in an array."""

    def __init__(self, *values):
        self.values = np.array([*values, None], object)
        self.rest = np.arange(3.0)


def test_arrays_of_objects_are_good_files_to_joblib_alone():
    """Their pickles have a memo of their own, which whoever reads on as in one pickle mixes up."""
    value = Model(Model(Model(np.arange(3.0)), {"a": Model()}), datetime.date(2026, 1, 1), Model())
    for protocol in range(6):
        stream = io.BytesIO()
        joblib.dump({"x": value, "y": [value, Model(value)]}, stream, protocol=protocol)
        reader = BytesReader(stream.getvalue())
        assert describe(reader)[1] is None
        assert find_hazards(reader).verdict == "unknown"
