"""Writes the checkpoints and SavedModels beside this script, and what TensorFlow reads in them.

    python -m venv tf && tf/bin/pip install tensorflow-cpu && tf/bin/python write_golden.py

They were made with TensorFlow 2.21.0 and Keras 3.15.1. `expected.json` has the tensors of each checkpoint as
`tf.train.load_checkpoint` reads them: path, key, element type, shape, and the bytes as base64 (of
strings none). `constants.json` has the constants of several numbers in each graph in the same way:
path, the name of the node after that of its function, and what `tf.make_ndarray` reads.
"""

import base64
import json
import os
import shutil
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import keras
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

HERE = Path(__file__).resolve().parent
HOME = Path()  # relative, so that no path of a machine gets into the files
V1 = tf.compat.v1

INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]
FLOATS = ["float16", "bfloat16", "float32", "float64", "complex64", "complex128"]
SMALL = ["float8_e5m2", "float8_e4m3fn", "int4", "uint4"]


def array(dtype, shape=(2, 3)):
    """Small numbers of a type, made from 0, 1, 2, …"""
    values = np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return values.astype(tf.as_dtype(dtype).as_numpy_dtype)


def numbers(dtype, shape=(2, 3)):
    """The same as a tensor."""
    return tf.constant(array(dtype, shape))


def clean(name):
    folder = HOME / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def objects():
    """A checkpoint of objects: every type, a scalar, empty tensors, strings, an optimizer."""
    root = tf.train.Checkpoint()
    kinds = ["bool", *INTEGERS, *FLOATS, *SMALL]
    root.types = {dtype: tf.Variable(numbers(dtype)) for dtype in kinds}
    root.scalar = tf.Variable(2.5)
    root.empty = tf.Variable(tf.zeros([0, 4]))
    root.words = tf.Variable([b"one", b"", b"three \xff"])
    root.nested = tf.Module()
    root.nested.layers = [tf.Variable(numbers("float32", (k, 2))) for k in (1, 2)]
    setattr(root, "slash/and.dot", tf.Variable(numbers("int32", (3,))))
    weights = tf.Variable(numbers("float32", (4, 3)))
    optimizer = keras.optimizers.Adam(0.1)
    optimizer.build([weights])
    root.weights, root.optimizer = weights, optimizer
    root.save(str(clean("objects") / "ckpt"))


def sharded():
    """A checkpoint whose data lies in several files, with one variable in slices of two of them."""
    root = tf.train.Checkpoint()
    root.list = [tf.Variable(numbers("float32", (8, k))) for k in range(1, 6)]
    policy = tf.train.experimental.MaxShardSizePolicy(max_shard_size=400)
    options = tf.train.CheckpointOptions(experimental_sharding_callback=policy)
    root.save(str(clean("sharded") / "ckpt"), options=options)


def graph():
    """A checkpoint of a graph, with variables in parts along the first and the second axis."""
    with tf.Graph().as_default(), V1.Session() as session:
        for axis, shape in enumerate([(10, 3), (3, 130)]):
            parts = V1.fixed_size_partitioner(3, axis=axis)
            with V1.variable_scope(f"parts{axis}", partitioner=parts):
                V1.get_variable("w", shape, initializer=V1.random_normal_initializer(seed=1))
        V1.get_variable("dense/kernel", initializer=tf.constant([[1.0, 2.0]]))
        V1.get_variable("step", initializer=tf.constant(7, tf.int64), use_resource=False)
        session.run(V1.global_variables_initializer())
        V1.train.Saver().save(session, str(clean("graph") / "model.ckpt"), global_step=7)
    (HOME / "graph" / "model.ckpt-7.meta").unlink()


class Words(tf.Module):
    """A model with a variable, and a table that is filled from an asset."""

    def __init__(self, vocabulary):
        super().__init__()
        self.weight = tf.Variable(numbers("bfloat16", (2, 2)), name="weight")
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary), tf.string, tf.lookup.TextFileIndex.WHOLE_LINE,
            tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER,
        )  # fmt: skip
        self.table = tf.lookup.StaticHashTable(initializer, -1)

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def __call__(self, word):
        return tf.cast(self.weight, tf.float32) * tf.cast(self.table.lookup(word), tf.float32)


def saved():
    """A SavedModel of a module."""
    folder = clean("saved")
    vocabulary = folder / "words.txt"
    vocabulary.write_text("a\nb\n")
    tf.saved_model.save(Words(vocabulary), str(folder))
    vocabulary.unlink()


def exported():
    """A SavedModel that Keras exports."""
    keras.utils.set_random_seed(1)
    inputs = keras.Input((4,))
    outputs = keras.layers.Dense(2, name="head")(keras.layers.Dense(3, name="body")(inputs))
    keras.Model(inputs, outputs).export(str(clean("exported")), verbose=False)


