"""Tensors of torch in plain pickles, as `pickle.dump` and `joblib.dump` write them.

A tensor is pickled as a call of one of torch's own functions, as in its own files, but the storage
it is given is a call as well:

    torch.storage._load_from_bytes(b"…")    a file as of `mstore.formats.torch_legacy`, in which the
                                            saved structure is a storage, the only one

The elements lie in those bytes, and so in the file, from protocol 3 on. Before, bytes are written
as text, of which only the start is read if it is long: the pickles are there. Each tensor has a
file of its own, also those that share a storage. Whatever is in such a file is judged as if it was
in the pickle itself. Source: torch/storage.py of PyTorch.
"""

from codecs import getincrementaldecoder
from dataclasses import dataclass, field

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import BytesReader
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_arrays import place_of
from mstore.formats.pickle_layout import TEXTS
from mstore.formats.pickle_stack import Account
from mstore.formats.pickle_values import Call, Chars, Global
from mstore.formats.pickle_walk import ASKS, walk_next
from mstore.formats.torch_storages import Place
from mstore.formats.torch_stream import read_stream
from mstore.formats.torch_tensors import Storage, storage_of
from mstore.layout import ByteReader, Recoded

LOADS = ("torch.storage", "_load_from_bytes")
"""The function that loads a file from bytes."""

NOT_ALL = "has more in it than was looked through"
"""What to tell of a file that was not looked through to its end."""

_PROTOCOL = 0x80
_MAX_TEXT = 16 * 1024 * 1024  # bytes
_HEAD = 1 << 16  # bytes of a longer text that are read: many times what its pickles take
_MAX_TEXTS = 4  # in each other
_HIDDEN = "would have torch load a file that is inside"
_AS_TEXT = "is written as text"
_UNCLEAR = "is a file of torch of its own that is not understood"


@dataclass(frozen=True, slots=True)
class Inside:
    """The storages in a pickle, by the id of the call that loads one, and their places by key."""

    storages: dict[int, Storage] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)  # so that nothing else gets the id of one

    def add(self, call: Call, key: str, found: tuple[Storage, Place]) -> None:
        """Note what a call loads."""
        storage, self.places[key] = found
        self.calls.append(call)
        self.storages[id(call)] = Storage(
            key, storage.kind, storage.dtype, storage.nbytes, storage.start
        )


@dataclass(frozen=True, slots=True)
class _Source:
    """The bytes that a pickle is in: the file, or text of it that was read, in how many others.

    `whole` is False if only the first bytes of the text were read.
    """

    reader: ByteReader
    texts: int = 0
    whole: bool = True


def look_inside(reader: ByteReader, account: Account) -> Inside:
    """The storages that the calls of an account would load from bytes in the file.

    What their pickles name and call is noted in the account, too. Raises UnsafeInputError if that
    cannot be told.
    """
    inside = Inside()
    sources: dict[int, _Source] = {}  # of calls that are in texts, by their ids
    known: dict[tuple[_Source, int], tuple[Storage, Place]] = {}
    for call in account.calls:  # which grows with what is found
        if not isinstance(name := call.function, Global) or (name.module, name.name) != LOADS:
            continue
        place = place_of(call.arguments[0]) if call.arguments else None
        if place is None:
            raise UnsafeInputError(_HIDDEN)
        source = sources.get(id(call), _Source(reader))
        if (found := known.get((source, place.offset))) is None:
            before = len(account.calls)
            inner, arguments = _enter(source, place)
            found = _read(inner, arguments, account, place)
            known[source, place.offset] = found
            if inner.texts:
                sources |= dict.fromkeys(map(id, account.calls[before:]), inner)
        if found[1].why != _UNCLEAR:
            account.followed.add(id(call))
        if not source.texts:
            inside.add(call, f"{place.offset}", found)
    return inside


def note_all(arguments: Arguments, account: Account) -> None:
    """Note what pickles name and call, up to where Python's fastest reader finds them broken.

    Raises UnsafeInputError where what they name cannot be told.
    """
    try:
        while arguments.left:
            walk_next(arguments, account, lenient=True)
    except FormatError:
        return
    except LimitExceededError:
        account.others.setdefault(NOT_ALL, arguments.position)


def _enter(source: _Source, place: Chars) -> tuple[_Source, Arguments]:
    """The pickles in bytes; raises UnsafeInputError if what they hold is not known."""
    if place.code == "raw":
        inner, (start, end) = source, (place.offset, place.offset + place.length)
    elif place.code not in TEXTS or source.texts == _MAX_TEXTS:
        raise UnsafeInputError(_HIDDEN)
    else:
        raw = _decode(source, place)
        inner = _Source(BytesReader(raw), source.texts + 1, place.length <= _MAX_TEXT)
        start, end = 0, len(raw)
    # Archives of any kind, torch would load too.
    if start == end or inner.reader.read(start, 1)[0] != _PROTOCOL:
        raise UnsafeInputError(_HIDDEN)
    return inner, Arguments(inner.reader, start, end)


def _decode(source: _Source, place: Chars) -> bytes:
    """The bytes that a text stands for; the first ones of a long text."""
    whole = place.length <= _MAX_TEXT
    held = source.reader.read(place.offset, place.length if whole else _HEAD)
    decoder = getincrementaldecoder("utf-8" if place.code == "utf8" else "raw-unicode-escape")()
    try:
        return decoder.decode(held, final=whole).encode("latin-1")
    except UnicodeError:
        raise UnsafeInputError(_HIDDEN) from None


def _read(
    source: _Source, arguments: Arguments, account: Account, place: Chars
) -> tuple[Storage, Place]:
    """The storage that a file in bytes holds; one of unknown size if that is not understood.

    Raises UnsafeInputError if it may hold anything in what was not read.
    """
    start, asked = arguments.position, ASKS in account.others
    try:
        stream = read_stream(arguments, account)
        storage = storage_of(stream.value)
        head = source.reader.read(stream.end, 8)
    except (FormatError, UnsafeInputError):
        note_all(Arguments(source.reader, start, start + arguments.size), account)
        storage = None
        if not source.whole:
            raise UnsafeInputError(_HIDDEN) from None
    if storage is None or list(stream.keys) != [storage.key] or storage.nbytes is None:
        return _unknown(_UNCLEAR)
    item = storage.dtype.itemsize if storage.dtype else 1
    size = stream.end - start + 8 + storage.nbytes
    fits = arguments.size == size if source.whole else _may_take(place, size)
    if not fits or int.from_bytes(head, "little", signed=True) * item != storage.nbytes:
        return _unknown(_UNCLEAR)
    if not asked:
        account.others.pop(ASKS)  # it has its storage itself
    at = stream.end + 8
    if place.code == "raw":
        return storage, Place(at, storage.nbytes, _AS_TEXT if source.texts else "")
    coded = Recoded(TEXTS[place.code][0], place.offset, place.length, size, at)
    return storage, Place(at, storage.nbytes, coded=coded)


def _may_take(place: Chars, size: int) -> bool:
    """Whether so many bytes may be written as a text of this length."""
    return size <= place.length <= TEXTS[place.code][1] * size


def _unknown(why: str) -> tuple[Storage, Place]:
    return Storage("", "", None, None), Place(0, 0, why)
