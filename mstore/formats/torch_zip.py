"""torch: what PyTorch's `torch.save` writes since version 1.6, a zip archive of stored members.

    <name>/data.pkl     the saved structure as a pickle, its tensors as views of storages
    <name>/byteorder    `little` or `big`; left out by old versions, which wrote little
    <name>/data/<key>   the bytes of one storage
    <name>/version      and a few more small ones

The pickle is read by `mstore.formats.pickle_walk`, which runs nothing. Each storage is one tensor
here, called by the path to it in the saved structure: `optimizer.state.3.exp_avg`. Where several
tensors share a storage, it is called after the first that covers all of it, or else the first;
then its shape is one-dimensional, and what it holds is the whole storage, not that tensor: tensors
that view parts of a storage are not described. Where two names are the same, the later one gets
`#2` after it.

Everything else is opaque: the pickle, headers, and the storages of quantised, sparse and other
tensors whose types are no `DType` or that only code of their own could build.

TorchScript, which is an archive of code with a pickle of the same kind in it, is not of this
format. Source: torch/serialization.py and caffe2/serialize/inline_container.cc of PyTorch.
"""

from collections.abc import Iterable, Mapping

from mstore.dtypes import BY_NAME, DType
from mstore.errors import FormatError, LimitExceededError
from mstore.formats import zipdir
from mstore.formats.base import Format, check_shape, quote, read_exactly
from mstore.formats.pickle_walk import walk
from mstore.formats.torch_structure import Other, Path, View, find_tensors, join
from mstore.layout import ByteReader, Layout, Order, Tensor, cover

MAX_PICKLE = 64 * 1024 * 1024
"""Most bytes of the pickle; about 500 for each tensor are usual."""

MAX_NAMES = 64 * 1024 * 1024
"""Most characters of the names of all tensors together."""

_MAX_TOLD = 2
_PICKLE = "/data.pkl"
_SCRIPT = "/constants.pkl"
_BYTE_ORDERS = {b"little": False, b"big": True}

Members = Mapping[str, zipdir.Member]


