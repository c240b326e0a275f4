"""ONNX: a model as one message of Protocol Buffers, with its data inside or in files beside it.

`raw_data` and packed floats are segments, floats that are fields of their own are views; integers
that are coded as varints stay opaque. What `mstore.formats.onnx_model` finds is judged here. The
files that hold external data are described by the models in the same folder, whose locations are
compared with names and never opened.

Links on the way to external data are refused as the onnx library refuses them, symbolic and hard
ones. Source: `docs/ExternalDataSecurity.md` of ONNX, CVE-2026-27489 and CVE-2026-34446.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from itertools import islice

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import Finding, Format, quote
from mstore.formats.companion import Companion, Placed
from mstore.formats.onnx_model import Model, read_model
from mstore.formats.onnx_tensor import External
from mstore.formats.protobuf import BYTES, FIXED32, VARINT, Wire
from mstore.formats.records import RecordField, Records
from mstore.formats.remembered import Remembered
from mstore.formats.shifting import Contents, cover_all
from mstore.layout import Beside, ByteReader, Layout, Tensor

MAX_DESCRIBERS = 8
"""Most models of a folder that are asked what a file beside them holds."""

_SUFFIX = ".onnx"
_HEAD = re.compile(rb"\x08[\x01-\x14].")
_MAX_SNIFFED = 100_000  # fields looked at; a node may have very many inputs
_MAX_TOLD = 20  # findings of one kind
_MAX_FOLDERS = 8  # to where the data lies, its own folder among them
_BY_LINK = (
    "through a link, which may lead to any file, so onnx itself refuses it; "
    "copy it without links (cp -rL), then `mstore commit --rehash`"
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")  # also the letter of a drive
_MEMORY = "_ORT_MEM_ADDR_"  # ONNX Runtime takes the offset as an address in its own memory

# Domains of operators that the usual libraries bring along.
_DOMAINS = {
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview",
    "ai.onnx.preview.training", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc",
}  # fmt: skip
_OPERATORS = {
    ("com.microsoft", "PythonOp"): Finding("dangerous", "calls a function of Python"),
    ("com.microsoft", "PythonOpGrad"): Finding("dangerous", "calls a function of Python"),
    ("com.microsoft", "EPContext"): Finding("unknown", "hands a program to an accelerator"),
}

# The fields of the outer messages with their wire types: what a file must keep to to be a model.
_MODEL = {1: VARINT, 5: VARINT} | dict.fromkeys((2, 3, 4, 6, 7, 8, 14, 20, 25, 26), BYTES)
_GRAPH = dict.fromkeys((1, 2, 5, 10, 11, 12, 13, 14, 15, 16), BYTES)
_NODE = dict.fromkeys(range(1, 11), BYTES)
_ATTRIBUTE = {2: FIXED32, 3: VARINT, 20: VARINT} | dict.fromkeys((1, 4, 5, 6, 10, 11, 13), BYTES)
_NAMES = (2, 3, 4)  # in a model: of what made it, the version of that, and a domain
_MAX_NAME = 256
_GRAPH_TAG = b"\x3a"

_model = Remembered(read_model)


class OnnxFormat(Format):
    """A model of ONNX."""

    name = "onnx"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A message with the version of ONNX first, and a graph whose first fields are one's.

        If that graph breaks off, it is enough that text says before it what made the model.
        """
        if _HEAD.match(head) is None:
            return False
        wire = Wire(reader, max_fields=_MAX_SNIFFED)
        graph = wire.first(0, 7, _MODEL)
        if graph is not None and _begins_as_graph(wire, graph.start):
            return True
        return _breaks_off_in_graph(wire, reader)

    def layout(self, reader: ByteReader) -> Layout:
        """Every tensor in the file itself; the rest is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and how many tensors stay opaque and why."""
        model = _model(reader)
        parts: list[Contents] = []
        why: Counter[str] = Counter()
        for one in model.tensors:
            if isinstance(one.place, External):
                if "/" in _path(one.name, one.place):
                    why["in another folder"] += 1
            elif one.tensor is not None:
                parts.append(_contents(one.place, one.tensor, one.tagged))
            if one.why:
                why[one.why] += 1
        note = ", ".join(f"{number} {reason}" for reason, number in why.items())
        layout = cover_all(self.name, reader.size, parts)
        return layout, f"opaque bytes for tensors: {note}" if note else None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Files that the model takes data from, and operators that may do anything."""
        model = _model(reader)
        return [*_references(model), *_operators(model)]

    def findings_beside(self, reader: ByteReader, beside: Beside) -> list[Finding]:
        """Links that the model takes data through."""
        paths: dict[str, None] = {}
        for one in _model(reader).tensors:
            if isinstance(one.place, External):
                with suppress(UnsafeInputError):  # told already
                    paths.setdefault(_path(one.name, one.place))
        linked = (path for path in paths if beside.is_link(path))
        return [
            Finding("dangerous", f"reads {quote(path)} {_BY_LINK}")
            for path in islice(linked, _MAX_TOLD)
        ]


def _begins_as_graph(wire: Wire, start: int) -> bool:
    """Whether a graph has a node with an operator or an attribute first, or tensors or values."""
    node = wire.first(start, 1, _GRAPH)
    if node is None:
        return any(wire.first(start, number, _GRAPH) for number in (5, 12, 15))
    if wire.first(node.start, 4, _NODE) is not None:
        return True
    attribute = wire.first(node.start, 5, _NODE)
    return attribute is not None and wire.first(attribute.start, 20, _ATTRIBUTE) is not None


def _breaks_off_in_graph(wire: Wire, reader: ByteReader) -> bool:
    """Whether a model names what made it right before a graph that is no whole field."""
    at, named = 2, False
    try:
        for one in wire.fields(at, reader.size):
            if one.number in _NAMES:
                name = wire.text(one, _MAX_NAME, "a name")
                if not name.isprintable():
                    return False
                named = named or bool(name)
            elif one.number not in (5, 6):  # its version, and what there is to say of it
                return False
            at = one.end
    except (FormatError, LimitExceededError):
        pass
    return named and reader.read(at, 1) == _GRAPH_TAG


def _contents(place: int, tensor: Tensor, tagged: bool) -> Contents:
    """A tensor of the file itself; a tag and an element are a record."""
    if not tagged:
        return Contents(((place, tensor),))
    element = RecordField(tensor.name, tensor.dtype, 1)
    return Records("", tensor.shape, "C", 1 + tensor.dtype.itemsize, (element,)).contents(place - 1)


class OnnxDataCompanion(Companion):
    """Files of external data, by the models beside them."""

    name = "onnx-data"

    def describers(self, name: str, names: Collection[str]) -> Iterable[str]:
        """Models in the folder, those called most like the file first."""
        if name.endswith(_SUFFIX):
            return []
        models = _models(frozenset(names))
        if len(models) > 1:
            models = sorted(models, key=lambda one: not name.startswith(one.removesuffix(_SUFFIX)))
        return models[:MAX_DESCRIBERS]

    def parse(self, reader: ByteReader, describer: str) -> Mapping[str, Placed]:
        """The tensors of a model that lie in files beside it."""
        model_format = OnnxFormat()
        if not model_format.sniff(reader.read(0, 16), reader):
            return {}
        files: dict[str, list[tuple[int, Tensor]]] = {}
        for one in _model(reader).tensors:
            if isinstance(one.place, External):
                path = _path(one.name, one.place)
                if one.tensor is not None and "/" not in path:
                    files.setdefault(path, []).append((one.place.offset, one.tensor))
        return files


@lru_cache(maxsize=4)
def _models(names: frozenset[str]) -> Sequence[str]:
    """The models among the files of a folder, of which each is asked about all the same."""
    return sorted(name for name in names if name.endswith(_SUFFIX))


def _is_unsafe(external: External) -> bool:
    """Whether a location, or the folder that it counts from, is no plain path inside the folder."""
    return any(
        path.startswith("/")
        or "\\" in path
        or "\0" in path
        or _MEMORY in path
        or _URL.match(path) is not None
        or ".." in path.split("/")
        for path in (external.location, external.base)
    )


def _path(name: str, external: External) -> str:
    """Where the data of a tensor lies, from the folder of the model on.

    Raises UnsafeInputError when that is outside of it, LimitExceededError when it is far inside.
    """
    if _is_unsafe(external):
        raise UnsafeInputError(
            f"the data of {quote(name)} would be read from {quote(external.location)}, "
            "outside of its folder"
        )
    path = f"{external.base}/{external.location}"
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if len(parts) > _MAX_FOLDERS:
        raise LimitExceededError(f"the data of {quote(name)} lies {len(parts) - 1} folders away")
    return "/".join(parts)


def _references(model: Model) -> Iterable[Finding]:
    """What lies in other files."""
    places = {one.place: one.name for one in model.tensors if isinstance(one.place, External)}
    unsafe = {place.location: name for place, name in places.items() if _is_unsafe(place)}
    for location, name in islice(unsafe.items(), _MAX_TOLD):
        yield Finding("dangerous", f"reads {quote(location)}, outside of its folder", name)
    beside = sorted({place.location for place in places if not _is_unsafe(place)})
    if beside:
        more = f" and {len(beside) - 1} more files" if len(beside) > 1 else ""
        yield Finding("allowed", f"reads its data from {quote(beside[0])}{more}")


def _operators(model: Model) -> Iterable[Finding]:
    """Operators that are not of ONNX itself."""
    strange: dict[str, tuple[str, str]] = {}
    for (domain, name), place in model.operators.items():
        if (known := _OPERATORS.get((domain, name))) is not None:
            yield Finding(known.danger, known.what, place)
        elif domain not in _DOMAINS and (domain, name) not in model.functions:
            strange.setdefault(domain, (name, place))
    for domain, (name, place) in islice(strange.items(), _MAX_TOLD):
        what = f"runs operators of {quote(domain)}, such as {quote(name)}, from a custom library"
        yield Finding("unknown", what, place)
