"""What a pickle may name and call when it is loaded: harmless things, harmful ones, and unknown.

A list of harmful names is never complete, and one of harmless ones neither, so there are both, and
what is on neither is unknown. Names are judged as Python 3 understands them, those of Python 2
included. Facts: the lists of picklescan and fickling, what `pickle` of numpy, scikit-learn, joblib
and PyTorch writes, and the audit hooks of Python.
"""

import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING  # what Python 3 makes of names of Python 2
from functools import lru_cache

from mstore.formats.base import Danger
from mstore.formats.pickle_values import Call, Chars, Global


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules that with all that is in them reach outside of the process, or run code, or load more of
# it: a name in one of them is dangerous whatever it is.
_MODULES = _words("""
    os posix nt ntpath posixpath subprocess _posixsubprocess sys pty commands popen2 multiprocessing
    code codeop runpy marshal imp _imp importlib _frozen_importlib _frozen_importlib_external
    zipimport pkgutil site gc doctest unittest test.support test.libregrtest _interpreters
    _xxsubinterpreters concurrent signal _signal
    cProfile profile pdb bdb timeit trace tracemalloc faulthandler idlelib lib2to3 pydoc
    socket _socket ssl _ssl socketserver http.client http.server urllib.request urllib2 httplib
    xmlrpc ftplib smtplib imaplib poplib telnetlib nntplib asyncio asyncore requests urllib3 httpx
    aiohttp webbrowser antigravity cgi wsgiref
    ctypes _ctypes cffi _cffi_backend pickle _pickle cloudpickle dill jsonpickle shelve dbm sqlite3
    _sqlite3 shutil tempfile fileinput linecache glob mmap fcntl pipes pexpect sh plumbum
    gzip bz2 _bz2 lzma _lzma _pyio wave mailbox mailcap readline syslog zipapp cgitb
    tkinter _tkinter turtle pyclbr modulefinder _winapi winreg msilib _posixshmem _testcapi
    distutils setuptools pkg_resources pip ensurepip venv compileall py_compile
    logging.config logging.handlers tarfile zipfile select selectors threading _thread atexit
    sched platform ast _osx_support _aix_support
    six.moves past future IPython ipykernel jupyter_client nbconvert
    numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.lib.npyio numpy.lib._npyio_impl
    numpy.lib._datasource numpy.lib.format numpy.compat
    scipy.io scipy.weave pandas.io pandas.core.computation
    sklearn.datasets joblib.externals joblib.parallel joblib._parallel_backends joblib.pool
    torch.hub torch.jit torch.fx torch.package torch._inductor torch._dynamo torch.testing
    torch.multiprocessing torch.utils.cpp_extension torch.utils.bottleneck torch.utils.collect_env
    torch.utils._config_module torch.utils.data.datapipes torch.utils.model_zoo
    torch.distributed.rpc torch.distributed.run torch.distributed.launch torch.distributed.elastic
""")

# Modules that are of use only under their own name: `torch.os` is `os` all the same.
_ANYWHERE = _words("""
    os posix nt subprocess sys builtins __builtin__ __builtins__ ctypes pty runpy importlib marshal
    socket shutil pickle cloudpickle dill
""")

_NAMES: dict[str, frozenset[str]] = {
    module: _words(names)
    for module, names in {
        "builtins": """
            eval exec compile open input breakpoint getattr setattr delattr hasattr globals locals
            vars map filter apply execfile file reload exit quit help
        """,
        "io": "open open_code FileIO",
        "_io": "open open_code FileIO",
        "codecs": "open EncodedFile",
        "operator": "attrgetter methodcaller call",
        "_operator": "attrgetter methodcaller call",
        "functools": "partial partialmethod reduce",
        "_functools": "reduce partial",
        "itertools": "starmap",
        "dataclasses": "make_dataclass",
        "typing": "get_type_hints ForwardRef",
        "attr": "make_class",
        "yaml": "load load_all full_load unsafe_load unsafe_load_all",
        "sympy": "sympify S parse_expr lambdify",
        "numexpr": "evaluate",
        "copyreg": "add_extension remove_extension pickle constructor dispatch_table",
        "types": """
            FunctionType LambdaType CodeType MethodType ModuleType new_class prepare_class coroutine
        """,
        "logging": "FileHandler basicConfig",
        "inspect": "getattr_static getsource getsourcefile getmodule getmembers getmembers_static",
        "weakref": "finalize",
        "uuid": "_get_command_stdout _popen getnode",
        "numpy": """
            load save savez savez_compressed savetxt loadtxt genfromtxt fromfile fromregex
            DataSource vectorize frompyfunc source
        """,
        "numpy.lib.utils": "safe_eval source",
        "numpy.core": "_ufunc_reconstruct",
        "numpy._core": "_ufunc_reconstruct",
        "pandas": "eval",
        **dict.fromkeys(("keras.models", "tensorflow.keras.models", "skops.io"), "load_model load"),
        "sklearn.externals.joblib": "load dump Memory Parallel",
        "joblib": "load dump hash Memory Parallel delayed",
        "joblib.numpy_pickle": "load dump load_temporary_memmap",
        "joblib.numpy_pickle_compat": "load_compatibility",
        "torch": "load save from_file compile",
        "torch.serialization": "load save _load _legacy_load _save",
        "torch.storage": "_load_from_bytes",
    }.items()
}

