"""The pickles of a file: whether it is one, what loading it would do, and the arrays in it.

Most files hold one pickle; some hold several, one after another, of which Python loads one at a
time. Nothing is told of a file that would do harm but that, also where it is broken after the harm
would be done.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import torch_tar
from mstore.formats.base import HEAD_SIZE, Danger, Finding
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_arrays import look
from mstore.formats.pickle_layout import arrange
from mstore.formats.pickle_paths import find
from mstore.formats.pickle_policy import handed_over, is_delicate, judge, judge_call
from mstore.formats.pickle_stack import Account, new_account
from mstore.formats.pickle_torch import Inside, look_inside, note_all
from mstore.formats.pickle_values import Global
from mstore.formats.pickle_walk import walk_next
from mstore.formats.remembered import Kept
from mstore.formats.shifting import cover_all, shifted
from mstore.formats.torch_storages import arrange as arrange_tensors
from mstore.formats.torch_structure import find_arrays, find_tensors
from mstore.layout import ByteReader, Layout

_PROTOCOL = 0x80
_FRAME = 0x95
_FIRST = b"(]}c"  # what protocols 0 and 1 start with, where arrays may follow
_STARTS = frozenset(b"(])}c\x8c\x8f\x95XKJMLGIFSTUVN\x88\x89\x8a\x8bCB\x8d\x8e\x96")
_PROBED = 1000  # opcodes
_FEW = 3
_IDENTIFIER = re.compile(r"[A-Za-z_][\w.]*")
_MEMO = re.compile(rb"p[01]\n|q[\x00\x01]")
_TOLD = {"call": "calls ", "import": "imports ", "hand over": "hands over ", "": ""}
_REFUSED = (FormatError, LimitExceededError, UnsafeInputError)


@dataclass(frozen=True, slots=True)
class Pickles:
    """The values of a file's pickles, how many bytes follow that are none, and what is inside."""

    values: list[object]
    rest: int
    inside: Inside


@dataclass(frozen=True, slots=True)
class Deed:
    """One thing that loading a pickle would do, `at` a byte of the file."""

    danger: Danger
    verb: Literal["call", "import", "hand over", ""]
    what: str
    at: int

    def finding(self) -> Finding:
        """As `Format.findings` tells it."""
        return Finding(self.danger, f"{_TOLD[self.verb]}{self.what}", f"byte {self.at}")


_HARMLESS: Kept[list[Deed]] = Kept()
"""What files of pickles would do that have been described, so that nothing is wrong with them."""


def looks_like_pickle(head: bytes, reader: ByteReader) -> bool:
    """Whether a file that starts with `head` is a pickle, good or not.

    From protocol 2 on a pickle says so. Before, it is text or nearly so; then the start of it has
    to make sense, and to call something, or to keep a list or dictionary in the memo as Python
    always does.
    """
    if len(head) < 3:
        return False
    if head[0] == _PROTOCOL:
        if not 2 <= head[1] <= 5 or head[2] not in _STARTS:
            return False
        if head[2] == _FRAME or reader.read(reader.size - 1, 1) == b".":
            return True
        return _probe(reader)[1] > _FEW
    if head[0] not in _FIRST:
        return False
    account, count, sound = _probe(reader)
    if not all(_IDENTIFIER.fullmatch(part) for name in account.globals for part in name):
        return False
    return bool(account.calls) or (sound and count > _FEW and _MEMO.search(head) is not None)


def _probe(reader: ByteReader) -> tuple[Account, int, bool]:
    """What the first opcodes name and call, how many there are, and whether they make sense."""
    account = new_account(reader.size)
    account.opcodes = _PROBED
    sound = True
    try:
        walk_next(Arguments(reader), account)
    except _REFUSED:
        sound = account.opcodes == 0
    return account, _PROBED - account.opcodes, sound


def examine_pickles(reader: ByteReader) -> tuple[Layout, str | None]:
    """The layout of a file of pickles, as format `pickle` or `joblib`, and what is left out.

    Raises UnsafeInputError if loading it does harm, FormatError and LimitExceededError as
    `Format.layout` does.
    """
    account = new_account(reader.size)
    found = read_harmless(reader, account)
    root = found.values[0] if len(found.values) == 1 else found.values
    name = "joblib" if account.inline else "pickle"
    if found.inside.storages:
        layout, note = arrange_all(name, reader.size, root, found.inside)
    else:
        layout, note = arrange(name, reader.size, find(root, look))
    if note is None and found.rest:
        note = f"opaque bytes for the last {found.rest}, which are no pickle"
    return layout, note


