"""Why files of a stored version have no tensors, for those who asked for some."""

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from mstore.database import Database
from mstore.errors import InvalidInputError, MstoreError
from mstore.formats.detect import describe
from mstore.ids import Id
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
    what = "of no format known here, so it is opaque" if known == "opaque" else f"a {known} file"
    return InvalidInputError(f"there are no tensors in {path}, which is {what}", hint=hint)


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
