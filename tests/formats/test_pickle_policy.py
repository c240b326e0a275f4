"""What pickles may name and call: each list against what is known to be harmless or not."""

import pickle
import sys

import numpy as np
import pytest

from mstore.formats.base import BytesReader, Finding
from mstore.formats.pickle_policy import judge, judge_call
from mstore.formats.pickle_values import Call, Chars, Global
from mstore.formats.pickles import PickleFormat

ALLOWED = """
    numpy ndarray|numpy dtype|numpy float32|numpy.core.multiarray _reconstruct
    numpy._core.multiarray scalar|numpy.core.numeric _frombuffer|numpy._core.numeric _frombuffer
    numpy.dtypes Float32DType|numpy.random._pickle __generator_ctor|numpy.random._mt19937 MT19937
    numpy.ma.core _mareconstruct|ml_dtypes bfloat16|ml_dtypes float8_e4m3fn|ml_dtypes int4
    collections OrderedDict|collections defaultdict|builtins set|__builtin__ dict|builtins object
    copyreg _reconstructor|copy_reg _reconstructor|_codecs encode|array _array_reconstructor
    types SimpleNamespace|datetime datetime|uuid UUID|pathlib PosixPath|builtins ValueError
    torch._utils _rebuild_tensor_v2|torch._utils _rebuild_parameter|torch FloatStorage
    torch.storage UntypedStorage|torch.cuda HalfStorage|torch float32|torch int8|torch Size
    torch.nn.modules.linear Linear|torch.optim.adam Adam|joblib.numpy_pickle NumpyArrayWrapper
    sklearn.linear_model._base LinearRegression|sklearn.tree._tree Tree|signal Signals
    sklearn.neighbors._kd_tree newObj|sklearn._loss._loss __pyx_unpickle_CyHalfSquaredError
    scipy.sparse._csr csr_matrix|scipy.interpolate._bsplines BSpline
"""
UNKNOWN = """
    __main__ Model|mylib.models.test Net|mylib Outer.Inner|xgboost.sklearn XGBClassifier
    numpy mean|numpy trace|sklearn.metrics._ranking roc_auc_score|transformers TrainingArguments
    logging getLogger|joblib.memory Memory|operator itemgetter|builtins len|re RegexFlag
    test Net|tokenizers Tokenizer
"""
DANGEROUS = """
    os system|posix system|nt system|os popen|subprocess Popen|commands getoutput|sys exit|pty spawn
    builtins eval|builtins exec|builtins compile|builtins getattr|builtins __import__|builtins open
    __builtin__ eval|__builtin__ execfile|__builtin__ apply|builtins map|itertools imap
    io open|_io FileIO|runpy run_path|runpy _run_code|ctypes CDLL|ctypes.util find_library
    socket socket|shutil rmtree|importlib import_module|importlib._bootstrap _load|pip main
    pip._internal main|webbrowser open|code interact|code InteractiveInterpreter.runcode|bdb Bdb.run
    pdb run|timeit timeit|asyncio run|asyncio.subprocess create_subprocess_shell
    operator attrgetter|operator methodcaller|functools partial|functools reduce
    types FunctionType|types CodeType|marshal loads|pickle loads|_pickle loads|cPickle loads
    cloudpickle loads|cloudpickle.cloudpickle _make_function|dill._dill _create_function
    joblib.externals.cloudpickle.cloudpickle _make_function|joblib load|numpy load
    numpy.testing._private.utils runstring|numpy.f2py.crackfortran getlincoef
    numpy.core _ufunc_reconstruct|torch load|torch.hub load|torch.jit load|torch.serialization load
    torch.storage _load_from_bytes|torch.fx.graph_module reduce_graph_module|torch os|torch sys
    torch.utils.collect_env run|torch._inductor.codecache compile_file
    torch._dynamo.guards GuardBuilder.get|pandas read_pickle|pandas.io.common get_handle
    os.path os.system|collections abc.sys.modules|collections OrderedDict.__init__.__globals__
    builtins eval.__call__| os.system|pathlib Path.unlink|six.moves.builtins eval|mylib os.system
    mylib.os system|mylib __class__|uuid _get_command_stdout|urllib.request urlopen
    urllib2 urlopen|http.client HTTPSConnection|httplib HTTPConnection|signal signal
    multiprocessing Process|threading Thread|_thread start_new_thread|copyreg add_extension
    logging.config fileConfig|sklearn.datasets._base load_files|test.support run_unittest
"""


def names(text):
    return [
        tuple(name.strip("\n").split(" "))
        for line in text.strip("\n").split("\n")
        for name in line.removeprefix("    ").split("|")
    ]


