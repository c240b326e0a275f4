"""SavedModel of TensorFlow: `saved_model.pb`, the graphs of a model. Its variables lie elsewhere.

    SavedModel    1 saved_model_schema_version · 2 meta_graphs
    MetaGraphDef  1 meta_info_def · 2 graph_def · 3-7 of no interest here
    GraphDef      1 node · 2 library {1 function {1 signature {1 name}, 3 node_def}}
    NodeDef       1 name · 2 op · 5 attr {1 key, 2 value {2 s}}

A graph is a program: some of its operations read and write files or call Python when the model is
run. The file stays opaque; which of these operations it has is told as findings.
Source: `saved_model.proto`, `meta_graph.proto`, `graph.proto` and `node_def.proto` of TensorFlow,
and the list of operations in its page "Using TensorFlow Securely".
"""

import re
from collections.abc import Iterator

from mstore.formats.base import Finding, Format, quote
from mstore.formats.protobuf import BYTES, VARINT, Field, Wire
from mstore.layout import ByteReader, Layout, cover

MAX_FIELDS = 3_000_000
"""Most fields of a file, as `Wire` counts."""

_HEAD = re.compile(rb"\x08\x01\x12.", re.DOTALL)
_MAX_SNIFFED = 10_000
_MAX_TEXT = 1 << 16
_SAVED = {1: VARINT, 2: BYTES}
_META = dict.fromkeys(range(1, 8), BYTES)
_GRAPH = {1: BYTES, 2: BYTES, 3: VARINT, 4: BYTES, 5: BYTES}
_NODE = dict.fromkeys(range(1, 8), BYTES)
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


class SavedModelFormat(Format):
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

    def layout(self, reader: ByteReader) -> Layout:
        """One opaque segment."""
        for _ in Wire(reader, max_fields=MAX_FIELDS).fields(0, reader.size):
            pass  # being a message to its end is all that is asked of it
        return cover(self.name, reader.size, [])

    def findings(self, reader: ByteReader) -> list[Finding]:
        """Each operation that touches more than tensors, once."""
        wire = Wire(reader, max_fields=MAX_FIELDS)
        found: dict[str, Finding] = {}
        for saved in wire.fields(0, reader.size):
            if saved.number == 2:
                for meta in wire.inside(saved, "a graph with its signatures"):
                    if meta.number == 2:
                        _read_graph(wire, meta, found)
        return list(found.values())


def _read_graph(wire: Wire, graph: Field, found: dict[str, Finding]) -> None:
    for one in wire.inside(graph, "a graph"):
        if one.number == 1:
            _read_node(wire, one, "", found)
        elif one.number == 2:
            for function in wire.inside(one, "a library"):
                if function.number == 1:
                    _read_function(wire, function, found)


def _read_function(wire: Wire, function: Field, found: dict[str, Finding]) -> None:
    name = ""
    for one in wire.inside(function, "a function"):
        if one.number == 1:
            for part in wire.inside(one, "a signature"):
                if part.number == 1:
                    name = wire.text(part, _MAX_TEXT, "a name")
        elif one.number == 3:
            _read_node(wire, one, f"{name}/", found)


def _read_node(wire: Wire, node: Field, path: str, found: dict[str, Finding]) -> None:
    name = operation = ""
    for one in wire.inside(node, "a node"):
        if one.number == 1:
            name = wire.text(one, _MAX_TEXT, "a name")
        elif one.number == 2:
            operation = wire.text(one, _MAX_TEXT, "an operation")
    plain = operation.removeprefix("Experimental")
    if plain in _OPERATIONS:
        what = f"{_OPERATIONS[plain]} when it is run ({operation})"
        found.setdefault(operation, Finding("dangerous", what, path + name))
    elif operation in _VOCABULARY:
        what = f"reads a file of words, which should be among its assets ({operation})"
        found.setdefault(operation, Finding("unknown", what, path + name))
    elif operation == _PRINT:
        for target in _print_targets(wire, node):
            what = f"writes to {quote(target)} when it is run ({operation})"
            found.setdefault(operation, Finding("dangerous", what, path + name))


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
            text = wire.text(one, _MAX_TEXT, "an attribute")
            if text.startswith("file:"):
                yield text
