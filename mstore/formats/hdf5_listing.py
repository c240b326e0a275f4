"""What the HDF5 library says is in a file, checked for form: datasets, hazards, a Keras model.

Whether offsets and sizes make sense in the file is for `mstore.formats.hdf5` to check.
"""

from dataclasses import dataclass, field
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import check_shape, quote
from mstore.formats.hdf5_process import records
from mstore.layout import ByteReader, grid

MAX_DATASETS = 500_000
"""Most datasets of one file."""

MAX_TILES = 1_000_000
"""Most chunks of all datasets together, stored or not."""

MAX_PATHS = 64 << 20
"""Most characters of the paths of all datasets together."""

_MAX_OFFSET = 1 << 63


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset under one path.

    `address` is that of its header: the same for all paths of one dataset. `layout` is
    "contiguous", "chunked", "compact", "filtered" (chunks that are compressed) or "unknown".
    `offset` is where the data of a contiguous one lies, None if it was never written. `tile` and
    `offsets` are as in `mstore.layout.Tiled`. `fill` is empty where it is not known.
    """

    path: str
    address: int
    dtype: DType | None
    shape: tuple[int, ...]
    layout: str
    offset: int | None
    fill: bytes
    tile: tuple[int, ...] = ()
    offsets: list[int] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of its data if it has a `DType`, or else 0."""
        return self.dtype.nbytes(self.shape) if self.dtype else 0


@dataclass(frozen=True, slots=True)
class Hazard:
    """What sends the reader of a file elsewhere.

    `kind` is "link" (to another file), "strange link", "external" (data in other files), "virtual"
    (data in other datasets) or "filter" (data that only a plug-in can read).
    """

    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class Listing:
    """What a file holds, by paths; `configs` are the attributes in which Keras keeps its model."""

    datasets: list[Dataset]
    hazards: list[Hazard]
    configs: dict[str, str]


def list_file(reader: ByteReader) -> Listing:
    """What is in the HDF5 file in `reader`, which starts with a superblock.

    Raises as `mstore.formats.hdf5_process.records` does, and LimitExceededError for more datasets,
    chunks or names than is reasonable.
    """
    datasets: list[Dataset] = []
    hazards: list[Hazard] = []
    configs: dict[str, str] = {}
    tiles = characters = 0
    for record in records(reader):
        if "length" in record:
            _add_tile(datasets, record)
        elif "hazard" in record:
            hazards.append(Hazard(_text(record, "hazard"), _text(record, "path")))
        elif "config" in record:
            configs[_text(record, "path")] = _text(record, "config")
        else:
            dataset = _dataset(record, MAX_TILES - tiles)
            datasets.append(dataset)
            tiles += len(dataset.offsets)
            characters += len(dataset.path)
        if len(datasets) + len(hazards) > MAX_DATASETS or characters > MAX_PATHS:
            raise LimitExceededError(f"it has more than {MAX_DATASETS} datasets, or long paths")
    datasets.sort(key=lambda dataset: dataset.path)
    hazards.sort(key=lambda hazard: hazard.path)
    return Listing(datasets, hazards, configs)


def _dataset(record: dict[str, object], most_tiles: int) -> Dataset:
    path, layout = _text(record, "path"), _text(record, "layout")
    shape = _integers(record, "shape")
    dtype = None if record.get("dtype") is None else BY_NAME.get(_text(record, "dtype"))
    if dtype is not None:
        check_shape(dtype, shape, f"its dataset {quote(path)}")
    offset = None if record.get("offset") is None else _integer(record.get("offset"))
    fill = b"" if record.get("fill") is None else _bytes(record, "fill")
    address = _integer(record.get("address"))
    if record.get("tile") is None:
        return Dataset(path, address, dtype, shape, layout, offset, fill)
    tile = _integers(record, "tile")
    if dtype is None or len(tile) != len(shape) or min(tile, default=1) < 1:
        raise FormatError(f"its dataset {quote(path)} has chunks that do not fit it")
    check_shape(dtype, tile, f"a chunk of its dataset {quote(path)}")
    count = prod(grid(shape, tile))
    if count > most_tiles:
        raise LimitExceededError(f"its datasets have more than {MAX_TILES} chunks")
    return Dataset(path, address, dtype, shape, layout, offset, fill, tile, [-1] * count)


def _add_tile(datasets: list[Dataset], record: dict[str, object]) -> None:
    """Note where a chunk of the last dataset lies."""
    place, offset = _integers(record, "tile"), _integer(record.get("offset"))
    dataset = datasets[-1] if datasets else None
    if dataset is None or dataset.dtype is None or len(place) != len(dataset.tile):
        raise FormatError("it has a chunk that belongs to no dataset")
    at = 0
    for start, step, tiles in zip(
        place, dataset.tile, grid(dataset.shape, dataset.tile), strict=True
    ):
        number, rest = divmod(start, step)
        if rest or number >= tiles:
            raise FormatError(f"a chunk of its dataset {quote(dataset.path)} has no place in it")
        at = at * tiles + number
    if dataset.offsets[at] != -1 or _integer(record.get("length")) != dataset.dtype.nbytes(
        dataset.tile
    ):
        raise FormatError(f"the chunks of its dataset {quote(dataset.path)} do not fit it")
    dataset.offsets[at] = offset


def _integer(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_OFFSET:
        raise FormatError(f"the HDF5 library gives a number that cannot be: {quote(repr(value))}")
    return value


def _integers(record: dict[str, object], key: str) -> tuple[int, ...]:
    value = record.get(key)
    if not isinstance(value, list):
        raise FormatError("the HDF5 library gives something else than a list of numbers")
    return tuple(map(_integer, value))


def _text(record: dict[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise FormatError("the HDF5 library gives something else than text")
    return value


def _bytes(record: dict[str, object], key: str) -> bytes:
    try:
        return bytes.fromhex(_text(record, key))
    except ValueError:
        raise FormatError("the HDF5 library gives something else than bytes") from None
