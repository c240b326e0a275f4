"""The section of docs/format.md on codec delta is enough to decode its payloads."""

import json
from pathlib import Path

import independent_codecs as reader
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from independent_planes import RefusedError

from mstore.codecs.base import DELTA
from mstore.codecs.delta import Delta
from mstore.codecs.order import DECAYED, UNORDERED
from mstore.codecs.words import Words, WordType, cast, comparable, word_type
from mstore.dtypes import BY_CODE, BY_NAME, DType
from mstore.errors import MstoreError

PAYLOADS = sorted((Path(__file__).parents[1] / "codecs" / "golden").iterdir())
FLOATS = ["f16", "bf16", "f32", "f64"]
HEAD = 16


@pytest.mark.parametrize("path", PAYLOADS, ids=lambda path: path.stem)
def test_the_reader_decodes_golden_payloads(path: Path) -> None:
    content = json.loads(path.read_text())
    raw, payload = bytes.fromhex(content["raw"]), bytes.fromhex(content["payload"])
    base = bytes.fromhex(content["base"]) if "base" in content else None
    assert reader.decode(content["codec"], payload, len(raw), base) == raw


def test_the_reader_knows_the_words_of_all_types() -> None:
    for code in range(256):
        if code not in BY_CODE:
            with pytest.raises(RefusedError):
                reader.word_type(code)
        else:
            kind = word_type(BY_CODE[code])
            name, size, mantissa, stored = reader.word_type(code)
            assert (name, size, mantissa) == (kind.name, kind.size, kind.mantissa)
            assert np.dtype(stored) == kind.stored


@pytest.mark.parametrize("source", FLOATS)
def test_both_cast_alike(source: str) -> None:
    """Words of all exponents, and those just beside halfway between two of the target."""
    kind, rng = word_type(BY_NAME[source]), np.random.default_rng(1)
    words = np.frombuffer(rng.bytes(400 * kind.size), kind.native)
    tops = rng.choice([0, 1, -1], 800).astype(f"i{kind.size}").view(kind.native)
    near = np.arange(800, dtype=kind.native) << kind.native.type(max(0, kind.mantissa - 8))
    exponents = np.append(words, words) >> kind.mantissa << kind.mantissa
    words = np.concatenate([words, near, near + tops, exponents ^ near, (exponents ^ near) + tops])
    for target in FLOATS:
        found = cast(words, kind, word_type(BY_NAME[target])).tolist()
        if source != target:
            singles = [reader.cast(word, source, "f32") for word in words.tolist()]
            assert [reader.cast(word, "f32", target) for word in singles] == found


def cases(data: st.DataObject) -> tuple[bytes, bytes, int]:
    """A payload, its base, and the length of what it decodes to."""
    dtype = data.draw(st.sampled_from(list(BY_NAME.values())))
    fits = [t for t in BY_NAME.values() if comparable(word_type(dtype), word_type(t))]
    base_dtype = data.draw(st.sampled_from(fits))
    rng = np.random.default_rng(data.draw(st.integers(0, 1 << 30)))
    # Enough for two groups, at times.
    count = data.draw(st.sampled_from([1, 5, 100, 400, 8800, 17_000]))
    hows = ["near", "few", "rows", "shrunk", "steps", "some steps", "apart", "noise"]
    how = data.draw(st.sampled_from(hows))
    if count > 400 and base_dtype.name.removeprefix(">") != dtype.name.removeprefix(">"):
        count = 400
    base = like(base_dtype, count, rng)
    raw = like(dtype, count, np.random.default_rng(1) if how == "noise" else rng)
    if dtype.word == base_dtype.word and how not in ("apart", "noise"):
        kind, base_kind = word_type(dtype), word_type(base_dtype)
        words = np.frombuffer(base, base_kind.stored).astype(kind.native)
        raw = moved(words, kind, how, rng).astype(kind.stored).tobytes()
    cut = data.draw(st.sampled_from([0, 0, dtype.word, 40 * dtype.word]))
    base = base[: max(base_dtype.word, len(base) - cut)]
    parts = Delta().encode(memoryview(raw), dtype, memoryview(base), base_dtype)
    assert parts is not None
    return b"".join(parts), base, len(raw)


