"""Files of joblib: their arrays are what joblib itself loads; compressed ones are looked through."""

import bz2
import gzip
import io
import lzma
import pickle
import warnings
import zlib
from contextlib import suppress

import joblib
import ml_dtypes
import numpy as np
import pytest
from damage import changed_bytes, judge
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.numpy_pickle import NumpyArrayWrapper, NumpyPickler

from mstore.errors import FormatError, LimitExceededError, MstoreError, UnsafeInputError
from mstore.formats import pickle_inflate
from mstore.formats.base import BytesReader
from mstore.formats.detect import describe, find_format
from mstore.formats.joblib import JoblibFormat
from mstore.layout import opaque

PROTOCOLS = range(2, 6)


def dumped(value, protocol=None, **options):
    """What joblib writes."""
    file = io.BytesIO()
    joblib.dump(value, file, protocol=protocol, **options)
    return file.getvalue()


def loaded(data):
    """What joblib reads, in the byte order of the file."""
    return joblib.load(io.BytesIO(data))


@pytest.fixture
def check(read_tensors):
    """Fails unless the arrays of a file are these, bit for bit; gives its layout."""

    def check(data, expected):
        layout, said = describe(BytesReader(data))
        assert (layout.format, said) == ("joblib", None)
        found = read_tensors(data, layout)
        assert found.keys() == expected.keys()
        for name in expected:
            one, other = (
                a.astype(a.dtype.newbyteorder("=")) for a in (found[name], expected[name])
            )
            assert (name, one.dtype, one.shape) == (name, other.dtype, other.shape)
            assert one.tobytes() == other.tobytes()
        return layout

    return check


def arrays():
    made = np.random.default_rng(0).normal(size=(6, 4, 5))
    kinds = ("?", "u1", "i2", ">i4", "u8", "f2", "f4", ">f8", "c8", "c16", ml_dtypes.bfloat16)
    return {
        **{f"type_{number}": made[0].astype(kind) for number, kind in enumerate(kinds)},
        "turned": np.asfortranarray(made),
        "part": made[::2, 1:3],
        "other_axes": made.transpose(1, 0, 2),
        "scalar": np.array(2.5),
        "none": np.zeros((0, 2), np.int8),
        "matrix": np.matrix([[1.0, 2.0]]),
        "large": np.arange(20_000.0),
    }


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.filterwarnings("ignore::PendingDeprecationWarning")
def test_types_and_orders(check, protocol):
    data = dumped({"in": arrays(), "list": [np.arange(3), 0.5]}, protocol)
    expected = {f"in.{name}": np.asarray(one) for name, one in arrays().items()}
    layout = check(data, expected | {"list.0": np.arange(3)})
    assert not layout.views
    names = {s.tensor.name: s for s in layout.segments if s.tensor}
    assert names["in.turned"].tensor.order == "F"
    assert all(s.offset % 16 == 0 for s in names.values())


def test_alone(check):
    check(dumped(np.arange(12.0).reshape(3, 4)), {"": np.arange(12.0).reshape(3, 4)})


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_arrays_of_objects_and_of_other_types(check, protocol):
    """An array of objects is a pickle of its own, with arrays as pickle writes them."""
    value = {
        "names": np.array(["a", "bc"]),
        "labels": np.array(["a", None, "c"], object),
        "first": np.arange(3),
        "objects": np.array([np.arange(2.0), {"x": np.arange(4)}, None], object),
        "records": np.array([(1, 2.0)], [("a", "i4"), ("b", "f4")]),
        "records_of_objects": np.array([(1, None)], [("a", "i4"), ("b", "O")]),
        "dates": np.array(["2020-01-01"], "M8[D]"),
        "last": np.arange(5),
    }
    expected = {"first": np.arange(3), "last": np.arange(5)}
    expected |= {"objects.0": np.arange(2.0), "objects.1.x": np.arange(4)}
    expected |= {f"records.{name}": value["records"][name] for name in ("a", "b")}
    check(dumped(value, protocol), expected)


@pytest.mark.parametrize(
    ("protocol", "module"),
    [
        *((protocol, "joblib.numpy_pickle") for protocol in PROTOCOLS),
        (2, "sklearn.externals.joblib.numpy_pickle"),
        (3, "sklearn.externals.joblib.numpy_pickle"),
    ],
)
def test_older_files_have_no_padding(check, monkeypatch, protocol, module):
    """As joblib before 1.2 wrote them, and the one that was part of scikit-learn."""
    made = NumpyArrayWrapper.__init__

    def old(self, *args, **kwargs):
        made(self, *args, **kwargs)
        del self.numpy_array_alignment_bytes

    value = {"a": np.arange(5.0), "b": [np.arange(3, dtype="i2")], "c": np.array(["x"], object)}
    with monkeypatch.context() as patch:
        patch.setattr(NumpyArrayWrapper, "__init__", old)
        data = dumped(value, protocol)
    if module != "joblib.numpy_pickle":
        data = data.replace(b"joblib.numpy_pickle\n", module.encode() + b"\n")
    check(data, {"a": np.arange(5.0), "b.0": np.arange(3, dtype="i2")})


