"""torch-export of versions before 2.8: a zip archive whose members are in no folder.

    version                           `8.8`
    serialized_exported_program.json  the graph
    serialized_state_dict.pt          a file of `torch.save`, as are the next two
    serialized_constants.pt
    serialized_example_inputs.pt
    extra_files/…                     what the user put in

Newer versions load it, too. Tensors are called by the member and by their own name,
`serialized_state_dict.pt/encoder.0.weight`. Source: `load` in torch/export/__init__.py of PyTorch
2.2 to 2.13.
"""

import re
from collections.abc import Iterable, Iterator

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import Finding, Format, quote
from mstore.formats.shifting import cover_all
from mstore.formats.torch_export import described, judged
from mstore.formats.torch_export_archive import Loaded, find_harm
from mstore.layout import ByteReader, Layout

_GRAPH = "serialized_exported_program.json"
_FILES = re.compile(r"serialized_(?:state_dict|constants|example_inputs)\.(?:pt|json)")
_EXTRA = "extra_files"


class OldTorchExportFormat(Format):
    """An archive with a graph in the place where PyTorch looks for it."""

    name = "torch-export"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip archive with that member, or one that is not sound and begins as if it had it."""
        if not head.startswith(zipdir.MAGIC):
            return False
        try:
            return any(member.name == _GRAPH for member in zipdir.read_members(reader))
        except (FormatError, LimitExceededError):
            return _GRAPH.encode() in head

    def layout(self, reader: ByteReader) -> Layout:
        """The tensors of its files of `torch.save`."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which members are not understood."""
        members = tuple(zipdir.read_members(reader))
        if harm := find_harm(members, _EXTRA):
            raise UnsafeInputError(f"it {harm}")
        parts, note = described(reader, _loaded(members))
        return cover_all(self.name, reader.size, parts), note

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What its graph and its pickles do."""
        members = tuple(zipdir.read_members(reader))
        if harm := find_harm(members, _EXTRA):
            return [Finding("dangerous", harm)]
        graphs = [member for member in members if member.name == _GRAPH]
        return judged(reader, _loaded(members), graphs)


def _loaded(members: Iterable[zipdir.Member]) -> Iterator[Loaded]:
    """The members that PyTorch unpickles.

    Raises FormatError for one that it would not write: the archive is of another format as well.
    """
    for member in members:
        if _FILES.fullmatch(member.name):
            yield Loaded(member.name, member, "torch.load", member.name)
        elif member.name not in (_GRAPH, "version") and not member.name.startswith(_EXTRA + "/"):
            raise FormatError(f"its member {quote(member.name)} is none of torch.export")
