"""Pickles that do harm, by many names and in many forms: all are dangerous. Good ones are not."""

import io
import json
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable

import pytest

from mstore.formats.base import BytesReader
from mstore.formats.detect import describe
from mstore.formats.hazards import Hazards, find_hazards

# What has been used, or could be, to run code, to load more of it, to read, write or remove files,
# to reach the network, or to get at what no list names. Sources: the advisories on picklescan,
# modelscan and fickling; the standard library.
GADGETS = """
os system|os popen|os execv|os _exit|os remove|os spawnl|posix system|nt system
subprocess Popen|subprocess check_output|subprocess run|_posixsubprocess fork_exec
pty spawn|runpy run_path|runpy run_module|runpy _run_code|commands getoutput|popen2 popen2
builtins eval|builtins exec|builtins compile|builtins __import__|builtins open|builtins getattr
builtins setattr|builtins breakpoint|builtins globals|builtins input|builtins map|builtins delattr
__builtin__ eval|__builtin__ execfile|__builtin__ file|__builtin__ apply|__builtin__ reload
importlib import_module|importlib._bootstrap _load|_frozen_importlib_external SourceFileLoader
imp load_source|imp load_module|zipimport zipimporter|pkgutil resolve_name|pkgutil get_data
ctypes CDLL|ctypes cdll.LoadLibrary|ctypes pythonapi.PyRun_SimpleString|_ctypes dlopen|cffi FFI
code InteractiveInterpreter.runcode|code interact|codeop compile_command|marshal loads
types FunctionType|types CodeType|types MethodType|operator methodcaller|operator attrgetter
functools reduce|itertools starmap|_operator attrgetter|_operator methodcaller
pip main|pip._internal main|pip._internal.cli.main main|ensurepip _run_pip|venv create
setuptools setup|distutils.file_util write_file|distutils.spawn spawn
webbrowser open|antigravity fly|pydoc locate|pydoc pipepager|socket socket
socket create_connection|ssl get_server_certificate|urllib.request urlopen
urllib.request urlretrieve|urllib urlopen|urllib2 urlopen|http.client HTTPSConnection
httplib HTTPSConnection|requests get|requests.api get|aiohttp.client ClientSession|smtplib SMTP
ftplib FTP|telnetlib Telnet|imaplib IMAP4_stream|xmlrpc.client ServerProxy|asyncio run
asyncio.unix_events _UnixSubprocessTransport._start|multiprocessing.util spawnv_passfds
concurrent.futures.process ProcessPoolExecutor|threading Thread|logging.config listen
logging.config dictConfig|logging FileHandler|timeit timeit|timeit Timer.timeit|cProfile run
cProfile runctx|profile Profile.run|trace Trace.run|pdb run|bdb Bdb.run|doctest debug_script
doctest testfile|unittest main|test.support.script_helper assert_python_ok
idlelib.pyshell ModifiedInterpreter.runcode|idlelib.run Executive.runcode
idlelib.autocomplete AutoComplete.fetch_completions|lib2to3.pgen2.grammar Grammar.loads
lib2to3.pgen2.pgen ParserGenerator.make_label|pickle loads|pickle Unpickler|_pickle loads
cPickle loads|cloudpickle loads|dill loads|shelve open|dbm open|sqlite3 connect
shutil rmtree|shutil copyfile|tempfile mkstemp|glob glob|linecache getlines|fileinput FileInput
io open|io FileIO|_io FileIO|codecs open|tarfile open|zipfile ZipFile|mmap mmap|uuid _popen
platform popen|_osx_support _read_output|_aix_support _read_cmd_output|sys exit|sys settrace
gc get_objects|weakref finalize|atexit register|site main|faulthandler _sigsegv|ast literal_eval
numpy load|numpy fromfile|numpy vectorize|numpy.lib.npyio load
numpy.testing._private.utils runstring|numpy.testing runstring|numpy.f2py.crackfortran param_eval
numpy.f2py.crackfortran getlincoef|numpy.distutils.exec_command exec_command
numpy.ctypeslib load_library|numpy.lib.utils safe_eval|scipy.io loadmat
torch load|torch.serialization load|torch.storage _load_from_bytes|torch.hub load
torch.jit load|torch.jit.unsupported_tensor_ops execWrapper|torch.utils.cpp_extension load
torch.utils.bottleneck.__main__ run_cprofile|torch.utils.collect_env run
torch.utils._config_module ConfigModule.load_config|torch._inductor.codecache compile_file
torch._dynamo.guards GuardBuilder.get|torch.fx.experimental.symbolic_shapes ShapeEnv.evaluate_guards_expression
torch.distributed.rpc rpc_sync|torch.testing._internal.common_utils run_doctests
joblib load|joblib.numpy_pickle load|pandas read_pickle|pandas eval|pandas.io.pickle read_pickle
torch os.system|numpy os.system|collections _sys.modules|mypackage.os system
enum sys.modules|builtins object.__subclasses__|mypackage Model.__init__.__globals__
gzip open|bz2 BZ2File|lzma open|_pyio FileIO|wave open|tkinter Tcl|_tkinter create|zipapp main
_winapi CreateProcess|winreg SetValue|modulefinder ModuleFinder|pyclbr readmodule|mailbox mbox
typing get_type_hints|dataclasses make_dataclass|yaml unsafe_load|sympy sympify|numexpr evaluate
keras.models load_model|skops.io load|sklearn.externals.joblib load
"""
NAMES = [tuple(one.split(" ")) for line in GADGETS.split("\n") for one in line.split("|") if one]