def test_a_structure_without_arrays_is_a_pickle():
    assert describe(BytesReader(dumped({"a": 1})))[0].format == "pickle"


def test_arrays_after_the_first_4096_bytes():
    data = dumped({"text": ["x" * 50 + str(n) for n in range(200)], "w": np.arange(5.0)})
    layout, _ = describe(BytesReader(data))
    assert layout.format == "joblib"
    assert [s.tensor.name for s in layout.segments if s.tensor] == ["w"]


ESTIMATORS = [
    "LinearRegression", "LogisticRegression", "Ridge", "StandardScaler", "PCA", "KMeans", "GaussianNB",
    "RandomForestClassifier", "GradientBoostingClassifier", "MLPClassifier", "KNeighborsClassifier",
    "SVC", "GaussianProcessRegressor",
]  # fmt: skip


def fitted():
    from sklearn.pipeline import make_pipeline
    from sklearn.utils import all_estimators

    x = np.random.default_rng(0).normal(size=(30, 4))
    y = (x[:, 0] > 0).astype(int)
    known = dict(all_estimators())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = {name: known[name]().fit(x, y) for name in ESTIMATORS}
        made["Pipeline"] = make_pipeline(known["StandardScaler"](), known["PCA"](2)).fit(x, y)
    return made


def reached(value, name):
    """What is found at a path, by keys, numbers and attributes."""
    for part in filter(None, name.split(".")):
        if isinstance(value, dict):
            value = value[part]
        elif isinstance(value, list | tuple | np.ndarray) and part.isdigit():
            value = (
                np.ravel(value)[int(part)] if isinstance(value, np.ndarray) else value[int(part)]
            )
        elif isinstance(value, np.ndarray):
            value = value[part]
        else:
            value = value.__getstate__()[part]
    return value


@pytest.mark.filterwarnings("ignore")
def test_estimators_of_scikit_learn(read_tensors):
    total = 0
    for name, estimator in fitted().items():
        for data in (dumped(estimator), *(pickle.dumps(estimator, p) for p in (0, 2, 4, 5))):
            layout, said = describe(BytesReader(data))
            assert layout.format in ("pickle", "joblib")
            assert said is None or "holds records that are written as text" in said
            assert said is None or not data.startswith((b"\x80\4", b"\x80\5"))
            assert all(
                finding.danger != "dangerous"
                for finding in find_format(BytesReader(data)).findings(BytesReader(data))
            )
            found = read_tensors(data, layout)
            plain = [
                path for path in found if not path.split(".")[-1].isdigit() and "_tree." not in path
            ]
            for path in plain:
                if ".state." in path:  # of a generator, whose attributes are not those
                    continue
                expected = np.asarray(reached(estimator, path))
                assert found[path].tobytes() == expected.tobytes(), (name, path)
                total += 1
            attributes = {
                key
                for key, one in vars(estimator).items()
                if isinstance(one, np.ndarray) and one.dtype.kind in "biufc"
            }
            assert attributes <= found.keys(), name
    assert total > 200


def test_trees_of_a_forest(read_tensors):
    forest = fitted()["RandomForestClassifier"]
    data = dumped(forest)
    found = read_tensors(data, describe(BytesReader(data))[0])
    for number, tree in enumerate(forest.estimators_):
        state = f"estimators_.{number}.tree_"
        np.testing.assert_array_equal(found[f"{state}.values"], tree.tree_.value)
        np.testing.assert_array_equal(found[f"{state}.nodes.threshold"], tree.tree_.threshold)


COMPRESSED = [("zlib", 3), ("gzip", 3), ("bz2", 3), ("lzma", 3), ("xz", 3), ("xz", 6)]


@pytest.mark.parametrize("how", COMPRESSED)
def test_compressed_files_are_opaque(how):
    data = dumped({"w": np.arange(3000.0)}, compress=how)
    assert describe(BytesReader(data)) == (
        opaque(len(data)),
        "opaque bytes: it is a compressed joblib file",
    )
    findings = JoblibFormat().findings(BytesReader(data))
    assert {one.danger for one in findings} == {"allowed"}
    assert "imports numpy.ndarray" in {one.what for one in findings}


@pytest.mark.parametrize("compress", [zlib.compress, gzip.compress, bz2.compress, lzma.compress])
def test_other_compressed_files_are_not_claimed(compress):
    for content in (b"", b"text " * 1000, bytes(100_000), pickle.dumps({"a": 1}), b"numpy joblib"):
        data = compress(content)
        assert not JoblibFormat().sniff(data[:4096], BytesReader(data))
    data = compress(dumped(np.arange(100.0)))
    assert JoblibFormat().sniff(data[:4096], BytesReader(data))


class Payload:
    def __reduce__(self):
        import os

        return os.system, ("true",)


