"""Speed and stored fraction of each codec: python tests/benchmarks/bench_codecs.py [FILE]

FILE is a safetensors file of float32; without it, normal(0, 0.02) weights take its place. Chunks
of 1 MiB in memory; GB/s of raw bytes, the best of five runs. "encode" includes the choice of the
codec, "+verify" also decoding and comparing; results are dropped as they come.
"""

import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable

import ml_dtypes
import numpy as np
import numpy.typing as npt

from mstore.chunking import DEFAULT_CHUNK_SIZE, ContentChunker, piece_size
from mstore.codecs.choose import Decoder, Encoder
from mstore.codecs.energy import sum_of_squares
from mstore.dtypes import BY_NAME, DType

RUNS = 5


def load(path: str | None) -> npt.NDArray[np.float32]:
    """All float32 values of a safetensors file, in the order of the file."""
    if path is None:
        return np.random.default_rng(0).normal(0, 0.02, 16 << 20).astype(np.float32)
    raw = np.fromfile(path, np.uint8)
    start = 8 + int(raw[:8].view("<u8")[0])
    header = json.loads(raw[8:start].tobytes())
    spans = sorted(
        entry["data_offsets"] for entry in header.values() if entry.get("dtype") == "F32"
    )
    return np.concatenate([raw[start + a : start + b] for a, b in spans]).view(np.float32)


def variants(f32: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.generic]]:
    """The values in several element types."""
    bf16 = f32.astype(ml_dtypes.bfloat16)
    scale = 127 / np.abs(f32).max()
    return {
        "f32": f32,
        ">f32": f32.byteswap(),
        "bf16": bf16,
        "f16": f32.astype(np.float16),
        "f64": f32[: 4 << 20].astype(np.float64),
        "f8_e4m3": f32[: 16 << 20].astype(ml_dtypes.float8_e4m3fn),
        "i8": (f32 * scale * 8).clip(-127, 127).astype(np.int8),
        "i32": (f32[: 4 << 20] * 1e6).astype(np.int32),
    }


def seconds(work: Callable[[int], None], threads: int = 1) -> float:
    """The shortest time in which every thread `i` has done `work(i)`."""
    best = float("inf")
    for _ in range(RUNS):
        workers = [threading.Thread(target=work, args=(i,)) for i in range(threads)]
        start = time.perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        best = min(best, time.perf_counter() - start)
    return best


def measure(name: str, raw: memoryview, dtype: DType | None) -> str:
    """One line of the table."""
    size = piece_size(dtype, DEFAULT_CHUNK_SIZE) if dtype else DEFAULT_CHUNK_SIZE
    chunks = [raw[start : start + size] for start in range(0, len(raw), size)]
    encoders, decoders = [Encoder(), Encoder()], [Decoder(), Decoder()]
    outs = [memoryview(bytearray(size)) for _ in range(2)]
    encoded = [encoders[0].encode(chunk, dtype) for chunk in chunks]
    payloads = [memoryview(b"".join(one.parts)) for one in encoded]

    def choose(index: int, threads: int = 1) -> None:
        for chunk in chunks[index::threads]:
            encoders[index].choose(chunk, dtype)

    def encode(index: int, threads: int = 1) -> None:
        for chunk in chunks[index::threads]:
            encoders[index].encode(chunk, dtype)

    def decode(index: int, threads: int = 1) -> None:
        for number in range(index, len(chunks), threads):
            out = outs[index][: len(chunks[number])]
            decoders[index].decode(encoded[number].codec, payloads[number], out)

    def energy(index: int) -> None:
        for chunk in chunks:
            sum_of_squares(chunk, dtype)

    speeds = [
        len(raw) / took / 1e9
        for took in (
            seconds(choose),
            seconds(encode),
            seconds(decode),
            seconds(lambda i: choose(i, 2), 2),
            seconds(lambda i: encode(i, 2), 2),
            seconds(lambda i: decode(i, 2), 2),
            seconds(energy),
        )
    ]
    stored = sum(one.stored for one in encoded) / len(raw)
    codecs = dict(Counter(one.codec for one in encoded))
    return f"{name:8} {stored:7.4f} " + " ".join(f"{s:8.2f}" for s in speeds) + f"  {codecs}"


def main() -> None:
    """Print the table."""
    f32 = load(sys.argv[1] if len(sys.argv) > 1 else None)
    columns = ["encode", "+verify", "decode", "encode/2", "+verify/2", "decode/2", "energy"]
    print("type      stored " + " ".join(f"{column:>8}" for column in columns) + "  codecs")
    for name, values in variants(f32).items():
        print(measure(name, memoryview(values.view(np.uint8)), BY_NAME[name]))
    opaque = memoryview(f32[: 4 << 20].view(np.uint8))
    print(measure("opaque", opaque, None))
    took = seconds(lambda i: ContentChunker().cut(opaque, final=True) and None)
    print(f"content-defined cuts: {len(opaque) / took / 1e9:.2f} GB/s")


if __name__ == "__main__":
    main()
