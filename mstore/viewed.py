"""Tensors that are no segment of their own, read on demand."""

from collections.abc import Sequence

from mstore.chunkreader import ChunkReader
from mstore.filebytes import FileBytes, Reach, neighbours
from mstore.layout import View, extents
from mstore.numpy_dtypes import Array
from mstore.objects import SegmentChunks
from mstore.tensors import TensorView
from mstore.viewreader import ViewReader, hull, view_id


class ViewTensor(TensorView):
    """A tensor whose elements lie somewhere in the bytes of its file."""

    def __init__(self, path: str, view: View, content: FileBytes, reader: ChunkReader) -> None:
        """`content` is that of the file at `path`."""
        super().__init__(path, view.tensor, reader)
        self._view = view
        self._bytes = content

    @property
    def id(self) -> str:
        """The id of the content, 64 hexadecimal digits: equal ids mean equal tensors."""
        return view_id(self._view, *self._bytes.chunks(extents(self._view))).hex()

    def _chunks(self) -> SegmentChunks:
        return self._bytes.chunks(extents(self._view))[0]

    def numpy(self) -> Array:
        """The whole tensor as a new array.

        Raises CorruptDataError when a chunk is damaged, FormatError when the file itself holds
        something else than it says.
        """
        return ViewReader(self._view, self._bytes).whole()

    def _part(self, picked: Sequence[range]) -> Array:
        return ViewReader(self._view, self._bytes).part(picked)


def read_views(tensors: Sequence[ViewTensor]) -> list[Array]:
    """All of these as new arrays; what lies together in a file is read together."""
    found: dict[int, Array] = {}
    reaches = [(Reach(one._bytes, *hull(one._view)),) for one in tensors]
    for group in neighbours(reaches):
        (content,) = group.contents()
        for number in group.numbers:
            found[number] = ViewReader(tensors[number]._view, content).whole()
    return [found[number] for number in range(len(tensors))]
