import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mstore.errors import InvalidInputError
from mstore.storage.arguments import check_range, is_folder, is_key

texts = st.text("az09._-/A~ \n\0é", max_size=12) | st.sampled_from(["..", "tmp/a", "tmp", "a/../b"])


@given(texts)
def test_a_key_stays_inside_and_means_one_file(key):
    if is_key(key):
        assert os.path.normpath(f"/root/{key}") == f"/root/{key}"
        assert key == key.lower()
        assert key.split("/")[0] != "tmp"
        assert is_folder(key + "/")


@pytest.mark.parametrize("key", ["roots/00000000000000000001", "data/0f3a.pack", "a", "tmpfile/a"])
def test_good_keys(key):
    assert is_key(key)


def test_ranges():
    check_range(0, None)
    check_range(5, 0)
    for start, length in [(-1, None), (0, -1), (-1, 5)]:
        with pytest.raises(InvalidInputError):
            check_range(start, length)