def short(text: str) -> bytes:
    return b"\x8c" + bytes([len(text)]) + text.encode()


def by_global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n(S'x'\ntR.".encode()


def by_stack(module: str, name: str) -> bytes:
    body = short(module) + short(name) + b"\x93" + short("x") + b"\x85R."
    return b"\x80\x04\x95" + struct.pack("<Q", len(body)) + body


def by_instance(module: str, name: str) -> bytes:
    return f"(S'x'\ni{module}\n{name}\n.".encode()


def by_object(module: str, name: str) -> bytes:
    return b"\x80\x02(" + f"c{module}\n{name}\n".encode() + b"U\x01xo."


def by_new(module: str, name: str) -> bytes:
    return b"\x80\x02" + f"c{module}\n{name}\n".encode() + b"U\x01x\x85\x81."


def by_new_with_keywords(module: str, name: str) -> bytes:
    return b"\x80\x04" + short(module) + short(name) + b"\x93" + short("x") + b"\x85}\x92."


def by_memo(module: str, name: str) -> bytes:
    """The names are put away long before they are used, between others."""
    put = short(name) + b"\x94" + short(module) + b"\x94"
    return b"\x80\x04]" + put + b"00h\x01h\x00\x93" + short("x") + b"\x85Ra."


def deep_in_a_structure(module: str, name: str) -> bytes:
    return b"\x80\x02}U\x01w]K\x01a}U\x01x" + by_global(module, name)[:-1] + b"sesU\x01yNs."


def named_only(module: str, name: str) -> bytes:
    """Not called here, but given to something that may."""
    return b"\x80\x02}U\x01w" + f"c{module}\n{name}\n".encode() + b"s."


def as_argument(module: str, name: str) -> bytes:
    return b"\x80\x02cfunctools\npartial\n" + f"c{module}\n{name}\n".encode() + b"\x85R."


def as_state(module: str, name: str) -> bytes:
    called = by_global(module, name)[:-1]
    return b"\x80\x02ccollections\nOrderedDict\n)R}U\x01x" + called + b"sb."


def dropped(module: str, name: str) -> bytes:
    """What comes of it is thrown away, and something harmless returned."""
    return by_global(module, name)[:-1] + b"0}."


def before_a_broken_end(module: str, name: str) -> bytes:
    return by_global(module, name)[:-1] + b"0\xff\xff\xff"


FORMS: list[Callable[[str, str], bytes]] = [
    *(by_global, by_stack, by_instance, by_object, by_new, by_new_with_keywords, by_memo),
    *(named_only, as_argument, as_state, dropped),
]


def look(content: bytes) -> Hazards:
    return find_hazards(BytesReader(content))


def test_there_are_enough_of_them() -> None:
    assert len(set(NAMES)) == len(NAMES) > 150
    assert all(len(pair) == 2 for pair in NAMES)


@pytest.mark.parametrize("form", FORMS)
def test_all_names_in_every_form(form: Callable[[str, str], bytes]) -> None:
    found = {pair: look(form(*pair)) for pair in NAMES}
    assert {pair: one.format for pair, one in found.items() if one.format != "pickle"} == {}
    assert {pair: one for pair, one in found.items() if one.verdict != "dangerous"} == {}
    assert {pair for pair, one in found.items() if not one.unsafe} == set()


def test_a_harmless_beginning_hides_nothing() -> None:
    """Forms that Python loads, and that no program writes."""
    harm = by_global("posix", "system")
    for start in (
        b"N0",
        b"\x80\x00",
        b"\x80\x01",
        b"(1",
        b"I1\n0",
        b"K\x010",
        b"V" + b"x" * 9999 + b"\n0",
    ):
        found = look(start + harm)
        assert found.verdict == "dangerous", start
        assert found.unsafe, start


def test_a_broken_end_hides_nothing() -> None:
    found = look(before_a_broken_end("posix", "system"))
    assert [finding.what for finding in found.findings] == ["calls posix.system"]
    assert found.verdict == "dangerous"


def test_what_another_call_gave_is_not_called_by_good_pickles() -> None:
    made = b"\x80\x02cmypackage\nmake\n)RU\x01x\x85R."
    assert look(made).verdict == "dangerous"
    assert look(b"\x80\x02cmypackage\nmake\n)R.").verdict == "unknown"


# Pickles in other files


def archive(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", method) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return made.getvalue()


def objects(pickled: bytes) -> bytes:
    """The npy file of an array of objects."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + pickled


HARM = by_stack("posix", "system")
HOLDERS = {
    "torch": archive({"m/data.pkl": HARM, "m/version": b"3\n", "m/data/0": bytes(8)}),
    "joblib": b"\x80\x04]" + by_new("joblib.numpy_pickle", "NumpyArrayWrapper")[2:-1] + HARM[11:],
    "zlib": zlib.compress(b"\x80\x04" + short("joblib") + b"0" + HARM[11:]),
    "npy": objects(HARM),
    "npz": archive({"a.npy": objects(HARM)}),
    "deflated": archive({"a.npy": objects(HARM)}, zipfile.ZIP_DEFLATED),
    "zip": archive({"readme.txt": b"good", "model.pkl": HARM}),
    "zip in a zip": archive({"in.zip": archive({"in/model.pkl": HARM})}),
}


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_pickle_in_another_file_is_judged_as_well(holder: str) -> None:
    found = look(HOLDERS[holder])
    assert found.verdict == "dangerous", found
    assert any("posix.system" in finding.what for finding in found.findings), found


def test_a_good_file_of_another_format_that_is_a_bad_pickle() -> None:
    """To a pickle the length of a header is text, the header a line of text, a tensor the rest."""
    payload = b"00" + by_global("posix", "system")
    tensor = {"dtype": "U8", "shape": [len(payload)], "data_offsets": [0, len(payload)]}
    length = ord("X") + (30 << 8)  # BINUNICODE, of 30 characters: up to byte 35
    header = b'{"__metadata__":{"a":"'.ljust(35 - 8, b"-") + b'V"},"w":'
    header = (header + json.dumps(tensor).encode() + b"}").ljust(length - 1) + b"\n"
    both = struct.pack("<Q", length) + header + payload
    assert [opcode.name for opcode, *_ in pickletools.genops(both)][:2] == ["BINUNICODE", "UNICODE"]
    layout, told = describe(BytesReader(both))
    assert (layout.format, told) == ("safetensors", None)
    found = look(both)
    assert (found.format, found.verdict) == ("safetensors", "dangerous")
    assert found.findings[0].what == "calls posix.system, loaded as a pickle"


def test_files_that_are_no_pickle_are_hardly_read() -> None:
    class Counted(BytesReader):
        read_bytes = 0

        def read(self, offset: int, length: int) -> bytes:
            self.read_bytes += length
            return super().read(offset, length)

    for content in (b"V" + bytes(64 << 20), b"some words\n" * 1_000_000, bytes(16 << 20)):
        reader = Counted(content)
        assert find_hazards(reader).verdict == "opaque"
        assert reader.read_bytes < 40 << 20
