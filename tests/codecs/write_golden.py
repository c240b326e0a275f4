"""Write the payloads of `golden/` that are not there yet: python tests/codecs/write_golden.py

Existing files are never written again: what this version of mstore has once stored, every later
version must read. A codec whose encoder changes gets new cases beside the old ones.
"""

import json
from pathlib import Path

import numpy as np

from mstore.codecs.base import Codec
from mstore.codecs.constant import Constant
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


def main() -> None:
    """Write what is missing, and say so."""
    for name, (codec, dtype, raw) in cases().items():
        path = GOLDEN / f"{name}.json"
        if path.exists():
            continue
        parts = codec.encode(memoryview(raw), BY_NAME[dtype] if dtype else None)
        assert parts is not None, name
        content = {"codec": codec.number, "raw": raw.hex(), "payload": b"".join(parts).hex()}
        with path.open("x") as file:
            json.dump(content, file, indent=1)
            file.write("\n")
        print("wrote", path.name)


if __name__ == "__main__":
    main()
