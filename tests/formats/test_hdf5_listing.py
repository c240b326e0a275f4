"""What the HDF5 library is said to have found: checked, whatever a worker that lies may say."""

import io

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mstore.errors import FormatError, LimitExceededError, MstoreError, UnsafeInputError
from mstore.formats import hdf5_listing
from mstore.formats.base import BytesReader
from mstore.formats.hdf5 import Hdf5Format


def small_file():
    data = io.BytesIO()
    with h5py.File(data, "w") as file:
        file["w"] = np.arange(4.0)
    return BytesReader(data.getvalue())


numbers = st.integers(-1, 100) | st.sampled_from([2**31, 2**62, 2**63, 2**70]) | st.none()
lists = st.lists(numbers, max_size=3)
strings = st.text(max_size=5)
said = st.fixed_dictionaries(
    {},
    optional={
        "path": strings | numbers,
        "address": numbers,
        "dtype": st.sampled_from(["f32", ">f64", "f4", "nothing", 3, None]),
        "shape": lists | numbers,
        "layout": st.sampled_from(["contiguous", "chunked", "filtered", "compact", "x", 1]),
        "offset": numbers,
        "tile": lists | st.none(),
        "fill": st.sampled_from(["00000000", "", "x", 1, None]),
    },
)
tiles = st.fixed_dictionaries({"tiles": st.lists(lists | numbers, max_size=3) | numbers})
others = st.sampled_from(
    [{"same": 1, "path": "a"}, {"hazard": "x", "path": "y"}, {"config": 1}, {"hazard": 1}, {}]
)


@settings(max_examples=500)
@given(st.lists(said | tiles | others, max_size=6))
def test_any_lies_end_in_a_layout_or_an_error_of_ours(spoken):
    reader = small_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hdf5_listing, "records", lambda _: iter(spoken))
        try:
            layout = Hdf5Format().layout(reader)
        except MstoreError:
            return
    assert sum(segment.length for segment in layout.segments) == reader.size


class TestLies:
    """Each check of what is said, one by one."""

    GOOD = {  # noqa: RUF012
        "path": "w", "address": 1, "dtype": "f32", "shape": [4, 4], "layout": "chunked",
        "offset": None, "tile": [2, 2], "fill": "00000000",
    }  # fmt: skip

    def layout(self, monkeypatch, *spoken):
        monkeypatch.setattr(hdf5_listing, "records", lambda _: iter(spoken))
        return Hdf5Format().layout(small_file())

    def test_good(self, monkeypatch):
        tiles = [[64, 16, 0, 0], [80, 16, 2, 2], [200, 16, 0, 2]]
        layout = self.layout(monkeypatch, self.GOOD, {"tiles": tiles})
        (view,) = layout.views
        assert view.place.offsets == (64, 200, -1, 80)
        assert [s.tensor.shape for s in layout.segments if s.hidden] == [(2, 2, 2), (1, 2, 2)]

    @pytest.mark.parametrize(
        "tiles",
        [
            [[64, 15, 0, 0]],  # another size
            [[64, 16, 1, 0]],  # between two places
            [[64, 16, 4, 0]],  # outside
            [[64, 16, 0]],
            [[64, 16, 0, 0, 0]],
            [[64]],
            [[64, 16, 0, 0], [80, 16, 0, 0]],  # twice the same
            [[64, 16, 0, 0], [72, 16, 0, 2]],  # bytes shared
            [[10**6, 16, 0, 0]],
            [[-1, 16, 0, 0]],
            [[True, 16, 0, 0]],
        ],
    )
    def test_tiles(self, monkeypatch, tiles):
        with pytest.raises(FormatError):
            self.layout(monkeypatch, self.GOOD, {"tiles": tiles})

    @pytest.mark.parametrize(
        "change",
        [
            {"tile": [2]},
            {"tile": [0, 2]},
            {"tile": [-1, 2]},
            {"dtype": None},
            {"shape": [-4, 4]},
            {"shape": [2**62, 4]},
            {"layout": "contiguous", "tile": None, "offset": 10**6},
            {"path": None},
            {"fill": "0"},
            {"fill": "0000000000"},
            {"dtype": None, "tile": None, "fill": "00"},
            {"layout": "x"},
        ],
    )
    def test_datasets(self, monkeypatch, change):
        with pytest.raises(FormatError):
            self.layout(monkeypatch, {**self.GOOD, **change})

    def test_too_many_chunks(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_TILES", 7)
        again = {**self.GOOD, "path": "v", "address": 2}
        with pytest.raises(LimitExceededError, match="chunks"):
            self.layout(monkeypatch, self.GOOD, again)
        with pytest.raises(LimitExceededError, match="chunks"):
            self.layout(monkeypatch, self.GOOD, {"path": "v", "same": 1})

    def test_too_many_datasets(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_DATASETS", 2)
        with pytest.raises(LimitExceededError, match="datasets"):
            self.layout(monkeypatch, *({**self.GOOD, "path": str(n)} for n in range(3)))

    def test_paths_too_long(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_PATHS", 10)
        with pytest.raises(LimitExceededError, match="long paths"):
            self.layout(monkeypatch, {**self.GOOD, "path": "w" * 11})

    def test_long_paths_of_hazards(self, monkeypatch):
        monkeypatch.setattr(hdf5_listing, "MAX_PATHS", 10)
        for kind, path in (("link", "w" * 7), ("x" * 10, "w"), ("x", "\u20ac" * 3)):
            with pytest.raises(LimitExceededError, match="long paths"):
                self.layout(monkeypatch, {"hazard": kind, "path": path})
        with pytest.raises(UnsafeInputError):
            self.layout(monkeypatch, {"hazard": "link", "path": "w" * 6})

    @pytest.mark.parametrize(
        ("paths", "length"), [(["x"], 2), (["model_config"] * 2, 2), (["model_config"], 17)]
    )
    def test_configurations_of_no_model(self, monkeypatch, paths, length):
        monkeypatch.setattr(hdf5_listing, "MAX_CONFIG", 16)
        said = [{"config": "{}".ljust(length), "path": path} for path in paths]
        with pytest.raises(LimitExceededError if length > 16 else FormatError):
            self.layout(monkeypatch, *said)
        self.layout(monkeypatch, {"config": "{}".ljust(16), "path": "training_config"})

    def test_shapes_of_other_types_are_not_kept(self, monkeypatch):
        said = {**self.GOOD, "dtype": None, "shape": [2**62] * 1000, "tile": None, "fill": None}
        monkeypatch.setattr(hdf5_listing, "records", lambda _: iter([said]))
        (dataset,) = hdf5_listing.list_file(small_file()).datasets
        assert dataset.shape == ()

    @pytest.mark.parametrize("fill", [None, "00"])
    def test_fill_values_that_are_none(self, monkeypatch, fill):
        spoken = {**self.GOOD, "fill": fill}
        monkeypatch.setattr(hdf5_listing, "records", lambda _: iter([spoken]))
        layout, note = Hdf5Format().examine(small_file())
        assert not layout.views
        assert note == "opaque bytes for 1 of 1 datasets: 1 with fill values unknown"

    def test_one_path_twice(self, monkeypatch):
        layout = self.layout(monkeypatch, self.GOOD, {**self.GOOD, "address": 2})
        assert [view.tensor.name for view in layout.views] == ["w", "w#2"]
