"""Graphs of TensorFlow: `saved_model.pb` of a SavedModel, and a frozen graph by itself.

    SavedModel    1 saved_model_schema_version · 2 meta_graphs
    MetaGraphDef  1 meta_info_def · 2 graph_def · 3-7 of no interest here
    GraphDef      all of a frozen graph; see `mstore.formats.tensorflow_graph`
    NodeDef       1 name · 2 op · 5 attr {1 key, 2 value {2 s}}

The variables of a SavedModel lie in a checkpoint beside it, those of a frozen graph are constants
in it. A graph is a program: some of its operations read and write files or call Python when the
model is run, and which of these it has is told as findings.
Source: `saved_model.proto`, `meta_graph.proto`, `graph.proto` and `node_def.proto` of TensorFlow,
and the list of operations in its page "Using TensorFlow Securely".
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import Finding, Format, quote
from mstore.formats.naming import Names
from mstore.formats.notes import opaque_note
from mstore.formats.protobuf import BYTES, FIXED32, VARINT, Field, Wire
from mstore.formats.tensorflow_graph import MAX_TEXT, Constant, Node, read_constant, read_nodes
from mstore.layout import ByteReader, Layout, Tensor, cover

MAX_FIELDS = 3_000_000
"""Most fields of a file, as `Wire` counts."""

MAX_CONSTANTS = 100_000
"""Most constants of a file."""

MIN_TOLD = 1024
"""Fewest bytes of the largest constant that stays opaque of which a user is told.

Nearly every graph has small ones that are not understood, and that nobody misses.
"""

_HEAD = re.compile(rb"\x08\x01\x12.", re.DOTALL)
_MAX_SNIFFED = 10_000
_SAVED = {1: VARINT, 2: BYTES}
_META = dict.fromkeys(range(1, 8), BYTES)
_GRAPH = {1: BYTES, 2: BYTES, 3: VARINT, 4: BYTES, 5: BYTES}
_NODE = dict.fromkeys(range(1, 8), BYTES)
_ENTRY = {1: BYTES, 2: BYTES}
_VALUE = dict.fromkeys((1, 2, 7, 8, 9, 10), BYTES) | {3: VARINT, 4: FIXED32, 5: VARINT, 6: VARINT}
_NAME = re.compile(rb"[A-Za-z0-9.][A-Za-z0-9_.\\/>-]*")
_OPERATION = re.compile(rb"[A-Z][A-Za-z0-9_]*|_[A-Z][A-Za-z0-9]*")
_KEY = re.compile(rb"_*[A-Za-z][A-Za-z0-9_]*")
_PRINT = "PrintV2"

_READS = """
    ReadFile MatchingFiles MatchingFilesDataset WholeFileReader WholeFileReaderV2 TextLineReader
    TextLineReaderV2 TFRecordReader TFRecordReaderV2 FixedLengthRecordReader
    FixedLengthRecordReaderV2 LMDBReader TextLineDataset TFRecordDataset TFRecordDatasetV2
    FixedLengthRecordDataset FixedLengthRecordDatasetV2 CSVDataset CSVDatasetV2 SqlDataset
    LMDBDataset LoadDataset ListSnapshotChunksDataset SnapshotDatasetReader
    SnapshotNestedDatasetReader SnapshotChunkDataset RecordInput ImmutableConst LoadAndRemapMatrix
"""
_WRITES = """
    WriteFile DatasetToTFRecord SaveDataset SaveDatasetV2 DistributedSave SnapshotDataset
    SnapshotDatasetV2 CreateSummaryFileWriter CreateSummaryDbWriter DebugIdentity DebugIdentityV2
    DebugIdentityV3 DebugNanCount DebugNumericSummary FileSystemSetConfiguration
"""
_CALLS = "PyFunc PyFuncStateless EagerPyFunc"
_CONNECTS = """
    RpcClient RpcCall RpcServer RpcServerRegister RpcServerStart RemoteCall DataServiceDataset
    DataServiceDatasetV2 DataServiceDatasetV3 DataServiceDatasetV4 RegisterDataset RegisterDatasetV2
