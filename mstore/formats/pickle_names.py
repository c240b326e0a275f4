"""Names that pickles have: those of harmless things, and of harmful ones, in any version of Python.

A list of harmful names is never complete, and one of harmless ones neither, so there are both. How
they are used is told by `mstore.formats.pickle_policy`. Facts: the lists of picklescan and
fickling, what `pickle` of numpy, scikit-learn, joblib and PyTorch writes, the audit hooks of
Python, and which functions of these libraries run code, import modules or open files.
"""

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Modules that with all that is in them reach outside of the process, or run code, or load more of
# it: a name in one of them is dangerous whatever it is.
MODULES = _words("""
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
    sched platform ast _osx_support _aix_support _bootsubprocess _pyrepl rlcompleter turtledemo
    gettext sysconfig tabnanny uu getpass curses xml.sax
    six.moves past future IPython ipykernel jupyter_client nbconvert
    numpy.testing numpy.f2py numpy.distutils numpy.ctypeslib numpy.lib.npyio numpy.lib._npyio_impl
    numpy.lib._datasource numpy.lib.format numpy.lib._format_impl numpy.compat
    scipy.io scipy.weave scipy.datasets scipy._lib._testutils pandas.io pandas.core.computation
    sklearn.datasets sklearn.callback sklearn.conftest sklearn.utils._testing
    sklearn.utils.estimator_checks
    joblib.externals joblib.parallel joblib._parallel_backends joblib.pool joblib.test
    joblib.testing joblib.disk joblib.executor joblib.backports joblib._memmapping_reducer
    joblib._store_backends
    keras.datasets keras.src.datasets keras.utils keras.src.utils.file_utils
    keras.src.utils.python_utils keras.src.utils.backend_utils keras.src.saving.saving_api
    keras.src.saving.saving_lib keras.src.saving.serialization_lib keras.src.legacy.saving
    skops h5py.ipy_completer onnx.gen_proto onnx.hub onnx.backend
    torch.hub torch.jit torch.fx torch.package torch._inductor torch._dynamo torch.testing
    torch.multiprocessing torch.utils.cpp_extension torch.utils.bottleneck torch.utils.collect_env
    torch.utils._config_module torch.utils.data.datapipes torch.utils.model_zoo
    torch.utils.benchmark torch.utils.model_dump torch.utils._get_clean_triton
    torch.utils._traceback torch.utils._import_utils torch._functorch torch._strobelight
    torch._vendor torch._native
    torch._numpy.testing torch._library torch._higher_order_ops torch.backends.xeon torch.export
    torch._export torch.profiler._cupti_monitor torch.cuda._memory_viz torch.cuda._utils
    torch.distributed.rpc torch.distributed.run torch.distributed.launch torch.distributed.elastic
    torch.distributed._serialization torch.distributed.flight_recorder torch.distributed.debug
""")

# Modules that are of use only under their own name: `torch.os` is `os` all the same.
ANYWHERE = _words("""
    os posix nt subprocess sys builtins __builtin__ __builtins__ ctypes pty runpy importlib marshal
    socket shutil pickle cloudpickle dill
""")

# What is dangerous in whatever module it is: those modules that others import, by names that no
# function or class has, and functions and classes that others import from their own module.
ANYTHING = _words("""
    _os _sys io _io codecs tempfile multiprocessing threading functools operator itertools inspect
    urllib asyncio linecache webbrowser
    eval exec execfile system popen Popen check_output check_call getoutput getstatusoutput
    import_module run_path run_module urlopen urlretrieve rmtree mkdtemp mkstemp CDLL FFI
    FunctionType CodeType ModuleType MethodType attrgetter methodcaller partialmethod starmap
    _starmap reduce _reduce _builtin_open clone_module CompilationUnit ScriptFunction
    NamedTemporaryFile TemporaryDirectory GzipFile ZipFile memmap NumpyArrayWrapper NDArrayWrapper
""")

