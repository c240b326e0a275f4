"""Write the small good files of each format into a folder of its own: python seeds.py FOLDER

They are what fuzzing begins with.
"""

import sys
import tempfile
import warnings
from pathlib import Path

MOST = 32 << 10
"""Bytes of a seed: of small files more are tried in the same time."""

sys.path.insert(0, str(Path(__file__).parents[1] / "corpus"))


def write_seeds(folder: Path) -> None:
    """Write the files `folder`/FORMAT/NUMBER-NAME."""
    from good import good_files

    with tempfile.TemporaryDirectory() as made, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, case in enumerate(good_files(Path(made))):
            path = Path(made) / case.path
            if 0 < path.stat().st_size <= MOST:
                (folder / case.format).mkdir(parents=True, exist_ok=True)
                (folder / case.format / f"{number:03}-{path.name}").write_bytes(path.read_bytes())


if __name__ == "__main__":
    write_seeds(Path(sys.argv[1]))
