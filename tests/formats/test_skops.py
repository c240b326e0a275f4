"""The skops parser, against what skops itself loads and against hostile archives."""

import io
import json
import tracemalloc
import zipfile

import numpy as np
import pytest
import scipy.sparse
import skops.io
from damage import changed_runs, flipped, judge
from hypothesis import given
from sklearn.cluster import KMeans
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mstore.errors import FormatError, LimitExceededError
from mstore.formats import skops as skops_module
from mstore.formats.base import BytesReader
from mstore.formats.npz import NpzFormat
from mstore.formats.skops import SkopsFormat

RANDOM = np.random.default_rng(2)
X = RANDOM.normal(size=(40, 5))
Y = (X[:, 0] > 0).astype(int)
METHODS = pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])

ESTIMATORS = {
    "pipeline": make_pipeline(StandardScaler(), LogisticRegression()),
    "forest": RandomForestClassifier(3, random_state=1),
    "network": MLPClassifier((4, 3), max_iter=300, tol=1e-1, random_state=1),
    "clusters": KMeans(2, n_init=1, random_state=1),
    "neighbours": KNeighborsClassifier(algorithm="brute"),
}


def dumped(value, method=zipfile.ZIP_STORED):
    return skops.io.dumps(value, compression=method)


def examine(data):
    return SkopsFormat().examine(BytesReader(data))


def sniffed(data):
    return SkopsFormat().sniff(data[:4096], BytesReader(data))


def at(value, path):
    """What lies at the end of a way through attributes, keys and indexes."""
    for step in path.split("."):
        if isinstance(value, dict):
            value = value[step] if step in value else value[int(step)]
        elif isinstance(value, list | tuple):
            value = value[int(step)]
        elif step == "__reduce__":
            return None  # arguments, which no object keeps
        elif isinstance(value, np.ndarray):
            value = value[step]  # of records
        else:
            state = value.__getstate__() if hasattr(value, "__getstate__") else None
            known = isinstance(state, dict) and step in state
            value = state[step] if known else getattr(value, step)
    return value


@METHODS
@pytest.mark.parametrize("name", ESTIMATORS)
def test_reads_what_skops_loads(name, method, read_tensors):
    data = dumped(ESTIMATORS[name].fit(X, Y), method)
    assert sniffed(data)
    layout, note = examine(data)
    # The nodes of trees are records.
    assert (note is None) == (name != "forest" or method == zipfile.ZIP_STORED)
    found = read_tensors(data, layout)
    loaded = skops.io.loads(data, trusted=skops.io.get_untrusted_types(data=data))
    compared = 0
    for path, array in found.items():
        if ".random_state" in path or (expected := at(loaded, path)) is None:
            continue
        expected = np.asarray(expected)
        assert (array.dtype, array.shape) == (expected.dtype, expected.shape)
        assert array.tobytes() == expected.tobytes()
        compared += 1
    assert compared >= 3


def test_names_of_estimators():
    data = dumped(ESTIMATORS["pipeline"].fit(X, Y))
    names = {s.tensor.name for s in examine(data)[0].segments if s.tensor is not None}
    assert {"steps.0.1.mean_", "steps.0.1.var_", "steps.1.1.coef_", "steps.1.1.intercept_"} <= names


@METHODS
def test_containers(method, read_tensors):
    shared = np.arange(3)
    value = {
        "a": [shared, (np.float32(1.5), {"content": np.arange(2.0)})],
        "again": shared,
        "masked": np.ma.array([1.0, 2.0], mask=[False, True]),
        "objects": np.array([1, "x", None], dtype=object),
        "text": np.array(["x", "y"]),
        7: np.zeros((2, 0), np.int8),
        "fortran": np.asfortranarray(RANDOM.normal(size=(2, 3))),
    }
    data = dumped(value, method)
    found = read_tensors(data, examine(data)[0])
    assert list(found) == [
        "a.0", "a.1.0", "a.1.1.content", "masked.data", "masked.mask", "7", "fortran",
    ]  # fmt: skip
    assert found["a.0"].tolist() == [0, 1, 2]
    assert found["fortran"].tobytes() == value["fortran"].tobytes()
    assert examine(data)[1] is None


