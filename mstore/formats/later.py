"""Parsers that are imported when a file may be of their format, and not before.

There are many parsers, and most commands meet files of one or two formats. Each is known here by
what its files begin with, so that a file of another format does not even load its code.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from importlib import import_module

from mstore.formats.base import Finding, Format
from mstore.formats.companion import Companion, Placed
from mstore.layout import ByteReader, Layout


class LaterFormat(Format):
    """The format `kind` of the module `module` in this package."""

    def __init__(self, name: str, module: str, kind: str, may_be: Callable[[bytes], bool]) -> None:
        """`may_be` tells of the first `HEAD_SIZE` bytes whether `sniff` is worth asking."""
        self.name = name
        self.may_be = may_be
        self._module = module
        self._kind = kind

    @cached_property
    def loaded(self) -> Format:
        """The parser itself."""
        found: Format = getattr(import_module(f"mstore.formats.{self._module}"), self._kind)()
        return found

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """Whether the file is of this format."""
        return self.may_be(head) and self.loaded.sniff(head, reader)

    def layout(self, reader: ByteReader) -> Layout:
        """What the parser says."""
        return self.loaded.layout(reader)

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """What the parser says."""
        return self.loaded.examine(reader)

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the parser says."""
        return self.loaded.findings(reader)


class LaterCompanion(Companion):
    """The companion `kind` of the module `module` in this package."""

    def __init__(
        self, name: str, module: str, kind: str, may_be: Callable[[str, Collection[str]], bool]
    ) -> None:
        """`may_be` tells of a file and of those beside it whether `describers` is worth asking."""
        self.name = name
        self.may_be = may_be
        self._module = module
        self._kind = kind

    @cached_property
    def loaded(self) -> Companion:
        """The parser itself."""
        found: Companion = getattr(import_module(f"mstore.formats.{self._module}"), self._kind)()
        return found

    def describers(self, name: str, names: Collection[str]) -> Iterable[str]:
        """What the parser says."""
        return self.loaded.describers(name, names) if self.may_be(name, names) else ()

    def parse(self, reader: ByteReader, describer: str) -> Mapping[str, Placed]:
        """What the parser says."""
        return self.loaded.parse(reader, describer)
