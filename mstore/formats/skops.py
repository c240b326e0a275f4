"""skops: the archives in which skops keeps estimators of scikit-learn without a pickle.

    schema.json     the structure: what each object is, and which member holds each array
    <number>.npy    one array each, <number>.npz one sparse matrix each, stored or deflated

Tensors are called by the way to them in the structure, through attributes, keys and indexes:
`steps.1.1.coef_`. Arrays that are used in several places are called after the first; one that is
all there is has no name. The parts of a sparse matrix follow its own name: `tfidf/data`.

    {"__class__": "Ridge", "__module__": "sklearn.linear_model._ridge", "__loader__": "ObjectNode",
     "content": {"__class__": "dict", …, "content": {"coef_": {…, "file": "4353.npy"}}}}

Source: skops/io of the skops project, protocols 0 to 2.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import zipdir
from mstore.formats.base import Danger, Finding, Format, WindowReader, quote, read_exactly
from mstore.formats.deflated import InflatedHead, inflate
from mstore.formats.naming import MAX_NAMES
from mstore.formats.npy import Headers
from mstore.formats.npz import SUFFIX, cover_arrays, read_arrays, read_member
from mstore.formats.pickle_policy import judge
from mstore.formats.shifting import Contents, shifted
from mstore.layout import ByteReader, Layout
from mstore.strictjson import parse_json

MAX_SCHEMA = 32 << 20
"""Most bytes of a schema that are read."""

MAX_MARKS = 700_000
"""Most members and items in a schema; one of a thousand trees has 400,000."""

MAX_NAME = 4096
"""Most characters of a way through the structure."""

_SCHEMA = "schema.json"
_SPARSE = ".npz"


class SkopsFormat(Format):
    """An archive with a schema of objects of Python."""

    name = "skops"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """An archive with a `schema.json` that begins with an object of Python."""
        if not head.startswith(zipdir.MAGIC):
            return False
        try:
            member = _members(reader).get(_SCHEMA)
            if member is None:
                return False
            window: ByteReader = WindowReader(reader, member.data, member.size)
            if member.method != zipdir.STORED:
                window = InflatedHead(reader, member)
            start = window.read(0, 400)
        except (FormatError, LimitExceededError):
            return False
        return start.startswith(b"{") and b'"__class__"' in start and b'"__module__"' in start

    def layout(self, reader: ByteReader) -> Layout:
        """Every array; the rest of the archive is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which arrays are opaque."""
        members = _members(reader)
        return cover_arrays(self.name, reader.size, _arrays(reader, members))

    def findings(self, reader: ByteReader) -> list[Finding]:
        """The types and functions that are named, each once, where it is named first."""
        found: dict[tuple[str, str], Finding] = {}
        for node in _nodes(_schema(reader, _members(reader))):
            for danger, shown in _judged(node):
                found.setdefault((danger, shown), Finding(danger, f"uses {shown}", node.path))
        return list(found.values())


@dataclass(frozen=True, slots=True)
class _Node:
    """An object in the schema, and the way to it."""

    path: str
    fields: Mapping[str, object]


def _members(reader: ByteReader) -> dict[str, zipdir.Member]:
    return {member.name: member for member in zipdir.read_members(reader)}


def _arrays(
    reader: ByteReader, members: Mapping[str, zipdir.Member]
) -> Iterator[tuple[str, Contents | str]]:
    """The arrays and sparse matrices, each with a name for messages."""
    names = _names(reader, members)
    headers = Headers()
    for member in members.values():
        name = names.get(member.name, member.name)
        if member.name.endswith(SUFFIX):
            yield name or member.name, read_member(reader, member, name, headers)
        elif member.name.endswith(_SPARSE):
            yield name or member.name, _read_sparse(reader, member, name, headers)


def _read_sparse(
    reader: ByteReader, member: zipdir.Member, name: str, headers: Headers
) -> Contents | str:
    """The sparse matrix in a member, or why it stays opaque."""
    if member.method != zipdir.STORED:
        return "is compressed twice"
    window = WindowReader(reader, member.data, member.size)
    layout, _ = cover_arrays("npz", member.size, read_arrays(window, headers))
    return shifted(layout, member.data, name)


def _names(reader: ByteReader, members: Mapping[str, zipdir.Member]) -> dict[str, str]:
    """The way to each member in the structure, which is empty for an array that is all of it."""
    names: dict[str, str] = {}
    for node in _nodes(_schema(reader, members)):
        file = node.fields.get("file")
        if isinstance(file, str):
            names.setdefault(file, node.path)
    return names


def _schema(reader: ByteReader, members: Mapping[str, zipdir.Member]) -> object:
    """The parsed schema. Raises FormatError, LimitExceededError for one that is not to be read."""
    member = members.get(_SCHEMA)
    if member is None:
        raise FormatError(f"it has no {_SCHEMA}")
    if member.size > MAX_SCHEMA:
        raise LimitExceededError(f"its schema has {member.size} bytes")
    if member.method == zipdir.STORED:
        raw = read_exactly(reader, member.data, member.size, "its schema")
    else:
        raw = inflate(reader, member)
    if sum(map(raw.count, (b",", b"[", b"{"))) > MAX_MARKS:
        raise LimitExceededError(f"its schema has more than {MAX_MARKS} members")
    try:
        return parse_json(raw.decode("utf-8"))
    except UnicodeDecodeError:
        raise FormatError("its schema is not UTF-8") from None


def _nodes(schema: object) -> Iterator[_Node]:
    """Every object of Python in a schema, in its order.

    What an object holds is in its member `content`, which is no step on the way to it.
    """
    length = 0
    pending = [iter([("", schema)])]
    while pending:
        step = next(pending[-1], None)
        if step is None:
            pending.pop()
            continue
        path, value = step
        length += len(path) if _is_node(value) else 0
        if len(path) > MAX_NAME or length > MAX_NAMES:
            raise LimitExceededError("the ways through its schema are too long")
        if isinstance(value, dict) and _is_node(value):
            yield _Node(path, value)
        pending.append(_steps(path, value))


def _is_node(value: object) -> bool:
    return isinstance(value, dict) and "__class__" in value and "__loader__" in value


def _steps(path: str, value: object) -> Iterator[tuple[str, object]]:
    """The containers in a container, with the ways to them, which are made one by one."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, dict | list):
                same = key == "content" and _is_node(value)
                yield path if same else f"{path}.{key}" if path else key, inner
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            if isinstance(inner, dict | list):
                yield f"{path}.{index}" if path else str(index), inner


def _judged(node: _Node) -> Iterator[tuple[Danger, str]]:
    """What an object has its reader import, and how much harm that may do."""
    module, name = node.fields.get("__module__"), node.fields.get("__class__")
    if not isinstance(module, str) or not isinstance(name, str):
        yield "unknown", "something without a name"
        return
    danger, shown = judge(module, name), f"{module}.{name}"
    yield danger, quote(shown)
    content = node.fields.get("content")
    if node.fields.get("__loader__") == "MethodNode" and isinstance(content, dict):
        method = content.get("func")
        worse: Danger = "dangerous" if danger == "dangerous" else "unknown"
        yield worse, quote(f"{shown}.{method}")