@pytest.mark.parametrize("how", [0, *COMPRESSED])
@pytest.mark.parametrize("nested", [False, True])
def test_class_30_payloads_are_refused(how, nested):
    """Also where they are in an array of objects, and after much else."""
    payload = np.array([None, Payload()], object) if nested else Payload()
    reader = BytesReader(dumped([np.arange(100_000.0), payload], compress=how))
    with pytest.raises(UnsafeInputError, match=r"^would call (posix|nt)\.system when loaded$"):
        JoblibFormat().layout(reader)
    findings = JoblibFormat().findings(reader)
    assert [one.what for one in findings if one.danger == "dangerous"] == ["calls posix.system"]
    layout, said = describe(reader)
    assert layout == opaque(reader.size)
    assert said.startswith("looks like joblib but would call ")


def test_class_30_a_bomb():
    bomb = dumped({"w": np.zeros(20_000_000)}, compress=("xz", 6))
    assert len(bomb) < 100_000
    for inspect in (JoblibFormat().layout, JoblibFormat().findings):
        with pytest.raises(LimitExceededError, match="inflates to more than 67108864 bytes"):
            inspect(BytesReader(bomb))


def test_large_files_are_looked_through_in_part(monkeypatch):
    monkeypatch.setattr(pickle_inflate, "MAX_INFLATED", 200_000)
    data = dumped([np.arange(3), np.random.default_rng(0).bytes(500_000)], compress=3)
    assert describe(BytesReader(data))[1] == "opaque bytes: it is a compressed joblib file"
    said = {one.what: one.danger for one in JoblibFormat().findings(BytesReader(data))}
    assert said["has more in it than was looked through"] == "unknown"


def test_a_dictionary_of_xz_that_takes_much_memory():
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 30, "preset": 0}]
    data = lzma.compress(dumped(np.arange(9.0)), filters=filters)
    assert not JoblibFormat().sniff(data[:4096], BytesReader(data))


def test_opcodes_in_the_bytes_of_an_array(monkeypatch):
    """Without padding pickle.load takes the elements for opcodes, joblib.load does not."""
    hidden = np.frombuffer(b"cposix\nsystem\n(S'true'\ntR.", np.uint8)
    padded = dumped({"w": hidden})
    assert describe(BytesReader(padded))[1] is None
    made = NumpyArrayWrapper.__init__

    def old(self, *args, **kwargs):
        made(self, *args, **kwargs)
        del self.numpy_array_alignment_bytes

    monkeypatch.setattr(NumpyArrayWrapper, "__init__", old)
    assert "would call posix.system" in describe(BytesReader(dumped({"w": hidden})))[1]


def test_class_12_an_array_that_leaves_the_file():
    data = dumped({"w": np.arange(100.0)}, 2)
    for changed in (
        data.replace(b"Kd\x85", b"Ke\x85"),
        data.replace(b"Kd\x85", b"J\xff\xff\xff\x7f\x85"),
    ):
        assert changed != data
        with pytest.raises(FormatError):
            JoblibFormat().layout(BytesReader(changed))


def test_an_array_within_a_frame():
    """The frame of what is before an array ends where it starts."""
    data = dumped({"w": np.arange(5.0)}, 4)
    assert data[2:3] == b"\x95"
    length = int.from_bytes(data[3:11], "little")
    assert describe(BytesReader(data))[1] is None
    longer = data[:3] + (length + 4).to_bytes(8, "little") + data[11:]
    with pytest.raises(FormatError, match="inside a frame"):
        JoblibFormat().layout(BytesReader(longer))


def test_padding_that_joblib_would_not_write():
    data = dumped({"w": np.arange(5.0)}, 4)
    at = data.rindex(b"\xff" + np.arange(5.0).tobytes()[:16])
    assert data[at] == 0xFF
    with pytest.raises(FormatError, match="padding"):
        JoblibFormat().layout(BytesReader(data[:at] + b"\0" + data[at + 1 :]))


GOOD = {
    "plain": dumped(
        {"w": np.arange(5.0), "o": np.array([1, None], object), "t": np.ones((2, 2), "f2")}
    ),
    "old": dumped([np.arange(5.0)], 2),
    "compressed": dumped({"w": np.arange(5.0)}, compress=3),
}


@pytest.mark.parametrize("name", GOOD)
def test_truncation_at_every_length(name):
    data = GOOD[name]
    for size in range(len(data)):
        reader = BytesReader(data[:size])
        with suppress(MstoreError):
            layout = JoblibFormat().layout(reader)
            assert (name, layout) == ("compressed", opaque(size))
        with suppress(MstoreError):
            JoblibFormat().findings(reader)


@pytest.mark.parametrize("name", GOOD)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_changed_bytes(name, data):
    """Whatever is done to a file, only this package's errors come out of its parser."""
    changed = data.draw(changed_bytes(GOOD[name]))
    judge(JoblibFormat(), changed)
    assert describe(BytesReader(changed))[0].size == len(changed)


def test_what_the_pickler_of_joblib_is():
    """These tests change it; should it become another, they would test nothing."""
    assert NumpyPickler.__module__ == "joblib.numpy_pickle"
