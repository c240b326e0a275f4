"""joblib: what `joblib.dump` writes: a pickle with the bytes of arrays between its opcodes.

See `mstore.formats.pickle_inline` for how they lie there, `mstore.formats.pickles` for the rest. A
compressed file stays opaque, but it is inflated as far as is reasonable to see what loading it
would do. One that lz4 compressed is not recognised. Source: joblib/numpy_pickle.py and
joblib/compressor.py of joblib 0.10 to 1.6.
"""

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import HEAD_SIZE, BytesReader, Finding, Format
from mstore.formats.pickle_file import (
    deeds,
    examine_pickles,
    find_deeds,
    looks_like_pickle,
    read_harmless,
)
from mstore.formats.pickle_inflate import Inflated, is_compressed
from mstore.formats.pickle_stack import new_account
from mstore.formats.pickle_torch import NOT_ALL
from mstore.layout import ByteReader, Layout, opaque

_WRAPPER = b"NumpyArrayWrapper"
_LIBRARIES = (b"joblib", b"numpy", b"sklearn")
_PEEKED = 1 << 16


class JoblibFormat(Format):
    """A file of `joblib.dump` with arrays in it, or any that is compressed."""

    name = "joblib"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """A pickle that soon names joblib's wrapper, or one of arrays that is compressed."""
        if not is_compressed(head):
            return _WRAPPER in head and looks_like_pickle(head, reader)
        try:
            inside = Inflated(reader).read(0, _PEEKED)
        except (FormatError, LimitExceededError):
            return False
        named = any(library in inside for library in _LIBRARIES)
        return named and looks_like_pickle(inside[:HEAD_SIZE], BytesReader(inside))

    def layout(self, reader: ByteReader) -> Layout:
        """Every array of a known type; the rest is opaque, and so is all of a compressed file."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which arrays were not understood."""
        if not is_compressed(reader.read(0, HEAD_SIZE)):
            return examine_pickles(reader)
        inflated = Inflated(reader)
        try:
            read_harmless(inflated, new_account(reader.size))
        except LimitExceededError:
            if not inflated.full or inflated.bomb:
                raise
        return opaque(reader.size), "opaque bytes: it is a compressed joblib file"

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the file would import and call, as far as it is inflated."""
        account = new_account(reader.size)
        if not is_compressed(reader.read(0, HEAD_SIZE)):
            return [deed.finding() for deed in find_deeds(reader, account)]
        inflated = Inflated(reader)
        try:
            return [deed.finding() for deed in find_deeds(inflated, account)]
        except LimitExceededError:
            if not inflated.full or inflated.bomb:
                raise
        cut = Finding("unknown", NOT_ALL)
        return [*(deed.finding() for deed in deeds(account)), cut]
