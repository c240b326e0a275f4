"""pickle: what Python's `pickle.dump` writes, in any of its protocols from 0 to 5.

Arrays of numpy, of `array` and lists of at least 16 floats are tensors, called by their path: keys,
numbers and attributes with dots between, such as `steps.0.1.mean_` of a pipeline of scikit-learn.
Arrays of objects are followed, of records each field is a tensor, those of strings and dates stay
opaque. Where there are several pickles in a file, their numbers come first in the paths.

Nothing is ever unpickled, see `mstore.formats.pickle_walk`. What is known to do harm when it is
loaded is refused, see `mstore.formats.pickle_policy`; what is only unknown is not.
"""

from mstore.formats.base import Finding, Format
from mstore.formats.pickle_file import examine_pickles, find_deeds, looks_like_pickle
from mstore.formats.pickle_stack import new_account
from mstore.layout import ByteReader, Layout


class PickleFormat(Format):
    """One pickle or several."""

    name = "pickle"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """The opcode of a protocol, or opcodes of an older one that make sense."""
        return looks_like_pickle(head, reader)

    def layout(self, reader: ByteReader) -> Layout:
        """Every array of a known type; the rest is opaque."""
        return self.examine(reader)[0]

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """The layout, and which arrays were not understood."""
        return examine_pickles(reader)

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the file would import and call."""
        return [deed.finding() for deed in find_deeds(reader, new_account(reader.size))]
