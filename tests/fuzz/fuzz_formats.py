"""Fuzz one parser: python tests/fuzz/fuzz_formats.py --format NAME [--runs N] [--seeds FOLDER]

Guided by coverage (atheris, libFuzzer). Whatever the bytes: only mstore's own errors come out of a
parser, within 20 seconds and 768 MiB of the whole process, and what it describes covers the file.
An input that breaks this is written to `--artifacts`, and the exit code is not 0.

NAME is that of a format or of a companion; seeds are those of `seeds.py`. Coverage does not reach
into the process that reads HDF5 files, so `hdf5` is slow, and tries seeds with changes and little
else; `hdf5-records` is what that process might say, were it taken over by a file.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["mstore"]):
    from mstore.errors import MstoreError
    from mstore.formats import detect, hdf5, hdf5_listing, hdf5_process, superblock
    from mstore.formats.base import HEAD_SIZE, BytesReader, Format
    from mstore.formats.companion import Companion
    from mstore.layout import Layout

    detect.load_all()

SECONDS = 20
"""For all that is asked of a parser together, on a busy machine."""

MEMORY_MIB = 768
LONGEST = 64 << 10
"""Bytes of an input."""

DESCRIBERS = {"tensorflow-data": "tensorflow-index", "onnx-data": "onnx"}
"""The formats of the files that describe those of companions."""


def main() -> None:
    """Try inputs until `--runs` of them are done."""
    parsers = [*detect.FORMATS, *detect.COMPANIONS]
    named = {one.name: target([p for p in parsers if p.name == one.name]) for one in parsers}
    named["hdf5-records"] = try_records
    parser = argparse.ArgumentParser(description="Fuzz one parser.")
    parser.add_argument("--format", required=True, choices=sorted(named))
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=int, default=0, help="end after so long; 0: never")
    parser.add_argument("--seeds", type=Path, help="a folder that seeds.py wrote")
    parser.add_argument("--artifacts", type=Path, default=Path(), help="where failures are kept")
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers")
    parser.add_argument("--broken", action="store_true", help="fuzz a parser with a fault in it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        seeds = arguments.seeds
        if seeds is None:
            seeds = Path(folder) / "seeds"
            script = Path(__file__).with_name("seeds.py")
            subprocess.run([sys.executable, script, seeds], check=True, env=_quiet())
        options = [
            f"-runs={arguments.runs}",
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEMORY_MIB}",
            f"-max_len={LONGEST}",
            f"-max_total_time={arguments.seconds}",
            f"-seed={arguments.seed}",
            f"-artifact_prefix={arguments.artifacts}/{arguments.format}-",
            "-print_final_stats=1",
        ]
        found = Path(folder) / "found"
        found.mkdir()
        inputs = [str(found)]
        kind = DESCRIBERS.get(arguments.format, arguments.format)
        if (seeds / kind).is_dir():
            inputs.append(str(seeds / kind))
        tried = named[arguments.format]
        if arguments.broken:
            tried = broken(tried)
        atheris.Setup([sys.argv[0], *options, *inputs], tried)
        atheris.Fuzz()


def _quiet() -> dict[str, str]:
    return {**os.environ, "KERAS_BACKEND": "torch", "TQDM_DISABLE": "1"}


def target(parsers: Sequence[Format | Companion]) -> Callable[[bytes], None]:
    """What is done with each input, by all parsers of one name."""

    def tried(data: bytes) -> None:
        for parser in parsers:
            if isinstance(parser, Companion):
                try_companion(parser, data)
            else:
                try_format(parser, data)

    return tried


def broken(tried: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """The same with a fault in it, to see that it is found."""

    def fails(data: bytes) -> None:
        tried(data)
        if data[6:7] == b"\x07":
            raise ZeroDivisionError("the fault")

    return fails


def try_format(parser: Format, data: bytes) -> None:
    """Everything that a parser is asked to do with a file."""
    reader = BytesReader(data)
    parser.sniff(data[:HEAD_SIZE], reader)
    for ask in (parser.examine, parser.findings):
        try:
            answer = ask(reader)
        except MstoreError:
            continue
        if isinstance(answer, tuple):
            check_cover(answer[0], len(data))


def try_companion(parser: Companion, data: bytes) -> None:
    """What is read of the file that describes others."""
    try:
        parser.parse(BytesReader(data), "model")
    except MstoreError:
        return


def try_records(data: bytes) -> None:
    """Lines of JSON, as the process gives them that reads HDF5 files."""
    hdf5_listing.records = lambda reader: map(hdf5_process._record, data.splitlines())
    try_format(hdf5.Hdf5Format(), superblock.SIGNATURE + bytes(LONGEST))


def check_cover(layout: Layout, size: int) -> None:
    """The segments lie one after the other and end where the file does."""
    position = 0
    for segment in layout.segments:
        if segment.offset != position or segment.length < 0:
            raise AssertionError(f"a segment at {segment.offset} comes after {position}")
        position += segment.length
    if position != size or layout.size != size:
        raise AssertionError(f"{position} of {size} bytes are covered")


if __name__ == "__main__":
    main()
