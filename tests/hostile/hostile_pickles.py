"""Classes 18 to 30: pickles by themselves, in archives of torch, and of joblib."""

import io
import json
import os
import pickle
import struct
import tarfile
from pathlib import Path

import joblib
import numpy as np
from hostile_archives import archive
from table import DESCRIBED, FORMAT, HARMFUL, LIMIT, UNSAFE, hostile

GADGETS = [
    *("builtins eval", "builtins exec", "builtins compile", "builtins getattr", "builtins open"),
    *("builtins __import__", "__builtin__ eval", "__builtin__ execfile", "os system", "nt system"),
    *(
        "posix system",
        "posix execve",
        "os popen",
        "os spawnv",
        "subprocess Popen",
        "subprocess run",
    ),
    *("subprocess getoutput", "commands getoutput", "pty spawn", "runpy _run_code"),
    *(
        "runpy run_path",
        "ctypes CDLL",
        "ctypes.util find_library",
        "pip main",
        "pip._internal main",
    ),
    *("importlib import_module", "importlib._bootstrap _load", "imp load_source", "code interact"),
    *("code InteractiveInterpreter", "timeit timeit", "timeit main", "pdb run", "bdb Bdb.run"),
    *("cProfile run", "profile run", "trace Trace", "doctest debug_script", "pydoc pipepager"),
    *("webbrowser open", "socket create_connection", "socket socket", "urllib.request urlopen"),
    *("http.client HTTPSConnection", "ftplib FTP", "smtplib SMTP", "shutil rmtree", "shutil move"),
    *("os remove", "os rename", "os.path exists", "pathlib Path.unlink", "tempfile mktemp"),
    *("marshal loads", "pickle loads", "_pickle loads", "cloudpickle loads", "dill loads"),
    *("joblib load", "torch load", "torch.hub load", "torch.jit load", "numpy load"),
    *("numpy.testing._private.utils runstring", "numpy.f2py.crackfortran getlincoef"),
    *("torch.storage _load_from_bytes", "operator attrgetter", "operator methodcaller"),
    *("functools partial", "functools reduce", "types FunctionType", "types CodeType"),
    *("multiprocessing Process", "threading Thread", "asyncio run", "signal signal", "sys exit"),
    *(
        "logging.config fileConfig",
        "ensurepip bootstrap",
        "venv create",
        "test.support run_unittest",
    ),
    *("lib2to3.pgen2.grammar Grammar.loads", "idlelib.run Executive", "sqlite3 connect"),
    *("uuid _get_command_stdout", "_osx_support _read_output", "distutils.spawn spawn"),
    *("ssl get_server_certificate", "zipimport zipimporter", "pkgutil resolve_name"),
]


def call(name: str, argument: bytes = b"S'true'\n") -> bytes:
    """A pickle of protocol 0 that calls a function with one argument."""
    module, function = name.encode().split(b" ")
    return b"c" + module + b"\n" + function + b"\n(" + argument + b"tR."