# The attributes that lead from a function that runs, or has run, to all that it knows.
OF_FRAMES = _words("""
    f_globals f_builtins f_locals f_back gi_frame gi_code cr_frame cr_code ag_frame ag_code tb_frame
    func_globals func_code
""")

NAMES: dict[str, frozenset[str]] = {
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
        "dataclasses": "make_dataclass _create_fn",
        "copy": "_reconstruct",
        "dis": "_try_compile main",
        "warnings": "_getcategory",
        "xml.dom.domreg": "getDOMImplementation",
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
        "inspect": """
            getattr_static getsource getsourcefile getmodule getmembers getmembers_static
            get_annotations _signature_fromstr _main
        """,
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
        "joblib.numpy_pickle": "load dump load_temporary_memmap ZNDArrayWrapper",
        "joblib.numpy_pickle_compat": "load_compatibility",
        "joblib.numpy_pickle_utils": "_detect_compressor _read_fileobject _write_fileobject",
        "numpy._core.function_base": "add_newdoc",
        "numpy.lib._utils_impl": "_makenamedict",
        "scipy._lib._bunch": "_make_tuple_bunch",
        "scipy._lib._uarray._backend": "unpickle_function",
        "scipy.optimize._nonlin": "_nonlin_wrapper",
        "scipy.odr._odrpack": "ODR",
        "scipy.sparse._matrix_io": "load_npz save_npz",
        "scipy.sparse": "load_npz save_npz",
        "h5py": "File",
        "h5py._hl.files": "File",
        "torch": "load save from_file compile _preload_cuda_lib _load_global_deps",
        "torch._utils": "_import_dotted_name _augment_memory_snapshot_stack_traces",
        "torch.utils._pytree": "_defaultdict_deserialize enum_object_hook",
        "torch.cuda.memory": "CUDAPluggableAllocator",
        "torch.xpu.memory": "XPUPluggableAllocator",
        "torch.serialization": "load save _load _legacy_load _save",
        "torch.storage": "_load_from_bytes",
    }.items()
}

HARMLESS: dict[str, frozenset[str]] = {
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
        "zoneinfo": "ZoneInfo",
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
        "numpy.core.memmap": "memmap",
        "numpy.rec": "recarray",
        "numpy.ma": "MaskedArray",
        "numpy.ma.core": "MaskedArray _mareconstruct",
        "numpy.random._pickle": "__randomstate_ctor __bit_generator_ctor __generator_ctor",
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
CLASS = r"_*[A-Z]\w*"
HARMLESS_LIKE = [
    (re.compile(module), re.compile(name))
    for module, name in [
        (r"ml_dtypes(\..*)?", r"b?float\w+|u?int\d"),
        (r"builtins", r"\w*(Error|Exception|Warning)"),
        (r"numpy\.dtypes", CLASS),
        (r"numpy\.random(\..*)?", rf"{CLASS}|__pyx_unpickle_\w+"),
        (r"sklearn\.(?!externals\.).*", rf"{CLASS}|newObj|__pyx_unpickle_\w+"),
        (r"scipy\.(sparse|interpolate|spatial|stats)(\..*)?", CLASS),
        (r"scipy\.sparse\._\w+", r"(bsr|coo|csc|csr|dia|dok|lil)_(matrix|array)"),
        (r"pandas\.(core|_libs)\..*", CLASS),
        (r"torch(\.cuda|\.storage)?", r"_?\w*Storage"),
        (r"torch", r"b?float\w+|q?u?int\w+|complex\w+|bool|double|half|long|short"),
        (r"torch\._utils", r"_rebuild_\w+"),
        (r"torch\.(nn\.modules|optim)\..*", CLASS),
        (r"torch\.nn\.functional", r"(leaky_)?relu6?|[gs]?elu|silu|mish|tanh|sigmoid|softmax"),
    ]
]
