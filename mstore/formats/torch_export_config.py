"""Which weights and constants an archive of `torch.export.save` has, as its configurations say.

    {"config": {"encoder.weight": {
        "path_name": "weight_0", "is_param": true, "use_pickle": false,
        "tensor_meta": {"dtype": 7, "sizes": [{"as_int": 6}, {"as_int": 4}],
                        "strides": [{"as_int": 4}, {"as_int": 1}],
                        "storage_offset": {"as_int": 0}, "layout": 7, …}}}}

A size may also be an expression of symbols, `{"as_expr": {"expr_str": "s0 + 1", …}}`, whose value
is known only when the model runs. Source: `PayloadConfig`, `TensorMeta` and the enumerations in
torch/_export/serde/schema.py of PyTorch 2.13, and how torch/export/pt2_archive/_package.py reads
them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import MAX_DIMS, quote
from mstore.formats.torch_tensors import DTYPES, Storage, Use
from mstore.strictjson import parse_json_at

WEIGHTS, CONSTANTS = "data/weights/", "data/constants/"
"""The folders of weights and constants, in that of the archive."""

MAX_CONFIG = 24 << 20
"""Most bytes of all configurations of an archive; 300 for each tensor are usual."""

MAX_TENSORS = 80_000
"""Most weights and constants of an archive."""

MAX_ENTRY = 64 << 10
"""Most bytes of what is said of one tensor."""

Reading = Literal["bytes", "torch.load", "C++", "pickle", "unknown"]
"""How PyTorch reads what an entry names: as a storage, as a file of `torch.save` or a pickle, or as
an object of a class in C++."""

_USUAL_ENTRY = 2048
_START = re.compile(rb'\s*\{\s*"config"\s*:\s*\{\s*')
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_SEPARATOR = re.compile(rb"\s*(,|\})\s*")
_END = re.compile(rb"\s*\}\s*")
_NAMES = (
    *("uint8", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    *("complex32", "complex64", "complex128", "bool", "bfloat16", "uint16", "float8_e4m3fn"),
    *("float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu", "uint32", "uint64"),
)
_TYPES = dict(zip((*range(1, 14), *range(28, 36)), _NAMES, strict=True))  # as in `ScalarType`
_STRIDED = 7
_SYMBOLIC = "has a size that is known only when the model runs"
_OBJECTS: dict[str, Reading] = {"custom_obj_": "C++", "opaque_obj_": "pickle"}


@dataclass(frozen=True, slots=True)
class Payload:
    """A weight or constant called `name`, which the member at `path` has, in the archive's folder.

    One that is read as bytes has a `use`, or `why` it cannot be described.
    """

    name: str
    path: str
    reading: Reading
    use: Use | None = None
    why: str = ""


def read_payloads(raw: bytes, folder: str, model: str) -> Iterator[Payload]:
    """The entries of a configuration; `folder` is that of the members it names.

    They are parsed one by one, so that a large configuration takes no more memory than a small one.
    Names get the `model` before them, if that is not empty. Raises FormatError for what PyTorch
    would not write, LimitExceededError for a tensor of too many dimensions.
    """
    if (match := _START.match(raw)) is None:
        raise FormatError("its configuration has no weights or constants")
    at, names = match.end(), set[str]()
    more = not raw.startswith(b"}", at)
    at += not more
    while more:
        name, entry, at = _read_entry(raw, at)
        if name in names:
            raise FormatError("its JSON has a duplicate key")
        names.add(name)
        yield _payload(f"{model}/{name}" if model else name, entry, folder)
        if (separator := _SEPARATOR.match(raw, at)) is None:
            raise FormatError("its JSON is malformed")
        at, more = separator.end(), separator[1] == b","
    if _END.fullmatch(raw, at) is None:
        raise FormatError("its configuration has more than weights or constants")


def _read_entry(raw: bytes, at: int) -> tuple[str, object, int]:
    """The name and the value of the entry at byte `at`, and where it ends."""
    try:
        return _parse_entry(raw[at : at + _USUAL_ENTRY], at)
    except FormatError:  # it may be a long one
        try:
            return _parse_entry(raw[at : at + MAX_ENTRY], at)
        except FormatError:
            if len(raw) - at <= MAX_ENTRY:
                raise
            raise LimitExceededError(f"it has no entry in {MAX_ENTRY} bytes") from None


def _parse_entry(part: bytes, at: int) -> tuple[str, object, int]:
    # The last character may be cut in the middle; it belongs to a later entry, or is missed then.
    text = part.decode("utf-8", "surrogateescape")
    name, end = parse_json_at(text, 0)
    if not isinstance(name, str) or (colon := _COLON.match(text, end)) is None:
        raise FormatError("its JSON is malformed")
    entry, end = parse_json_at(text, colon.end())
    try:
        return name, entry, at + len(text[:end].encode("utf-8"))
    except UnicodeEncodeError:
        raise FormatError("its configuration is not UTF-8") from None


def _payload(name: str, entry: object, folder: str) -> Payload:
    path = entry.get("path_name") if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or not isinstance(path, str):
        raise FormatError(f"its configuration names no member for {quote(name)}")
    if type(pickled := entry.get("use_pickle")) is not bool:
        raise FormatError(f"its configuration does not say how to read {quote(name)}")
    constant = folder == CONSTANTS
    for start, reading in _OBJECTS.items():
        if constant and path.startswith(start):
            return Payload(name, folder + path, reading)
    if constant and not path.startswith("tensor_"):
        return Payload(name, folder + path, "unknown", why="is no tensor, but something unknown")
    if pickled:
        return Payload(name, folder + path, "torch.load")
    use = _use(name, folder + path, entry.get("tensor_meta"))
    if isinstance(use, str):
        return Payload(name, folder + path, "bytes", why=use)
    return Payload(name, folder + path, "bytes", use)


def _use(name: str, path: str, meta: object) -> Use | str:
    """What is said of a tensor, or why it cannot be described."""
    if not isinstance(meta, dict):
        raise FormatError(f"its configuration says nothing of its tensor {quote(name)}")
    code, layout = meta.get("dtype"), meta.get("layout")
    if type(code) is not int or type(layout) is not int:
        raise FormatError(f"the type of its tensor {quote(name)} is malformed")
    sizes, strides = _numbers(name, meta.get("sizes")), _numbers(name, meta.get("strides"))
    (offset,) = _numbers(name, [meta.get("storage_offset")])
    if layout != _STRIDED:
        return f"is of layout {layout}, not a dense one"
    if len(sizes) != len(strides):
        raise FormatError(f"its tensor {quote(name)} has {len(strides)} strides")
    if offset is None or None in sizes or None in strides:
        return _SYMBOLIC
    shape = tuple(size for size in sizes if size is not None)
    steps = tuple(stride for stride in strides if stride is not None)
    kind = _TYPES.get(code, str(code))
    dtype = DTYPES.get(kind)
    return Use((None, name), Storage(path, kind, dtype, None), dtype, kind, offset, shape, steps)


def _numbers(name: str, values: object) -> list[int | None]:
    """Sizes or strides, with None for each that is an expression."""
    if not isinstance(values, list):
        raise FormatError(f"the shape of its tensor {quote(name)} is malformed")
    if len(values) > MAX_DIMS:
        raise LimitExceededError(f"its tensor {quote(name)} has {len(values)} dimensions")
    return [_number(name, value) for value in values]


def _number(name: str, value: object) -> int | None:
    if isinstance(value, dict) and len(value) == 1:
        number = value.get("as_int")
        if type(number) is int and number >= 0:
            return number
        if isinstance(value.get("as_expr"), dict):
            return None
    raise FormatError(f"the shape of its tensor {quote(name)} is malformed")
