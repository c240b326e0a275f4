"""The metadata objects: manifest, snapshot and commit, and their one canonical form.

Each is a map in canonical msgpack, so equal objects have equal bytes and equal ids.
`docs/format.md` is the normative description.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from mstore.canonical import checked_id, checked_size, pack, typed, unpack, within
from mstore.checks import MetadataValue, check_metadata, check_path, check_text, path_bytes
from mstore.errors import CorruptDataError, InvalidInputError, MstoreError
from mstore.ids import ID_SIZE, Id, Kind, identify, identify_tensor
from mstore.layout import Tensor, View
from mstore.tensorfields import tensor_from_map, tensor_to_map, view_from_map, view_to_map

T = TypeVar("T")

MAX_PIECE = 64 << 20
"""Bytes of the largest chunk of a tensor."""

MAX_CHUNK = (1 << 32) - 1
"""Bytes of the largest chunk of all: records have four bytes for its length."""

MAX_TIME = 253_402_300_799_999_999
"""The last microsecond of the year 9999, in microseconds since 1970."""

MAX_ZONE = 24 * 60
"""Minutes east of UTC, or west of it, that an author's clock may be."""


@dataclass(frozen=True)
class SegmentChunks:
    """One segment of a file and the chunks that hold its bytes, in order.

    A tensor's chunks are `piece` bytes each (the last may be shorter) and `lengths` is None; the
    chunks of an opaque segment have the `lengths` listed and `piece` is 0. `ids` is the chunk
    ids, one after the other. `hidden` is as for `layout.Segment`.
    """

    length: int
    ids: bytes
    tensor: Tensor | None = None
    piece: int = 0
    lengths: tuple[int, ...] | None = None
    hidden: bool = False

    @property
    def count(self) -> int:
        """Number of chunks."""
        return len(self.ids) // ID_SIZE

    def chunk_id(self, number: int) -> Id:
        """The id of chunk `number` of this segment."""
        return self.ids[number * ID_SIZE : (number + 1) * ID_SIZE]

    def chunks(self) -> Iterator[tuple[Id, int]]:
        """Every chunk's id and length in bytes, in order."""
        for number in range(self.count):
            if self.lengths is not None:
                length = self.lengths[number]
            else:
                length = min(self.piece, self.length - number * self.piece)
            yield self.chunk_id(number), length

    @cached_property
    def tensor_id(self) -> Id | None:
        """The id of this tensor's content (dtype, order, shape, bytes); None when opaque."""
        if self.tensor is None:
            return None
        tensor = self.tensor
        described = [str(tensor.dtype), tensor.order, list(tensor.shape), self.piece, self.ids]
        return identify_tensor(pack(described))


@dataclass(frozen=True)
class Manifest:
    """One file: its format, its size in bytes, its segments with their chunks, and its views."""

    format: str
    size: int
    segments: tuple[SegmentChunks, ...]
    views: tuple[View, ...] = ()

    def tensors(self) -> Iterator[tuple[Tensor, SegmentChunks]]:
        """The segments that are tensors, also those that are only the material of views."""
        for segment in self.segments:
            if segment.tensor is not None:
                yield segment.tensor, segment

    def listed(self) -> Iterator[Tensor]:
        """The tensors of the model: those of segments in file order, then the views."""
        for segment in self.segments:
            if segment.tensor is not None and not segment.hidden:
                yield segment.tensor
        for view in self.views:
            yield view.tensor

    def chunks(self) -> Iterator[tuple[Id, int]]:
        """Every chunk's id and length in bytes, in file order."""
        for segment in self.segments:
            yield from segment.chunks()

    def chunk_ids(self) -> bytes:
        """The ids of all chunks, one after the other, in file order."""
        return b"".join(segment.ids for segment in self.segments)

    def encode(self) -> bytes:
        """The canonical bytes."""
        segments = [_segment_to_map(segment) for segment in self.segments]
        fields = {"format": self.format, "segments": segments, "size": self.size}
        if self.views:
            fields["views"] = [view_to_map(view) for view in self.views]
        return pack(fields)

    @staticmethod
    def decode_chunk_ids(raw: bytes) -> bytes:
        """The ids of all chunks of the manifest in `raw`, without making anything else of it.

        Several times faster than `decode`, for marking. Raises CorruptDataError.
        """
        return _decode("manifest", raw, _chunk_ids_from_map)

    @classmethod
    def decode(cls, raw: bytes) -> "Manifest":
        """The manifest in `raw`; raises CorruptDataError when it is not one."""
        return _decode("manifest", raw, _manifest_from_map)


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a snapshot: which manifest, its size in bytes, and its executable bit."""

    manifest: Id
    size: int
    executable: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The files of one version, by path (with "/" between folders)."""

    files: Mapping[str, FileEntry]

    def encode(self) -> bytes:
        """The canonical bytes: rows sorted by the bytes of the path."""
        rows = [
            [path, entry.manifest, entry.size, entry.executable]
            for path, entry in sorted(self.files.items(), key=lambda item: path_bytes(item[0]))
        ]
        return pack({"files": rows})

    @classmethod
    def decode(cls, raw: bytes) -> "Snapshot":
        """The snapshot in `raw`; raises CorruptDataError when it is not one."""
        return _decode("snapshot", raw, _snapshot_from_map)


