"""Write the small good files of each format into a folder of its own: python seeds.py FOLDER

They are what fuzzing begins with. In `hdf5-records` is what the process that reads HDF5 files says
of those.
"""

import json
import sys
import tempfile
import warnings
from pathlib import Path

from mstore.formats.base import BytesReader
from mstore.formats.hdf5_process import records

MOST = 32 << 10
"""Bytes of a seed: of small files more are tried in the same time."""

sys.path.insert(0, str(Path(__file__).parents[1] / "corpus"))


def write_seeds(folder: Path) -> None:
    """Write the files `folder`/FORMAT/NUMBER-NAME."""
    from good import good_files

    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, case in enumerate(good_files(Path(made))):
            name, content = Path(case.path).name, (Path(made) / case.path).read_bytes()
            write_seed(folder / case.format / f"{number:03}-{name}", content)
            if case.format == "hdf5" and content.startswith(b"\x89HDF"):
                said = b"\n".join(json.dumps(one).encode() for one in records(BytesReader(content)))
                write_seed(folder / "hdf5-records" / f"{number:03}-{name}", said)


def write_seed(path: Path, content: bytes) -> None:
    """Write a seed, if it is not empty and not too long."""
    if 0 < len(content) <= MOST:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
