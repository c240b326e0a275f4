"""Make the golden repository, once: python tests/golden/make_golden.py

What this version of mstore has written, every later version must read. So this script refuses to
run where a golden repository is already; a newer format gets a second one beside it.
"""

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

import mstore
from mstore.dtypes import BY_NAME, DType
from mstore.formats.safetensors import DTYPE_NAMES

GOLDEN = Path(__file__).parent
REPOSITORY = GOLDEN / "repository"
EXPECTED = GOLDEN / "expected.json"
AUTHOR = "Ada Lovelace <ada@example.com>"

_UNSIGNED = {2: np.uint16, 4: np.uint32, 8: np.uint64}


def weights(rng: np.random.Generator, dtype: DType, count: int) -> bytes:
    """Bytes of `count` elements that look like trained weights, or like small integers."""
    if dtype.bits < 8:
        return rng.bytes(dtype.nbytes((count,)))
    parts = count * (2 if dtype.family == "complex" else 1)
    values = rng.normal(0, 0.02, parts)
    if dtype.name.endswith("bf16"):
        little = (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    elif dtype.name.startswith("f8"):
        little = rng.integers(20, 60, parts).astype(np.uint8)
    elif dtype.family in ("float", "complex"):
        little = values.astype({2: np.float16, 4: np.float32, 8: np.float64}[dtype.word])
    elif dtype.family == "bool":
        little = values > 0.02
    else:
        little = (1000 * values).astype(np.int64).astype(f"{dtype.family[0]}{dtype.word}")
    if not dtype.big_endian:
        return little.tobytes()
    return little.view(_UNSIGNED[dtype.word]).byteswap().tobytes()


def safetensors(tensors: dict[str, tuple[DType, tuple[int, ...], bytes]]) -> bytes:
    """A safetensors file of the given tensors, in their order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (dtype, shape, raw) in tensors.items():
        span = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": DTYPE_NAMES[dtype], "shape": shape, "data_offsets": span}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data


def npy(array: np.ndarray) -> bytes:
    """The npy file of `array`."""
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def big_endian_npy(rng: np.random.Generator, dtype: DType) -> bytes:
    """An npy file of 512 big-endian elements."""
    numpy_dtype = np.dtype(dtype.numpy).newbyteorder(">")
    return npy(np.frombuffer(weights(rng, dtype, 512), numpy_dtype).reshape(16, 32))


def first_version(rng: np.random.Generator) -> dict[str, bytes]:
    """Path -> content."""
    tensors: dict[str, tuple[DType, tuple[int, ...], bytes]] = {
        f"layer.{dtype.name}": (dtype, (8, 64), weights(rng, dtype, 512)) for dtype in DTYPE_NAMES
    }
    f32 = BY_NAME["f32"]
    tensors["attention.weight"] = (f32, (64, 96), weights(rng, f32, 64 * 96))
    tensors["zeros"] = (f32, (3000,), bytes(12000))
    tensors["counter"] = (BY_NAME["i64"], (), (7).to_bytes(8, "little"))
    tensors["nothing"] = (f32, (0, 4), b"")
    stored, deflated = io.BytesIO(), io.BytesIO()
    np.savez(stored, bias=np.arange(400, dtype="<f4"), ids=np.arange(99, dtype="<u2"))
    np.savez_compressed(deflated, bias=np.arange(400, dtype="<f4"))
    log = "".join(f"step {n} loss {1 / (n + 1):.4f} rate 2e-5\n" for n in range(4000))
    files = {
        "model.safetensors": safetensors(tensors),
        "arrays.npz": stored.getvalue(),
        "deflated.npz": deflated.getvalue(),
        "column-major.npy": npy(np.asfortranarray(rng.normal(0, 1, (20, 30)))),
        "données/complex.npy": npy(rng.normal(0, 1, 300).astype("<c16")),
        "train.log": log.encode(),
        "run.sh": b"#!/bin/sh\necho train\n",
        "noise.bin": rng.bytes(3000),
        "empty": b"",
    }
    for dtype in BY_NAME.values():
        if dtype.big_endian and dtype.numpy != "bfloat16":
            files[f"big-endian/{dtype.name[1:]}.npy"] = big_endian_npy(rng, dtype)
    return files


def second_version(files: dict[str, bytes]) -> dict[str, bytes]:
    """The first version after one more step: weights changed, files added, moved and removed."""
    changed = dict(files)
    model = bytearray(files["model.safetensors"])
    model[-9000:-8000] = bytes(1000)
    changed["model.safetensors"] = bytes(model)
    changed["train.log"] = files["train.log"].replace(b"step 2000", b"step two thousand")
    changed["moved/complex.npy"] = changed.pop("données/complex.npy")
    changed["notes.txt"] = b"Half of the last tensor was set to zero.\n" * 20
    del changed["noise.bin"]
    return changed


def write(directory: Path, files: dict[str, bytes], executable: str) -> None:
    for path, content in files.items():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    (directory / executable).chmod(0o755)


def make(directory: Path) -> dict[str, object]:
    """Fill REPOSITORY; returns what is expected of it. `directory` is for the files."""
    rng = np.random.default_rng(1843)
    files = first_version(rng)
    versions = {"v1": (files, "run.sh"), "main": (second_version(files), "notes.txt")}
    repo = mstore.init(REPOSITORY, bare=True, author=AUTHOR)
    metadata = {"loss": 0.5, "step": 100, "notes": ["first", None, {"good": True}]}
    for name, (contents, executable) in versions.items():
        write(directory / name, contents, executable)
        message = f"The version {name}"
        repo.commit(directory / name, message, metadata=metadata, author=AUTHOR, chunk_size=8 << 10)
        if name == "v1":
            repo.create_tag(name, author=AUTHOR)
        metadata = {"loss": 0.25, "step": 200}
    repo.model("other").commit({"w": np.arange(10.0)}, "Another model", author=AUTHOR)
    return {
        "commits": {"v1": repo["v1"].id, "main": repo["main"].id},
        "versions": {
            name: {
                path: {
                    "sha256": hashlib.sha256(content).hexdigest(),
                    "size": len(content),
                    "executable": path == executable,
                }
                for path, content in contents.items()
            }
            for name, (contents, executable) in versions.items()
        },
        "stored": {
            path.relative_to(REPOSITORY).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(REPOSITORY.rglob("*"))
            if path.is_file()
        },
    }


def main() -> None:
    if REPOSITORY.exists() or EXPECTED.exists():
        sys.exit(f"{REPOSITORY} or {EXPECTED} is there already and is never made again")
    with tempfile.TemporaryDirectory() as folder:
        expected = make(Path(folder))
    with EXPECTED.open("x") as file:
        json.dump(expected, file, indent=1, sort_keys=True)
        file.write("\n")


if __name__ == "__main__":
    main()
