"""Which format a file is of, by its content; the one entry point to all parsers."""

import re
from collections.abc import Callable, Collection
from functools import lru_cache

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import torch_tar
from mstore.formats.base import HEAD_SIZE, Format
from mstore.formats.companion import Companion
from mstore.formats.later import LaterCompanion, LaterFormat
from mstore.formats.superblock import find_superblock
from mstore.layout import Beside, ByteReader, Layout, opaque


def _begins(pattern: bytes) -> Callable[[bytes, ByteReader], bool]:
    """Whether a file begins like that."""
    match = re.compile(pattern, re.DOTALL).match
    return lambda head, _: match(head) is not None


_is_zip = _begins(rb"PK\x03\x04")
_is_pickle = _begins(rb"\x80[\x02-\x05]|[(\]}c]")
_is_joblib = _begins(rb"\x80[\x02-\x05]|[(\]}c]|\x78|\x1f\x8b|BZh|\xfd7zXZ|\x5d\0\0")
_is_pickle_of_torch = _begins(rb"\x80[\x02-\x05]|L")


def _is_old_torch(head: bytes, reader: ByteReader) -> bool:
    return _is_pickle_of_torch(head, reader) or torch_tar.begins(head)


def _is_hdf5(head: bytes, reader: ByteReader) -> bool:
    return find_superblock(head, reader) is not None


FORMATS: list[Format] = [
    LaterFormat("safetensors", "safetensors", "SafetensorsFormat", _begins(rb".{8}[ \t\n\r]*\{")),
    LaterFormat("npy", "npy", "NpyFormat", _begins(rb"\x93NUMPY")),
    LaterFormat("gguf", "gguf", "GgufFormat", _begins(rb"GGUF")),
    LaterFormat("torch-export", "torch_export", "TorchExportFormat", _is_zip),
    LaterFormat("torch-export", "torch_export_old", "OldTorchExportFormat", _is_zip),
    LaterFormat("torch", "torch_zip", "TorchFormat", _is_zip),
    LaterFormat("torch", "torch_legacy", "TorchLegacyFormat", _is_old_torch),
    LaterFormat("keras", "keras", "KerasFormat", _is_zip),
    LaterFormat("skops", "skops", "SkopsFormat", _is_zip),
    LaterFormat("zip", "nested", "ZipFormat", _is_zip, lambda: FORMATS),
    LaterFormat("npz", "npz", "NpzFormat", _is_zip),
    LaterFormat("tensorflow-index", "tensorbundle", "TensorflowIndexFormat", _begins(rb"\0\0")),
    LaterFormat("tensorflow-savedmodel", "savedmodel", "SavedModelFormat", _begins(rb"\x08")),
    LaterFormat("tensorflow-graph", "savedmodel", "FrozenGraphFormat", _begins(rb"\n")),
    LaterFormat("onnx", "onnx", "OnnxFormat", _begins(rb"\x08")),
    LaterFormat("hdf5", "hdf5", "Hdf5Format", _is_hdf5),
    LaterFormat("joblib", "joblib", "JoblibFormat", _is_joblib),
    LaterFormat("pickle", "pickles", "PickleFormat", _is_pickle),
    LaterFormat("flax", "flax", "FlaxFormat", _begins(rb"[\x81-\x8f\xde\xdf]")),
]
"""Every known format; the first whose `sniff` says yes describes the file.

A format that is a special case of another comes before it.
"""


def _is_data_file(name: str, _: Collection[str]) -> bool:
    return ".data-" in name


def _is_beside_model(_: str, names: Collection[str]) -> bool:
    return _has_model(frozenset(names))


@lru_cache(maxsize=4)
def _has_model(names: frozenset[str]) -> bool:
    """Whether there is an ONNX model in a folder, asked about for each of its files."""
    return any(name.endswith(".onnx") for name in names)


COMPANIONS: list[Companion] = [
    LaterCompanion("tensorflow-data", "tensorbundle", "TensorBundleCompanion", _is_data_file),
    LaterCompanion("onnx-data", "onnx", "OnnxDataCompanion", _is_beside_model),
]
"""Every known format whose data files are described by others."""

_MAX_REASON = 300


def load_all() -> None:
    """Import every parser now, for processes that are to import nothing later."""
    for known in (*FORMATS, *COMPANIONS):
        if isinstance(known, LaterFormat | LaterCompanion):
            known.load()


def describe(reader: ByteReader, beside: Beside | None = None) -> tuple[Layout, str | None]:
    """The layout of a file, and a warning for the user or None.

    `beside` is the folder that the file lies in, if it lies in one. What other files there say of
    it counts only where it does not itself say what tensors it has: any model may refer to it.

    A file that no parser knows is one opaque segment. So is one that its parser rejects, with a
    warning that says why: storing bytes harms nobody. There is a warning, too, where only some of
    its tensors could not be understood. Raises only what reading itself raises (StorageError,
    ConflictError), never anything because of the content.
    """
    layout, warning = _describe_itself(reader, beside)
    if beside is not None and not _has_tensors(layout):
        for companion in COMPANIONS:
            if (described := companion.examine(reader, beside)) is not None:
                return described
    return layout, warning


def examine(found: Format, reader: ByteReader, beside: Beside | None) -> tuple[Layout, str | None]:
    """What a file itself says of its tensors, as `Format.examine`, where it lies in a folder.

    Raises as that does, and UnsafeInputError where only the folder makes it unsafe.
    """
    described = found.examine(reader)
    for finding in found.findings_beside(reader, beside) if beside is not None else ():
        if finding.danger == "dangerous":
            raise UnsafeInputError(f"it {finding.what}")
    return described


def _describe_itself(reader: ByteReader, beside: Beside | None) -> tuple[Layout, str | None]:
    found = find_format(reader)
    if found is None:
        return opaque(reader.size), None
    try:
        layout, note = examine(found, reader, beside)
        return layout, note and note[:_MAX_REASON]
    except (FormatError, LimitExceededError, UnsafeInputError) as error:
        reason = error.message[:_MAX_REASON]  # names inside it may be of any length
        return opaque(reader.size), f"looks like {found.name} but {reason}; stored as opaque bytes"


def _has_tensors(layout: Layout) -> bool:
    return bool(layout.views) or any(segment.tensor is not None for segment in layout.segments)


def find_format(reader: ByteReader) -> Format | None:
    """The format of a file by its content, None if no parser knows it.

    Raises only what reading itself raises.
    """
    head = reader.read(0, HEAD_SIZE)
    known = next((one for one in FORMATS if one.sniff(head, reader)), None)
    return known.load() if isinstance(known, LaterFormat) else known
