"""Write the generated parts of docs/: python tests/docs/generate.py [--check]

`docs/cli.md` and `docs/python.md` are written by hand around a reference that is made from the
command tree and from the docstrings, between two marks. `--check` writes nothing and fails if a
page is not up to date.
"""

import ast
import inspect
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import click

import mstore
from mstore import errors
from mstore.cli.main import SECTIONS, cli
from mstore.ops.changes import FileChange, TensorAt, TensorChange, Totals
from mstore.ops.compare import Numbers
from mstore.ops.export import Export, ExportedTensor
from mstore.ops.gc import LostCommit, Report
from mstore.ops.repack import RepackReport
from mstore.ops.stats import Deltas, Stats, StoredBytes, Version
from mstore.ops.verify import Damage, VerifyReport
from mstore.root import Refs, Root
from mstore.settings import Settings

DOCS = Path(__file__).parents[2] / "docs"
BEGIN = "<!-- made by tests/docs/generate.py from here -->"
END = "<!-- to here -->"

RETURNED: list[type] = [
    FileChange, TensorChange, TensorAt, Numbers, Totals,
    Export, ExportedTensor, Report, LostCommit, RepackReport, VerifyReport, Damage, Stats, StoredBytes, Deltas, Version, Root, Refs,
    Settings,
]  # fmt: skip
"""Types of values that methods of public classes give back, in the order of the page."""


def cli_reference() -> Iterator[str]:
    """Every command: what it does, how it is called, its options and examples."""
    yield "## Common options"
    yield "They may stand before or after the name of the command."
    yield from options_table(cli, click.Context(cli))
    for title, commands in SECTIONS.items():
        yield f"## {title}"
        for name in commands:
            command = cli.get_command(click.Context(cli), name)
            assert command is not None, name
            yield from command_reference(name, command)


def command_reference(name: str, command: click.Command) -> Iterator[str]:
    """One command."""
    context = click.Context(command, info_name=f"mstore {name}")
    yield f"### mstore {name}"
    yield fenced(" ".join([f"mstore {name}", *command.collect_usage_pieces(context)]))
    yield paragraphs(command.help)
    yield from options_table(command, context)
    if examples := getattr(command, "examples", None):
        yield "For example:"
        yield fenced("\n".join(examples))


def paragraphs(text: str | None) -> str:
    """Help as Markdown; what click is told to leave as it is (after a backspace) is fenced."""
    parts = inspect.cleandoc(text or "").split("\n\n")
    return "\n\n".join(
        fenced(part.removeprefix("\b").strip("\n")) if part.startswith("\b") else part
        for part in parts
    )


def options_table(command: click.Command, context: click.Context) -> Iterator[str]:
    """The options that the help shows."""
    rows = []
    for option in command.get_params(context):
        record = option.get_help_record(context)
        if record is not None and record[1] and "--help" not in option.opts:
            names, text = (part.replace("|", "\\|") for part in record)
            rows.append(f"| `{names}` | {text} |")
    if rows:
        yield "\n".join(["| option | |", "|---|---|", *rows])


def python_reference() -> Iterator[str]:
    """Every public name, then the values that their methods give back, then the errors."""
    yield "## Functions and classes"
    values = {name: getattr(mstore, name) for name in mstore.__all__ if name != "__version__"}
    for name in sorted(values, key=lambda name: (isinstance(values[name], type), name)):
        thing = values[name]
        if isinstance(thing, FunctionType):
            yield f"### mstore.{name}"
            yield fenced(f"mstore.{signature(thing, name)}", "text")
            yield docstring(thing)
        elif not issubclass(thing, Exception):
            yield from class_reference(f"mstore.{name}", thing)
    yield "## Values that are returned"
    for thing in RETURNED:
        yield from class_reference(thing.__name__, thing)
    yield "## Errors"
    rows = ["| error | below | when |", "|---|---|---|"]
    for name, thing in vars(errors).items():
        if isinstance(thing, type) and issubclass(thing, errors.MstoreError):
            below = ", ".join(f"`{base.__name__}`" for base in thing.__bases__)
            rows.append(f"| `mstore.{name}` | {below} | {docstring(thing).splitlines()[0]} |")
    yield "\n".join(rows)


def class_reference(title: str, thing: type) -> Iterator[str]:
    """One class: its docstring, and a list of what it has."""
    yield f"### {title}"
    yield docstring(thing)
    fields = getattr(thing, "__dataclass_fields__", {})
    if fields:
        yield "Fields: " + ", ".join(f"`{name}`" for name in fields) + "."
    rows = []
    for name, member in vars(thing).items():
        if name in fields or (name.startswith("_") and name not in ("__getitem__",)):
            continue
        if isinstance(member, FunctionType):
            rows.append(entry(signature(member, name), docstring(member)))
        elif isinstance(member, property) or hasattr(member, "func"):
            rows.append(entry(name, docstring(member)))
    if rows:
        yield "\n".join(rows)


def entry(head: str, text: str) -> str:
    """An item of a list: a name or signature, and what it is."""
    return f"- `{head}`\n\n{textwrap.indent(text, '  ')}\n"


def signature(function: Any, name: str) -> str:
    """A signature as the source spells it, without `self`."""
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    assert isinstance(node, ast.FunctionDef)
    arguments = ", ".join(part for part in parameters(node.args) if part != "self")
    returns = f" -> {spelled(node.returns)}" if node.returns else ""
    return f"[{arguments}]{returns}" if name == "__getitem__" else f"{name}({arguments}){returns}"


def parameters(arguments: ast.arguments) -> Iterator[str]:
    """Each parameter with its type and default; public functions have no others than these."""
    required = len(arguments.args) - len(arguments.defaults)
    for argument, default in zip(
        arguments.args, [None] * required + arguments.defaults, strict=True
    ):
        yield parameter(argument, default)
    if arguments.kwonlyargs:
        yield "*"
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        yield parameter(argument, default)


def parameter(argument: ast.arg, default: ast.expr | None) -> str:
    annotation = f": {spelled(argument.annotation)}" if argument.annotation else ""
    return argument.arg + annotation + (f" = {ast.unparse(default)}" if default else "")


def spelled(annotation: ast.expr) -> str:
    """A type, without quotes and without the name that a module was imported under."""
    text = annotation.value if isinstance(annotation, ast.Constant) else ast.unparse(annotation)
    return str(text).removeprefix("gc_op.")


def docstring(thing: object) -> str:
    return inspect.cleandoc(inspect.getdoc(thing) or "")


def fenced(text: str, language: str = "text") -> str:
    return f"```{language}\n{text}\n```"


PAGES = {"cli.md": cli_reference, "python.md": python_reference}


def updated(page: str) -> str:
    """The page with its generated part made anew."""
    text = (DOCS / page).read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        sys.exit(f"docs/{page} has no {BEGIN!r} or no {END!r}")
    body = "\n\n".join(part.strip("\n") for part in PAGES[page]())
    return f"{before}{BEGIN}\n\n{body}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    """Write or check all pages; returns the exit code."""
    stale = [page for page in PAGES if updated(page) != (DOCS / page).read_text("utf-8")]
    if arguments == ["--check"]:
        for page in stale:
            print(f"docs/{page} is not up to date; run: make docs", file=sys.stderr)
        return 1 if stale else 0
    for page in stale:
        (DOCS / page).write_text(updated(page), "utf-8")
        print(f"wrote docs/{page}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
