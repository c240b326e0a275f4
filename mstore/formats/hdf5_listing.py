"""What the HDF5 library says is in a file, checked for form: datasets, hazards, a Keras model.

Whether offsets and sizes make sense in the file is for `mstore.formats.hdf5` to check.
"""

from dataclasses import dataclass, field, replace
from math import prod

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import check_shape, quote
from mstore.formats.hdf5_process import CONFIGS, MAX_CONFIG, records
from mstore.formats.remembered import Remembered
from mstore.layout import ByteReader, grid

MAX_DATASETS = 500_000
"""Most datasets of one file."""

MAX_TILES = 500_000
"""Most chunks of all datasets together, stored or not."""

MAX_PATHS = 64 << 20
"""Most bytes that the paths of all datasets and hazards together take in memory."""

_LAYOUTS = ("contiguous", "chunked", "compact", "filtered", "virtual", "unknown")
_MAX_OFFSET = 1 << 63


@dataclass(frozen=True, slots=True)
class Dataset:
    """One dataset under one path.

    `address` is that of its header: the same for all paths of one dataset. `shape` is empty where
    `dtype` is None. `layout` is
    "contiguous", "chunked", "compact", "filtered" (chunks that are compressed), "virtual" (parts of
    other datasets of the file) or "unknown".
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
    (data in datasets of other files), "nested" (data in what is no plain dataset of the file) or
    "filter" (data that only a plug-in can read).
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

    The file is listed once, however often it is asked for. Raises as
    `mstore.formats.hdf5_process.records` does, and LimitExceededError for more datasets, chunks or
    names than is reasonable.
    """
    return _listed(reader)


def _list(reader: ByteReader) -> Listing:
    datasets: list[Dataset] = []
    by_address: dict[int, Dataset] = {}
    hazards: list[Hazard] = []
    configs: dict[str, str] = {}
    tiles = paths = 0
    for record in records(reader):
        if "tiles" in record:
            _add_tiles(datasets, record["tiles"])
        elif "hazard" in record:
            hazard = Hazard(_text(record, "hazard"), _text(record, "path"))
            hazards.append(hazard)
            paths += _memory(hazard.kind) + _memory(hazard.path)
        elif "config" in record:
            _add_config(configs, record)
        else:
            dataset = _dataset(record, by_address, MAX_TILES - tiles)
            datasets.append(dataset)
            by_address[dataset.address] = dataset
            tiles += len(dataset.offsets)
            paths += _memory(dataset.path)
        if max(len(datasets), len(hazards)) > MAX_DATASETS or paths > MAX_PATHS:
            raise LimitExceededError(f"it has more than {MAX_DATASETS} datasets, or long paths")
    datasets.sort(key=lambda dataset: dataset.path)
    hazards.sort(key=lambda hazard: hazard.path)
    return Listing(datasets, hazards, configs)


def _memory(text: str) -> int:
    """About how many bytes a text takes."""
    return len(text) if text.isascii() else 4 * len(text)


def _add_config(configs: dict[str, str], record: dict[str, object]) -> None:
    path, config = _text(record, "path"), _text(record, "config")
    if path not in CONFIGS or path in configs:
        raise FormatError("the HDF5 library gives something else than the configuration of a model")
    if len(config) > MAX_CONFIG:
        raise LimitExceededError(f"its {path} has more than {MAX_CONFIG} bytes")
    configs[path] = config


def _dataset(record: dict[str, object], by_address: dict[int, Dataset], most_tiles: int) -> Dataset:
    if "same" in record:
        first = by_address.get(_integer(record["same"]))
        if first is None:
            raise FormatError("it has a second path to a dataset that is not there")
        _check_tiles(len(first.offsets), most_tiles)
        return replace(first, path=_text(record, "path"))
    path, layout = _text(record, "path"), _text(record, "layout")
    if layout not in _LAYOUTS:
        raise FormatError("the HDF5 library gives something else than a layout")
    shape = _integers(record.get("shape"))
    dtype = None if record.get("dtype") is None else BY_NAME.get(_text(record, "dtype"))
    if dtype is None:
        shape = ()  # nobody asks for it, and nothing says how long it may be
    else:
        check_shape(dtype, shape, f"its dataset {quote(path)}")
    offset = None if record.get("offset") is None else _integer(record.get("offset"))
    fill = _fill(record, dtype)
    address = _integer(record.get("address"))
    if record.get("tile") is None:
        return Dataset(path, address, dtype, shape, layout, offset, fill)
    tile = _integers(record.get("tile"))
    if dtype is None or len(tile) != len(shape) or min(tile, default=1) < 1:
        raise FormatError(f"its dataset {quote(path)} has chunks that do not fit it")
    check_shape(dtype, tile, f"a chunk of its dataset {quote(path)}")
    count = prod(grid(shape, tile))
    _check_tiles(count, most_tiles)
    return Dataset(path, address, dtype, shape, layout, offset, fill, tile, [-1] * count)


def _check_tiles(count: int, most: int) -> None:
    if count > most:
        raise LimitExceededError(f"its datasets have more than {MAX_TILES} chunks")


def _add_tiles(datasets: list[Dataset], tiles: object) -> None:
    """Note where chunks of the last dataset lie: lists of offset, length, and first elements."""
    dataset = datasets[-1] if datasets else None
    if dataset is None or dataset.dtype is None or not dataset.tile or not isinstance(tiles, list):
        raise FormatError("it has chunks that belong to no dataset")
    length = dataset.dtype.nbytes(dataset.tile)
    counts = grid(dataset.shape, dataset.tile)
    for tile in map(_integers, tiles):
        if len(tile) != 2 + len(counts):
            raise FormatError(f"a chunk of its dataset {quote(dataset.path)} has no place in it")
        offset, stored, *place = tile
        number = 0
        for start, step, count in zip(place, dataset.tile, counts, strict=True):
            at, rest = divmod(start, step)
            if rest or at >= count:
                raise FormatError(f"a chunk of its dataset {quote(dataset.path)} is outside it")
            number = number * count + at
        if stored != length or dataset.offsets[number] != -1:
            raise FormatError(f"the chunks of its dataset {quote(dataset.path)} do not fit it")
        dataset.offsets[number] = offset


def _integer(value: object) -> int:
    if type(value) is not int or not 0 <= value < _MAX_OFFSET:
        raise FormatError("the HDF5 library gives something else than a number")
    return value


def _integers(value: object) -> tuple[int, ...]:
    if not isinstance(value, list):
        raise FormatError("the HDF5 library gives something else than a list of numbers")
    return tuple(map(_integer, value))


def _text(record: dict[str, object], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str):
        raise FormatError("the HDF5 library gives something else than text")
    return value


def _fill(record: dict[str, object], dtype: DType | None) -> bytes:
    if record.get("fill") is None:
        return b""
    text = _text(record, "fill")
    try:
        if dtype is not None and len(text) <= 2 * dtype.itemsize:
            return bytes.fromhex(text)
    except ValueError:
        pass
    raise FormatError("the HDF5 library gives something else than an element")


_listed = Remembered(_list)
