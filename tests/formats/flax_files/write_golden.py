"""Writes the files of this folder: python write_golden.py, with flax and jax installed.

Beside each `NAME.msgpack` is `NAME.json`: what flax itself restores, as the element type, the shape
and the bytes in hexadecimal of every array and numpy number, by the keys to it with dots between.
"""

import json
import os
from pathlib import Path

os.environ["JAX_ENABLE_X64"] = "1"

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from flax import serialization

HERE = Path(__file__).parent


class Model(nn.Module):
    """A few layers, of which one keeps statistics."""

    @nn.compact
    def __call__(self, x, train=True):
        """A batch of vectors to a batch of pairs."""
        x = nn.Dense(4)(x)
        x = nn.BatchNorm(use_running_average=not train)(x)
        x = nn.relu(x)
        return nn.Dense(2, param_dtype=jnp.bfloat16)(x)


def flat(value, path=()):
    """Every array of nested dicts and lists by the keys to it."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        array = np.asarray(value)
        found = {"dtype": array.dtype.name, "shape": array.shape, "data": array.tobytes().hex()}
        return {".".join(path): found}
    if not isinstance(value, dict | list | tuple):
        return {}
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return {
        name: array
        for key, inner in pairs
        for name, array in flat(inner, (*path, str(key))).items()
    }


def write(name, data):
    """The file, and what flax restores of it."""
    (HERE / f"{name}.msgpack").write_bytes(data)
    restored = flat(serialization.msgpack_restore(data))
    (HERE / f"{name}.json").write_text(json.dumps(restored, indent=1, sort_keys=True) + "\n")


def main():
    """All files."""
    rng = np.random.default_rng(3)
    variables = Model().init(jax.random.key(0), jnp.ones((1, 3)))
    write("variables", serialization.to_bytes(variables))

    zeros = jax.tree_util.tree_map(jnp.zeros_like, variables["params"])
    state = {
        "step": 3,
        "params": variables["params"],
        "opt_state": [{"count": jnp.array(3), "mu": zeros, "nu": zeros}, {}, (1.5, None)],
        "key": jax.random.key_data(jax.random.key(7)),
        "best": np.float32(0.25),
        "phase": 1 + 2j,
        "name": "run",
        "done": False,
    }
    write("training", serialization.to_bytes(state))

    names = [
        *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", "complex64", "complex128", "bfloat16"),
        *("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8_e8m0fnu"),
        *("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "int4", "uint4", "int2", "uint2"),
        *("float4_e2m1fn", "float6_e2m3fn", "float6_e3m2fn"),
    ]
    types = {}
    for name in names:
        dtype = np.dtype(getattr(ml_dtypes, name, name))
        types[name] = (rng.random((2, 3)) * 2).astype(dtype)
    write("types", serialization.msgpack_serialize(types))

    shapes = {
        "none": np.zeros((0, 3), np.float32),
        "one": np.ones((), np.float32),
        "many": np.ones((1,) * 20, np.int8),
        "long": rng.normal(size=300),
        "fortran": np.asfortranarray(rng.normal(size=(3, 4))),
        "nested": {"0": {"kernel": np.arange(3)}, "1": {"kernel": np.arange(4)}},
        "a.b/c": np.arange(2),
        "ünï": np.arange(2),
    }
    write("shapes", serialization.msgpack_serialize(shapes))

    serialization.MAX_CHUNK_SIZE = 32
    write(
        "chunks", serialization.msgpack_serialize({"big": rng.normal(size=(3, 5)), "x": np.ones(2)})
    )
    print(flax.__version__, jax.__version__)


if __name__ == "__main__":
    main()
