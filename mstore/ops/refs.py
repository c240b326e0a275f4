"""Branches and tags: create, move, delete; and going back to earlier refs (`undo`)."""

from collections.abc import Mapping
from dataclasses import replace

from mstore.database import Database
from mstore.errors import ConflictError, InvalidInputError, NotFoundError
from mstore.ids import Id
from mstore.ops.reachable import with_rescued
from mstore.ops.revisions import check_name
from mstore.root import Root


def create_branch(db: Database, model: str, name: str, commit: Id, *, author: str) -> None:
    """Make branch `name` at `commit`; raises ConflictError when it exists."""
    _create(db, model, "branch", name, commit, author)


def create_tag(db: Database, model: str, name: str, commit: Id, *, author: str) -> None:
    """Make tag `name` at `commit`; raises ConflictError when it exists."""
    _create(db, model, "tag", name, commit, author)


def _create(db: Database, model: str, kind: str, name: str, commit: Id, author: str) -> None:
    check_name(kind, name)
    check_name("model", model)

    def change(root: Root) -> Root:
        refs = root.refs(model)
        # One name for a branch and a tag would leave it open which of them a revision means.
        for taken, names in (("branch", refs.branches), ("tag", refs.tags)):
            if name in names:
                raise ConflictError(
                    f"there is a {taken} called {name} already, at {names[name].hex()[:12]}",
                    hint=f"choose another name, or delete it with: mstore {taken} --delete {name}",
                )
        kept = with_rescued(db, root, [commit])
        made = refs.with_branch if kind == "branch" else refs.with_tag
        return kept.with_refs(model, made(name, commit))

    db.publish(change, action=f"{kind} {name}", author=author)


def delete_branch(db: Database, model: str, name: str, *, author: str) -> Id:
    """Delete branch `name`; returns where it was. Raises NotFoundError when there is none."""
    where: list[Id] = []

    def change(root: Root) -> Root:
        refs = root.refs(model)
        where[:] = [_there(refs.branches, "branch", name)]
        return root.with_refs(model, refs.with_branch(name, None))

    db.publish(change, action=f"delete branch {name}", author=author)
    return where[0]


def delete_tag(db: Database, model: str, name: str, *, author: str) -> Id:
    """Delete tag `name`; returns where it was. Raises NotFoundError when there is none."""
    where: list[Id] = []

    def change(root: Root) -> Root:
        refs = root.refs(model)
        where[:] = [_there(refs.tags, "tag", name)]
        return root.with_refs(model, refs.with_tag(name, None))

    db.publish(change, action=f"delete tag {name}", author=author)
    return where[0]


def undo(db: Database, *, author: str, to: int | None = None) -> Root:
    """Publish the refs as they were before the last operation that changed them.

    Doing it again goes back one operation further; `to` goes to the refs of that root instead
    (also forward again). Returns the root whose refs are back. Raises NotFoundError when the log
    does not reach that far, ConflictError when gc has removed what those refs need.
    """
    goal: list[Root] = []

    def change(root: Root) -> Root | None:
        target = _root_to_restore(db, root, to)
        goal[:] = [target]
        if target.models == root.models:
            return None
        kept = with_rescued(db, root, sorted(target.tips()))
        return replace(kept, models=target.models, restores=target.number)

    db.publish(change, action=f"undo to {to}" if to else "undo", author=author)
    return goal[0]


def _root_to_restore(db: Database, root: Root, to: int | None) -> Root:
    if to is not None:
        if not 1 <= to <= root.number:
            raise InvalidInputError(f"there is no root {to}", hint="see: mstore reflog")
        try:
            return db.log.read(to)
        except NotFoundError:
            raise NotFoundError(f"root {to} is no longer kept", hint="see: mstore reflog") from None
    roots = {kept.number: kept for kept in db.log.history()}
    position = _origin(roots, root.number)
    for number in sorted(roots, reverse=True):
        if number < position and roots[number].models != root.models:
            return roots[number]
    raise NotFoundError("there is nothing to undo", hint="see: mstore reflog")


def _origin(roots: Mapping[int, Root], number: int) -> int:
    """The number of the operation that first made the refs as they are in root `number`.

    A root made by an undo stands for the root it restored, for what lies between is undone
    already; and one that left the refs as they were (gc) stands for the one before it.
    """
    while number in roots:
        root, before = roots[number], roots.get(number - 1)
        if root.restores is not None and root.restores < number:
            number = root.restores
        elif before is not None and before.models == root.models:
            number -= 1
        else:
            break
    return number


def _there(names: Mapping[str, Id], kind: str, name: str) -> Id:
    if name not in names:
        known = ", ".join(sorted(names)[:8]) or "none"
        raise NotFoundError(f"there is no {kind} {name!r}", hint=f"those there are: {known}")
    return names[name]