_HARMLESS: dict[str, frozenset[str]] = {
    module: _words(names)
    for module, names in {
        "builtins": """
            bool int float complex str bytes bytearray list tuple set frozenset dict object slice
            range Ellipsis NotImplemented
        """,
        "collections": "OrderedDict defaultdict Counter deque ChainMap UserDict UserList",
        "copyreg": "_reconstructor __newobj__ __newobj_ex__",
        "_codecs": "encode",
        "array": "array _array_reconstructor",
        "types": "SimpleNamespace MappingProxyType",
        "datetime": "date datetime time timedelta timezone",
        "decimal": "Decimal",
        "fractions": "Fraction",
        "uuid": "UUID SafeUUID",
        "signal": "Signals Handlers Sigmasks",
        "pathlib": "PurePosixPath PureWindowsPath PosixPath WindowsPath Path PurePath",
        "random": "Random",
        "re": "_compile",
        "argparse": "Namespace",
        "_io": "BytesIO StringIO",
        "numpy": """
            dtype ndarray memmap matrix record void bool_ bool int8 int16 int32 int64 intc intp int_
            uint8 uint16 uint32 uint64 uintc uintp float16 float32 float64 longdouble complex64
            complex128 str_ bytes_ object_ datetime64 timedelta64
        """,
        "numpy.rec": "recarray",
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray _mareconstruct",
        "numpy.random._pickle": "__randomstate_ctor __bit_generator_ctor __generator_ctor",
        "scipy.sparse._csr": "csr_matrix csr_array",
        "scipy.sparse._csc": "csc_matrix csc_array",
        "scipy.sparse._coo": "coo_matrix coo_array",
        "joblib.numpy_pickle": "NumpyArrayWrapper",
        "sklearn.externals.joblib.numpy_pickle": "NumpyArrayWrapper",
        "pandas._libs.internals": "_unpickle_block",
        "pandas.core.indexes.base": "_new_Index Index",
        "torch": "Size device Tensor Generator strided sparse_coo",
        "torch._tensor": "Tensor _rebuild_from_type _rebuild_from_type_v2",
        "torch.serialization": "_get_layout",
        "torch.nn.parameter": "Parameter Buffer",
        "torch._dynamo.decorators": "_DimRange",  # in nested tensors
        "torch.nested._internal.nested_tensor": "_rebuild_njt NestedTensor",
        **dict.fromkeys(("numpy.core.multiarray", "numpy._core.multiarray"), "_reconstruct scalar"),
        **dict.fromkeys(("numpy.core.numeric", "numpy._core.numeric"), "_frombuffer"),
    }.items()
}

# Modules, of which all that match are harmless: classes that only hold data, and what makes them.
_CLASS = r"_*[A-Z]\w*"
_HARMLESS_LIKE = [
    (re.compile(module), re.compile(name))
    for module, name in [
        (r"ml_dtypes(\..*)?", r"b?float\w+|u?int\d"),
        (r"builtins", r"\w*(Error|Exception|Warning)"),
        (r"numpy\.dtypes", _CLASS),
        (r"numpy\.random(\..*)?", rf"{_CLASS}|__pyx_unpickle_\w+"),
        (r"sklearn\..*", rf"{_CLASS}|newObj|__pyx_unpickle_\w+"),
        (r"scipy\.(sparse|interpolate|spatial|stats)(\..*)?", _CLASS),
        (r"pandas\.(core|_libs)\..*", _CLASS),
        (r"torch(\.cuda|\.storage)?", r"_?\w*Storage"),
        (r"torch", r"b?float\w+|q?u?int\w+|complex\w+|bool|double|half|long|short"),
        (r"torch\._utils", r"_rebuild_\w+"),
        (r"torch\.(nn\.modules|optim)\..*", _CLASS),
    ]
]
_NESTED_CLASS = re.compile(rf"{_CLASS}(\.{_CLASS})+")
_DUNDER = re.compile(r"__\w+__")
_GETTER = ("builtins", "getattr")
_LATIN1 = ("latin1", "latin-1", "iso-8859-1")


