"""Write the payloads of `golden/` that are not there yet: python tests/codecs/write_golden.py

Existing files are never written again: what this version of mstore has once stored, every later
version must read. A codec whose encoder changes gets new cases beside the old ones.
"""

import json
from pathlib import Path

import numpy as np

from mstore.codecs.base import Codec, DeltaCodec
from mstore.codecs.constant import Constant
from mstore.codecs.delta import Delta
from mstore.codecs.general import Raw, Zstd
from mstore.codecs.planes import Planes
from mstore.dtypes import BY_NAME

GOLDEN = Path(__file__).parent / "golden"


def cases() -> dict[str, tuple[Codec, str | None, bytes]]:
    """Codec, element type and raw bytes of every case."""
    rng = np.random.default_rng(20)
    weights = rng.normal(0, 0.02, 120)
    f32 = weights.astype(np.float32)
    bf16 = (f32.view(np.uint32) >> 16).astype(np.uint16)
    return {
        "raw": (Raw(), None, rng.bytes(40)),
        "zstd": (Zstd(), None, b"the same again, " * 12),
        "constant-opaque": (Constant(), None, b"\xff" * 33),
        "constant-f32": (Constant(), "f32", b"\x00\x00\x80\x3f" * 9),
        "constant-c128": (Constant(), "c128", bytes(range(16)) * 3),
        "planes-f16": (Planes(), "f16", weights.astype(np.float16).tobytes()),
        "planes-bf16": (Planes(), "bf16", bf16.tobytes()),
        "planes-f32": (Planes(), "f32", f32.tobytes()),
        "planes-f32-big-endian": (Planes(), ">f32", f32.byteswap().tobytes()),
        "planes-f64": (Planes(), "f64", weights.tobytes()),
        "planes-c64": (Planes(), "c64", f32.tobytes()),
        "planes-i64": (Planes(), "i64", np.arange(-40, 60).tobytes()),
        "planes-u16-big-endian": (Planes(), ">u16", np.arange(90, dtype=">u2").tobytes()),
        "planes-bool": (Planes(), "bool", (weights > 0.02).tobytes()),
    }


