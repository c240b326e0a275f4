"""Formats that keep tensors in files of their own, which another file beside them describes.

The data files have no mark of their own: what they hold is said by the other file, the describer,
such as the `.index` of a TensorFlow checkpoint or the `.onnx` of external data. A describer never
decides what is opened: it is read because of its name, on behalf of a file that is described.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence

from mstore.dtypes import BY_NAME
from mstore.errors import MstoreError
from mstore.formats.base import quote
from mstore.formats.strides import dense_strides
from mstore.layout import Beside, ByteReader, Layout, Strided, Tensor, View, cover, opaque

_MAX_REASON = 200  # characters: names of tensors in it may be of any length

Placed = Sequence[tuple[int, Tensor]]
"""Tensors with the offsets of their data in a file."""


class Companion(ABC):
    """One such format. Instances hold no state and may be used from several threads."""

    name: str
    """Short name of the format, as shown to users and kept in the layouts of the data files."""

    @abstractmethod
    def describers(self, name: str, names: Collection[str]) -> Iterable[str]:
        """Which of the files `names` of a folder may describe the file `name` there, if any."""

    @abstractmethod
    def parse(self, reader: ByteReader, describer: str) -> Mapping[str, Placed]:
        """The tensors that the file called `describer` names, by the name of the file they lie in.

        Names of files that lie in another folder are left out. Raises as `Format.layout` does.
        """

    def examine(self, reader: ByteReader, beside: Beside) -> tuple[Layout, str | None] | None:
        """The layout of a data file with a warning or None; None if no file beside describes it.

        What is wrong with a describer is told where that is described itself. What lies outside of
        the data file, because this is cut short or of another version, leaves it opaque.
        """
        failed: tuple[Layout, str] | None = None
        for describer in self.describers(beside.name, beside.names()):
            placed = self._placed(describer, beside)
            if not placed:
                continue
            try:
                return _apart(self.name, reader.size, placed), None
            except MstoreError as error:
                why = f"is not what {quote(describer)} says: {error.message[:_MAX_REASON]}"
                failed = failed or (opaque(reader.size), f"{why}; stored as opaque bytes")
        return failed

    def _placed(self, describer: str, beside: Beside) -> Placed | None:
        """What a describer says of the file, read once for all files of the folder."""
        key = f"{self.name}:{describer}"
        if key not in beside.known:
            beside.known[key] = {}  # also when reading it fails
            try:
                with beside.open(describer) as opened:
                    beside.known[key] = self.parse(opened, describer)
            except MstoreError:
                return None
        told: Placed | None = beside.known[key].get(beside.name)
        return told


def _apart(name: str, size: int, placed: Placed) -> Layout:
    """The layout of a data file; of tensors that share bytes, all but one are views."""
    own: list[tuple[int, Tensor]] = []
    views: list[View] = []
    end = 0
    for offset, tensor in sorted(placed, key=lambda item: (item[0], -item[1].nbytes)):
        if offset < end:
            views.append(_view(offset, tensor))
        else:
            own.append((offset, tensor))
            end = offset + tensor.nbytes
    return cover(name, size, own, views=views)


def _view(offset: int, tensor: Tensor) -> View:
    """A tensor as a view; one of elements that share bytes as these bytes."""
    if tensor.dtype.bits < 8:
        kind = tensor.kind or tensor.dtype.numpy
        tensor = Tensor(tensor.name, BY_NAME["u8"], (tensor.nbytes,), kind=kind)
    return View(tensor, Strided(offset, dense_strides(tensor.shape, tensor.dtype.itemsize)))
