"""How a commit is shown: as lines for people, and as JSON."""

from collections.abc import Iterator, Mapping

import click

from mstore.cli import text
from mstore.cli.invocation import Invocation
from mstore.head import Head
from mstore.ids import Id
from mstore.objects import Commit


class Describer:
    """Describes commits of the model meant, with the names that stand at them."""

    def __init__(self, call: Invocation) -> None:
        self._verbose = call.verbose
        self._head = call.head
        self._branches = _by_commit(call.refs.branches)
        self._tags = _by_commit(call.refs.tags)

    def oneline(self, identifier: Id, commit: Commit) -> str:
        """Id, names, first line of the message, metadata."""
        parts = [self._id(identifier), self.names(identifier), text.first_line(commit.message)]
        if commit.metadata:
            parts.append(click.style(text.metadata(commit.metadata), fg="cyan"))
        return " ".join(part for part in parts if part)

    def lines(self, identifier: Id, commit: Commit) -> Iterator[str]:
        """All that is said about a version, and an empty line between that and its message."""
        head = ("commit", self._id(identifier), self.names(identifier))
        yield " ".join(part for part in head if part)
        yield f"author {text.visible(commit.author)}"
        yield f"date   {text.date(commit.time, commit.zone)} ({text.age(commit.time)})"
        if commit.metadata:
            yield f"meta   {click.style(text.metadata(commit.metadata), fg='cyan')}"
        if self._verbose:
            for parent in commit.parents:
                yield f"parent {parent.hex()}"
            yield f"files  {commit.snapshot.hex()}"
        if commit.message.strip():
            yield ""
            for line in commit.message.strip().splitlines():
                yield f"    {text.visible(line)}".rstrip()

    def names(self, identifier: Id) -> str:
        """The branches and tags at a commit, as `(HEAD -> main, tag: v1)`; empty for none."""
        shown = []
        at_head = self._head is not None and self._head.commit == identifier
        on = self._head.branch if self._head is not None and at_head else None
        if at_head and on not in self._branches.get(identifier, []):
            shown.append(click.style("HEAD", fg="cyan", bold=True))
        for name in sorted(self._branches.get(identifier, []), key=lambda name: name != on):
            arrow = click.style("HEAD -> ", fg="cyan", bold=True) if name == on else ""
            shown.append(arrow + click.style(text.visible(name), fg="green", bold=True))
        shown += [
            click.style(f"tag: {text.visible(name)}", fg="magenta", bold=True)
            for name in self._tags.get(identifier, [])
        ]
        return f"({', '.join(shown)})" if shown else ""

    def document(self, identifier: Id, commit: Commit) -> dict[str, object]:
        """Everything, for JSON."""
        return {
            "id": identifier.hex(),
            "parents": [parent.hex() for parent in commit.parents],
            "snapshot": commit.snapshot.hex(),
            "author": commit.author,
            "time": text.moment(commit.time, commit.zone).isoformat(),
            "message": commit.message,
            "metadata": dict(commit.metadata),
            "branches": self._branches.get(identifier, []),
            "tags": self._tags.get(identifier, []),
            "head": self._head is not None and self._head.commit == identifier,
        }

    def _id(self, identifier: Id) -> str:
        shown = identifier.hex() if self._verbose else text.short(identifier)
        return click.style(shown, fg="yellow")


def head_document(head: Head) -> dict[str, object]:
    """HEAD, for JSON."""
    commit = head.commit.hex() if head.commit else None
    return {"model": head.model, "branch": head.branch, "commit": commit}


def _by_commit(names: Mapping[str, Id]) -> dict[Id, list[str]]:
    found: dict[Id, list[str]] = {}
    for name, commit in sorted(names.items()):
        found.setdefault(commit, []).append(name)
    return found
