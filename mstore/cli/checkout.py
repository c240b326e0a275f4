"""`mstore checkout`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mstore.cli import output, text
from mstore.cli.failures import InterruptionError
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.place import inside
from mstore.cli.progress import progress
from mstore.errors import NotFoundError
from mstore.ids import Id
from mstore.objects import Snapshot

if TYPE_CHECKING:
    from mstore.worktree_write import CheckedOut


@command(
    "checkout",
    examples="""
mstore checkout main
mstore checkout v1.0
mstore checkout main~2 config.json tokenizer
mstore checkout v1.0 -o /tmp/v1
""",
)
@click.argument("revision", metavar="REV", shell_complete=complete_revision)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("-o", "--output", "out", metavar="OUT", help="Write into OUT; HEAD stays as it is.")
@click.option("-f", "--force", is_flag=True, help="Overwrite changes that are not recorded.")
def checkout(
    call: Invocation, revision: str, paths: tuple[str, ...], out: str | None, force: bool
) -> None:
    """Bring a version back.

    The working directory becomes that of REV, and HEAD goes there: onto the branch, if REV is one.
    With PATHs only those files or folders are brought back, and HEAD stays. Changes that are not
    recorded are never overwritten without --force; files that neither version has stay.
    """
    commit = call.resolve(revision)
    if out is not None:
        _write_out(call, commit, paths, Path(out), force)
    elif paths:
        _restore(call, commit, paths, force)
    else:
        _go_to(call, commit, revision, force)


def _go_to(call: Invocation, commit: Id, revision: str, force: bool) -> None:
    tree = call.worktree_writer()
    try:
        with progress(call, "checking out") as told:
            done = tree.checkout(
                commit, _branch(call, revision), model=call.model, force=force, progress=told
            )
    except KeyboardInterrupt:
        raise InterruptionError("see `mstore status` for how to go on") from None
    for warning in tree.warnings:
        call.warn(text.visible(warning))
    if call.json:
        output.document(_document(done))
        return
    said = text.first_line(call.db.commit(commit).message)
    where = f"on branch {text.visible(done.branch)}" if done.branch else "on no branch"
    call.note(f"HEAD is now {where}, at {text.short(commit)} {said}")
    changes = [f"{text.count(len(done.written), 'file')} written"]
    if done.removed:
        changes.append(f"{len(done.removed)} removed")
    call.note(", ".join(changes))
    if call.verbose:
        for path in done.written:
            call.note(f"  written  {text.visible(path)}")
        for path in done.removed:
            call.note(f"  removed  {text.visible(path)}")
    if done.kept:
        kept = text.count(len(done.kept), "changed file")
        call.note(f"{kept} left alone, alike in both versions: {_listed(done.kept)}")
    if done.branch is None:
        call.note("commit from here with: mstore commit --branch NAME")


def _branch(call: Invocation, revision: str) -> str | None:
    """The branch that HEAD is to be on."""
    if revision in ("HEAD", "@"):
        return call.head.branch if call.head else None
    return revision if revision in call.refs.branches else None


def _restore(call: Invocation, commit: Id, paths: Sequence[str], force: bool) -> None:
    tree = call.worktree_writer()
    chosen = [inside(tree.directory, path) for path in paths]
    snapshot = call.db.snapshot(call.db.commit(commit).snapshot)
    with progress(call, "checking out") as told:
        written = tree.restore(snapshot, chosen, force=force, progress=told)
    _tell_written(call, commit, tree.directory, written)


def _write_out(call: Invocation, commit: Id, paths: Sequence[str], out: Path, force: bool) -> None:
    from mstore.ops.checkout import write_out

    snapshot = call.db.snapshot(call.db.commit(commit).snapshot)
    directory = call.place.directory
    named = [inside(directory, path) if directory else path.strip("/") for path in paths]
    chosen = _select(snapshot, named) if named else list(snapshot.files)
    with progress(call, "writing") as told:
        told.begin(sum(snapshot.files[path].size for path in chosen))
        write_out(call.db, snapshot, out, paths=chosen, force=force, progress=told.advance)
    _tell_written(call, commit, out, chosen)


def _select(snapshot: Snapshot, named: Sequence[str]) -> list[str]:
    """The files that are named, or lie in folders that are."""
    chosen = []
    for name in named:
        found = [
            path for path in snapshot.files if name in (".", path) or path.startswith(f"{name}/")
        ]
        if not found:
            raise NotFoundError(
                f"there is no {name} in that version", hint="see what there is with: mstore show"
            )
        chosen += found
    return sorted(set(chosen))


def _tell_written(call: Invocation, commit: Id, where: Path, written: Sequence[str]) -> None:
    if call.json:
        output.document(
            {"commit": commit.hex(), "directory": str(where.absolute()), "written": list(written)}
        )
        return
    files = text.count(len(written), "file")
    call.note(f"{files} of {text.short(commit)} written into {text.visible(str(where))}")
    if call.verbose:
        for path in written:
            call.note(f"  {text.visible(path)}")


def _listed(paths: Sequence[str]) -> str:
    shown = ", ".join(text.visible(path) for path in paths[:5])
    return shown + (f" and {len(paths) - 5} more" if len(paths) > 5 else "")


def _document(done: "CheckedOut") -> dict[str, object]:
    return {
        "commit": done.commit.hex(),
        "branch": done.branch,
        "written": list(done.written),
        "removed": list(done.removed),
        "kept": list(done.kept),
    }
