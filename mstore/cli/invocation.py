"""One run of a command: the repository and the working directory it is about, opened at need.

`command` declares a command. Nothing here needs numpy.
"""

from collections.abc import Callable
from functools import cached_property, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click

from mstore.cli import output
from mstore.cli.options import Options, common_options
from mstore.cli.place import REPOSITORY_FOLDER, Place, find_place
from mstore.database import Database
from mstore.errors import InvalidInputError
from mstore.head import Head, HeadFile, has_commit
from mstore.ids import Id
from mstore.ops.revisions import DEFAULT_MODEL, Located, check_name, locate, resolve
from mstore.root import Refs

if TYPE_CHECKING:
    from mstore.worktree import Worktree
    from mstore.worktree_read import WorktreeReader
    from mstore.worktree_write import WorktreeWriter

P = ParamSpec("P")


class Invocation:
    """What the common options ask for, and the repository they lead to."""

    def __init__(self, options: Options) -> None:
        self.options = options

    @property
    def json(self) -> bool:
        """Whether the data is to be one JSON document."""
        return self.options.json

    @property
    def quiet(self) -> bool:
        """Whether messages are not wanted."""
        return self.options.quiet

    @property
    def verbose(self) -> bool:
        """Whether more detail is wanted."""
        return self.options.verbose

    @cached_property
    def place(self) -> Place:
        """The repository's storage and the working directory; raises NoRepositoryError."""
        return find_place(self.options.repo, Path.cwd())

    @cached_property
    def db(self) -> Database:
        """The repository; raises NoRepositoryError."""
        return Database.open(self.place.storage)

    @cached_property
    def directory_head(self) -> Head | None:
        """What the working directory shows, of whatever model; None when there is none."""
        folder = self.place.directory
        if folder is None:
            return None
        state = HeadFile(folder / REPOSITORY_FOLDER / "worktree")
        # The repository is opened only when it must be asked.
        return state.read(lambda commit: has_commit(self.db, commit))

    @property
    def model(self) -> str:
        """The model meant: the one named, else the one that the working directory shows."""
        if self.options.model is not None:
            return check_name("model", self.options.model)
        return self.directory_head.model if self.directory_head is not None else DEFAULT_MODEL

    @property
    def head(self) -> Head | None:
        """What the working directory shows of the model meant; None when it shows no such."""
        head = self.directory_head
        return head if head is not None and head.model == self.model else None

    @property
    def refs(self) -> Refs:
        """The branches and tags of the model, as last seen."""
        return self.db.root.refs(self.model)

    @cached_property
    def author(self) -> str:
        """Who does this."""
        # Asking git for it takes subprocess, and those who only look need no name.
        from mstore.author import default_author

        return default_author()

    def resolve(self, revision: str) -> Id:
        """The commit that a revision names."""
        head = self.head
        return resolve(self.db, self.model, revision, head.commit if head else None)

    def locate(self, text: str) -> Located:
        """The files of a version that `REV` or `REV:PATH` names."""
        head = self.head
        return locate(self.db, self.model, text, head.commit if head else None)

    def worktree_reader(self) -> "WorktreeReader":
        """The working directory, to look at; raises InvalidInputError when there is none."""
        # Which files count as its own takes pathspec, which most commands need not wait for.
        from mstore.worktree_read import WorktreeReader

        return WorktreeReader(self._directory(), self.db)

    def worktree_writer(self) -> "WorktreeWriter":
        """The working directory, to bring versions back into; raises as `worktree_reader` does."""
        # It needs numpy, which takes longer to import than most commands take.
        from mstore.worktree_write import WorktreeWriter

        return WorktreeWriter(self._directory(), self.db)

    def worktree(self) -> "Worktree":
        """The working directory, to record; raises as `worktree_reader` does."""
        # It needs all that stores files besides, which no other command does.
        from mstore.worktree import Worktree

        return Worktree(self._directory(), self.db)

    def _directory(self) -> Path:
        if self.place.directory is None:
            raise InvalidInputError(
                f"the repository {self.place.storage.location} has no working directory here",
                hint="go to the directory that `mstore init` was run for, or name it with -C",
            )
        return self.place.directory

    def note(self, text: str) -> None:
        """Tell the user, on stderr, unless quiet."""
        if not self.quiet:
            output.message(text)

    def warn(self, text: str) -> None:
        """Warn the user, on stderr, unless quiet."""
        if not self.quiet:
            output.warning(text)


class Explained(click.Command):
    """A command whose help ends in examples, and which takes the options common to all."""

    def __init__(self, *args: Any, examples: str, **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.examples = examples.strip().splitlines()
        self.params.extend(common_options(hidden=True))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The examples, line by line as they are, and where the other options are explained."""
        with formatter.section("Examples"):
            for line in self.examples:
                formatter.write(f"{'':>{formatter.current_indent}}{line}\n")
        formatter.write_paragraph()
        formatter.write_text("Also takes --repo, --model, --json, -q and -v; see: mstore --help")


def command(
    name: str, *, examples: str
) -> Callable[[Callable[Concatenate[Invocation, P], None]], click.Command]:
    """Declare the command `name`; its help is the docstring of the function, then `examples`."""

    def declare(function: Callable[Concatenate[Invocation, P], None]) -> click.Command:
        def start(*args: P.args, **kwargs: P.kwargs) -> None:
            options = click.get_current_context().ensure_object(Options)
            function(Invocation(options), *args, **kwargs)

        wrapped = update_wrapper(start, function)
        return click.command(name, cls=Explained, examples=examples)(wrapped)

    return declare


def complete_revision(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[str]:
    """For a shell: branches and tags that begin so; none when there is no repository to look at."""
    try:
        refs = Invocation(ctx.ensure_object(Options)).refs
    except Exception:
        # Whatever is wrong is told when the command runs, not while it is typed.
        return []
    names = ["HEAD", *sorted(refs.branches), *sorted(refs.tags)]
    return [name for name in names if name.startswith(incomplete)]
