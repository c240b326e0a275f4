"""torch-export: what PyTorch's `torch.export.save` writes (`.pt2`), a zip archive of one folder.

    archive_format                                 `pt2`
    byteorder                                      `little` or `big`; left out by some versions
    models/<model>.json                            the graph
    data/weights/<model>_weights_config.json       what the weights are
    data/weights/weight_<n>                        the bytes of one storage
    data/constants/<model>_constants_config.json   the same for constants: buffers that are not in
    data/constants/tensor_<n>                      the state dict, and tensors the graph uses
    data/constants/custom_obj_<n>, opaque_obj_<n>  constants that are objects of C++, or of Python
    data/sample_inputs/<model>.pt                  a file of `torch.save`
    data/aotinductor/<model>/…                     native code that AOTInductor compiled

Weights and constants are called as in the model, `encoder.0.weight`; where there are several
models, after these as well: `decoder/lm_head.weight`. They are views of storages, and described as
those of `torch.save`, see `mstore.formats.torch_storages`. A tensor of a class of its own is in a
file of `torch.save` in place of a storage; version 2.8 had one such file for all weights of a
model. What those hold is described, too.

Left out, with a note, are tensors with a size that is an expression, those that are not dense or
of no `DType`, and those that were saved without values.

So are those of an archive that says it is of a machine of the other byte order: PyTorch writes that
but does not read it, so what their values are is not for this file alone to say.

Versions before 2.8 wrote zip archives without a folder, see `mstore.formats.torch_export_old`.
Source: torch/export/pt2_archive/_package.py of PyTorch 2.6 to 2.13.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import HEAD_SIZE, Finding, Format, WindowReader, quote
from mstore.formats.held import Held, judge_all
from mstore.formats.notes import note_on
from mstore.formats.pickles import PickleFormat
from mstore.formats.shifting import Contents, cover_all
from mstore.formats.torch_archive import folded, is_big_endian, place, window
from mstore.formats.torch_export_archive import (
    COMPILED,
    GRAPHS,
    Archive,
    Loaded,
    find_folder,
    find_harm,
    open_archive,
)
from mstore.formats.torch_export_graph import GraphJudge
from mstore.formats.torch_legacy import TorchLegacyFormat
from mstore.formats.torch_storages import arrange
from mstore.formats.torch_tensors import Use
from mstore.formats.torch_zip import TorchFormat
from mstore.layout import ByteReader, Layout

MAX_FILES = 8000
"""Most members that are looked into as files of `torch.save` or pickles."""

_FIRST = re.compile(rb"[^/]+/(data/(weights|constants|sample_inputs|aotinductor)/|archive_format)")
_NATIVE = (".so", ".dll", ".dylib", ".pyd", ".cpp", ".cubin", ".ptx", ".hsaco")
_OF_TORCH: tuple[Format, ...] = (TorchFormat(), TorchLegacyFormat())
_PICKLE = PickleFormat()

Left = list[tuple[str, str]]  # what is left out, and why


class TorchExportFormat(Format):
    """An archive of PyTorch that says it is of `torch.export`."""

    name = "torch-export"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip archive with a member that says so, or whose first member is one of its own."""
        if not head.startswith(zipdir.MAGIC):
            return False
        try:
            return find_folder(reader, zipdir.read_members(reader)) is not None
        except (FormatError, LimitExceededError):
            return _FIRST.match(zipdir.first_name(head).encode("utf-8", "replace")) is not None

    def layout(self, reader: ByteReader) -> Layout:
        """Every dense tensor of a known type; all that is no tensor is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and what of the archive was not understood."""
        members = zipdir.read_members(reader)
        if harm := find_harm(members, folder := _folder(reader, members)):
            raise UnsafeInputError(f"it {harm}")
        archive = open_archive(reader, members, folder)
        big_endian = is_big_endian(reader, archive.members.get("byteorder"))
        tensors, notes = _tensors(archive, big_endian=big_endian)
        held, note = described(reader, archive.loaded)
        layout = cover_all(self.name, reader.size, [tensors, *held])
        notes.append(note)
        if compiled := len(dict(_compiled(archive))):
            notes.append(f"opaque bytes for {compiled} compiled models")
        return layout, "; ".join(note for note in notes if note) or None

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What its pickles do, and the code and the objects that PyTorch loads with it."""
        members = zipdir.read_members(reader)
        if harm := find_harm(members, folder := _folder(reader, members)):
            return [Finding("dangerous", harm, folder)]
        archive = open_archive(reader, members, folder)
        found = [*_code(archive), *_objects(archive)]
        graphs = [member for _, member in archive.within(GRAPHS)]
        try:
            return found + judged(reader, archive.loaded, graphs)
        except (FormatError, LimitExceededError):
            if all(one.danger != "dangerous" for one in found):
                raise
        return found


@dataclass(frozen=True, slots=True)
class _Graph:
    """A graph, which is the member at `path`."""

    path: str
    window: WindowReader
    judge: GraphJudge


@dataclass(frozen=True, slots=True)
class _Unjudged:
    """A member that PyTorch unpickles, or reads as a graph, and `why` nobody knows what it does."""

    path: str
    why: str


def described(reader: ByteReader, loaded: Iterable[Loaded]) -> tuple[list[Contents], str | None]:
    """The tensors of members that are files of their own, and which are not understood."""
    held, left = _held(reader, loaded)
    parts: list[Contents] = []
    for one in held:
        contents, note = one.described()
        parts.append(contents)
        if note:
            left.append((one.path, note))
    return parts, note_on(left, "{} of its members are not understood")


def judged(
    reader: ByteReader, loaded: Iterable[Loaded], graphs: Iterable[zipdir.Member]
) -> list[Finding]:
    """What loading members does. Raises the error of one that cannot be judged, if none is bad."""
    held, left = _held(reader, loaded)
    parts: list[Held | _Graph | _Unjudged] = [*held, *(_Unjudged(path, why) for path, why in left)]
    judge = GraphJudge()
    for member in graphs:
        if member.method == zipdir.STORED:
            parts.append(_Graph(member.name, window(reader, member), judge))
        else:
            parts.append(_Unjudged(member.name, "is compressed"))
    return judge_all(parts, _findings)


def _findings(part: Held | _Graph | _Unjudged) -> list[Finding]:
    """What loading a member would do; raises FormatError, LimitExceededError if nobody knows."""
    if isinstance(part, Held):
        return part.findings()
    if isinstance(part, _Graph):
        return part.judge.findings(part.window, part.path)
    raise FormatError(f"nobody knows what loading it does: it {part.why}")


def _folder(reader: ByteReader, members: Iterable[zipdir.Member]) -> str:
    if (folder := find_folder(reader, members)) is None:
        raise FormatError("it does not say that it is of torch.export")
    return folder


def _tensors(archive: Archive, *, big_endian: bool) -> tuple[Contents, list[str | None]]:
    """The tensors that the configurations describe, and what to tell of the others."""
    uses: list[Use] = []
    left: Left = []
    objects: Left = []
    for payload in archive.payloads:
        if payload.reading == "C++":
            objects.append((payload.name, "is an object of a class in C++"))
        elif payload.why:
            left.append((payload.name, payload.why))
        elif payload.use is not None:
            size = archive.members[folded(payload.path)].size
            if big_endian:
                left.append((payload.name, "is said to be big-endian, which PyTorch does not heed"))
            elif not size and 0 not in payload.use.shape:
                left.append((payload.name, "was saved without values"))
            else:
                uses.append(payload.use)
    _check_types(uses)
    keys = {use.storage.key for use in uses}
    places = {key: place(archive.members[folded(key)]) for key in keys}
    for use in uses:
        if use.dtype and places[use.storage.key].size % use.dtype.itemsize:
            raise FormatError(f"its storage {quote(use.storage.key)} ends inside an element")
    tensors, note = arrange(uses, places, big_endian=False)
    return tensors, [
        note,
        note_on(left, "{} of its tensors are not understood"),
        note_on(objects, "{} of its constants are no tensors"),
    ]


def _check_types(uses: Iterable[Use]) -> None:
    """Raise FormatError if two tensors disagree on a storage's type: PyTorch takes the first."""
    kinds: dict[str, str] = {}
    for use in uses:
        if kinds.setdefault(use.storage.key, use.kind) != use.kind:
            raise FormatError(f"its storage {quote(use.storage.key)} has two types")