class Outside(tf.Module):
    """What touches more than tensors when it is called."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.string)])
    def __call__(self, path):
        tf.io.write_file(path + ".copy", tf.io.read_file(path))
        tf.print("read", path, output_stream="file:///dev/null")
        names = tf.io.matching_files("/etc/*")
        return names, tf.numpy_function(lambda text: text, [path], tf.string)


def outside():
    """A SavedModel of operations that touch the outside; only its graph is kept."""
    folder = clean("outside")
    tf.saved_model.save(Outside(), str(folder))
    only_graph(folder)


class Constant(tf.Module):
    """A model whose weights are constants: of every type, in the graph and in a branch of it."""

    def __init__(self):
        super().__init__()
        self.captured = tf.constant(np.arange(600, dtype=np.float32).reshape(30, 20))

    @tf.function(input_signature=[tf.TensorSpec([], tf.bool)])
    def __call__(self, which):
        kinds = ["bool", *INTEGERS, *FLOATS, *SMALL]
        types = [tf.identity(tf.constant(array(dtype), name=dtype)) for dtype in kinds]
        same = tf.constant(1.5, shape=[1000], name="same")
        listed = tf.constant([float(number) for number in range(300)], name="listed")
        mask = tf.constant(np.tri(40, dtype=bool), name="mask")
        codes = tf.constant(array("uint16", (600,)), name="codes")
        one = tf.cond(which, lambda: self.captured + 1.0, lambda: self.captured * WEIGHT)
        return *types, same, listed, mask, codes, one


WEIGHT = np.arange(20, dtype=np.float32)


def constant():
    """A SavedModel with such a model; only its graph is kept."""
    folder = clean("constant")
    tf.saved_model.save(Constant(), str(folder))
    only_graph(folder)


class Layers(tf.Module):
    """Two layers with variables."""

    def __init__(self):
        super().__init__()
        self.body = tf.Variable(numbers("float32", (4, 3)), name="body/kernel")
        self.head = tf.Variable(numbers("bfloat16", (3, 2)), name="head/kernel")
        self.bias = tf.Variable(tf.zeros([2]), name="head/bias")

    @tf.function(input_signature=[tf.TensorSpec([None, 4], tf.float32, name="x")])
    def __call__(self, x):
        hidden = tf.reshape(tf.nn.relu(x @ self.body), [-1, 3])
        return hidden @ tf.cast(self.head, tf.float32) + self.bias


def frozen():
    """Frozen graphs: of a function, and of a session as they were made before TensorFlow 2."""
    folder = clean("frozen")
    layers = Layers()
    function = layers.__call__.get_concrete_function()
    graph = convert_variables_to_constants_v2(function).graph.as_graph_def()
    (folder / "frozen_graph.pb").write_bytes(graph.SerializeToString(deterministic=True))
    with tf.Graph().as_default(), V1.Session() as session:
        x = V1.placeholder(tf.float32, [None, 4], name="input")
        kernel = V1.get_variable("dense/kernel", initializer=array("float32", (4, 3)))
        bias = V1.get_variable("dense/bias", initializer=array("float16", (3,)))
        tf.add(x @ kernel, tf.cast(bias, tf.float32), name="output")
        session.run(V1.global_variables_initializer())
        graph = V1.graph_util.convert_variables_to_constants(session, session.graph_def, ["output"])
    (folder / "session.pb").write_bytes(graph.SerializeToString(deterministic=True))


def only_graph(folder):
    """Delete all of a SavedModel but its graph."""
    for child in folder.iterdir():
        if child.name != "saved_model.pb":
            shutil.rmtree(child) if child.is_dir() else child.unlink()


def read_constants(path):
    """What TensorFlow reads in a graph."""
    data = path.read_bytes()
    if path.name == "saved_model.pb":
        (meta,) = saved_model_pb2.SavedModel.FromString(data).meta_graphs
        graph = meta.graph_def
    else:
        graph = V1.GraphDef.FromString(data)
    places = [("", graph.node)]
    places += [(f"{one.signature.name}/", one.node_def) for one in graph.library.function]
    for before, nodes in places:
        for node in nodes:
            tensor = node.attr["value"].tensor
            if node.op != "Const" or tensor.dtype == tf.string.as_datatype_enum:
                continue
            found = tf.make_ndarray(tensor)
            if found.size > 1:
                raw = base64.b64encode(found.tobytes()).decode()
                kind = tf.as_dtype(tensor.dtype).name
                yield path.as_posix(), before + node.name, kind, found.shape, raw


def read(prefix):
    """What TensorFlow reads in a checkpoint."""
    reader = tf.train.load_checkpoint(str(prefix))
    types, shapes = reader.get_variable_to_dtype_map(), reader.get_variable_to_shape_map()
    found = {}
    for key in sorted(types):
        raw = b"" if types[key] == tf.string else np.asarray(reader.get_tensor(key)).tobytes()
        found[key] = [types[key].name, shapes[key], base64.b64encode(raw).decode()]
    return found


def main():
    os.chdir(HERE)
    for write in (objects, sharded, graph, saved, exported, outside, constant, frozen):
        write()
    for note in HOME.rglob("checkpoint"):
        note.unlink()  # says only which checkpoint is the newest
    prefixes = sorted(path.with_suffix("") for path in HOME.rglob("*.index"))
    lines = [
        f"{json.dumps([path.as_posix(), key])[1:-1]}, {json.dumps(tensor)[1:-1]}"
        for path in prefixes
        for key, tensor in read(path).items()
    ]
    (HOME / "expected.json").write_text("[\n[" + "],\n[".join(lines) + "]\n]\n")
    graphs = sorted([*HOME.glob("*/saved_model.pb"), *HOME.glob("frozen/*.pb")])
    lines = [json.dumps(one) for path in graphs for one in read_constants(path)]
    (HOME / "constants.json").write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    main()