def arrange_all(name: str, size: int, root: object, inside: Inside) -> tuple[Layout, str | None]:
    """The layout of the arrays in a pickle and the tensors of torch, called as in files of torch.

    Raises as `arrange` does.
    """
    uses = find_tensors(root, inside.storages)
    tensors, left = arrange_tensors(uses, inside.places, big_endian=False)
    arrays, left_too = arrange(name, size, find_arrays(root))
    layout = cover_all(name, size, [tensors, shifted(arrays, 0, "")])
    return layout, "; ".join(note for note in (left, left_too) if note) or None


def read_harmless(reader: ByteReader, account: Account) -> Pickles:
    """`read_pickles`; raises UnsafeInputError if loading them does harm, whatever else is wrong.

    What they would do is kept for `find_deeds`.
    """
    try:
        found = read_pickles(reader, account)
    except _REFUSED:
        refuse_harm(account)
        raise
    _HARMLESS.keep(reader, refuse_harm(account))
    return found


def find_deeds(reader: ByteReader, account: Account) -> list[Deed]:
    """What loading a file of pickles would do; all that is known of it where it is broken.

    Raises as `read_pickles` does if it is broken and nothing in it does harm. One that was just
    described is not followed again.
    """
    if (known := _HARMLESS.get(reader)) is not None:
        return list(known)
    try:
        read_pickles(reader, account)
    except _REFUSED:
        if not any(deed.danger == "dangerous" for deed in deeds(account)):
            raise
    return list(deeds(account))


def refuse_harm(account: Account) -> list[Deed]:
    """What pickles would do; raises UnsafeInputError if it is known to do harm."""
    found = list(deeds(account))
    for deed in found:
        if deed.danger == "dangerous":
            raise UnsafeInputError(f"would {deed.verb} {deed.what} when loaded")
    return found


def deeds(account: Account) -> Iterator[Deed]:
    """What pickles would do, each thing once: what they call, then what they only name.

    What is harmless where they call it may do harm where others do to whom they give it.
    """
    told: set[tuple[str, str]] = set()
    called: set[tuple[str, str]] = set()
    for call in account.calls:
        danger, what = judge_call(call)
        if id(call) in account.followed:
            danger = "allowed"  # what it loads is judged, too
        if isinstance(call.function, Global):
            called.add((call.function.module, call.function.name))
        if (danger, what) not in told:
            told.add((danger, what))
            yield Deed(danger, "call", _printable(what), call.at)
    for (module, name), at in account.globals.items():
        if (module, name) not in called:
            yield Deed(judge(module, name), "import", _printable(f"{module}.{name}"), at)
    if any(is_delicate(*name) for name in account.globals):
        for module, name in dict.fromkeys((g.module, g.name) for g in handed_over(account.calls)):
            at = account.globals[module, name]
            yield Deed("dangerous", "hand over", _printable(f"{module}.{name}"), at)
    for what, at in account.others.items():
        yield Deed("unknown", "", what, at)


def _printable(name: str) -> str:
    shown = ascii(name[:80])[1:-1]
    return shown if len(name) <= 80 else f"{shown}…"


def read_pickles(reader: ByteReader, account: Account) -> Pickles:
    """What the pickles of a file are.

    Raises FormatError, LimitExceededError and UnsafeInputError as `walk_next` does; `account` then
    has what was found before.
    """
    if torch_tar.begins(reader.read(0, HEAD_SIZE)):
        raise UnsafeInputError(f"{torch_tar.RUNS}, for all that torch can tell")
    arguments = Arguments(reader)
    values = [walk_next(arguments, account, inline=True)]
    rest = 0
    while arguments.left and not rest:
        end = arguments.left
        try:
            values.append(walk_next(arguments, account, inline=True))
        except _REFUSED:
            rest = end
            note_all(Arguments(reader, reader.size - rest), account)
    if account.inline:
        # Only joblib knows where arrays are between the opcodes; to others they are opcodes.
        note_all(Arguments(reader), account)
    return Pickles(values, rest, look_inside(reader, account))