class TorchFormat(Format):
    """A file of `torch.save`, but for those of versions before 1.6, which are no zip archives."""

    name = "torch"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip archive with a pickle and a version in one folder, or whose first is a pickle."""
        first = _first_name(head)
        if b"/" not in first:
            return False
        try:
            return _folder(zipdir.read_members(reader)) is not None
        except (FormatError, LimitExceededError):
            return first.endswith(_PICKLE.encode()) and first.count(b"/") == 1

    def layout(self, reader: ByteReader) -> Layout:
        """Every storage of a plain tensor; the rest of the archive is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which storages were not understood."""
        found = zipdir.read_members(reader)
        folder = _folder(found)
        if folder is None:
            raise FormatError("it has no pickle and version in one folder")
        members = {member.name: member for member in found}
        big_endian = _is_big_endian(reader, members, folder)
        value = walk(_read(reader, members[folder + _PICKLE], MAX_PICKLE))
        uses: dict[str, list[View | Other]] = {}
        for use in find_tensors(value):
            uses.setdefault(use.storage.key, []).append(use)
        names = _Names()
        tensors: list[tuple[int, Tensor]] = []
        left: list[tuple[Path | None, str]] = []
        for key, users in uses.items():
            member = members.get(f"{folder}/data/{key}")
            if member is None:
                raise FormatError(f"its storage {quote(key)} is missing")
            described = _describe(users, member)
            if isinstance(described, str):
                left.append((users[0].path, described))
            else:
                path, dtype, shape, order = described
                dtype = BY_NAME.get(f">{dtype.name}", dtype) if big_endian else dtype
                tensors.append((member.data, Tensor(names.add(path), dtype, shape, order)))
        return cover(self.name, reader.size, tensors), _note(left, len(uses))


def _first_name(head: bytes) -> bytes:
    """The name of the first member of a zip archive; empty if the file is none."""
    if not head.startswith(zipdir.MAGIC) or len(head) < 30:
        return b""
    return head[30 : 30 + int.from_bytes(head[26:28], "little")]


def _folder(members: Iterable[zipdir.Member]) -> str | None:
    """The one folder with a pickle and a version, and no code; None if there is no such."""
    names = {member.name for member in members}
    found = [
        folder
        for name in names
        if name.endswith(_PICKLE) and "/" not in (folder := name.removesuffix(_PICKLE))
        if {f"{folder}/version", f"{folder}/.data/version"} & names
        if folder + _SCRIPT not in names
    ]
    return found[0] if len(found) == 1 else None


def _is_big_endian(reader: ByteReader, members: Members, folder: str) -> bool:
    member = members.get(f"{folder}/byteorder")
    order = b"little" if member is None else _read(reader, member, 16)
    if order not in _BYTE_ORDERS:
        raise FormatError("its byte order is neither little nor big")
    return _BYTE_ORDERS[order]


def _read(reader: ByteReader, member: zipdir.Member, limit: int) -> bytes:
    """The content of a stored member."""
    if member.method != zipdir.STORED:
        raise FormatError(f"its member {quote(member.name)} is compressed")
    if member.size > limit:
        raise LimitExceededError(
            f"its member {quote(member.name)} has {member.size} bytes; at most {limit} are read"
        )
    return read_exactly(reader, member.data, member.size, quote(member.name))


def _describe(
    uses: list[View | Other], member: zipdir.Member
) -> tuple[Path | None, DType, tuple[int, ...], Order] | str:
    """Path, type, shape and order of a storage with at least one use; or why it stays opaque.

    Raises FormatError if the member has another size than a use says, or too few elements for it.
    """
    for use in uses:
        if use.storage.nbytes not in (None, member.size):
            raise FormatError(
                f"its member {quote(member.name)} has {member.size} bytes, "
                f"but should have {use.storage.nbytes}"
            )
    views = [(use, use.dtype) for use in uses if isinstance(use, View) and use.dtype is not None]
    for view, dtype in views:
        if view.reach * dtype.itemsize > member.size:
            raise FormatError(f"its tensor {quote(join(view.path))} leaves its storage")
    if not views:
        use = uses[0]
        if isinstance(use, View):
            return f"is of type {quote(use.kind)}"
        return f"is made by {quote(use.maker)}" if use.maker else "is a storage by itself"
    if member.method != zipdir.STORED:
        return "is compressed"
    for view, dtype in views:
        if order := view.order_of_all(member.size // dtype.itemsize):
            shape = _packed(dtype, view.shape)
            if check_shape(dtype, shape, f"its tensor {quote(join(view.path))}") == member.size:
                return view.path, dtype, shape, order
    view, dtype = views[0]
    count, rest = divmod(member.size, dtype.itemsize)
    if rest:
        return "has a part of an element too many"
    return view.path, dtype, _packed(dtype, (count,)), "C"


def _packed(dtype: DType, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of single numbers, of which torch counts as one those that share a byte."""
    per_byte = dtype.itemsize * 8 // dtype.bits
    if per_byte == 1:
        return shape
    return (*shape[:-1], per_byte * shape[-1]) if shape else (per_byte,)


class _Names:
    """Makes names unique."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}  # the number that a further one of this name gets
        self._length = 0

    def add(self, path: Path | None) -> str:
        """The name of the tensor at `path`, with a number after it if that is taken."""
        wanted = name = join(path)
        while name in self._next:
            number = self._next[wanted]
            self._next[wanted] = number + 1
            name = f"{wanted}#{number}"
        self._next[name] = 2
        self._length += len(name)
        if self._length > MAX_NAMES:
            raise LimitExceededError(f"the names of its tensors take more than {MAX_NAMES} bytes")
        return name


def _note(left: list[tuple[Path | None, str]], count: int) -> str | None:
    """What to tell of the storages that stay opaque, and why they do."""
    if not left:
        return None
    told = [f"{quote(join(path))} {why}" for path, why in left[:_MAX_TOLD]]
    more = ", …" if len(left) > _MAX_TOLD else ""
    return f"opaque bytes for {len(left)} of {count} storages: {', '.join(told)}{more}"
