"""`mstore diff`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import click

from mstore.cli import output, text
from mstore.cli.changes import print_diff
from mstore.cli.failures import ERROR, Misuse
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.progress import progress
from mstore.cli.working import file_side, working_side
from mstore.errors import InvalidInputError, NotFoundError
from mstore.ids import Id
from mstore.objects import Snapshot
from mstore.ops.changes import Change
from mstore.ops.diff import Diff, diff_sides, diff_under
from mstore.ops.revisions import Located, files_of
from mstore.ops.sides import Side, StoredSide, side_of
from mstore.ops.without_tensors import data_files, instead, stored_data_files
from mstore.progress import Progress
from mstore.sources import FileSource, Folder, FolderOf


@command(
    "diff",
    examples="""
mstore diff
mstore diff main~1 main
mstore diff v1.0 main --tensor 'encoder.*.weight'
mstore diff main:model.pt main:model.safetensors
mstore diff main:model.pt ~/downloads/model.gguf
mstore diff --stat --exit-code && echo "nothing changed"
""",
)
@click.argument("before", metavar="[A[:PATH]", required=False, shell_complete=complete_revision)
@click.argument("after", metavar="[B[:PATH]]]", required=False, shell_complete=complete_revision)
@click.option("--stat", is_flag=True, help="Only files and totals; reads no weights.")
@click.option("--tensor", metavar="GLOB", help="Only tensors whose names match.")
@click.option("--exit-code", is_flag=True, help="End with 1 if there is a difference.")
def diff(
    call: Invocation,
    before: str | None,
    after: str | None,
    stat: bool,
    tensor: str | None,
    exit_code: bool,
) -> None:
    """Show what changed, per file and per tensor, with numbers.

    From version A to B; without B to the working directory, without A from HEAD.

    With paths, two files are compared tensor by tensor, whatever their names and formats, or the
    files of two folders. What one of the two does not say is as for the other. A name that is no
    revision may be that of a file on disk.

    Of a tensor it tells how many elements changed, how far it moved as a whole (the L2 norm of
    the change by that of what was), the largest change of one element, and the cosine between
    before and after. Those that moved the most come first, and so do their files, where those of
    several are shown; all of them with -v. Reordered are those whose values are the same, in
    another order of the elements or of their bytes.
    """
    one, other = _ends(call, before, after)
    with progress(call, "comparing") as told:
        sides = one.open(told), other.open(told)
        if one.path or other.path:
            roots = one.path, other.path
            found = diff_under(
                call.db, *sides, roots, numbers=not stat, tensor=tensor, progress=told.advance
            )
        else:
            found = diff_sides(
                call.db, *sides, numbers=not stat, tensor=tensor, progress=told.advance
            )
    for warning in dict.fromkeys((*_left_out(one), *_left_out(other))):
        call.warn(text.visible(warning))
    if call.json:
        paths = {"before_path": one.path, "after_path": other.path} if one.path else {}
        ids = {"before": _hex(one.commit), "after": _hex(other.commit)}
        output.document({**ids, **paths, **found.to_json()})
    elif not found:
        call.note(_same(found) if one.path else "there is no difference")
    else:
        output.data(click.style(f"{one.label} → {other.label}", fg="yellow"))
        print_diff(found, tensors=not stat, everything=call.verbose, pattern=tensor)
    if exit_code and found:
        click.get_current_context().exit(ERROR)


@dataclass(frozen=True, slots=True)
class _End:
    """One of the two things compared: what to call it, the version, and the path meant in it.

    `data` gives the paths of the files beside it that have tensors of its own.
    """

    label: str
    commit: Id | None
    path: str
    open: Callable[[Progress], Side]
    data: Callable[[], list[str]] = list


def _ends(call: Invocation, before: str | None, after: str | None) -> tuple[_End, _End]:
    """What is compared with what."""
    one = _find(call, before) if before is not None else _head(call)
    other = _find(call, after) if after is not None else None
    path = next((end.path for end in (one, other) if isinstance(end, Located) and end.path), "")
    if isinstance(one, Path) != isinstance(other, Path) and not path:
        raise Misuse("a file cannot be compared with a whole version", hint="name one: REV:PATH")
    old = _nothing(call) if one is None else _end(call, one, path)
    return old, _working(call, path) if other is None else _end(call, other, path)


def _find(call: Invocation, name: str) -> Located | Path:
    """The version, or the files of it, that are meant; or else a file on disk."""
    try:
        return call.locate(name)
    except (NotFoundError, InvalidInputError):
        if Path(name).is_file():
            return Path(name)
        raise


def _head(call: Invocation) -> Located | None:
    """The version to compare from; None in a working directory before its first commit."""
    head = call.worktree_reader().head
    commit = head.commit if head.model == call.model else call.resolve("HEAD")
    return files_of(call.db, commit, "HEAD", "") if commit else None


def _end(call: Invocation, what: Located | Path, path: str) -> _End:
    """A version, files of it at `path` if it does not say which, or a file on disk."""
    if isinstance(what, Path):
        place, name = what, str(what)
        return _End(
            *(text.visible(name), None, name),
            lambda told: file_side(call.db, name, told),
            lambda: _data_on_disk(place, name),
        )
    if path and not what.path:
        what = files_of(call.db, what.commit, what.revision, path)
    side = side_of(call.db, what)
    label = ":".join(part for part in (text.short(what.commit), text.visible(what.path)) if part)
    return _End(
        *(label, what.commit, what.path),
        lambda _: side,
        lambda: stored_data_files(call.db, what.commit, what.path),
    )


def _nothing(call: Invocation) -> _End:
    return _End("nothing", None, "", lambda _: StoredSide(call.db, Snapshot({})))


def _working(call: Invocation, path: str) -> _End:
    """The working directory, or what it has at `path`."""

    def wanted(name: str) -> bool:
        return not path or name == path or name.startswith(f"{path}/")

    def open_side(told: Progress) -> Side:
        side = working_side(call.worktree_reader(), told, wanted)
        if path and not side.files:
            raise NotFoundError(f"there is no file {path!r} in the working directory")
        return side

    return _End(
        f"{text.visible(path)} in the working directory" if path else "the working directory",
        None,
        path,
        open_side,
        lambda: _data_on_disk(call.worktree_reader().directory / path, path),
    )


def _data_on_disk(place: Path, name: str) -> list[str]:
    """What `data_files` finds for a file that is called `name`; none for a folder."""
    if not place.is_file():
        return []
    source = FileSource(place)
    try:
        data = data_files(source, FolderOf(Folder(place.parent), place.name))
    finally:
        source.close()
    return [name.removesuffix(place.name) + one for one in data]


def _left_out(end: _End) -> list[str]:
    """What to say of tensors that a file keeps in another one, which is not compared."""
    data = end.data()
    return [f"{end.path} keeps tensors in {instead(data)} to compare them"] if data else []


def _same(found: Diff) -> str:
    """What to say of files that have the same tensors."""
    same, reordered = found.totals.unchanged_tensors, found.totals.tensors.get(Change.REORDERED, 0)
    said = "there is no difference"
    if same + reordered:
        said += f": {text.count(same + reordered, 'tensor')} of the same values"
    return f"{said}, {reordered:,} in another order" if reordered else said


def _hex(commit: Id | None) -> str | None:
    return commit.hex() if commit else None
