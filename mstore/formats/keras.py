"""`.keras`, the archive in which Keras 3 saves a model.

    metadata.json      versions and the date
    config.json        how to build the model
    model.weights.h5   an HDF5 file, stored, with what `save_weights` writes
    assets/…           vocabularies and the like

Tensors are called as in the HDF5 file: `layers/dense/vars/0`. Keras builds the model before it
looks for weights, so an archive without them, or with others, is judged all the same.
Source: keras/src/saving/saving_lib.py of Keras 3.15.
"""

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import zipdir
from mstore.formats.base import Finding, Format, WindowReader, quote, read_exactly
from mstore.formats.deflated import inflate
from mstore.formats.hdf5 import Hdf5Format
from mstore.formats.keras_config import MAX_CONFIG, config_findings, is_model
from mstore.formats.shifting import cover_all, shifted
from mstore.layout import ByteReader, Layout

_METADATA, _CONFIG, _WEIGHTS = "metadata.json", "config.json", "model.weights.h5"
_HDF5 = Hdf5Format()


class KerasFormat(Format):
    """A zip archive of a configuration and the weights that belong to it."""

    name = "keras"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A zip archive with a configuration and weights, or with the configuration of a model."""
        if not head.startswith(zipdir.MAGIC):
            return False
        try:
            members = _members(reader)
            if _CONFIG not in members:
                return False
            return _WEIGHTS in members or is_model(_config(reader, members[_CONFIG]))
        except (FormatError, LimitExceededError):
            return head[30 : 30 + len(_METADATA)] == _METADATA.encode()  # the first that it writes

    def layout(self, reader: ByteReader) -> Layout:
        """The datasets of the weights; the rest of the archive is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and how many datasets are not described and why."""
        member = _members(reader).get(_WEIGHTS)
        if member is None:
            return cover_all(self.name, reader.size, []), f"it has no {_WEIGHTS}"
        if member.method != zipdir.STORED:
            return cover_all(self.name, reader.size, []), f"its {_WEIGHTS} is compressed"
        try:
            layout, note = _HDF5.examine(_window(reader, member))
        except (FormatError, LimitExceededError, UnsafeInputError) as error:
            raise type(error)(f"in its member {quote(_WEIGHTS)}, {error.message}") from None
        return cover_all(self.name, reader.size, [shifted(layout, member.data, "")]), note

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What building the model would run, and where its weights send their reader elsewhere."""
        members = _members(reader)
        config, weights = members.get(_CONFIG), members.get(_WEIGHTS)
        found: list[Finding] = []
        if config is not None:
            found += config_findings(_config(reader, config), _CONFIG)
        if weights is None:
            return found
        if weights.method != zipdir.STORED:
            return [*found, Finding("unknown", "has compressed weights", _WEIGHTS)]
        return found + _HDF5.findings(_window(reader, weights))


def _members(reader: ByteReader) -> dict[str, zipdir.Member]:
    return {member.name: member for member in zipdir.read_members(reader)}


def _window(reader: ByteReader, member: zipdir.Member) -> WindowReader:
    return WindowReader(reader, member.data, member.size)


def _config(reader: ByteReader, member: zipdir.Member) -> str:
    """The text of the configuration."""
    if member.size > MAX_CONFIG:
        raise LimitExceededError(f"its configuration has more than {MAX_CONFIG} bytes")
    if member.method == zipdir.STORED:
        raw = read_exactly(reader, member.data, member.size, quote(_CONFIG))
    else:
        raw = inflate(reader, member)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError("its configuration is not UTF-8") from None