@pytest.mark.parametrize(
    ("danger", "name"),
    [
        *(("allowed", name) for name in names(ALLOWED)),
        *(("unknown", name) for name in names(UNKNOWN)),
        *(("dangerous", name) for name in names(DANGEROUS)),
    ],
    ids=lambda value: value if isinstance(value, str) else ".".join(value),
)
def test_names(danger, name):
    assert judge(*name) == danger


def test_no_module_of_python_that_acts_is_allowed():
    """Of the modules that come with Python only a few names are allowed, all of plain data."""
    for module in sorted(sys.stdlib_module_names - {"builtins", "datetime"}):
        for name in ("run", "open", "system", "main", "load", "loads", "call", "_x"):
            assert judge(module, name) != "allowed"


def call(name, *arguments):
    return Call(Global(*name.rsplit(".", 1)), arguments)


CLASS = Global("mylib", "Model")
TEXT = Chars("raw", 0, 10)
CALLS = [
    (call("os.system", "x"), "dangerous", "os.system"),
    (call("mylib.Model"), "unknown", "mylib.Model"),
    (call("numpy.ndarray"), "allowed", "numpy.ndarray"),
    (call("_codecs.encode", "x", "latin1"), "allowed", "_codecs.encode"),
    (call("_codecs.encode", "x", "rot13"), "unknown", "_codecs.encode"),
    (call("_codecs.encode", "x"), "unknown", "_codecs.encode"),
    (call("builtins.type", None), "allowed", "builtins.type"),
    (call("builtins.type", "X", (), {}), "dangerous", "builtins.type"),
    (call("builtins.getattr", CLASS, "member"), "unknown", "builtins.getattr"),
    (call("__builtin__.getattr", CLASS, "member"), "unknown", "__builtin__.getattr"),
    (call("builtins.getattr", CLASS, "__class__"), "dangerous", "builtins.getattr"),
    (call("builtins.getattr", CLASS, TEXT), "dangerous", "builtins.getattr"),
    (call("builtins.getattr"), "dangerous", "builtins.getattr"),
    (call("functools.partial", CLASS), "unknown", "functools.partial"),
    (call("functools.partial", "x"), "dangerous", "functools.partial"),
    (call("numpy.memmap", "/etc/passwd"), "dangerous", "numpy.memmap"),
    (call("numpy.core._ufunc_reconstruct", "numpy", "add"), "unknown", None),
    (call("numpy.core._ufunc_reconstruct", "os", "system"), "dangerous", None),
    (call("torch.storage._load_from_bytes", TEXT), "unknown", None),
    (call("torch.storage._load_from_bytes", "x"), "dangerous", None),
    (Call(call("mylib.make"), ()), "dangerous", "what mylib.make gives"),
    (Call(call("builtins.getattr", CLASS, "Inner"), ()), "unknown", "what builtins.getattr gives"),
    (Call(call("builtins.getattr", CLASS, "run"), ()), "dangerous", "what builtins.getattr gives"),
    (Call(Call(call("mylib.make"), ()), ()), "dangerous", "what another call gives"),
]


@pytest.mark.parametrize(("made", "danger", "shown"), CALLS)
def test_calls(made, danger, shown):
    assert judge_call(made) == (danger, shown or str(made.function))


def found(data):
    return PickleFormat().findings(BytesReader(data))


def test_findings_name_each_thing_once_with_its_place():
    data = pickle.dumps({"a": np.zeros(3), "b": np.zeros(4), "c": np.add}, 4)
    place = data.index(b"\x93")
    assert found(data)[0] == Finding(
        "allowed", "calls numpy._core.multiarray._reconstruct", found(data)[0].where
    )
    assert [(one.danger, one.what) for one in found(data)] == [
        ("allowed", "calls numpy._core.multiarray._reconstruct"),
        ("allowed", "calls numpy.dtype"),
        ("allowed", "imports numpy.ndarray"),
        ("unknown", "imports numpy.add"),
    ]
    assert found(data)[2].where == f"byte {data.index(bytes([0x93]), place + 1)}"


def test_findings_of_other_things():
    assert [one.what for one in found(b"\x80\x02\x82\x07.")] == [
        "takes a class from a registry that the file is not part of"
    ]
    assert [one.what for one in found(b"\x80\x02K\1Q.")] == [
        "asks whoever loads it for objects that are kept elsewhere"
    ]


def test_names_are_made_printable():
    data = b"\x80\x04\x8c\x05a\x1b[1m\x8c\x03b\nc\x93\x94."
    assert found(data)[0].what == r"imports a\x1b[1m.b\nc"
    long = b"\x80\x04\x8c\xc8" + b"a" * 200 + b"\x8c\x01b\x93."
    assert found(long)[0].what == "imports " + "a" * 80 + "…"
