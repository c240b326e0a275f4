"""The frame of all commands: help, options, and what is imported."""

import os
from pathlib import Path
from typing import Any

import click
import pytest

from mstore.cli.main import COMMANDS, SECTIONS, cli
from mstore.version import __version__


def every_command() -> list[click.Command]:
    context = click.Context(cli)
    return [command for name in COMMANDS if (command := cli.get_command(context, name))]


@pytest.mark.parametrize("command", every_command(), ids=lambda command: command.name)
def test_the_table_of_commands_says_what_their_help_says(
    command: click.Command, mstore: Any
) -> None:
    assert command.name is not None
    assert command.help is not None
    first, _, rest = command.help.partition("\n\n")
    assert first == COMMANDS[command.name][1]
    assert rest.strip()
    shown = mstore.ok(command.name, "--help").out
    assert "Examples:\n  " in shown
    assert shown.count(f"mstore {command.name}") >= 2 or command.name == "completion"
    own = [p for p in command.params if isinstance(p, click.Option) and not p.hidden]
    assert all(option.help for option in own)


def test_mstore_alone_prints_help(mstore: Any) -> None:
    alone = mstore.ok()
    assert alone == mstore.ok("--help")
    for section, commands in SECTIONS.items():
        assert f"{section}:" in alone.out
        for name, (_, help_line) in commands.items():
            assert f"  {name} " in alone.out
            assert help_line in alone.out


def test_version(mstore: Any) -> None:
    assert mstore.ok("--version").out == f"mstore {__version__}\n"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("comit", "commit"), ("chekout", "checkout"), ("brnach", "branch"), ("dif", "diff")],
)
def test_a_mistyped_command(typed: str, meant: str, mstore: Any) -> None:
    ran = mstore(typed)
    assert ran.code == 2
    assert ran.err.startswith(f"error: there is no command '{typed}'\nhint: did you mean: ")
    assert meant in ran.err


def test_a_command_like_none(mstore: Any) -> None:
    ran = mstore("xyzzy")
    assert (ran.code, ran.err.splitlines()[1]) == (2, "hint: mstore --help lists them")


def test_a_mistyped_option(work: Path, mstore: Any) -> None:
    ran = mstore("log", "--onelin")
    assert ran.code == 2
    assert "--oneline" in ran.err
    assert "hint: mstore log --help tells how it is used" in ran.err


def test_options_may_stand_before_or_after_the_command(first: str, mstore: Any) -> None:
    assert mstore.ok("--json", "log") == mstore.ok("log", "--json")
    assert (
        mstore.ok("--model", "other", "models").out == mstore.ok("models", "--model", "other").out
    )


def test_c_works_as_if_started_there(
    first: str, work: Path, mstore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(work.parent)
    assert mstore("log").code == 10
    assert mstore.json("-C", "work", "log")[0]["id"] == first
    monkeypatch.chdir(work.parent)
    assert mstore.json("-C", "work", "-C", "tokenizer", "log")[0]["id"] == first
    ran = mstore("-C", "nowhere", "log")
    assert (ran.code, ran.err) == (1, "error: there is no directory nowhere\n")


def test_help_imports_next_to_nothing(mstore: Any) -> None:
    imported = mstore.modules_after("--help")
    assert not {"numpy", "rich", "msgpack", "zstandard", "blake3", "mstore.database"} & imported


@pytest.mark.parametrize(
    "args",
    [("log", "-n", "10"), ("branch",), ("tag",), ("reflog",), ("models",), ("log", "--graph")],
)
def test_looking_at_history_imports_neither_numpy_nor_rich(
    args: tuple[str, ...], first: str, mstore: Any
) -> None:
    imported = mstore.modules_after(*args)
    assert "mstore.database" in imported
    assert not {"numpy", "rich", "subprocess", "mstore.repository", "mstore.worktree"} & imported


STORING = {"mstore.ingest", "mstore.chunkstore", "mstore.formats.detect", "pyfastcdc", "ml_dtypes"}


@pytest.mark.parametrize(
    ("args", "needed", "others"),
    [
        (("status",), "mstore.worktree_read", {"numpy", "rich", "mstore.ops.checkout", *STORING}),
        (("checkout", "HEAD"), "mstore.worktree_write", {"rich", "mstore.worktree", *STORING}),
        (
            ("checkout", "HEAD", "-o", "out"),
            "mstore.ops.checkout",
            {"rich", "pathspec", "mstore.worktree_read", *STORING},
        ),
        (("checkout", "--help"), "mstore.cli.checkout", {"numpy", "pathspec"}),
        (
            ("diff",),
            "mstore.ops.diff",
            {"mstore.ops.checkout", "mstore.ingest", "mstore.chunkstore"},
        ),
        (("commit", "-m", "again"), "mstore.worktree", {"rich", "ml_dtypes", "mstore.repository"}),
    ],
)
def test_a_command_imports_only_what_it_needs(
    args: tuple[str, ...], needed: str, others: set[str], first: str, mstore: Any
) -> None:
    imported = mstore.modules_after(*args)
    assert needed in imported
    assert not others & imported


def test_a_command_imports_no_other(mstore: Any) -> None:
    commands = {f"mstore.cli.{module}" for module, _ in COMMANDS.values()}
    assert commands & mstore.modules_after("log", "--help") == {"mstore.cli.log"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell: str, mstore: Any) -> None:
    script = mstore.ok("completion", shell).out
    assert "_MSTORE_COMPLETE" in script
    assert mstore.json("completion", shell) == {"shell": shell, "script": script.removesuffix("\n")}


def complete(mstore: Any, line: str) -> list[str]:
    words = line.split(" ")
    env = os.environ | {
        "_MSTORE_COMPLETE": "bash_complete",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(words) - 1),
    }
    ran = mstore.process(env=env)
    return [row.partition(",")[2] for row in ran.stdout.split()]


def test_the_shell_completes_commands_options_and_names(first: str, mstore: Any) -> None:
    mstore.ok("tag", "v1")
    assert complete(mstore, "mstore che") == ["checkout"]
    assert complete(mstore, "mstore checkout v") == ["v1"]
    assert complete(mstore, "mstore log ") == ["HEAD", "main", "v1"]
    assert complete(mstore, "mstore log --onel") == ["--oneline"]


def test_the_shell_completes_nothing_where_there_is_no_repository(work: Path, mstore: Any) -> None:
    assert complete(mstore, "mstore checkout v") == []