"""
_OPERATIONS = {
    name: what
    for names, what in (
        (_READS, "reads files"),
        (_WRITES, "writes files"),
        (_CALLS, "calls functions of Python"),
        (_CONNECTS, "talks to other machines"),
    )
    for name in names.split()
}
_VOCABULARY = ("InitializeTableFromTextFile", "InitializeTableFromTextFileV2")


class _GraphFormat(Format):
    """What has graphs, from which `_graphs` picks them."""

    @abstractmethod
    def _graphs(self, wire: Wire, size: int) -> Iterator[Field]:
        """Each GraphDef of a file of `size` bytes."""

    def layout(self, reader: ByteReader) -> Layout:
        """Every constant of several numbers; the rest is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which large constants stay opaque."""
        wire = Wire(reader, max_fields=MAX_FIELDS)
        names = Names()
        placed: list[tuple[int, Tensor]] = []
        left: list[Constant] = []
        for node in self._nodes(wire, reader.size):
            constant = read_constant(wire, node)
            if constant is None:
                continue
            if len(placed) + len(left) == MAX_CONSTANTS:
                raise LimitExceededError(f"it has more than {MAX_CONSTANTS} constants")
            name = names.add(constant.name)
            if constant.tensor is None:
                left.append(constant)
            else:
                placed.append((constant.start, replace(constant.tensor, name=name)))
        note = _note_on(left, len(placed) + len(left))
        return cover(self.name, reader.size, placed), note

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Each operation that touches more than tensors, once."""
        wire = Wire(reader, max_fields=MAX_FIELDS)
        found: dict[str, Finding] = {}
        for node in self._nodes(wire, reader.size):
            for finding in _judge(wire, node):
                found.setdefault(node.operation, finding)
        return list(found.values())

    def _nodes(self, wire: Wire, size: int) -> Iterator[Node]:
        for graph in self._graphs(wire, size):
            yield from read_nodes(wire, graph)


def _note_on(left: list[Constant], count: int) -> str | None:
    """Which constants stay opaque, the largest first; None if all of these are small."""
    left.sort(key=lambda constant: -constant.size)
    if not left or left[0].size < MIN_TOLD:
        return None
    return opaque_note([(one.name, one.why) for one in left], count, "constants")


class SavedModelFormat(_GraphFormat):
    """The graphs of a SavedModel."""

    name = "tensorflow-savedmodel"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A schema version of 1, then a graph whose first node has an operation."""
        if _HEAD.match(head) is None:
            return False
        wire = Wire(reader, max_fields=_MAX_SNIFFED)
        meta = wire.first(0, 2, _SAVED)
        graph = meta and wire.first(meta.start, 2, _META)
        node = graph and wire.first(graph.start, 1, _GRAPH)
        return bool(node and wire.first(node.start, 2, _NODE))

    def _graphs(self, wire: Wire, size: int) -> Iterator[Field]:
        for saved in wire.fields(0, size):
            if saved.number == 2:
                for meta in wire.inside(saved, "a graph with its signatures"):
                    if meta.number == 2:
                        yield meta


class FrozenGraphFormat(_GraphFormat):
    """A graph by itself, as models without variables are saved."""

    name = "tensorflow-graph"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A node first, with a name, an operation and an attribute that look like those."""
        if not head.startswith(b"\n"):
            return False
        wire = Wire(reader, max_fields=_MAX_SNIFFED)
        node = wire.first(0, 1, _GRAPH)
        try:
            return node is not None and _is_node(wire, node)
        except (FormatError, LimitExceededError):
            return False

    def _graphs(self, wire: Wire, size: int) -> Iterator[Field]:
        yield Field(0, BYTES, 0, size, 0)


def _is_node(wire: Wire, node: Field) -> bool:
    """Whether a message is what every library writes for a node, and hardly anything else is."""
    name = wire.first(node.start, 1, _NODE)
    operation = wire.first(node.start, 2, _NODE)
    attribute = wire.first(node.start, 5, _NODE)
    key = attribute and wire.first(attribute.start, 1, _ENTRY)
    value = key and wire.first(key.end, 2, _ENTRY)
    if not (name and operation and attribute and key and value and value.end == attribute.end):
        return False
    texts = zip((name, operation, key), (_NAME, _OPERATION, _KEY), strict=True)
    if not all(form.fullmatch(wire.read(one, MAX_TEXT, "")) for one, form in texts):
        return False
    return all(_VALUE.get(one.number) == one.wire for one in wire.inside(value, ""))


def _judge(wire: Wire, node: Node) -> Iterator[Finding]:
    """What an operation does besides computing."""
    plain = node.operation.removeprefix("Experimental")
    if plain in _OPERATIONS:
        what = f"{_OPERATIONS[plain]} when it is run ({node.operation})"
        yield Finding("dangerous", what, node.name)
    elif node.operation in _VOCABULARY:
        what = f"reads a file of words, which should be among its assets ({node.operation})"
        yield Finding("unknown", what, node.name)
    elif node.operation == _PRINT:
        for target in _print_targets(wire, node.message):
            what = f"writes to {quote(target)} when it is run ({node.operation})"
            yield Finding("dangerous", what, node.name)


def _print_targets(wire: Wire, node: Field) -> Iterator[str]:
    """Files that a print writes to: `output_stream`, its only attribute with such a text."""
    for attribute in wire.inside(node, "a node"):
        if attribute.number == 5:
            for part in wire.inside(attribute, "an attribute"):
                if part.number == 2:
                    yield from _file_names(wire, part)


def _file_names(wire: Wire, value: Field) -> Iterator[str]:
    for one in wire.inside(value, "an attribute"):
        if one.number == 2:
            text = wire.text(one, MAX_TEXT, "an attribute")
            if text.startswith("file:"):
                yield text