def test_an_array_alone(read_tensors):
    data = dumped(np.arange(3))
    ((name, array),) = read_tensors(data, examine(data)[0]).items()
    assert name == ""
    assert array.tolist() == [0, 1, 2]


def test_sparse_matrices(read_tensors):
    matrix = scipy.sparse.random(6, 5, 0.4, "csr", random_state=1)
    model = TfidfVectorizer().fit(["a few words", "and more words"])
    data = dumped({"m": matrix, "words": model})
    found = read_tensors(data, examine(data)[0])
    for part in ("data", "indices", "indptr", "shape"):
        assert (found[f"m/{part}"] == getattr(matrix, part)).all()
    assert (found["words._tfidf.idf_"] == model.idf_).all()
    _, note = examine(dumped({"m": matrix}, zipfile.ZIP_DEFLATED))
    assert note == "opaque bytes for 1 of 1 arrays: 'm' is compressed twice"


def findings(data):
    return {(f.danger, f.what): f.where for f in SkopsFormat().findings(BytesReader(data))}


@METHODS
@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_are_harmless(name, method):
    found = findings(dumped(ESTIMATORS[name].fit(X, Y), method))
    dangers = {danger for danger, _ in found}
    assert dangers == {"allowed"}, found


# Archives by hand


def node(module, name, loader="ObjectNode", **fields):
    return {"__class__": name, "__module__": module, "__loader__": loader} | fields


def archive(schema, method=zipfile.ZIP_STORED, **members):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as made:
        for name, content in members.items():
            made.writestr(name.replace("_", "."), content)
        text = schema if isinstance(schema, str | bytes) else json.dumps(schema)
        made.writestr("schema.json", text)
    return file.getvalue()


def npy(array):
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def an_array(file="1.npy"):
    return node("numpy", "ndarray", "NdArrayNode", type="numpy", file=file)


def a_dict(**content):
    return node("builtins", "dict", "DictNode", content=content)


ARRAY = npy(np.arange(3))


def test_what_loading_would_import():
    schema = a_dict(
        fine=node("sklearn.linear_model._ridge", "Ridge"),
        call=node("os", "system", "FunctionNode"),
        kind=node("posix", "system", "TypeNode"),
        own=node("my_models", "Net"),
        getter=node("operator", "methodcaller", "OperatorFuncNode", attrs={}),
        method=node("my_models", "Net", "MethodNode", content={"obj": {}, "func": "run"}),
        odd=node(3, "Net"),
    )
    schema["key_types"] = node("builtins", "list", content=[node("runpy", "run_path")])
    found = findings(archive(schema))
    assert {
        ("dangerous", "uses 'os.system'"): "call",
        ("dangerous", "uses 'posix.system'"): "kind",
        ("dangerous", "uses 'operator.methodcaller'"): "getter",
        ("dangerous", "uses 'runpy.run_path'"): "key_types.0",
        ("unknown", "uses 'my_models.Net'"): "own",
        ("unknown", "uses 'my_models.Net.run'"): "method",
        ("unknown", "uses something without a name"): "odd",
        ("allowed", "uses 'sklearn.linear_model._ridge.Ridge'"): "fine",
    }.items() <= found.items()


def test_arrays_that_the_schema_does_not_name():
    data = archive(a_dict(a=an_array()), **{"1_npy": ARRAY, "2_npy": ARRAY, "x_txt": b"text"})
    names = [s.tensor.name for s in examine(data)[0].segments if s.tensor is not None]
    assert names == ["a", "2.npy"]


def test_one_name_twice():
    schema = {**a_dict(a=an_array("1.npy")), "a": an_array("2.npy")}
    data = archive(schema, **{"1_npy": ARRAY, "2_npy": ARRAY})
    names = [s.tensor.name for s in examine(data)[0].segments if s.tensor is not None]
    assert names == ["a", "a#2"]


