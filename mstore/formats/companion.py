"""Formats that keep tensors in files of their own, which another file beside them describes.

The data files have no mark of their own: what they hold is said by the other file, the describer,
such as the `.index` of a TensorFlow checkpoint or the `.onnx` of external data.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence

from mstore.errors import MstoreError
from mstore.layout import Beside, ByteReader, Layout, Tensor, cover

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
    def parse(self, reader: ByteReader) -> Mapping[str, Placed]:
        """The tensors that a describer names, by the name of the file they lie in.

        Names of files that lie in another folder are left out. Raises as `Format.layout` does.
        """

    def layout(self, reader: ByteReader, beside: Beside) -> Layout | None:
        """The layout of a data file, or None when no file beside it describes it.

        What is wrong with a describer is told where that is described itself.
        """
        for describer in self.describers(beside.name, beside.names()):
            key = f"{self.name}:{describer}"
            try:
                if key not in beside.known:
                    beside.known[key] = {}  # also when reading it fails
                    with beside.open(describer) as opened:
                        beside.known[key] = self.parse(opened)
                if placed := beside.known[key].get(beside.name):
                    return cover(self.name, reader.size, placed)
            except MstoreError:
                continue
        return None
