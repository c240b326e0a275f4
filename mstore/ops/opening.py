"""Opening the files that a scan has found, for what stores them."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from mstore.formats.detect import describe, find_format
from mstore.formats.hazards import judge
from mstore.formats.shards import check_shards
from mstore.ingest import FileToStore
from mstore.ops.hazards import refusal, refuse_unsafe, warning_of
from mstore.ops.scan import FoundFile
from mstore.sources import FileSource, Folder, FolderOf

_SHARDS_SUFFIX = ".safetensors.index.json"
_MAX_SHARDS_SIZE = 64 << 20


def open_files(
    directory: Path, files: Sequence[FoundFile], warnings: list[str], *, refuse: bool = False
) -> Iterator[FileToStore]:
    """Open found files one after the other and describe their layouts.

    What could not be understood is told in `warnings`; such a file is opaque. So is what is
    dangerous to load; with `refuse` that raises UnsafeInputError instead, before any file is given.
    """
    if refuse:
        refuse_unsafe(directory, files)
    folders: dict[Path, Folder] = {}
    for file in files:
        path = directory / file.path
        source = FileSource(path)
        folder = folders.setdefault(path.parent, Folder(path.parent))
        beside = FolderOf(folder, path.name)
        layout, warning = describe(source, beside)
        hazards = judge(source, find_format(source), beside)
        if refuse and hazards.unsafe:
            # It has become so since all were looked at.
            source.close()
            raise refusal({file.path: hazards})
        if hazards.dangerous:
            warnings.append(warning_of(file.path, hazards))
        elif warning:
            warnings.append(f"{file.path}: {warning}")
        if file.path.endswith(_SHARDS_SUFFIX) and source.size <= _MAX_SHARDS_SIZE:
            text = source.read(0, source.size).decode("utf-8", "replace")
            names = os.listdir((directory / file.path).parent)
            warnings += [f"{file.path}: {problem}" for problem in check_shards(text, names)]
        yield FileToStore(file.path, source, layout)