def deltas() -> dict[str, tuple[str, bytes, str, bytes]]:
    """Element type and raw bytes of a chunk, then of its base, for codec delta."""
    rng = np.random.default_rng(21)
    old = rng.normal(0, 0.02, 300).astype(np.float32)
    new = (old * (1 + 1e-3 * rng.normal(0, 1, 300))).astype(np.float32)
    few = np.where(rng.random(300) < 0.05, new, old)
    odd = np.array(
        [0x7FC00000, 0xFFC12345, 0x7F800001, 0x7F800000, 0xFF800000, 0x80000000, 0, 1, 0x807FFFFF,
         0x33000000, 0x33000001, 0x387FF000, 0x477FF000, 0x7F7FFFFF, 0x3F808000, 0x3F818000],
        np.uint32,
    )  # fmt: skip
    # Numbers of two exponents, of which only the greater ones change.
    greater = rng.integers(0, 2, 8600, np.uint8)
    bytes8 = (40 + 40 * greater + rng.integers(0, 4, 8600)).astype(np.uint8)
    moved8 = (bytes8 + greater * (rng.random(8600) < 0.2)).astype(np.uint8)
    odd64 = odd.view(np.float32)
    odd64 = np.where(np.isnan(odd64), np.float32(1), odd64).astype(np.float64) * 1.0000001
    near = np.float32(1 - 1e-5)
    # Blocks that do not move, and those of which some numbers do.
    words16 = (rng.normal(0, 0.02, 4200).astype(np.float32).view(np.uint32) >> 16).astype("<u2")
    moved16 = words16 + ((np.arange(4200) // 128 % 3 == 0) & (rng.random(4200) < 0.1))
    moved16 = moved16.astype("<u2")
    # Small steps everywhere, a few greater ones, and steps of every fourth number.
    steps = rng.choice(np.array([0, 1, 2, 3, 9], np.uint16), 4200, p=[0.5, 0.2, 0.2, 0.07, 0.03])
    far8 = (bytes8 + rng.choice([0, 1, -2, 7], 8600, p=[0.74, 0.14, 0.09, 0.03])).astype(np.uint8)
    few8 = (bytes8 + rng.choice([0, -1, 1, 30], 8600, p=[0.72, 0.17, 0.1, 0.01])).astype(np.uint8)
    # Blocks that only decay, and those that move.
    long = rng.normal(0, 0.02, 4200).astype(np.float32)
    parts = np.where(np.arange(4200) // 128 % 8 == 5, long + np.float32(1e-3), long * near)
    return {
        "delta-f32-dense": ("f32", new.tobytes(), "f32", old.tobytes()),
        "delta-f32-sparse": ("f32", few.tobytes(), "f32", old.tobytes()),
        "delta-f32-equal": (">f32", old.byteswap().tobytes(), "f32", old.tobytes()),
        "delta-f32-rest": ("f32", new.tobytes(), "f32", old[:100].tobytes() + b"ab"),
        "delta-f16-from-f32": ("f16", bytes(32), "f32", odd.tobytes()),
        "delta-bf16-from-f32": ("bf16", bytes(32), "f32", odd.tobytes()),
        "delta-f64-from-f32": ("f64", bytes(128), "f32", odd.tobytes()),
        "delta-f16-from-f64": ("f16", bytes(32), "f64", odd64.tobytes()),
        "delta-f32-from-f64": ("f32", bytes(64), "f64", odd64.tobytes()),
        "delta-f32-from-big-endian-bf16": (
            "f32", new.tobytes(), ">bf16", (old.view(np.uint32) >> 16).astype(">u2").tobytes(),
        ),
        "delta-bf16-from-f16": (
            "bf16", bytes(32), "f16", np.arange(16, dtype=np.uint16).tobytes(),
        ),
        "delta-i8": ("i8", bytes8[:90].tobytes(), "u8", moved8[99:9:-1].tobytes()),
        "delta-i64": (
            "i64", np.arange(-40, 60).tobytes(), ">u64", np.arange(100, dtype=">u8").tobytes(),
        ),
        "delta-f8-ordered": ("f8_e5m2", moved8.tobytes(), "f8_e5m2", bytes8.tobytes()),
        "delta-c64": ("c64", new.tobytes(), "f32", old.tobytes()),
        "delta-f32-decayed": ("f32", (long * near).tobytes(), "f32", long.tobytes()),
        "delta-bf16-two-parts": ("bf16", moved16.tobytes(), "bf16", words16.tobytes()),
        "delta-bf16-pairs": ("bf16", (words16 + steps).tobytes(), "bf16", words16.tobytes()),
        "delta-i8-sparse-pairs": ("i8", few8.tobytes(), "u8", bytes8.tobytes()),
        "delta-i8-sparse": ("i8", far8.tobytes(), "u8", bytes8.tobytes()),
        "delta-f32-two-parts": ("f32", parts.tobytes(), "f32", long.tobytes()),
    }  # fmt: skip


def deep_deltas() -> dict[str, tuple[str, bytes, str, bytes]]:
    """As `deltas`, for an encoder that tries everything."""
    random = np.random.default_rng(4)
    # All of one exponent, and the smallest have moved: only their magnitudes tell which.
    old = random.uniform(1, 2, 600).astype("<f4")
    new = np.where(old < np.sort(old)[60], np.nextafter(old, np.float32(3)), old)
    return {"delta-f32-by-magnitude": ("f32", new.astype("<f4").tobytes(), "f32", old.tobytes())}


def delta_payload(codec: DeltaCodec, dtype: str, raw: bytes, base_dtype: str, base: bytes) -> bytes:
    """What `codec` makes of `raw` given `base`."""
    parts = codec.encode(memoryview(raw), BY_NAME[dtype], memoryview(base), BY_NAME[base_dtype])
    assert parts is not None
    return b"".join(parts)


def write(name: str, content: dict[str, object]) -> None:
    """Write one file, and say so."""
    with (GOLDEN / f"{name}.json").open("x") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    print("wrote", name)


def main() -> None:
    """Write what is missing."""
    for name, (codec, dtype, raw) in cases().items():
        if (GOLDEN / f"{name}.json").exists():
            continue
        parts = codec.encode(memoryview(raw), BY_NAME[dtype] if dtype else None)
        assert parts is not None, name
        content = {"codec": codec.number, "raw": raw.hex(), "payload": b"".join(parts).hex()}
        write(name, content)
    coded = [(Delta(), name, case) for name, case in deltas().items()]
    coded += [(Delta(deep=True), name, case) for name, case in deep_deltas().items()]
    for delta, name, (target, raw, source, base) in coded:
        if (GOLDEN / f"{name}.json").exists():
            continue
        payload = delta_payload(delta, target, raw, source, base)
        content = {"codec": Delta.number, "raw": raw.hex(), "payload": payload.hex()}
        write(name, content | {"base": base.hex()})


if __name__ == "__main__":
    main()