GOOD = a_dict(a=an_array())
DAMAGED = bytearray(archive(GOOD, zipfile.ZIP_DEFLATED, **{"1_npy": ARRAY}))
DAMAGED[DAMAGED.index(b"schema.json") + 100] ^= 0xFF

MALFORMED = {
    "no JSON": archive(json.dumps(GOOD) + "}"),
    "cut": archive(json.dumps(GOOD)[:-1]),
    "key twice": archive(json.dumps(GOOD)[:-1] + ', "__class__": "x"}'),
    "not UTF-8": archive(json.dumps(GOOD).encode()[:-1] + b', "\xff": 1}'),
    "bad array": archive(GOOD, **{"1_npy": ARRAY[:-1]}),
    "bad matrix": archive(GOOD, **{"1_npz": b"PK"}),
    "deflated schema damaged": bytes(DAMAGED),
    "no schema": archive(GOOD).replace(b"schema.json", b"schema.text"),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data):
    with pytest.raises(FormatError):
        examine(data)


DEEP = '{"__class__": "a", "__module__": "b", "__loader__": "c", "content": '


@METHODS
def test_too_much(method, monkeypatch):
    many = json.dumps(GOOD)[:-1] + ', "x": [' + "[]," * 700_000 + "0]}"
    long = json.dumps(a_dict(**{"k" * 3000: {"k" * 3000: an_array()}}))
    for text in (DEEP * 100_000 + "0" + "}" * 100_000, "[" * 100_000, many, long):
        with pytest.raises(LimitExceededError):
            examine(archive(text, method))
    monkeypatch.setattr(skops_module, "MAX_SCHEMA", 100)
    with pytest.raises(LimitExceededError):
        examine(archive(GOOD, method))


def test_long_ways_are_not_kept():
    """A way of 4,000 characters to each of 100,000 lists, in a text of 300,000 bytes."""
    outer = json.dumps(a_dict(**{"k" * 4000: "here"}))
    long = outer.replace('"here"', "[" + "[]," * 100_000 + "[]]")
    data = archive(long, zipfile.ZIP_DEFLATED)
    tracemalloc.start()
    layout, _ = examine(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert layout.format == "skops"
    assert peak < 32 << 20
    objects = outer.replace('"here"', json.dumps([an_array()] * 10_000))
    for read in (examine, findings):
        with pytest.raises(LimitExceededError, match="ways"):
            read(archive(objects, zipfile.ZIP_DEFLATED))


def test_sniff():
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        assert sniffed(archive(GOOD, method))
        assert not sniffed(archive({"type": "object"}, method, a_npy=ARRAY))
        assert not sniffed(archive([GOOD], method))
    assert not sniffed(b"")
    assert not sniffed(b"PK\3\4")
    plain = io.BytesIO()
    np.savez(plain, a=np.arange(3))
    assert not sniffed(plain.getvalue())
    assert not sniffed(archive(GOOD)[:-1])
    assert NpzFormat().sniff(plain.getvalue()[:4096], BytesReader(plain.getvalue()))


SMALL = [
    archive(GOOD, method, **{"1_npy": ARRAY})
    for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
]


@pytest.mark.parametrize("data", SMALL, ids=["stored", "deflated"])
def test_flipped_bits_and_truncations(data):
    for size in range(len(data)):
        judge(SkopsFormat(), data[:size])
    for _, changed in flipped(data, (0, 2, 5, 7)):
        judge(SkopsFormat(), changed)


SCHEMA = json.dumps(a_dict(a=an_array(), b=a_dict(c=[an_array("2.npy")]))).encode()


@given(changed_runs(SCHEMA, 3))
def test_changed_schemas(schema):
    judge(SkopsFormat(), archive(schema, **{"1_npy": ARRAY, "2_npy": ARRAY}))
