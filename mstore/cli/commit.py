"""`mstore commit`."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from mstore.author import local_zone
from mstore.checks import MetadataValue, check_metadata
from mstore.cli import output, text
from mstore.cli.failures import InterruptionError, Misuse
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.cli.place import inside
from mstore.cli.progress import progress
from mstore.errors import ConflictError, InvalidInputError, MstoreError
from mstore.ids import Id
from mstore.ops.commit import Content, Description, Recorded, Target, record
from mstore.ops.opening import open_files
from mstore.ops.revisions import DEFAULT_BRANCH, check_name
from mstore.ops.scan import Scan
from mstore.settings import Settings

_WORTH_A_RATE = 1_000_000


@dataclass(frozen=True, slots=True)
class _Outcome:
    """What was recorded, on which branch, in how many seconds, and what is to be told."""

    recorded: Recorded
    branch: str
    seconds: float
    warnings: Sequence[str]


@command(
    "commit",
    examples="""
mstore commit -m "lower learning rate" --meta loss=0.31 --meta epoch=4
mstore commit -m "new tokenizer" tokenizer.json vocab.txt
mstore commit --branch try-lr
mstore -C runs/7 --repo /srv/models --model bert commit
mstore --model bert-legal commit --base bert:v1.0
""",
)
@click.argument("paths", metavar="[PATH]...", nargs=-1)
@click.option("-m", "--message", metavar="MSG", default="", help="What there is to say about it.")
@click.option("--meta", metavar="KEY=VALUE", multiple=True, help="A value to record with it.")
@click.option("--branch", metavar="NAME", help="Make this branch and commit onto it.")
@click.option(
    "--onto", metavar="REV", help="With --repo: what this was made from; a conflict if it moved."
)
@click.option(
    "--base",
    metavar="REV",
    multiple=True,
    shell_complete=complete_revision,
    help="A version that this was made from, to code tensors against.",
)
@click.option("--rehash", is_flag=True, help="Read all files, whatever their times say.")
@click.option(
    "--refuse-unsafe/--no-refuse-unsafe",
    default=None,
    help="Refuse files that would run code when loaded, or do not, whatever the setting.",
)
@click.option("--author", metavar="NAME", help="Who made it, if not you.")
def commit(
    call: Invocation,
    paths: tuple[str, ...],
    message: str,
    meta: tuple[str, ...],
    branch: str | None,
    onto: str | None,
    base: tuple[str, ...],
    rehash: bool,
    refuse_unsafe: bool | None,
    author: str | None,
) -> None:
    """Record a version of the working directory.

    It holds all files but those that .mstoreignore names, or only what changed at the PATHs with
    the rest as HEAD has it. A VALUE of --meta that is JSON (a number, true, a list, …) is recorded
    as that, other text as it is.

    Files whose size and times are as before are not read again. A program that writes through a
    memory map (np.memmap) may leave the times as they are; then use --rehash. It also looks for
    tensors in all files again, for when mstore has learnt about a format, or mstore[hdf5] has been
    installed, since they were recorded.

    Tensors that changed are stored as their differences from those of the version before, or from
    similar ones in the repository, where that takes less. With --base, which can be given several
    times, name what they were made from, of whatever branch or model: that is looked at first.

    Of a file that would run code when its own library loads it you are warned; it is stored, which
    runs nothing. With --refuse-unsafe, or where the repository's setting says so (see mstore
    config), a commit is refused because of such a file, if it is new or changed, and ends with 13.

    With --repo, and no working directory of that repository here, the files of the current
    directory are recorded as the next version of a branch (main, or --branch). Name the version
    they were made from with --onto, and nobody else's version is passed over unseen.
    """
    description = Description(
        author or call.author, message, local_zone(), parse_metadata(meta) or None
    )
    start = call.refs.branches
    bases = [call.resolve(revision) for revision in base]
    try:
        if call.place.directory is not None:
            if onto is not None:
                raise Misuse("a working directory knows what it was made from; leave out --onto")
            outcome = _commit_worktree(
                call, paths, description, branch, bases, rehash, refuse_unsafe
            )
        else:
            if paths:
                raise Misuse("PATH needs a working directory", hint="go there, or leave it out")
            branch = branch or DEFAULT_BRANCH
            outcome = _commit_directory(
                call, Path.cwd(), description, branch, onto, bases, refuse_unsafe
            )
    except KeyboardInterrupt:
        raise InterruptionError(_what_was_recorded(call, start)) from None
    for warning in outcome.warnings:
        call.warn(text.visible(warning))
    _print(call, outcome)


def parse_metadata(pairs: Sequence[str]) -> dict[str, MetadataValue]:
    """The values of `KEY=VALUE` options; raises Misuse for what cannot be recorded."""
    values: dict[str, MetadataValue] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not key or not separator:
            raise Misuse(f"--meta {pair!r} is not KEY=VALUE", hint="for example: --meta loss=0.3")
        if key in values:
            raise Misuse(f"--meta {key} is given twice")
        try:
            values[key] = json.loads(value)
        except (ValueError, RecursionError):
            values[key] = value
    try:
        return check_metadata(values)
    except InvalidInputError as error:
        raise Misuse(f"--meta: {error.message}", hint=error.hint) from error


def _commit_worktree(
    call: Invocation,
    paths: Sequence[str],
    description: Description,
    branch: str | None,
    bases: Sequence[Id],
    rehash: bool,
    refuse_unsafe: bool | None,
) -> _Outcome:
    tree = call.worktree()
    if call.model != tree.head.model:
        raise InvalidInputError(
            f"the working directory is of model {tree.head.model}, not {call.model}",
            hint=f"go to that model with: mstore --model {call.model} checkout REV",
        )
    chosen = [inside(tree.directory, path) for path in paths] or None
    began = time.perf_counter()
    with progress(call, "recording") as told:
        recorded = tree.commit(
            description,
            paths=chosen,
            branch=branch,
            bases=bases,
            rehash=rehash,
            refuse_unsafe=refuse_unsafe,
            progress=told,
        )
    return _Outcome(recorded, tree.head.branch or "", time.perf_counter() - began, tree.warnings)


def _commit_directory(
    call: Invocation,
    directory: Path,
    description: Description,
    branch: str,
    onto: str | None,
    bases: Sequence[Id],
    refuse_unsafe: bool | None,
) -> _Outcome:
    """Record the files of a directory that is nobody's working directory."""
    if Path(call.place.storage.location).is_relative_to(directory):
        raise ConflictError(
            f"the repository lies in {directory}, so it would be recorded in itself",
            hint="name another directory with -C",
        )
    tip = call.db.refresh().refs(call.model).branches.get(check_name("branch", branch))
    start = call.resolve(onto) if onto is not None else tip
    if tip is not None and start != tip:
        raise ConflictError(
            f"branch {branch} has moved on from {onto}, to {text.short(tip)}",
            hint="look at it with `mstore diff`, or commit onto a new branch with --branch NAME",
        )
    scan = Scan(directory)
    found = scan.files()
    refuse = Settings.of(call.db.root.settings).refuses(refuse_unsafe)
    content = Content(
        lambda: open_files(directory, found, scan.warnings, refuse=refuse),
        {},
        frozenset(file.path for file in found if file.executable),
    )
    target = Target(call.model, branch, tip, (start,) if start else ())
    began = time.perf_counter()
    with progress(call, "recording") as told:
        told.begin(sum(file.stat.st_size for file in found))
        recorded = record(call.db, target, content, description, bases=bases, progress=told.advance)
    return _Outcome(recorded, branch, time.perf_counter() - began, scan.warnings)


