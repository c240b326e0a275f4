"""Which commit a person means: `main`, `v1`, `3f9a`, `HEAD`, `main~2`, `v1^`, `bert:main`.

And which file of it: `main:model.pt`, `main~2:runs/a`, `bert:main:model.pt`.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches

from mstore.database import Database
from mstore.errors import InvalidInputError, NotFoundError
from mstore.ids import Id
from mstore.root import Refs

DEFAULT_MODEL = "default"
DEFAULT_BRANCH = "main"

_NAME = re.compile(r"[^\s\x00-\x20\x7f~^:*?\[\\]+")
_HEX = re.compile(r"[0-9a-f]{4,64}")
_STEP = re.compile(r"\^|~(\d*)", re.ASCII)
_SPLIT = re.compile(r"(?:([^~^:]+):)?([^~^:]+)((?:\^|~\d{0,9})*)", re.ASCII)


def check_name(kind: str, name: str) -> str:
    """`name`, if a branch, tag or model (`kind`) may be called so; else InvalidInputError."""
    parts = name.split("/")
    if (
        not _NAME.fullmatch(name)
        or not name.isprintable()
        or len(name) > 200
        or name in ("HEAD", "@")
        or name.startswith("-")
        or any(part in ("", ".", "..") for part in parts)
    ):
        raise InvalidInputError(
            f"{name!r} cannot be the name of a {kind}",
            hint="use letters, digits and - _ . /, without spaces",
        )
    return name


def resolve(db: Database, model: str, revision: str, head: Id | None = None) -> Id:
    """The commit that `revision` names in `model`; `head` is what HEAD stands for.

    `bert:main` is `main` of the model bert. Without a working directory HEAD is the tip of the
    default branch. Raises NotFoundError with the nearest names, InvalidInputError for what is no
    revision, or an ambiguous id prefix.
    """
    match = _match(revision)
    if match[1] is not None and match[1] != model:
        if match[1] not in db.root.models:
            raise unknown_model(match[1], db)
        model, head = match[1], None
    commit = _start(db, model, match[2], head)
    for _ in range(_steps(match[3])):
        if not (parents := db.parents(db.commit(commit))):
            raise NotFoundError(
                f"{revision} goes back further than the history: "
                f"{commit.hex()[:12]} has no parent here"
            )
        commit = parents[0]
    return commit


@dataclass(frozen=True, slots=True)
class Located:
    """Files of a version: `revision` names it, `path` is that of a file or folder, or empty.

    `files` are the paths of that file, of all in that folder, or of all in the version.
    """

    commit: Id
    revision: str
    path: str
    files: tuple[str, ...]


def locate(db: Database, model: str, text: str, head: Id | None = None) -> Located:
    """The files that `text` names: those of a version, or some after a revision and a colon.

    What is a revision as a whole is only that, so `bert:main` is `main` of the model bert if there
    is such; `bert~0:main` is always a path. Raises as `resolve` does, NotFoundError with the
    nearest paths.
    """
    with suppress(NotFoundError, InvalidInputError):
        return files_of(db, resolve(db, model, text, head), text, "")
    parts, missing = text.split(":"), None
    for count in range(1, min(len(parts), 3)):
        revision, path = ":".join(parts[:count]), ":".join(parts[count:])
        try:
            commit = resolve(db, model, revision, head)
        except (NotFoundError, InvalidInputError):
            continue
        try:
            return files_of(db, commit, revision, path)
        except NotFoundError as error:
            missing = missing or error
    if missing is not None:
        raise missing
    # It is the revision that is wrong, and this tells how.
    known = parts[0] in db.root.models
    return files_of(db, resolve(db, model, ":".join(parts[: 1 + known]), head), text, "")


def files_of(db: Database, commit: Id, revision: str, path: str) -> Located:
    """The files at or under `path` in a commit that is called `revision`; all for an empty path.

    Raises NotFoundError with the nearest paths.
    """
    files = db.snapshot(db.commit(commit).snapshot).files
    if path not in files:
        path = path.removeprefix("./").rstrip("/")
    if not path:
        return Located(commit, revision, "", tuple(files))
    found = [path] if path in files else [one for one in files if one.startswith(f"{path}/")]
    if not found:
        close = get_close_matches(path, files, n=3, cutoff=0.5)
        hint = f"nearest paths: {', '.join(close)}" if close else f"see: mstore show {revision}"
        raise NotFoundError(f"there is no file {path!r} in {revision}", hint=hint)
    return Located(commit, revision, path, tuple(found))


def earlier(revision: str, steps: int) -> str:
    """What to call the version `steps` before `revision`: 2 before `main^` is `main~3`.

    Raises InvalidInputError for what is no revision.
    """
    match = _match(revision)
    steps += _steps(match[3])
    return revision[: match.start(3)] + (f"~{steps}" if steps else "")


def _match(revision: str) -> re.Match[str]:
    if not (match := _SPLIT.fullmatch(revision)):
        raise InvalidInputError(f"{revision!r} is not a revision")
    return match


def _steps(walked: str) -> int:
    """How many versions back `~2^~` goes."""
    return sum(
        int(step[1] or 1) if step[0].startswith("~") else 1 for step in _STEP.finditer(walked)
    )


def _start(db: Database, model: str, name: str, head: Id | None) -> Id:
    refs = db.root.refs(model)
    if name in ("HEAD", "@"):
        if (commit := head or refs.branches.get(DEFAULT_BRANCH)) is None:
            raise _no_head(model, refs, db)
        return commit
    for names in (refs.branches, refs.tags):
        if name in names:
            return names[name]
    if _HEX.fullmatch(name):
        found = db.commits_with_prefix(name)
        if len(found) == 1:
            return found[0]
        if found:
            listed = ", ".join(commit.hex()[: len(name) + 4] for commit in found[:5])
            raise InvalidInputError(f"{name} is short for several commits: {listed}")
    raise _unknown(name, model, refs, db)


def _no_head(model: str, refs: Refs, db: Database) -> NotFoundError:
    if refs.branches:
        near = ", ".join(sorted(refs.branches)[:5])
        return NotFoundError(f"there is no branch {DEFAULT_BRANCH}", hint=f"branches: {near}")
    if model not in db.root.models and db.root.models:
        return unknown_model(model, db)
    return NotFoundError("there are no commits yet", hint="make one with: mstore commit")


def unknown_model(model: str, db: Database) -> NotFoundError:
    """The error for a model that is not in the repository, naming those that are."""
    near = ", ".join(sorted(db.root.models)[:8])
    return NotFoundError(f"there is no model {model!r}", hint=f"models here: {near}")


def _unknown(name: str, model: str, refs: Refs, db: Database) -> NotFoundError:
    names = [*refs.branches, *refs.tags]
    if not names and model not in db.root.models and db.root.models:
        return unknown_model(model, db)
    close = get_close_matches(name, names, n=3, cutoff=0.4) or sorted(names)[:5]
    hint = f"nearest names: {', '.join(close)}" if close else "there are no commits yet"
    return NotFoundError(f"unknown revision {name!r}", hint=hint)
