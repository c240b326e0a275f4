"""Why files of a stored version have no tensors, for those who asked for some."""

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice

from mstore.database import Database
from mstore.errors import InvalidInputError, MstoreError
from mstore.formats.detect import COMPANIONS, describe
from mstore.ids import Id
from mstore.layout import Beside, ByteReader
from mstore.ops.storedfolder import StoredFolders

_MAX_TOLD = 3
_MAX_DESCRIBED = 20  # files, the largest: models are mostly among them


def no_tensors(db: Database, commit: Id, paths: Collection[str]) -> InvalidInputError:
    """The error for these files of a version, none of which has tensors.

    Where it is known why, it says so: what a commit told of them is not kept, so they are
    described once more, until there is enough to tell.
    """
    files = db.snapshot(db.commit(commit).snapshot).files
    hint = f"for files as they are: mstore checkout {commit.hex()[:12]} -o FOLDER"
    largest = sorted(paths, key=lambda path: -files[path].size)[:_MAX_DESCRIBED]
    told = [f"{path}: {why}" for path, why in islice(_whys(db, commit, largest), _MAX_TOLD)]
    if told:
        others = len(paths) - len(told)
        more = f"; nor in {others} other file{'s' * (others > 1)}" if others else ""
        return InvalidInputError(f"there are no tensors in {'; '.join(told)}{more}", hint=hint)
    if len(paths) != 1:
        return InvalidInputError(f"there are no tensors in any of {len(paths)} files", hint=hint)
    (path,) = paths
    known = db.manifest(files[path].manifest).format
    if data := stored_data_files(db, commit, path):
        hint = f"its tensors are in {instead(data)}"
    what = "of no format known here, so it is opaque" if known == "opaque" else _file_of(known)
    return InvalidInputError(f"there are no tensors in {path}, which is {what}", hint=hint)


def _file_of(known: str) -> str:
    """`an onnx file`, of the name of a format; "h" begins those of which it is said as a letter."""
    return f"{'an' if known[0] in 'aeioh' else 'a'} {known} file"


def stored_data_files(db: Database, commit: Id, path: str) -> list[str]:
    """The paths of what `data_files` finds for a file of a version; none for what is no file."""
    snapshot = db.snapshot(db.commit(commit).snapshot)
    if path not in snapshot.files:
        return []
    folders = StoredFolders(db, snapshot)
    beside = folders.beside(path)
    folder = path.removesuffix(beside.name)
    return [folder + name for name in data_files(folders.read(snapshot.files[path]), beside)]


def instead(data: Sequence[str]) -> str:
    """What to tell of the files that `data_files` found: the first of them, and to name those."""
    more = f" and {len(data) - _MAX_TOLD} more" if len(data) > _MAX_TOLD else ""
    name = "one of these, or the folder," if len(data) > 1 else "that"
    return f"{', '.join(data[:_MAX_TOLD])}{more}: name {name} instead"


def data_files(reader: ByteReader, beside: Beside) -> list[str]:
    """Which files beside a file have tensors of its own, by what it says itself.

    So ONNX and TensorFlow keep a model in several files. None if it cannot be read.
    """
    names = frozenset(beside.names())
    found: list[str] = []
    for companion in COMPANIONS:
        with suppress(MstoreError):  # it is of another format, or malformed
            told = companion.parse(reader, beside.name)
            found += (
                name
                for name in told
                if name in names and beside.name in companion.describers(name, names)
            )
    return sorted(found)


def _whys(db: Database, commit: Id, paths: Iterable[str]) -> Iterator[tuple[str, str]]:
    """What there is to tell of those files that were not understood, or not all of them."""
    snapshot = db.snapshot(db.commit(commit).snapshot)
    folders = StoredFolders(db, snapshot)
    for path in paths:
        try:
            layout, why = describe(folders.read(snapshot.files[path]), folders.beside(path))
        except MstoreError as error:
            why = error.message
        else:
            if layout.views or any(segment.tensor for segment in layout.segments):
                why = (
                    "it was committed before mstore knew such files, or through a link; "
                    "see: mstore commit --rehash"
                )
        if why:
            yield path, why
