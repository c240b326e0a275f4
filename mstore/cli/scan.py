"""`mstore scan`."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from mstore.cli import output, text
from mstore.cli.failures import MALFORMED, code_of
from mstore.cli.invocation import Invocation, command, complete_revision
from mstore.errors import InvalidInputError, NoRepositoryError, NotFoundError
from mstore.formats.base import Finding
from mstore.formats.hazards import DANGERS
from mstore.ids import Id
from mstore.ops.hazards import Scanned, scan_directory, scan_snapshot
from mstore.ops.scan import FoundFile, Scan
from mstore.worktree_read import find_worktree

_COLORS = {"dangerous": "red", "malformed": "red", "unreadable": "red", "unknown": "yellow"}
_COLORS |= {"ok": "green", "opaque": "bright_black"}
"""The verdicts, worst first."""

_MAX_SHOWN = 10
_WIDTH = len("unreadable")
_INDENT = " " * (_WIDTH + 2)


@command(
    "scan",
    examples="""
mstore scan model.pt
mstore scan downloads/
mstore scan v1.0
mstore scan main~2:checkpoints/last.ckpt -v
""",
)
@click.argument("targets", metavar="[PATH|REV]...", nargs=-1, shell_complete=complete_revision)
def scan(call: Invocation, targets: tuple[str, ...]) -> None:
    """Tell what model files would do if their own libraries loaded them.

    Nothing is loaded, imported or run for this. What loading a file would call, read or fetch
    besides its tensors is judged by lists: it is allowed (shown with -v), dangerous, or unknown,
    which means what it says. A file is malformed if it breaks the rules of its own format, and
    opaque if it is of none that is known here: then nothing is said of it.

    A PATH is a file or folder, here or anywhere; without any it is the current directory. Folders
    are looked through whole, but in the working directory what .mstoreignore names is left out. A
    REV is a version in the repository, or the file or folder REV:PATH of it. What is there as a
    PATH is taken for that.

    Ends with 13 when a file is dangerous or malformed, with 0 when the worst is unknown.
    """
    found: list[_Found] = []
    for target in targets or (".",):
        commit = None
        for one in _scanned(call, target):
            found.append(one)
            if call.json:
                continue
            if one.commit is not None and one.commit != commit:
                commit = one.commit
                output.data(click.style(f"version {text.short(commit)}", fg="yellow"))
            _print(one.file, everything=call.verbose)
    if call.json:
        output.document(_document(found))
    else:
        _print_summary(call, found)
    if code := _code(found):
        click.get_current_context().exit(code)


@dataclass(frozen=True, slots=True)
class _Found:
    """A judged file, and the version that it is in if it is none on disk."""

    file: Scanned
    commit: Id | None = None

    @property
    def verdict(self) -> str:
        """The word that the line begins with."""
        return self.file.hazards.verdict if self.file.hazards is not None else "unreadable"


def _scanned(call: Invocation, target: str) -> Iterator[_Found]:
    """The files that are meant by `target`; those on disk are called as they can be from here."""
    path = Path(target)
    if not os.path.lexists(path):
        yield from _in_version(call, target)
    elif path.is_dir():
        yield from _in_folder(call, path)
    else:
        try:
            found = FoundFile(path.name, path.stat())
        except OSError as error:
            raise NotFoundError(f"cannot read {target}: {error.strerror}") from error
        for one in scan_directory(path.parent, [found]):
            yield _Found(replace(one, path=target))


def _in_folder(call: Invocation, folder: Path) -> Iterator[_Found]:
    scan = Scan(folder, ignore=find_worktree(Path.cwd()) == folder.resolve())
    for one in scan_directory(folder, scan.files()):
        yield _Found(replace(one, path=str(folder / one.path)))
    for warning in scan.warnings:
        call.warn(text.visible(str(folder / warning)))
    if scan.left_out:
        left_out = text.count(scan.left_out, "file or folder", "files or folders")
        call.note(f".mstoreignore leaves out {left_out}; scan them by name")


def _in_version(call: Invocation, target: str) -> Iterator[_Found]:
    try:
        located = call.locate(target)
    except NoRepositoryError:
        raise NotFoundError(f"there is no file or folder {target}") from None
    except (NotFoundError, InvalidInputError) as error:
        message = f"there is no file or folder {target} here; as a version: {error.message}"
        raise NotFoundError(message, hint=error.hint) from error
    snapshot = call.db.snapshot(call.db.commit(located.commit).snapshot)
    for one in scan_snapshot(call.db, snapshot, located.files):
        yield _Found(one, located.commit)


def _print(file: Scanned, *, everything: bool) -> None:
    hazards = file.hazards
    if hazards is None:
        _print_line("", "unreadable", file.path)
        _print_line(_INDENT, "unreadable", file.error.message if file.error else "")
        return
    _print_line("", hazards.verdict, file.path, hazards.format)
    if hazards.problem is not None:
        _print_line(_INDENT, "malformed", hazards.problem)
    for danger in DANGERS:
        places = _places(hazards.of(danger))
        if danger == "allowed" and not everything:
            continue
        shown = len(places) if everything else _MAX_SHOWN
        for what, where in list(places.items())[:shown]:
            _print_line(_INDENT, danger, f"{what}{_at(where)}")
        if len(places) > shown:
            _print_line(_INDENT, danger, f"… and {len(places) - shown} more; all of them with -v")
    if hazards.left_out:
        output.data(f"{_INDENT}… and {hazards.left_out} more findings")


def _print_line(indent: str, word: str, what: str, more: str = "") -> None:
    shown = click.style(f"{word:<{_WIDTH}}", fg=_COLORS.get(word))
    more = f"  {click.style(more, fg='bright_black')}" if more else ""
    output.data(f"{indent}{shown}  {text.visible(what)}{more}")


def _places(findings: Iterable[Finding]) -> dict[str, list[str]]:
    """What was found, each with the places in the file where it was."""
    places: dict[str, list[str]] = {}
    for finding in findings:
        places.setdefault(finding.what, []).append(finding.where)
    return places


def _at(places: Sequence[str]) -> str:
    """The first of these places, and how many more there are."""
    more = f" and {text.count(len(places) - 1, 'more place')}" if len(places) > 1 else ""
    return f", at {places[0]}{more}" if places[0] else more


def _print_summary(call: Invocation, found: Sequence[_Found]) -> None:
    counts = Counter(one.verdict for one in found)
    said = [
        click.style(f"{counts[word]:,} {word}", fg=color)
        for word, color in _COLORS.items()
        if counts[word]
    ]
    files = text.count(len(found), "file")
    output.data(f"{files}: {', '.join(said)}" if said else files)
    if counts["opaque"]:
        call.note("opaque files are of no format known here, so nothing is said of them")


def _code(found: Iterable[_Found]) -> int:
    """The exit code: what is dangerous or malformed counts before what could not be read."""
    if any(one.verdict in ("dangerous", "malformed") for one in found):
        return MALFORMED
    return max((code_of(one.file.error) for one in found if one.file.error), default=0)


def _document(found: Iterable[_Found]) -> dict[str, Any]:
    files = [_file_document(one) for one in found]
    return {"files": files, "counts": Counter(file["verdict"] for file in files)}


def _file_document(one: _Found) -> dict[str, Any]:
    file, hazards = one.file, one.file.hazards
    return {
        "path": file.path,
        "commit": one.commit.hex() if one.commit is not None else None,
        "bytes": file.size,
        "format": (hazards.format or None) if hazards else None,
        "verdict": one.verdict,
        "problem": hazards.problem if hazards else None,
        "findings": [
            {"danger": finding.danger, "what": finding.what, "where": finding.where}
            for finding in (hazards.findings if hazards else ())
        ],
        "findings_left_out": hazards.left_out if hazards else 0,
        "error": file.error.message if file.error else None,
    }
