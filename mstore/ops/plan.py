"""What a checkout is going to do, worked out before it does any of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mstore.errors import ConflictError
from mstore.objects import FileEntry, Snapshot
from mstore.ops.directory import Directory, folders_of
from mstore.ops.scan import FoundFile

Same = Callable[[FoundFile, FileEntry], bool]
"""Whether a found file is a stored one."""


@dataclass(slots=True)
class Plan:
    """Files to write, paths to remove, and changed files to leave alone.

    `lost` are the changes that would be overwritten or removed, of files that a commit records;
    `hidden` what would be overwritten that no commit records: ignored files, links to nothing.
    """

    write: dict[str, FileEntry] = field(default_factory=dict)
    remove: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    hidden: list[str] = field(default_factory=list)

    def refuse_to_lose(self) -> None:
        """Raise ConflictError if carrying this out overwrites what is stored nowhere."""
        if self.lost:
            raise ConflictError(
                f"{_listed(self.lost)} changed since HEAD, and would be overwritten",
                hint="commit first, or overwrite with --force",
            )
        if self.hidden:
            raise ConflictError(
                f"{_listed(self.hidden)} would be overwritten, and commits pass over what is there",
                hint="move it away, or overwrite it with --force",
            )


class Planner:
    """Plans from the files found in a directory and the `versions` that they may come from.

    These are HEAD, then those whose checkouts did not finish: a file that is as one of them has it
    is stored there, so it is no change of the user's.
    """

    def __init__(
        self, found: Iterable[FoundFile], versions: Sequence[Snapshot], same: Same
    ) -> None:
        self._found = {file.path: file for file in found}
        self._versions = versions
        self._same = same
        self._tracked = {path for version in versions for path in version.files}

    def go_to(self, after: Snapshot, *, force: bool) -> Plan:
        """Make the directory show `after`: changed files only give way to what is new in it.

        With `force` every file of it is brought back.
        """
        before = self._versions[0].files
        plan = Plan()
        for path, entry in after.files.items():
            if not force and before.get(path) == entry and self._is_change(path):
                if not self._is(path, entry):
                    plan.kept.append(path)
            else:
                self._write(plan, path, entry)
        self._remove(plan, self._tracked - after.files.keys())
        return plan

    def bring_back(self, entries: Mapping[str, FileEntry]) -> Plan:
        """Make some paths hold these files; others are removed only where they are in the way."""
        plan = Plan()
        for path, entry in entries.items():
            self._write(plan, path, entry)
        folders = {folder for path in entries for folder in folders_of(path)}
        in_the_way = {
            path
            for path in self._tracked - entries.keys()
            if path in folders or any(folder in entries for folder in folders_of(path))
        }
        self._remove(plan, in_the_way)
        return plan

    def look(
        self, plan: Plan, directory: Directory, holds: Callable[[str, FileEntry], bool]
    ) -> None:
        """Look at the place of every file to be written, for what the scan has passed over.

        `holds` says whether a path holds a file. Raises UnsafeInputError or ConflictError when
        something is in the way that may never be removed.
        """
        for path, entry in list(plan.write.items()):
            if directory.look(path) is None or path in self._found:
                continue
            known = (version.files.get(path) for version in self._versions)
            if holds(path, entry):
                del plan.write[path]
            elif not any(one is not None and holds(path, one) for one in known):
                plan.hidden.append(path)

    def _write(self, plan: Plan, path: str, entry: FileEntry) -> None:
        if not self._is(path, entry):
            plan.write[path] = entry
            if self._is_change(path):
                plan.lost.append(path)

    def _remove(self, plan: Plan, paths: Iterable[str]) -> None:
        plan.remove += sorted(path for path in paths if path in self._found)
        plan.lost += [path for path in plan.remove if self._is_change(path)]

    def _is(self, path: str, entry: FileEntry) -> bool:
        file = self._found.get(path)
        return file is not None and self._same(file, entry)

    def _is_change(self, path: str) -> bool:
        """Whether a file was found there whose content no version has at this path."""
        entries = (version.files.get(path) for version in self._versions)
        return path in self._found and not any(
            entry is not None and self._is(path, entry) for entry in entries
        )


def _listed(paths: Sequence[str]) -> str:
    return paths[0] + (f" and {len(paths) - 1} more files" if len(paths) > 1 else "")