def moved(words: Words, kind: WordType, how: str, rng: np.random.Generator) -> Words:
    """What a later version may be."""
    big = words >> kind.mantissa & 1 if kind.mantissa else words & 1
    if how == "shrunk":
        # The larger the mantissa, the larger the step; signs tell where it goes.
        step = (words & (1 << kind.mantissa) - 1) >> max(0, kind.mantissa - 2)
        return words - step.astype(kind.native)
    if how.endswith("steps"):
        # Small ones, mostly 0 and 1; everywhere or of every fourth number.
        step = rng.geometric(0.6, len(words)) - 1
        step = np.where(rng.random(len(words)) < 0.01, 30, step)
        if how == "some steps":
            step = np.where(rng.random(len(words)) < 0.25, step + 1, 0)
        return words + step.astype(kind.native)
    share = {"near": 0.5, "few": 0.05, "rows": 0.5}[how]
    step = big * (rng.random(len(words)) < share)
    if how == "rows":
        step *= np.repeat(rng.random(len(words) // 128 + 1) < 0.5, 128)[: len(words)]
    return words + step.astype(kind.native)


def like(dtype: DType, count: int, rng: np.random.Generator) -> bytes:
    """Words of a few neighbouring exponents and of both signs."""
    kind = word_type(dtype)
    low = 8 * kind.size - 5
    words = rng.integers(0, 1 << 8, count) + (1 << low) - (1 << max(0, kind.mantissa))
    words += rng.integers(0, 2, count) << low + 2
    words ^= rng.integers(0, 16, count) << max(0, kind.mantissa - 4)
    return words.astype(kind.native).astype(kind.stored).tobytes()


def decoded(payload: bytes, base: bytes, length: int) -> bytes | None:
    """What mstore makes of a payload, None if it refuses it."""
    out = bytearray(length)
    try:
        Delta().decode(memoryview(payload), memoryview(base), memoryview(out))
    except MstoreError:
        return None
    return bytes(out)


def read(payload: bytes, base: bytes, length: int) -> bytes | None:
    """What the reader makes of a payload, None if it refuses it."""
    try:
        found: bytes = reader.decode(DELTA, payload, length, base)
    except RefusedError:
        return None
    return found


@given(st.data())
@settings(max_examples=150)
def test_the_reader_decodes_what_mstore_encodes(data: st.DataObject) -> None:
    payload, base, length = cases(data)
    found = read(payload, base, length)
    assert found is not None
    assert found == decoded(payload, base, length)


@given(st.data())
@settings(max_examples=250)
def test_both_refuse_the_same_and_give_the_same_wrong_bytes(data: st.DataObject) -> None:
    payload, base, length = cases(data)
    table = HEAD + int.from_bytes(payload[8:12], "little")
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 2))):
        end = data.draw(st.sampled_from([table, table, len(payload)]))
        at = data.draw(st.integers(0, min(end, len(payload)) - 1))
        damaged[at] ^= 1 << data.draw(st.integers(0, 7))
    end = data.draw(st.sampled_from([len(payload)] * 3 + [len(payload) - 1, table, HEAD]))
    length += data.draw(st.sampled_from([0, 0, 0, 1, -1, 8]))
    base = base[: data.draw(st.sampled_from([len(base)] * 3 + [len(base) // 2]))]
    damaged = damaged[:end]
    assert read(bytes(damaged), base, length) == decoded(bytes(damaged), base, length)


@pytest.mark.parametrize("how", ["rows", "shrunk", "shrunk rows"])
@pytest.mark.parametrize("name", ["f16", "bf16", "f32", ">f32", "f64", "f8_e4m3", "i16"])
def test_the_reader_decodes_parts_and_what_decays(name: str, how: str) -> None:
    dtype = BY_NAME[name]
    kind, rng = word_type(dtype), np.random.default_rng(3)
    old = np.frombuffer(like(dtype, 20_000, rng), kind.stored).astype(kind.native)
    old ^= rng.integers(0, 2, len(old)).astype(kind.native) << kind.native.type(8 * kind.size - 1)
    new = moved(old, kind, how.split()[0], rng)
    if how == "shrunk rows":
        new[:10_000] = moved(old[:10_000], kind, "near", rng) + kind.native.type(16)
    raw, base = (one.astype(kind.stored).tobytes() for one in (new, old))
    parts = Delta().encode(memoryview(raw), dtype, memoryview(base), dtype)
    assert parts is not None
    payload = b"".join(parts)
    assert payload[2] == (8 if "rows" in how else DECAYED if kind.mantissa else UNORDERED)
    assert read(payload, base, len(raw)) == raw