@dataclass(frozen=True, slots=True)
class Commit:
    """One version: a snapshot, where it came from, and what was said about it.

    `time` is microseconds since 1970-01-01 UTC, `zone` the author's minutes east of UTC.
    """

    snapshot: Id
    parents: tuple[Id, ...]
    author: str
    time: int
    zone: int
    message: str
    metadata: Mapping[str, MetadataValue]

    def encode(self) -> bytes:
        """The canonical bytes; raises InvalidInputError when a value cannot be recorded."""
        return pack(
            {
                "author": check_text("the author", self.author),
                "message": check_text("the message", self.message),
                "metadata": check_metadata(self.metadata),
                "parents": list(self.parents),
                "snapshot": self.snapshot,
                "time": self.time,
                "zone": self.zone,
            }
        )

    @classmethod
    def decode(cls, raw: bytes) -> "Commit":
        """The commit in `raw`; raises CorruptDataError when it is not one."""
        return _decode("commit", raw, _commit_from_map)


MetadataObject = Manifest | Snapshot | Commit
KIND_OF: dict[type[MetadataObject], Kind] = {
    Manifest: Kind.MANIFEST,
    Snapshot: Kind.SNAPSHOT,
    Commit: Kind.COMMIT,
}


def encode_object(thing: MetadataObject) -> tuple[Kind, Id, bytes]:
    """Kind, id and canonical bytes of a metadata object.

    Raises InvalidInputError for one that could not be read back: what is stored must decode.
    """
    kind = KIND_OF[type(thing)]
    raw = thing.encode()
    try:
        same = type(thing).decode(raw).encode() == raw
    except CorruptDataError as error:
        raise InvalidInputError(f"this cannot be recorded: {error.message}") from error
    if not same:
        raise InvalidInputError(f"this {kind.name.lower()} would not be read back as it is")
    return kind, identify(kind, raw), raw


def _segment_to_map(segment: SegmentChunks) -> dict[str, object]:
    if segment.tensor is None:
        return {"ids": segment.ids, "lengths": list(segment.lengths or ())}
    described = {"ids": segment.ids, "piece": segment.piece, **tensor_to_map(segment.tensor)}
    if segment.hidden:
        described["hidden"] = True
    return described


def _decode(what: str, raw: bytes, build: Callable[[dict[str, Any]], T]) -> T:
    try:
        fields = unpack(raw)
        if not isinstance(fields, dict):
            raise TypeError("not a map")
        return build(fields)
    except (MstoreError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise CorruptDataError(f"a stored {what} is malformed: {error}") from error


def _manifest_from_map(fields: dict[str, Any]) -> Manifest:
    segments = tuple(_segment_from_map(typed(item, dict)) for item in fields["segments"])
    size = checked_size(fields["size"])
    if sum(segment.length for segment in segments) != size:
        raise ValueError("the segments do not add up to the size")
    views = tuple(view_from_map(typed(item, dict), size) for item in fields.get("views", ()))
    names = [segment.tensor.name for segment in segments if segment.tensor is not None]
    names += [view.tensor.name for view in views]
    if len(set(names)) != len(names):
        raise ValueError("two tensors are called the same")
    return Manifest(typed(fields["format"], str), size, segments, views)


def _chunk_ids_from_map(fields: dict[str, Any]) -> bytes:
    ids = b"".join(segment["ids"] for segment in fields["segments"])
    if len(ids) % ID_SIZE:
        raise ValueError("the chunk ids are cut short")
    return ids


def _segment_from_map(fields: dict[str, Any]) -> SegmentChunks:
    ids = typed(fields["ids"], bytes)
    count, rest = divmod(len(ids), ID_SIZE)
    if rest:
        raise ValueError("the chunk ids are cut short")
    if "dtype" not in fields:
        lengths = tuple(within(length, 1, MAX_CHUNK) for length in fields["lengths"])
        if len(lengths) != count:
            raise ValueError("the chunk lengths do not match the chunk ids")
        return SegmentChunks(sum(lengths), ids, lengths=lengths)
    tensor = tensor_from_map(fields)
    piece = checked_size(fields["piece"])
    if not 0 < piece <= MAX_PIECE or -(-tensor.nbytes // piece) != count:
        raise ValueError(f"tensor {tensor.name!r} has the wrong number of chunks")
    hidden = typed(fields.get("hidden", False), bool)
    return SegmentChunks(tensor.nbytes, ids, tensor, piece, hidden=hidden)


def _snapshot_from_map(fields: dict[str, Any]) -> Snapshot:
    files = {
        check_path(typed(path, str)): FileEntry(
            checked_id(manifest), checked_size(size), typed(bit, bool)
        )
        for path, manifest, size, bit in fields["files"]
    }
    if len(files) != len(fields["files"]):
        raise ValueError("a path is listed twice")
    return Snapshot(files)


def _commit_from_map(fields: dict[str, Any]) -> Commit:
    return Commit(
        snapshot=checked_id(fields["snapshot"]),
        parents=tuple(checked_id(parent) for parent in fields["parents"]),
        author=typed(fields["author"], str),
        time=within(fields["time"], 0, MAX_TIME),
        zone=within(fields["zone"], -MAX_ZONE, MAX_ZONE),
        message=typed(fields["message"], str),
        metadata=typed(fields["metadata"], dict),
    )
