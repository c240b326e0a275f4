"""Models of Keras in its three kinds of files, against what h5py reads of them."""

import io
import json
import os
import warnings
import zipfile

import h5py
import ml_dtypes
import numpy as np
import pytest

from mstore.errors import FormatError, LimitExceededError, UnsafeInputError
from mstore.formats import hdf5_process, keras_config
from mstore.formats.base import BytesReader, Finding
from mstore.formats.detect import describe
from mstore.formats.hazards import find_hazards
from mstore.formats.hdf5 import MISSING, Hdf5Format
from mstore.formats.keras import KerasFormat
from mstore.formats.keras_config import config_findings
from mstore.layout import Segment

MEMBERS = ("metadata.json", "config.json", "model.weights.h5")


@pytest.fixture(scope="module")
def keras():
    os.environ["KERAS_BACKEND"] = "torch"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


@pytest.fixture(scope="module")
def folder(keras, tmp_path_factory):
    """A trained model saved in all three ways, and others as archives."""
    folder = tmp_path_factory.mktemp("keras")
    layers = keras.layers
    keras.utils.set_random_seed(1)
    image = layers.Input((6, 6, 2))
    hidden = layers.BatchNormalization()(layers.Conv2D(3, 3)(image))
    model = keras.Model(image, layers.Dense(2)(layers.Flatten()(hidden)))
    half = keras.Sequential([layers.Input((4,)), layers.Dense(5, dtype="bfloat16")])
    function = keras.Sequential([layers.Input((4,)), layers.Lambda(lambda x: x + 1)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.compile("adam", "mse")
        model.fit(np.ones((4, 6, 6, 2)), np.ones((4, 2)), verbose=0)
        model.save(folder / "model.keras")
        model.save_weights(folder / "model.weights.h5")
        model.save(folder / "model.h5")
        half.save(folder / "half.keras")
        function.save(folder / "function.keras")
        function.save(folder / "function.h5")
    return folder


def inside(archive):
    """The HDF5 file in a `.keras` archive."""
    with zipfile.ZipFile(archive) as opened:
        return opened.read("model.weights.h5")


def datasets(data):
    found = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            found[name] = np.asarray(item[()])
            if item.attrs.get("dtype") == "bfloat16":
                found[name] = found[name].view(ml_dtypes.bfloat16)

    with h5py.File(io.BytesIO(data)) as file:
        file.visititems(visit)
    return found


def same(found, wanted):
    assert set(found) == set(wanted)
    for name, array in found.items():
        assert (array.dtype, array.shape) == (wanted[name].dtype, wanted[name].shape)
        assert array.tobytes() == wanted[name].tobytes()


@pytest.mark.parametrize("name", ["model.h5", "model.weights.h5"])
def test_hdf5_files(folder, read_tensors, name):
    data = (folder / name).read_bytes()
    layout, note = Hdf5Format().examine(BytesReader(data))
    assert note is None
    assert not layout.views
    same(read_tensors(data, layout), datasets(data))
    assert Hdf5Format().findings(BytesReader(data)) == []


@pytest.mark.parametrize("name", ["model.keras", "half.keras"])
def test_archives(folder, read_tensors, name):
    data = (folder / name).read_bytes()
    reader = BytesReader(data)
    assert KerasFormat().sniff(data[:4096], reader)
    layout, note = KerasFormat().examine(reader)
    assert (layout.format, note) == ("keras", None)
    same(read_tensors(data, layout), datasets(inside(folder / name)))
    assert KerasFormat().findings(reader) == []


def test_names_are_those_of_saved_weights(folder):
    archive = KerasFormat().layout(BytesReader((folder / "model.keras").read_bytes()))
    weights = Hdf5Format().layout(BytesReader((folder / "model.weights.h5").read_bytes()))
    names = [
        {s.tensor.name: s.tensor for s in layout.segments if s.tensor}
        for layout in (archive, weights)
    ]
    assert names[0].items() >= names[1].items()
    assert names[1]["layers/dense/vars/0"].shape == (48, 2)


def test_bfloat16(folder):
    layout = KerasFormat().layout(BytesReader((folder / "half.keras").read_bytes()))
    types = {s.tensor.dtype.name for s in layout.segments if s.tensor}
    assert "bf16" in types


def test_lambda(folder):
    marshalled = "runs Python code that is marshalled in its configuration"
    for name, where in (("function.keras", "config.json"), ("function.h5", "model_config")):
        reader = BytesReader((folder / name).read_bytes())
        format_ = KerasFormat() if name.endswith(".keras") else Hdf5Format()
        assert Finding("dangerous", marshalled, where) in format_.findings(reader)
        format_.layout(reader)  # its weights are as good as any


def archive(config="{}", weights=None, method=zipfile.ZIP_STORED, members=MEMBERS):
    """A `.keras` file made by hand."""
    if weights is None:
        made = io.BytesIO()
        with h5py.File(made, "w") as file:
            file["layers/dense/vars/0"] = np.arange(6.0).reshape(2, 3)
            file.create_dataset("tiles", data=np.arange(9.0).reshape(3, 3), chunks=(2, 2))
            file["tied"] = file["tiles"]
        weights = made.getvalue()
    contents = dict(zip(MEMBERS, ("{}", config, weights), strict=True))
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", method) as opened:
        for name in members:
            opened.writestr(name, contents[name])
    return data.getvalue()


def test_views_are_moved_to_where_the_file_lies(read_tensors):
    data = archive()
    found = read_tensors(data, KerasFormat().layout(BytesReader(data)))
    assert found["tied"].tolist() == np.arange(9).reshape(3, 3).tolist()
    assert found["layers/dense/vars/0"].tolist() == [[0, 1, 2], [3, 4, 5]]


def test_sniff():
    def sniff(data):
        return KerasFormat().sniff(data[:4096], BytesReader(data))

    assert sniff(archive())
    assert sniff(archive()[:-1])  # damaged, but of this format
    assert sniff(archive(members=MEMBERS[1:]))  # Keras does not look for the other one
    assert not sniff(archive(members=MEMBERS[:2]))
    assert not sniff(archive(members=MEMBERS[::2]))
    assert not sniff(archive("[]", members=MEMBERS[:2]))
    assert not sniff(b"")
    assert not sniff(b"PK\3\4")
    with pytest.raises(FormatError):
        KerasFormat().layout(BytesReader(archive()[:-1]))


def test_compressed_weights_stay_opaque():
    data = archive(method=zipfile.ZIP_DEFLATED)
    reader = BytesReader(data)
    layout, note = KerasFormat().examine(reader)
    assert layout.segments == (Segment(0, len(data)),)
    assert note == "its model.weights.h5 is compressed"
    assert [found.where for found in KerasFormat().findings(reader)] == ["model.weights.h5"]


RUNS = json.dumps({"config": {"value": "4wEA"}, "class_name": "__lambda__"})


def test_keras_builds_a_model_before_it_looks_for_weights():
    data = archive(RUNS.replace("class_name", "class\\u005fname"), members=MEMBERS[1:2])
    hazards = find_hazards(BytesReader(data))
    assert (hazards.format, hazards.verdict) == ("keras", "dangerous")
    harmless = archive('{"class_name": "Dense"}', members=MEMBERS[:2])
    layout, note = describe(BytesReader(harmless))
    assert (layout.format, note) == ("keras", "it has no model.weights.h5")


def test_a_compressed_configuration_is_looked_into():
    data = archive(RUNS, method=zipfile.ZIP_DEFLATED)
    assert find_hazards(BytesReader(data)).verdict == "dangerous"


def test_what_is_wrong_with_the_weights_is_told():
    with pytest.raises(FormatError, match=r"in its member 'model.weights.h5', it has no superbl"):
        KerasFormat().layout(BytesReader(archive(weights=b"nothing")))
    made = io.BytesIO()
    with h5py.File(made, "w") as file:
        file["e"] = h5py.ExternalLink("x", "/")
    data = archive(weights=made.getvalue())
    with pytest.raises(UnsafeInputError, match=r"in its member 'model.weights.h5', .*another file"):
        KerasFormat().layout(BytesReader(data))
    assert [found.danger for found in KerasFormat().findings(BytesReader(data))] == ["dangerous"]


def test_without_h5py(monkeypatch):
    monkeypatch.setattr(hdf5_process, "is_available", lambda: False)
    layout, note = KerasFormat().examine(BytesReader(archive()))
    assert note == MISSING
    assert all(segment.tensor is None for segment in layout.segments)


class TestConfigurations:
    @pytest.mark.parametrize(
        ("node", "danger", "what"),
        [
            (
                {"class_name": "Lambda", "config": {"name": "l", "function": ["4wEA", None, None]}},
                "dangerous",
                "runs Python code that is marshalled in its layer 'l'",
            ),
            (
                {"class_name": "__lambda__", "config": {"value": "4wEA"}},
                "dangerous",
                "runs Python code that is marshalled in its configuration",
            ),
            (
                {"class_name": "TorchModuleWrapper", "config": {"module": "UEsD"}},
                "dangerous",
                "unpickles a PyTorch module in its layer 'TorchModuleWrapper'",
            ),
            (
                {"class_name": "TFSMLayer", "config": {"filepath": "/tmp/x"}},
                "dangerous",
                "loads a SavedModel from elsewhere for its layer 'TFSMLayer'",
            ),
            (
                {"class_name": "StringLookup", "config": {"vocabulary": "/etc/passwd"}},
                "dangerous",
                "reads the file '/etc/passwd'",
            ),
            (
                {"module": "os", "class_name": "function", "config": "system"},
                "dangerous",
                "uses 'system' of Python's own module 'os'",
            ),
            (
                {"module": "keras.utils", "class_name": "function", "config": "get_file"},
                "dangerous",
                "calls 'keras.utils.get_file', which no model needs",
            ),
            (
                {"module": "keras.utils", "class_name": "get_file", "config": {}},
                "dangerous",
                "calls 'keras.utils.get_file', which no model needs",
            ),
            (
                {
                    "module": "keras.src.utils.file_utils",
                    "class_name": "function",
                    "config": "get_file",
                },
                "dangerous",
                "calls 'keras.src.utils.file_utils.get_file', which no model needs",
            ),
            (
                {"module": "tensorflow.io", "class_name": "function", "config": "write_file"},
                "dangerous",
                "calls 'tensorflow.io.write_file', which no model needs",
            ),
            (
                {"class_name": "TFOpLambda", "config": {"function": "io.write_file"}},
                "dangerous",
                "calls 'tf.io.write_file'",
            ),
            (
                {"module": "my.layers", "class_name": "Mine", "registered_name": "my>Mine"},
                "unknown",
                "uses 'Mine' of 'my.layers', which is not of Keras",
            ),
            (
                {"module": None, "class_name": "Mine", "registered_name": "my>Mine"},
                "unknown",
                "uses 'Mine', which is not of Keras",
            ),
        ],
    )
    def test_findings(self, node, danger, what):
        nested = {"config": {"layers": [{"class_name": "Dense", "config": {}}, node, node]}}
        assert config_findings(json.dumps(nested), "config.json") == [
            Finding(danger, what, "config.json")
        ]

    @pytest.mark.parametrize(
        "node",
        [
            {"module": "keras.layers", "class_name": "Dense", "registered_name": None},
            {"module": "keras.utils", "class_name": "FeatureSpace", "config": {}},
            {"class_name": "TFOpLambda", "config": {"function": "math.multiply"}},
            {"module": "keras.src.models.functional", "class_name": "Functional"},
            {"module": "keras.activations", "class_name": "function", "config": "relu"},
            {"module": "builtins", "class_name": "function", "config": "relu"},
            {"class_name": "Lambda", "config": {"function": {"class_name": "function"}}},
            {"class_name": "StringLookup", "config": {"vocabulary": ["a", "b"]}},
            {"class_name": 3, "module": "os"},
            {"module": "os"},
            {"value": float("nan")},
        ],
    )
    def test_nothing_to_say(self, node):
        assert config_findings(json.dumps([node]), "config.json") == []

    def test_malformed(self):
        with pytest.raises(FormatError, match="no JSON"):
            config_findings("{", "config.json")
        with pytest.raises(LimitExceededError, match="nested"):
            config_findings("[" * 100_000, "config.json")
        with pytest.raises(FormatError, match="not UTF-8"):
            KerasFormat().findings(BytesReader(archive(config=b"\xff")))

    def test_too_long(self, monkeypatch):
        monkeypatch.setattr("mstore.formats.keras.MAX_CONFIG", 10)
        with pytest.raises(LimitExceededError, match="more than 10 bytes"):
            KerasFormat().findings(BytesReader(archive(config=" " * 11)))

    def test_the_lists_name_what_keras_refuses(self, keras):
        """Functions that Keras itself forbids in a configuration are all found here."""
        from keras.src.saving.serialization_lib import NON_MODELING_APIS

        for name in NON_MODELING_APIS - {"keras.backend.clear_session"}:
            module, function = name.rsplit(".", 1)
            node = {"module": module, "class_name": "function", "config": function}
            assert config_findings(json.dumps(node), "")[0].danger == "dangerous"
        assert keras_config.MAX_CONFIG >= 1 << 20