def _print(call: Invocation, outcome: _Outcome) -> None:
    recorded, seconds = outcome.recorded, outcome.seconds
    if call.json:
        output.document(
            {
                "id": recorded.id.hex(),
                "created": recorded.created,
                "model": call.model,
                "branch": outcome.branch,
                "files": len(recorded.snapshot.files),
                "bytes": recorded.logical,
                "bytes_read": recorded.read,
                "bytes_stored": recorded.stored,
                "seconds": round(seconds, 3),
                "warnings": list(outcome.warnings),
            }
        )
        return
    if call.quiet:
        output.data(recorded.id.hex())
        return
    where = f"{click.style(text.short(recorded.id), fg='yellow')} on {outcome.branch}"
    files = text.count(len(recorded.snapshot.files), "file")
    if not recorded.created:
        output.data(f"nothing to commit, {where} has the same {files}")
        return
    output.data(f"{where}: {files}, {text.size(recorded.logical)}")
    output.data(_effort(recorded, seconds))


def _effort(recorded: Recorded, seconds: float) -> str:
    """What was stored, how much that is of the whole where it is a part, and how fast."""
    said = f"stored {text.size(recorded.stored)} of {text.size(recorded.logical)}"
    if recorded.stored <= recorded.logical:
        said += f", {text.share(recorded.stored, recorded.logical)}"
    said += f", in {seconds:.1f} s"
    if recorded.read >= _WORTH_A_RATE:
        said += f" ({text.size(int(recorded.read / seconds))}/s)"
    return said


def _what_was_recorded(call: Invocation, before: Mapping[str, Id]) -> str:
    """What an interrupted commit came to: publishing is one moment, before it there is nothing."""
    try:
        now = call.db.refresh().refs(call.model).branches
    except MstoreError:
        return "see `mstore log` for whether the version was recorded"
    moved = [name for name, tip in now.items() if before.get(name) != tip]
    if not moved:
        return "nothing was recorded"
    return f"branch {moved[0]} moved meanwhile, see: mstore status"
