"""Parsers that do what no parser may; by them the watch is tested. Each claims every file."""

import ctypes
import marshal
import os
import pickle
import socket
import subprocess
from contextlib import suppress
from typing import ClassVar

from mstore.formats.base import Format
from mstore.layout import ByteReader, Layout, opaque


class Bad(Format):
    """Does its harm in `layout`."""

    name = "bad"

    def sniff(self, head: bytes, reader: ByteReader) -> bool:
        return True

    def layout(self, reader: ByteReader) -> Layout:
        self.harm(reader)
        return opaque(reader.size)

    def harm(self, reader: ByteReader) -> None:
        raise NotImplementedError


class Imports(Bad):
    def harm(self, reader: ByteReader) -> None:
        import colorsys  # noqa: F401


class Executes(Bad):
    def harm(self, reader: ByteReader) -> None:
        exec("1 + 1")


class Compiles(Bad):
    def harm(self, reader: ByteReader) -> None:
        compile("1", "x", "eval")


class OpensElsewhere(Bad):
    def harm(self, reader: ByteReader) -> None:
        with open("/etc/passwd") as file:  # noqa: PTH123
            file.read()


class OpensByNumber(Bad):
    def harm(self, reader: ByteReader) -> None:
        os.close(os.open("/etc/passwd", os.O_RDONLY))


class Writes(Bad):
    def harm(self, reader: ByteReader) -> None:
        with open("written", "w"):  # noqa: PTH123
            pass


class Removes(Bad):
    def harm(self, reader: ByteReader) -> None:
        os.remove("nothing")  # noqa: PTH107


class RunsShell(Bad):
    def harm(self, reader: ByteReader) -> None:
        os.system("true")


class RunsProcess(Bad):
    def harm(self, reader: ByteReader) -> None:
        subprocess.run(["true"], check=False)


class Forks(Bad):
    def harm(self, reader: ByteReader) -> None:
        if os.fork() == 0:
            os._exit(0)


class Connects(Bad):
    def harm(self, reader: ByteReader) -> None:
        socket.socket().connect(("127.0.0.1", 1))


class CallsC(Bad):
    def harm(self, reader: ByteReader) -> None:
        ctypes.CDLL(None)


class ReadsCode(Bad):
    def harm(self, reader: ByteReader) -> None:
        marshal.loads(marshal.dumps(1))


class Unpickles(Bad):
    def harm(self, reader: ByteReader) -> None:
        pickle.loads(b"cos\nsystem\n(S'true'\ntR.")


class HidesIt(Bad):
    """As many do: whatever goes wrong is passed over."""

    def harm(self, reader: ByteReader) -> None:
        with suppress(Exception):
            os.system("true")


class TakesMemory(Bad):
    kept: ClassVar[list[bytearray]] = []

    def harm(self, reader: ByteReader) -> None:
        held = bytearray(b"x" * (100 << 20))
        assert held[-1]


class TakesTime(Bad):
    def harm(self, reader: ByteReader) -> None:
        number = 0
        while number < 3_000_000:
            number += 1


class FailsOtherwise(Bad):
    def harm(self, reader: ByteReader) -> None:
        raise ValueError("not one of ours")


class LeavesGaps(Bad):
    def layout(self, reader: ByteReader) -> Layout:
        return opaque(reader.size - 1)