def text(value: str) -> bytes:
    """The opcode that pushes a short string."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def torch_file(pickled: bytes, storages: dict[str, bytes] | None = None) -> bytes:
    """An archive as torch.save writes it, with this pickle."""
    members = {"m/data.pkl": pickled, "m/byteorder": b"little", "m/version": b"3\n"}
    for key, content in (storages or {}).items():
        members[f"m/data/{key}"] = content
    return bytes(archive(members))


def torch_tensor(
    key: str = "0", count: int = 4, offset: int = 0, size: tuple = (4,), stride: tuple = (1,)
) -> bytes:
    """The pickle of a dictionary of one tensor."""

    class Storage:
        pass

    class Tensor:
        def __reduce__(self) -> tuple:
            raise NotImplementedError

    class Pickler(pickle._Pickler):  # type: ignore[name-defined]
        """Writes the opcodes that torch writes, without torch."""

        def persistent_id(self, value: object) -> object:
            return (
                ("storage", _Global("torch FloatStorage"), key, "cpu", count)
                if isinstance(value, Storage)
                else None
            )

        def save(self, value: object, save_persistent_id: bool = True) -> None:
            if isinstance(value, _Global):
                module, name = value.name.encode().split(b" ")
                self.write(b"c" + module + b"\n" + name + b"\n")
            elif isinstance(value, Tensor):
                self.save(_Global("torch._utils _rebuild_tensor_v2"))
                self.save((Storage(), offset, size, stride, False, {}))
                self.write(b"R")
            else:
                super().save(value, save_persistent_id)

    file = io.BytesIO()
    Pickler(file, 2).dump({"w": Tensor()})
    return file.getvalue()


class _Global:
    """The name of a function, pickled as a global."""

    def __init__(self, name: str) -> None:
        self.name = name


def array_pickle(protocol: int = 2) -> bytes:
    """A good pickle of an array, to be spoilt."""
    return pickle.dumps({"w": np.arange(64, dtype=np.float32)}, protocol)


@hostile(18, UNSAFE)
def os_system(folder: Path) -> None:
    """The plainest payload, by each opcode that calls, in each kind of file."""
    (folder / "reduce.pkl").write_bytes(call("os system"))
    (folder / "torch.pt").write_bytes(torch_file(call("os system")))
    (folder / "instance.pkl").write_bytes(b"(S'true'\nios\nsystem\n.")
    (folder / "object.pkl").write_bytes(b"(cos\nsystem\nS'true'\no.")
    (folder / "new.pkl").write_bytes(b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85\x81.")
    (folder / "new_ex.pkl").write_bytes(b"\x80\x04cos\nsystem\n" + text("true") + b"\x85}\x92.")
    stacked = b"\x80\x04" + text("os") + text("system") + b"\x93" + text("true") + b"\x85R."
    (folder / "stacked.pkl").write_bytes(stacked)
    (folder / "inside.joblib").write_bytes(b"\x80\x04}" + text("w") + stacked[2:-1] + b"s.")
    (folder / "inside.pt").write_bytes(torch_file(b"\x80\x04}" + text("w") + stacked[2:-1] + b"s."))


@hostile(19, UNSAFE)
def gadgets(folder: Path) -> None:
    """Functions that do harm by other names."""
    for number, name in enumerate(GADGETS):
        (folder / f"{number:02}-{name.replace(' ', '.')}.pkl").write_bytes(call(name))


@hostile(20, UNSAFE)
def dotted_names(folder: Path) -> None:
    """A global whose name reaches further by dots, past lists of whole names."""
    for number, (module, name) in enumerate(
        [
            *[("os.path", "os.system"), ("collections", "abc.sys.modules"), ("torch", "os.system")],
            *[("numpy", "f2py.os.system"), ("builtins", "eval.__call__")],
            *[("collections", "OrderedDict.__init__.__globals__"), ("", "os.system")],
        ]
    ):
        made = b"\x80\x04" + text(module) + text(name) + b"\x93" + text("true") + b"\x85R."
        (folder / f"{number}.pkl").write_bytes(made)
        (folder / f"{number}.pt").write_bytes(torch_file(made))


@hostile(21, UNSAFE)
def payload_before_broken_tail(folder: Path) -> None:
    """A call that would have run when the reader comes to what is broken."""
    payload = call("os system")[:-1]
    for name, tail in {"cut": b"", "unknown": b"\xff.", "mark": b"t.", "memo": b"h\x07."}.items():
        (folder / f"{name}.pkl").write_bytes(payload + b"0" + tail)
        (folder / f"{name}.pt").write_bytes(torch_file(payload + b"0" + tail))
    (folder / "second.pkl").write_bytes(pickle.dumps({"w": 1}, 4) + call("os system"))


@hostile(22, FORMAT)
def frames(folder: Path) -> None:
    """Frames that are too long, too short, or inside one another."""
    good = pickle.dumps({"w": np.arange(9.0), "n": list(range(30))}, 4)
    body = good[11:]
    for name, made in {
        "long": good[:3] + struct.pack("<Q", len(body) + 99) + body,
        "short": good[:3] + struct.pack("<Q", 4) + body,  # which ends inside an opcode
        "huge": good[:3] + struct.pack("<Q", 2**63) + body,
        "inside": good[:11] + b"\x95" + struct.pack("<Q", 4) + body,
    }.items():
        (folder / f"{name}.pkl").write_bytes(made)
        (folder / f"{name}.pt").write_bytes(torch_file(made))


@hostile(23, LIMIT, FORMAT)
def expansion(folder: Path) -> None:
    """What is nested without end, and more values than any model has."""
    for name, made in {
        "doubled": b"\x80\x02]" + b"(22222222t" * 100_000 + b".",
        "deep": b"\x80\x02" + b"]" * 400_000 + b"a" * 399_999 + b".",
        "deep_tuples": b"\x80\x02)" + b"\x85" * 2_000_000 + b".",
        "marks": b"\x80\x02" + b"(" * 2_000_000 + b".",
        "dictionaries": b"\x80\x02" + b"}" * 3_000_000 + b".",
    }.items():
        (folder / f"{name}.pkl").write_bytes(made)


@hostile(23, LIMIT)
def expansion_by_the_memo(folder: Path) -> None:
    """What doubles at each step, by the memo or by DUP."""
    laughs = b"\x80\x02]q\x00" + b"".join(
        b"](" + b"h" + bytes([n]) + b"h" + bytes([n]) + b"eq" + bytes([n + 1]) for n in range(250)
    )
    for name, made in {
        "laughs": laughs,
        "around_itself": laughs + b"h\x00a",  # which does not make it harmless
        "tuples": b"\x80\x02)" + b"2\x86" * 60,
        "dictionaries": b"\x80\x02}" + b"q\x00}(K\x00h\x00K\x01h\x00u" * 60,
    }.items():
        (folder / f"{name}.pkl").write_bytes(made + b".")
        (folder / f"{name}.pt").write_bytes(torch_file(made + b"."))


@hostile(23, DESCRIBED)
def what_is_used_twice(folder: Path) -> None:
    """Cycles, and a memo with many entries: nothing of it grows when it is loaded."""
    for name, made in {
        "cycle": b"\x80\x02]q\x00h\x00a.",
        "memo": b"\x80\x02]" + b"\x94" * 500_000 + b".",
        "far_memo": b"\x80\x02]r\xff\xff\xff\xff.",
    }.items():
        (folder / f"{name}.pkl").write_bytes(made)


@hostile(24, FORMAT, LIMIT)
def lengths_of_two_to_the_60(folder: Path) -> None:
    """Strings and numbers that claim to be longer than the file."""
    for name, opcode in {
        "bytes8": b"\x8e" + struct.pack("<Q", 2**60),
        "text8": b"\x8d" + struct.pack("<Q", 2**63),
        "array8": b"\x96" + struct.pack("<Q", 2**60),
        "bytes4": b"B" + struct.pack("<I", 2**32 - 1),
        "string4": b"T" + struct.pack("<i", -5),
        "long4": b"\x8b" + struct.pack("<i", 2**31 - 1),
        "negative": b"\x8b" + struct.pack("<i", -1),
        "frame": b"\x95" + struct.pack("<Q", 2**60),
    }.items():
        (folder / f"{name}.pkl").write_bytes(b"\x80\x04" + opcode + b"x.")
        (folder / f"{name}.pt").write_bytes(torch_file(b"\x80\x04" + opcode + b"x."))
    digits = b"\x80\x02L" + b"9" * 3_000_000 + b"L\n."
    (folder / "digits.pkl").write_bytes(digits)


@hostile(25, UNSAFE)
def state_of_wrong_type(folder: Path) -> None:
    """BUILD and SETITEM on what the pickle has not made."""
    for name, made in {
        "build_global": b"\x80\x02cos\nenviron\n}X\x01\x00\x00\x00aK\x01sb.",
        "build_number": b"\x80\x02K\x01}b.",
        "item_of_global": b"\x80\x02cos\nenviron\nX\x01\x00\x00\x00aX\x01\x00\x00\x00bs.",
        "item_of_list": b"\x80\x02]K\x01K\x02s.",
        "append_to_text": b"\x80\x02X\x01\x00\x00\x00aK\x01a.",
        "call_a_number": b"\x80\x02K\x01)R.",
        "call_with_no_tuple": b"\x80\x02cos\nsystem\nK\x01R.",
    }.items():
        (folder / f"{name}.pkl").write_bytes(made)
        (folder / f"{name}.pt").write_bytes(torch_file(made))


@hostile(26, FORMAT, LIMIT)
def out_of_bounds(folder: Path) -> None:
    """Tensors that reach beyond their storage, or multiply one element without end."""
    for name, made in {
        "count": torch_tensor(count=5),
        "huge_count": torch_tensor(count=2**61),
        "offset": torch_tensor(offset=1),
        "negative_offset": torch_tensor(offset=-1),
        "stride": torch_tensor(stride=(2,)),
        "negative_stride": torch_tensor(offset=3, stride=(-1,)),
        "huge_stride": torch_tensor(size=(2,), stride=(2**62,)),
        "size": torch_tensor(size=(5,)),
        "negative_size": torch_tensor(size=(-1,)),
        "stride_0": torch_tensor(size=(2**20, 2**20), stride=(0, 0)),
        "overflow": torch_tensor(size=(2**40, 2**40), stride=(0, 0)),
        "axes": torch_tensor(size=(1,) * 200, stride=(1,) * 200),
        "unequal": torch_tensor(size=(4,), stride=(1, 1)),
    }.items():
        (folder / f"{name}.pt").write_bytes(torch_file(made, {"0": bytes(16)}))
    (folder / "missing.pt").write_bytes(torch_file(torch_tensor()))


@hostile(27, UNSAFE)
def code_and_old_archives(folder: Path) -> None:
    """TorchScript, and the tar archives that torch once wrote."""
    script = {
        "m/data.pkl": pickle.dumps({}, 2),
        "m/constants.pkl": b"\x80\x02).",
        "m/code/__torch__.py": b"class M(Module):\n  pass\n",
        "m/version": b"3\n",
    }
    (folder / "script.pt").write_bytes(archive(script))
    with tarfile.open(folder / "legacy.tar", "w") as made:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = call("os system")
            info = tarfile.TarInfo(name)
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    rest = pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    (folder / "legacy.pt").write_bytes(magic + rest + call("os system"))


@hostile(27, HARMFUL)
def code_in_graphs(folder: Path) -> None:
    """Archives of torch.export, new and old, of whose graphs PyTorch makes Python code."""
    payload = "__import__('os').system('true')"
    config = b'{"config": {}}'
    many = [f'"expr_str": "{"s0+" * 1300}{number}"' for number in range(900)]
    for name, graph in {
        "name": json.dumps({"name": f"x={payload}"}),
        "size": json.dumps({"expr_str": payload}),
        "guard": json.dumps({"guards_code": [f"True, {payload}"]}),
        "quadratic": json.dumps({"expr_str": "a" * 4_000_000}),
        "many": ", ".join([*many, json.dumps({"name": payload})]),
        "behind": '"a", ' * 2_000_000 + json.dumps({"name": payload}),
    }.items():
        new = {"m/models/model.json": graph.encode(), "m/archive_format": b"pt2"}
        new |= {f"m/data/{one}/model_{one}_config.json": config for one in ("weights", "constants")}
        (folder / f"{name}.pt2").write_bytes(archive(new))
        old = {"version": b"8.8", "serialized_exported_program.json": graph.encode()}
        (folder / f"{name}_old.pt2").write_bytes(archive(old))


@hostile(28, FORMAT)
def keys_of_storages(folder: Path) -> None:
    """Persistent ids that name files elsewhere."""
    for number, key in enumerate(("../x", "/etc/passwd", "0/../../1", "..", "", "0\0")):
        made = torch_file(torch_tensor(key=key), {"0": bytes(16)})
        (folder / f"{number}.pt").write_bytes(made)


@hostile(29, UNSAFE)
def under_another_name(folder: Path) -> None:
    """Pickles that are called otherwise: what they are is told by what is in them."""
    for suffix in ("safetensors", "npy", "npz", "h5", "onnx", "gguf", "txt", "bin", "msgpack"):
        (folder / f"model.{suffix}").write_bytes(call("os system"))
        (folder / f"archive.{suffix}").write_bytes(torch_file(call("os system")))
    (folder / "no_suffix").write_bytes(call("os system"))


@hostile(30, LIMIT)
def compressed_bomb(folder: Path) -> None:
    """joblib files of a few kilobytes that inflate to many megabytes."""
    zeros = np.zeros(80 << 20, np.uint8)
    for suffix, method in (("xz", "xz"), ("bz2", "bz2"), ("z", "zlib"), ("gz", "gzip")):
        joblib.dump({"w": zeros}, folder / f"bomb.{suffix}", compress=(method, 1))


@hostile(30, UNSAFE)
def array_of_objects_of_joblib(folder: Path) -> None:
    """An array of objects, which is a pickle in a pickle."""
    joblib.dump({"w": np.array([None, Payload()], object)}, folder / "objects.joblib")


class Payload:
    """Unpickled, it would run a command that does nothing."""

    def __reduce__(self) -> tuple:
        return os.system, ("true",)
