"""A diff as tables: files, then tensors, then totals."""

from collections.abc import Mapping, Sequence

import click

from mstore.cli import output, text
from mstore.cli.tables import Column, Table, cut_middle, cut_name
from mstore.layout import Tensor
from mstore.ops.changes import Change, Diff, FileChange, TensorAt, TensorChange, Totals
from mstore.ops.compare import Numbers

_SHOWN = 40


def print_diff(diff: Diff, *, tensors: bool, everything: bool, pattern: str | None = None) -> None:
    """Print a diff; `tensors` with those that changed, of which `everything` shows all.

    `pattern` is what limited the tensors that were looked at.
    """
    output.data()
    _print_files(diff.files)
    if tensors and diff.tensors:
        shown = diff.tensors if everything else diff.tensors[:_SHOWN]
        several = len(_by_file(diff, diff.tensors)) > 1
        for path, changes in _by_file(diff, shown).items():
            output.data()
            if path and several:
                output.data(f"  {click.style(text.visible(path), bold=True)}")
            _print_tensors(changes)
        if more := len(diff.tensors) - len(shown):
            output.data(f"  … and {more} more tensors (all with -v)")
        _print_broken(diff.tensors, paths=several)
    output.data()
    _print_totals(diff.totals, pattern)


def _print_files(changes: Sequence[FileChange]) -> None:
    table = Table([Column(), Column(cut=cut_middle), Column(right=True), Column()], indent=2)
    for change in changes:
        path = text.visible(change.path)
        if change.old_path is not None:
            path = f"{text.visible(change.old_path)} → {path}"
        table.add(change.kind.value, path, _sizes(change), _data(change))
    table.print()


def _sizes(change: FileChange) -> str:
    """The size of a file, before and after where that differs."""
    sizes = [text.size(entry.size) for entry in (change.before, change.after) if entry]
    return " → ".join(dict.fromkeys(sizes))


def _data(change: FileChange) -> str:
    """How much of the data is new, for a file that was there before."""
    if change.before is None or change.after is None:
        return ""
    if change.before.manifest == change.after.manifest:
        executable = change.after.executable
        if change.before.executable == executable:
            return ""
        return f"{'now' if executable else 'no longer'} executable"
    return f"{text.size(change.bytes_added)} new"


def _by_file(diff: Diff, changes: Sequence[TensorChange]) -> dict[str, list[TensorChange]]:
    """Changes by the path of the file, as it is now; by none where the row itself tells it."""
    now = {file.old_path: file.path for file in diff.files if file.old_path is not None}
    groups: dict[str, list[TensorChange]] = {}
    for change in changes:
        path = now.get(change.path, change.path) if change.after is None else change.path
        groups.setdefault("" if _tells_path(change) else path, []).append(change)
    return groups


def _tells_path(change: TensorChange) -> bool:
    return not change.name or change.kind is Change.MOVED


def _print_tensors(changes: Sequence[TensorChange]) -> None:
    """A table of those columns that tell anything about any of these."""
    kinds = any(change.kind is not Change.MODIFIED for change in changes)
    numbers = any(change.numbers is not None for change in changes)
    columns = [Column()] if kinds else []
    columns += [Column("tensor", cut=cut_name), Column("dtype and shape", extra=not kinds)]
    if numbers:
        columns += _NUMBER_COLUMNS
    table = Table(columns, indent=2)
    for change in changes:
        cells = [change.kind.value] if kinds else []
        cells += [_name(change), _type(change.before, change.after)]
        table.add(*cells, *(_number_cells(change.numbers) if numbers else ()))
    table.print()


def _name(change: TensorChange) -> str:
    name = change.name or change.path
    old = change.before.tensor.name if change.before else ""
    if change.kind is Change.RENAMED and old:
        return f"{text.visible(old)} → {text.visible(name)}"
    if change.kind is Change.MOVED and change.before is not None:
        return f"{text.visible(name)}: {text.visible(change.before.path)} → " + text.visible(
            change.path
        )
    return text.visible(name)


def _type(before: TensorAt | None, after: TensorAt | None) -> str:
    """`f32 [2, 3]`, or what it was and what it is."""
    if before is None or after is None:
        there = before or after
        return f"{there.tensor.dtype} {_shape(there.tensor)}" if there else ""
    old, new = before.tensor, after.tensor
    dtypes = dict.fromkeys((str(old.dtype), str(new.dtype)))
    shapes = dict.fromkeys((_shape(old), _shape(new)))
    return f"{' → '.join(dtypes)} {' → '.join(shapes)}"


def _shape(tensor: Tensor) -> str:
    return text.shape(tensor.shape) + (" F" if tensor.order == "F" else "")


_NUMBER_COLUMNS = (
    Column("changed", right=True),
    Column("rel. L2", right=True),
    Column("max |Δ|", right=True),
    Column("cosine", right=True, extra=True),
)


def _number_cells(numbers: Numbers | None) -> tuple[str, ...]:
    if numbers is None:
        return ("", "", "", "")
    relative = "∞" if numbers.relative is None else f"{numbers.relative:.3g}"
    cosine = "-" if numbers.cosine is None else f"{numbers.cosine:.6f}"
    return text.percent(numbers.fraction), relative, f"{numbers.largest:.3g}", cosine


def _print_broken(changes: Sequence[TensorChange], *, paths: bool) -> None:
    """Say which tensors, `paths` of which file, hold infinities or NaNs that they did not hold."""
    for change in changes:
        numbers = change.numbers
        if numbers is not None and numbers.nonfinite_after > numbers.nonfinite_before:
            elements = text.count(numbers.nonfinite_after, "element")
            where = f" in {text.visible(change.path)}" if paths and change.name else ""
            problem = f"  {elements} of {_name(change)}{where} infinite or not a number"
            before = numbers.nonfinite_before
            output.data(click.style(f"{problem} (before: {before:,})", fg="red", bold=True))


def _print_totals(totals: Totals, pattern: str | None) -> None:
    output.data(f"files    {_counts(totals.files)}, {totals.unchanged_files} unchanged")
    removed, added = text.size(totals.bytes_removed), text.size(totals.bytes_added)
    output.data(f"data     {added} new, {removed} gone")
    same = totals.unchanged_tensors
    parts = [_counts(totals.tensors), f"{same:,} unchanged" if same else ""]
    if told := ", ".join(part for part in parts if part):
        output.data(f"tensors  {told}")
    elif pattern is not None:
        output.data(f"tensors  none that match {text.visible(pattern)} changed")
    if totals.elements:
        share = text.share(totals.changed_elements, totals.elements)
        output.data(f"numbers  {share} of {totals.elements:,} elements changed")
        if totals.numbers is not None:
            _, relative, largest, cosine = _number_cells(totals.numbers)
            output.data(f"moved    rel. L2 {relative}, max |Δ| {largest}, cosine {cosine}")


def _counts(kinds: Mapping[Change, int]) -> str:
    return ", ".join(f"{number:,} {kind.value}" for kind, number in kinds.items())
