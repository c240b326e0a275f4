"""Parsers that are imported when a file may be of their format, and not before.

There are many parsers, and most commands meet files of one or two formats. Each is known here by
what its files begin with, so that a file of another format does not even load its code.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from importlib import import_module

from mstore.formats.base import Finding, Format
from mstore.formats.companion import Companion, Placed
from mstore.layout import Beside, ByteReader, Layout


class LaterFormat(Format):
    """The format `kind` of the module `module` in this package."""

    def __init__(
        self,
        name: str,
        module: str,
        kind: str,
        may_be: Callable[[bytes, ByteReader], bool],
        *arguments: object,
    ) -> None:
        """`may_be` tells, of what `sniff` is given, whether it is worth asking.

        `arguments` are those that the format takes.
        """
        self.name = name
        self.may_be = may_be
        self._module = module
        self._kind = kind
        self._arguments = arguments

    @cache  # noqa: B019 - there are few of these, and they live as long as the program
    def load(self) -> Format:
        """The parser itself."""
        kind = getattr(import_module(f"mstore.formats.{self._module}"), self._kind)
        found: Format = kind(*self._arguments)
        return found

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        """Whether the file is of this format."""
        return self.may_be(head, reader) and self.load().sniff(head, reader)

    def layout(self, reader: ByteReader) -> Layout:
        """What the parser says."""
        return self.load().layout(reader)

    def examine(self, reader: ByteReader) -> tuple[Layout, str | None]:
        """What the parser says."""
        return self.load().examine(reader)

    def findings(self, reader: ByteReader) -> list[Finding]:
        """What the parser says."""
        return self.load().findings(reader)

    def findings_beside(self, reader: ByteReader, beside: Beside) -> list[Finding]:
        """What the parser says."""
        return self.load().findings_beside(reader, beside)


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

    @cache  # noqa: B019 - as above
    def load(self) -> Companion:
        """The parser itself."""
        found: Companion = getattr(import_module(f"mstore.formats.{self._module}"), self._kind)()
        return found

    def describers(self, name: str, names: Collection[str]) -> Iterable[str]:
        """What the parser says."""
        return self.load().describers(name, names) if self.may_be(name, names) else ()

    def parse(self, reader: ByteReader, describer: str) -> Mapping[str, Placed]:
        """What the parser says."""
        return self.load().parse(reader, describer)
