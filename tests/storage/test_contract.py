import subprocess
import sys
from pathlib import Path

import pytest

from mstore.storage.base import Storage
from mstore.storage.local import LocalStorage
from mstore.storage.memory import MemoryStorage
from mstore.testing import StorageContract


class TestMemory(StorageContract):
    def make_storage(self) -> Storage:
        return MemoryStorage("test")


class TestLocal(StorageContract):
    @pytest.fixture(autouse=True)
    def _place(self, tmp_path: Path) -> None:
        self.folder = tmp_path
        self.made = 0

    def make_storage(self) -> Storage:
        self.made += 1
        return LocalStorage(self.folder / "some" / f"repo{self.made}")


class Forgetful(MemoryStorage):
    """Breaks the contract in one place: an existing object is replaced."""

    def put(self, key, parts):
        self.delete(key)
        return super().put(key, parts)


class TestTheSuiteItself:
    def test_it_catches_a_storage_that_overwrites(self):
        class Suite(StorageContract):
            def make_storage(self):
                return Forgetful()

        with pytest.raises(AssertionError):
            Suite().test_an_object_is_never_altered()
        with pytest.raises(AssertionError, match="told that they had won"):
            Suite().test_of_concurrent_creators_exactly_one_wins()

    def test_imports_stay_light(self):
        """These modules are loaded by every command, the suite by plug-in authors."""
        program = (
            "import sys, mstore.storage.open, mstore.testing;"
            "print(*sorted({'numpy', 'pytest', 'tempfile', 'uuid'} & set(sys.modules)))"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert (done.stdout.strip(), done.stderr) == ("", "")
