"""Which format a file is of, by its content; the one entry point to all parsers."""

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats.base import HEAD_SIZE, Format
from mstore.formats.companion import Companion
from mstore.formats.flax import FlaxFormat
from mstore.formats.gguf import GgufFormat
from mstore.formats.hdf5 import Hdf5Format
from mstore.formats.joblib import JoblibFormat
from mstore.formats.keras import KerasFormat
from mstore.formats.nested import ZipFormat
from mstore.formats.npy import NpyFormat
from mstore.formats.npz import NpzFormat
from mstore.formats.onnx import OnnxDataCompanion, OnnxFormat
from mstore.formats.pickles import PickleFormat
from mstore.formats.safetensors import SafetensorsFormat
from mstore.formats.savedmodel import SavedModelFormat
from mstore.formats.skops import SkopsFormat
from mstore.formats.tensorbundle import TensorBundleCompanion, TensorflowIndexFormat
from mstore.formats.torch_legacy import TorchLegacyFormat
from mstore.formats.torch_zip import TorchFormat
from mstore.layout import Beside, ByteReader, Layout, opaque

FORMATS: list[Format] = [
    SafetensorsFormat(),
    NpyFormat(),
    GgufFormat(),
    TorchFormat(),
    TorchLegacyFormat(),
    KerasFormat(),
    SkopsFormat(),
    ZipFormat(lambda: FORMATS),
    NpzFormat(),
    TensorflowIndexFormat(),
    SavedModelFormat(),
    OnnxFormat(),
    Hdf5Format(),
    JoblibFormat(),
    PickleFormat(),
    FlaxFormat(),
]
"""Every known format; the first whose `sniff` says yes describes the file.

A format that is a special case of another comes before it.
"""

COMPANIONS: list[Companion] = [
    TensorBundleCompanion(),
    OnnxDataCompanion(),
]
"""Every known format whose data files are described by others; asked before `FORMATS`."""

_MAX_REASON = 300


def describe(reader: ByteReader, beside: Beside | None = None) -> tuple[Layout, str | None]:
    """The layout of a file, and a warning for the user or None.

    `beside` is the folder that the file lies in, if it lies in one.

    A file that no parser knows is one opaque segment. So is one that its parser rejects, with a
    warning that says why: storing bytes harms nobody. There is a warning, too, where only some of
    its tensors could not be understood. Raises only what reading itself raises (StorageError,
    ConflictError), never anything because of the content.
    """
    if beside is not None:
        for companion in COMPANIONS:
            if (described := companion.examine(reader, beside)) is not None:
                return described
    found = find_format(reader)
    if found is None:
        return opaque(reader.size), None
    try:
        layout, note = found.examine(reader)
        return layout, note and note[:_MAX_REASON]
    except (FormatError, LimitExceededError, UnsafeInputError) as error:
        reason = error.message[:_MAX_REASON]  # names inside it may be of any length
        return opaque(reader.size), f"looks like {found.name} but {reason}; stored as opaque bytes"


def find_format(reader: ByteReader) -> Format | None:
    """The format of a file by its content, None if no parser knows it.

    Raises only what reading itself raises.
    """
    head = reader.read(0, HEAD_SIZE)
    return next((known for known in FORMATS if known.sniff(head, reader)), None)
