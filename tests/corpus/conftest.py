"""The corpus itself, made once for all tests that a process runs."""

import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # its modules import each other by plain names


@pytest.fixture(scope="session")
def good_directory(tmp_path_factory):
    """A folder of all good files, and what they are."""
    from good import good_files

    directory = tmp_path_factory.mktemp("corpus")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return directory, list(good_files(directory))
