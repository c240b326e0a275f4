"""The members of an archive of `torch.export.save`, and how PyTorch reads each of them.

Source: torch/export/pt2_archive/_package.py of PyTorch 2.6 to 2.13.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import zipdir
from mstore.formats.base import quote
from mstore.formats.torch_archive import PICKLE, code, folded, read_small, twice
from mstore.formats.torch_export_config import (
    CONSTANTS,
    MAX_CONFIG,
    MAX_TENSORS,
    WEIGHTS,
    Payload,
    Reading,
    read_payloads,
)
from mstore.layout import ByteReader

COMPILED, GRAPHS = "data/aotinductor/", "models/"
"""The folders of native code and of graphs, in that of the archive."""

_MARK, _MARKED = "archive_format", b"pt2"
_INPUTS = "data/sample_inputs/"
_CONFIGS = {WEIGHTS: "_weights_config.json", CONSTANTS: "_constants_config.json"}
_CONFIGURED = tuple(_CONFIGS.values())
_OF_2_8 = ".pt"  # behind a model's name: the file of torch.save with all that is its own
_ALSO_TORCH = "is also a file of torch.save, whose pickle is run by loading it as one"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A member at `path` that PyTorch does not take as bytes.

    The names of its tensors begin with `prefix`.
    """

    path: str
    member: zipdir.Member
    reading: Reading
    prefix: str


@dataclass(frozen=True, slots=True)
class Archive:
    """The members by their folded paths in the folder of all, and what the configurations say."""

    members: Mapping[str, zipdir.Member]
    payloads: tuple[Payload, ...]
    loaded: tuple[Loaded, ...]

    def within(self, folder: str) -> Iterator[tuple[str, zipdir.Member]]:
        """The members of a folder, each with its path in it."""
        for path, member in self.members.items():
            if path.startswith(folder):
                yield as_written(member, path)[len(folder) :], member


def find_folder(reader: ByteReader, members: Iterable[zipdir.Member]) -> str | None:
    """The folder in which a member says that this is an archive of torch.export; None if none."""
    for member in members:
        folder, _, path = member.name.partition("/")
        if folded(path) != _MARK or member.size != len(_MARKED):
            continue
        # PyTorch writes it stored; what a compressed one says is not asked.
        if member.method != zipdir.STORED or read_small(reader, member, 3) == _MARKED:
            return folder
    return None


def find_harm(members: Iterable[zipdir.Member], folder: str) -> str | None:
    """Why an archive is more, or for some readers other, than it says; None if it is not."""
    members = tuple(members)
    also = any(folded(one.name) == folded(folder + PICKLE) for one in members)
    return twice(members) or code(members, folder) or (_ALSO_TORCH if also else None)


def open_archive(reader: ByteReader, found: Iterable[zipdir.Member], folder: str) -> Archive:
    """What is in an archive without harm. Raises FormatError, LimitExceededError."""
    start = folded(folder) + "/"
    members: dict[str, zipdir.Member] = {}
    for member in found:
        name = folded(member.name)
        if not name.startswith(start):
            raise FormatError(f"its member {quote(member.name)} is outside of its folder")
        members[name.removeprefix(start)] = member
    payloads = tuple(_payloads(reader, members))
    return Archive(members, payloads, tuple(_loaded(members, payloads)))


def as_written(member: zipdir.Member, path: str) -> str:
    """The path of a member whose folded one is `path`."""
    return member.name[-len(path) :] if path else ""


def _payloads(reader: ByteReader, members: Mapping[str, zipdir.Member]) -> Iterator[Payload]:
    """The entries of all configurations."""
    models = _models(members)
    configs = [path for path in models if path.endswith(_CONFIGURED)]
    if sum(members[path].size for path in configs) > MAX_CONFIG:
        raise LimitExceededError(f"its configurations have more than {MAX_CONFIG} bytes")
    count = 0
    for path in configs:
        folder = WEIGHTS if path.startswith(WEIGHTS) else CONSTANTS
        raw = read_small(reader, members[path], MAX_CONFIG)
        for payload in read_payloads(raw, folder, models[path]):
            count += 1
            if count > MAX_TENSORS:
                raise LimitExceededError(f"it has more than {MAX_TENSORS} tensors")
            yield payload


def _model(path: str, member: zipdir.Member) -> str | None:
    """The model of which a member has, or describes, the weights or constants; None if of none."""
    for folder, end in _CONFIGS.items():
        for suffix in (end, _OF_2_8):
            if path.startswith(folder) and path.endswith(suffix):
                return as_written(member, path)[len(folder) : -len(suffix)]
    return None


def _models(members: Mapping[str, zipdir.Member]) -> dict[str, str]:
    """What the names of tensors begin with, by the path of what has or describes them.

    That is the name of the model, where there are several.
    """
    found = {
        path: model for path, one in members.items() if (model := _model(path, one)) is not None
    }
    several = len(set(found.values())) > 1
    for folder, end in _CONFIGS.items():
        for path in found:
            if path.startswith(folder) and path.removesuffix(end) + _OF_2_8 in found:
                raise FormatError(f"it has {quote(path)} and what that describes in one file, too")
    return {path: model if several else "" for path, model in found.items()}


def _loaded(members: Mapping[str, zipdir.Member], payloads: Iterable[Payload]) -> Iterator[Loaded]:
    """The members that PyTorch does not take as bytes, of which the entries name some."""
    stored: set[str] = set()
    named: dict[str, Payload] = {}
    for payload in payloads:
        path = folded(payload.path)
        if path not in members:
            raise FormatError(f"its member {quote(payload.path)} is missing")
        if payload.reading == "bytes":
            stored.add(path)
        else:
            named.setdefault(path, payload)
    if both := stored & named.keys():
        raise FormatError(f"its member {quote(min(both))} is a storage, and is loaded as well")
    models = _models(members)
    for path, member in members.items():
        shown = as_written(member, path)
        if path in named:
            yield Loaded(shown, member, named[path].reading, named[path].name)
        elif path in models:
            if path.endswith(_OF_2_8):
                yield Loaded(shown, member, "torch.load", models[path])
        elif path.startswith(_INPUTS):
            yield Loaded(shown, member, "torch.load", shown)
        elif path.startswith((WEIGHTS, CONSTANTS)) and path not in stored:
            custom = path.startswith(CONSTANTS + "custom_obj_")
            yield Loaded(shown, member, "C++" if custom else "unknown", shown)
