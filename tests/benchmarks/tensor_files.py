"""Where tensors lie in the two kinds of files that the families have, for the peers.

They do not use mstore's own parsers, so that no peer depends on what is measured beside it.
"""

import io
import json
import zipfile
from dataclasses import dataclass

LOCAL_HEADER = 30


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes `start` to `end` of a file: one tensor, or what lies between (both names empty)."""

    start: int
    end: int
    name: str = ""
    dtype: str = ""
    shape: tuple[int, ...] = ()


def spans(file: str, data: bytes) -> list[Span]:
    """The spans that cover `data`, the content of the file of this name, in order."""
    if file.endswith(".safetensors"):
        return _covering(_safetensors(data), len(data))
    if file.endswith(".pt"):
        return _covering(_torch(data), len(data))
    return _covering([], len(data))


def _safetensors(data: bytes) -> list[Span]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    return [
        Span(start + at[0], start + at[1], name, tensor["dtype"], tuple(tensor["shape"]))
        for name, tensor in header.items()
        for at in [tensor["data_offsets"]]
    ]


def _torch(data: bytes) -> list[Span]:
    """The storages of a file of `torch.save`, taken as float32, which most of them are."""
    found = []
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if "/data/" in member.filename and member.file_size % 4 == 0:
                header = data[member.header_offset : member.header_offset + LOCAL_HEADER]
                name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
                start = member.header_offset + LOCAL_HEADER + name + extra
                end = start + member.file_size
                found.append(Span(start, end, member.filename, "F32", (member.file_size // 4,)))
    return found


def _covering(tensors: list[Span], size: int) -> list[Span]:
    found, position = [], 0
    for span in sorted(tensors, key=lambda span: (span.start, span.end)):
        if span.start > position:
            found.append(Span(position, span.start))
        found.append(span)
        position = span.end
    return found if position == size else [*found, Span(position, size)]