def _held(reader: ByteReader, loaded: Iterable[Loaded]) -> tuple[list[Held], Left]:
    """The members that are files of their own, and those of which nothing is known, and why."""
    held: list[Held] = []
    left: Left = []
    for one in loaded:
        if not one.member.size:
            continue
        if one.member.method != zipdir.STORED:
            left.append((one.path, "is compressed"))
        elif len(held) == MAX_FILES:
            left.append((one.path, f"comes after {MAX_FILES} others"))
        elif found := _format_of(reader, one):
            inside = window(reader, one.member)
            held.append(Held(one.path, found, inside, one.member.data, one.prefix))
    return held, left


def _format_of(reader: ByteReader, loaded: Loaded) -> Format | None:
    """As what PyTorch loads a member; None if it is neither of `torch.save` nor a pickle.

    Where nothing says how it is loaded, its content tells.
    """
    inside = window(reader, loaded.member)
    head = inside.read(0, HEAD_SIZE)
    found = next((one for one in _OF_TORCH if one.sniff(head, inside)), None)
    if loaded.reading == "pickle":
        return _PICKLE
    if found is not None or loaded.reading == "C++":
        return found
    if loaded.reading == "unknown" and not _PICKLE.sniff(head, inside):
        return None
    return _PICKLE


def _compiled(archive: Archive) -> Iterator[tuple[str, str]]:
    """The models that AOTInductor compiled, each with the path of a member."""
    for inner, member in archive.within(COMPILED):
        yield inner.partition("/")[0], member.name


def _code(archive: Archive) -> Iterator[Finding]:
    """The native code in an archive, which PyTorch loads, or compiles and loads, if it is there."""
    for model, name in dict(_compiled(archive)).items():
        what = f"has native code of AOTInductor for its model {quote(model)}, which loading it runs"
        yield Finding("dangerous", what, name)
    for path, member in archive.members.items():
        if path.endswith(_NATIVE) and not path.startswith(COMPILED):
            yield Finding("unknown", "has native code", member.name)


def _objects(archive: Archive) -> Iterator[Finding]:
    """The constants that PyTorch makes by code that it knows of, or does not."""
    for payload in archive.payloads:
        if payload.reading == "C++":
            what = f"makes an object of a class in C++ for its constant {quote(payload.name)}"
            yield Finding("unknown", what, payload.path)
        elif payload.reading == "unknown":
            what = f"has something unknown for its constant {quote(payload.name)}"
            yield Finding("unknown", what, payload.path)
