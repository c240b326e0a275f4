"""The corpus itself, made once for all tests that a process runs."""

import os
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # its modules import each other by plain names

# The models are small: on a busy machine more threads only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def good_directory(tmp_path_factory):
    """A folder of all good files, and what they are."""
    from good import good_files

    directory = tmp_path_factory.mktemp("corpus")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return directory, list(good_files(directory))