@lru_cache(maxsize=512)
def judge(module: str, name: str) -> Danger:
    """How much harm it may do to load a pickle that names `name` of `module`, and may call it.

    A name with dots is followed by attributes: of classes in classes nothing is known, all others
    are dangerous, for they reach what no list has.
    """
    module, name = _of_python_3(module, name)
    parts, modules = name.split("."), module.split(".")
    if _in(module, name, _HARMLESS) or _is_like_harmless(module, name):
        return "allowed"
    if any(".".join(modules[:count]) in _MODULES for count in range(1, len(modules) + 1)):
        return "dangerous"
    if _ANYWHERE.intersection(modules[1:] + parts):
        return "dangerous"
    if f"{module}.{name}" in _MODULES or _in(module, name, _NAMES):
        return "dangerous"
    if any(_DUNDER.fullmatch(part) for part in parts):
        return "dangerous"
    if module == "pandas" and name.startswith("read_"):
        return "dangerous"
    return "dangerous" if len(parts) > 1 and not _NESTED_CLASS.fullmatch(name) else "unknown"


def judge_call(call: Call) -> tuple[Danger, str]:
    """How much harm a call may do that a pickle makes, and what it calls.

    Some functions do harm with some arguments only. What another call gave is called by no pickle
    that was not written for that, but for classes within classes.
    """
    function, arguments = call.function, call.arguments
    if isinstance(function, Call):
        within = _name_of(function) == _GETTER and _is_class(_second(function))
        return ("unknown" if within else "dangerous"), f"what {_shown(function.function)} gives"
    if not isinstance(function, Global):
        return "unknown", _shown(function)
    name = _of_python_3(function.module, function.name)
    danger = judge(*name)
    if name == _GETTER:
        attribute = _second(call)
        plain = isinstance(attribute, str) and not _DUNDER.fullmatch(attribute)
        danger = "unknown" if plain else "dangerous"
    elif name == ("functools", "partial"):
        danger = "unknown" if isinstance(_first(call), Global) else "dangerous"
    elif name == ("torch.storage", "_load_from_bytes"):
        # Pickles of single tensors have it, with a file of torch, which the caller looks through.
        danger = "unknown" if isinstance(_first(call), Chars | Call) else "dangerous"
    elif name == ("builtins", "type"):
        danger = "allowed" if len(arguments) == 1 else "dangerous"
    elif name == ("_codecs", "encode"):
        danger = "allowed" if _second(call) in _LATIN1 else "unknown"
    elif name[1] == "memmap" and name[0].startswith("numpy"):
        danger = "dangerous"  # the class of an array, but by itself it opens a file
    elif name[1] == "_ufunc_reconstruct":
        module = _first(call)
        ours = isinstance(module, str) and module.split(".")[0] in ("numpy", "scipy")
        danger = "unknown" if ours else "dangerous"
    return danger, _shown(function)


def _first(call: Call) -> object:
    return call.arguments[0] if call.arguments else None


def _second(call: Call) -> object:
    return call.arguments[1] if len(call.arguments) > 1 else None


def _name_of(call: Call) -> tuple[str, str] | None:
    """The module and name of what is called, as Python 3 has them."""
    function = call.function
    return _of_python_3(function.module, function.name) if isinstance(function, Global) else None


def _shown(function: object) -> str:
    if isinstance(function, Global):
        return str(function)
    return "another call" if isinstance(function, Call) else "something that is not in the file"


def _is_class(attribute: object) -> bool:
    return isinstance(attribute, str) and re.fullmatch(_CLASS, attribute) is not None


def _of_python_3(module: str, name: str) -> tuple[str, str]:
    if (module, name) in NAME_MAPPING:
        return NAME_MAPPING[module, name]
    return IMPORT_MAPPING.get(module, module), name


def _in(module: str, name: str, names: dict[str, frozenset[str]]) -> bool:
    return name in names.get(module, ())


def _is_like_harmless(module: str, name: str) -> bool:
    return any(m.fullmatch(module) and n.fullmatch(name) for m, n in _HARMLESS_LIKE)
