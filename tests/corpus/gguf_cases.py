"""GGUF files of every block type, both byte orders, and all kinds of metadata."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from cases import Array, Arrays, Case, numbers
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFEndian, GGUFReader, GGUFWriter

PLAIN = {Kind.F32: "f4", Kind.F16: "f2", Kind.F64: "f8", Kind.I8: "i1", Kind.I16: "i2"}
PLAIN |= {Kind.I32: "i4", Kind.I64: "i8"}
GONE = {"Q8_1", "Q8_K"}  # only of numbers on their way; no file has them

Fill = Callable[[GGUFWriter], None]


def write(folder: Path) -> Iterator[Case]:
    """All of them."""
    for name, fill in {"plain": plain, "blocks": blocks, "metadata": metadata}.items():
        yield _written(folder, name, fill)
    yield _written(folder, "nothing", lambda writer: None)
    yield _written(folder, "only_metadata", lambda writer: writer.add_uint32("a.b", 3))
    yield _written(folder, "aligned", aligned)
    for name, fill in {"big_plain": plain, "big_metadata": metadata}.items():
        yield _written(folder, name, fill, GGUFEndian.BIG)
    for kind in (Kind.Q8_0, Kind.Q4_0, Kind.Q5_1, Kind.BF16, Kind.TQ2_0):
        yield _written(folder, f"model_{kind.name}", partial(quantised, kind))


def _written(folder: Path, name: str, fill: Fill, endian: GGUFEndian = GGUFEndian.LITTLE) -> Case:
    path = folder / f"{name}.gguf"
    writer = GGUFWriter(path, "llama", endianess=endian)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Case(path.name, "gguf", partial(load, path))


def load(path: Path) -> Arrays:
    """What gguf loads; rows of blocks as rows of bytes."""
    return {tensor.name: _array(tensor) for tensor in GGUFReader(path).tensors}


def _array(tensor: gguf.ReaderTensor) -> Array:
    array: Array = np.array(tensor.data)
    # numpy has no such type, so gguf gives the bytes.
    return array.view(ml_dtypes.bfloat16) if tensor.tensor_type == Kind.BF16 else array


def plain(writer: GGUFWriter) -> None:
    """Types that are no blocks."""
    for kind, dtype in PLAIN.items():
        writer.add_tensor(f"{kind.name}.weight", numbers(3, 8, dtype=dtype))
    writer.add_tensor("one", np.array([2.5], np.float32))
    writer.add_tensor("deep", numbers(2, 3, 4, 5))


def blocks(writer: GGUFWriter) -> None:
    """Every type of blocks, of any bits."""
    for kind, (size, nbytes) in gguf.GGML_QUANT_SIZES.items():
        if kind not in PLAIN and kind.name not in GONE:
            rows = numbers(3, 2 * nbytes, dtype="u1", seed=size)
            writer.add_tensor(f"blk.0.{kind.name}", rows, raw_dtype=kind)


def quantised(kind: Kind, writer: GGUFWriter) -> None:
    """A model quantised by the library."""
    for name in ("token_embd", "blk.0.attn_q", "output"):
        values = np.random.default_rng(1).normal(size=(8, 256)).astype(np.float32)
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.add_tensor("output_norm.weight", np.ones(256, np.float32))


def aligned(writer: GGUFWriter) -> None:
    """Data aligned to more than usual."""
    writer.add_custom_alignment(256)
    for number in range(3):
        writer.add_tensor(f"w{number}", numbers(5, seed=number))


def metadata(writer: GGUFWriter) -> None:
    """Every type of value, and long lists."""
    writer.add_uint8("a.u8", 1)
    writer.add_int8("a.i8", -1)
    writer.add_uint16("a.u16", 1)
    writer.add_int16("a.i16", -1)
    writer.add_int32("a.i32", -1)
    writer.add_uint64("a.u64", 2**40)
    writer.add_int64("a.i64", -(2**40))
    writer.add_float32("a.f32", 0.5)
    writer.add_float64("a.f64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_string("a.text", "ünï")
    writer.add_array("a.numbers", list(range(1000)))
    writer.add_array("a.floats", [0.5] * 10)
    writer.add_token_list([f"<{number}>" for number in range(3000)])
    writer.add_array("a.nested", [[1, 2], [3]])
    writer.add_tensor("w", numbers(3))
