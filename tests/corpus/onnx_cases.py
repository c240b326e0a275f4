"""ONNX models: initializers in every form, inline and in files beside the model."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from cases import Array, Arrays, Case, numbers
from onnx import TensorProto, helper, numpy_helper

RAW = {
    "FLOAT": "f4", "DOUBLE": "f8", "FLOAT16": "f2", "COMPLEX64": "c8", "COMPLEX128": "c16",
    "INT8": "i1", "UINT8": "u1", "INT16": "i2", "UINT16": "u2", "INT32": "i4", "UINT32": "u4",
    "INT64": "i8", "UINT64": "u8", "BOOL": "?",
}  # fmt: skip
WIDE = {"BFLOAT16": 2, "FLOAT8E4M3FN": 1, "FLOAT8E5M2": 1, "FLOAT8E4M3FNUZ": 1, "FLOAT8E5M2FNUZ": 1}


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    made = {
        "raw": [raw(name, kind) for name, kind in RAW.items()],
        "narrow": [of_bytes(name, size) for name, size in WIDE.items()],
        "shapes": [
            numpy_helper.from_array(np.array(2.5, np.float32), "scalar"),
            numpy_helper.from_array(np.zeros((0, 3), np.float32), "none"),
            numpy_helper.from_array(numbers(2, 3, 4, 5), "four"),
        ],
    }
    for name, tensors in made.items():
        path = folder / f"{name}.onnx"
        onnx.save(model(tensors), path)
        yield Case(path.name, "onnx", partial(load, path))
    path = folder / "numbers.onnx"  # in lists of numbers, not in bytes
    onnx.save(model(typed()), path)
    yield Case(path.name, "onnx", partial(load_kept, path), told="1 with numbers as varints")
    path = folder / "branches.onnx"
    onnx.save(with_branches(), path)
    yield Case(path.name, "onnx", partial(load_attributes, path))
    for name, options in (("one_file", {"location": "one_file.data"}), ("each", {})):
        inside = folder / name
        inside.mkdir()
        path = inside / "model.onnx"
        weights = [numpy_helper.from_array(numbers(20, 30, seed=n), f"w{n}") for n in range(3)]
        onnx.save(
            model([*weights, numpy_helper.from_array(numbers(3), "small")]),
            path,
            save_as_external_data=True,
            all_tensors_to_one_file=bool(options),
            size_threshold=100,
            **options,
        )
        yield Case(f"{name}/model.onnx", "onnx", partial(load_inline, path))
        beside = sorted(one.name for one in inside.iterdir() if one != path)
        for one in beside:
            yield Case(f"{name}/{one}", "onnx-data", partial(load_beside, path, one))


def model(tensors: list[TensorProto]) -> onnx.ModelProto:
    """A model that adds nothing up, with these initializers."""
    inside = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    node = helper.make_node("Identity", ["x"], ["y"])
    return helper.make_model(helper.make_graph([node], "g", [inside], [out], tensors))


def raw(name: str, kind: str) -> TensorProto:
    """An initializer of raw bytes."""
    return numpy_helper.from_array(numbers(3, 4, dtype=kind), name)


def of_bytes(name: str, size: int) -> TensorProto:
    """An initializer of a type that numpy lacks."""
    content = numbers(3, 4 * size, dtype="u1").tobytes()
    return helper.make_tensor(name, getattr(TensorProto, name), (3, 4), content, raw=True)


def typed() -> list[TensorProto]:
    """Initializers as lists of floats, which lie in the file as raw ones do, and of varints."""
    floats = helper.make_tensor("floats", TensorProto.FLOAT, (2, 3), [0.5 * n for n in range(6)])
    doubles = helper.make_tensor("doubles", TensorProto.DOUBLE, (4,), [0.25 * n for n in range(4)])
    integers = helper.make_tensor("integers", TensorProto.INT64, (3,), [1, -2, 300])
    return [floats, doubles, integers, numpy_helper.from_array(numbers(3), "w")]


def with_branches() -> onnx.ModelProto:
    """A model with a graph inside a node, with an initializer of its own, and a constant."""
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])
    branches = {
        f"{name}_branch": helper.make_graph(
            [helper.make_node("Identity", [f"{name}_w"], ["y"])],
            name,
            [],
            [out],
            [numpy_helper.from_array(numbers(3, seed=len(name)), f"{name}_w")],
        )
        for name in ("then", "else")
    }
    made = model([numpy_helper.from_array(numbers(3), "w")])
    made.graph.node.append(helper.make_node("If", ["x"], ["z"], **branches))
    constant = numpy_helper.from_array(numbers(4, seed=9), "c")
    made.graph.node.append(helper.make_node("Constant", [], ["k"], value=constant))
    return made


def load(path: Path) -> Arrays:
    """The initializers of the graph, by name."""
    found = onnx.load(path, load_external_data=False)
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in found.graph.initializer}


def load_attributes(path: Path) -> Arrays:
    """Those of the graph, and of the attributes of its nodes under what the nodes make."""
    found = load(path)
    for node in onnx.load(path).graph.node:
        for attribute in node.attribute:
            place = f"{node.output[0]}/{attribute.name}"
            for tensor in attribute.g.initializer:
                found[f"{place}/{tensor.name}"] = numpy_helper.to_array(tensor)
            if attribute.HasField("t"):
                found[place] = numpy_helper.to_array(attribute.t)
    return found


def load_kept(path: Path) -> Arrays:
    """Those that lie in the file as in memory: all but the varints."""
    return {name: array for name, array in load(path).items() if name != "integers"}


def load_inline(path: Path) -> Arrays:
    """Those that lie in the model itself."""
    graph = onnx.load(path, load_external_data=False).graph
    inline = [t for t in graph.initializer if t.data_location != TensorProto.EXTERNAL]
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in inline}


def load_beside(path: Path, name: str) -> Arrays:
    """Those that lie in the file `name` beside the model."""
    graph = onnx.load(path, load_external_data=False).graph
    places = {
        t.name: {entry.key: entry.value for entry in t.external_data}.get("location")
        for t in graph.initializer
    }
    whole: dict[str, Array] = {
        t.name: numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer
    }
    return {one: whole[one] for one, place in places.items() if place == name}
