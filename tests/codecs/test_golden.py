"""Payloads stored once, which every later version must read (see `write_golden.py`)."""

import json
from pathlib import Path
from typing import Any

import pytest

from mstore.codecs.choose import Decoder
from mstore.codecs.groups import GroupCoder

GOLDEN = Path(__file__).parent / "golden"

NAMES = [
    "constant-c128",
    "constant-f32",
    "constant-opaque",
    "delta-bf16-from-f16",
    "delta-bf16-from-f32",
    "delta-bf16-pairs",
    "delta-bf16-two-parts",
    "delta-c64",
    "delta-f16-from-f32",
    "delta-f16-from-f64",
    "delta-f32-by-magnitude",
    "delta-f32-decayed",
    "delta-f32-dense",
    "delta-f32-equal",
    "delta-f32-from-big-endian-bf16",
    "delta-f32-from-f64",
    "delta-f32-rest",
    "delta-f32-sparse",
    "delta-f32-two-parts",
    "delta-f64-from-f32",
    "delta-f8-ordered",
    "delta-i64",
    "delta-i8",
    "delta-i8-sparse",
    "delta-i8-sparse-pairs",
    "planes-bf16",
    "planes-bool",
    "planes-c64",
    "planes-f16",
    "planes-f32",
    "planes-f32-big-endian",
    "planes-f64",
    "planes-i64",
    "planes-u16-big-endian",
    "raw",
    "zstd",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_payload_decodes_to_what_it_always_did(name: str) -> None:
    content = json.loads((GOLDEN / f"{name}.json").read_text())
    raw = bytes.fromhex(content["raw"])
    out = bytearray(len(raw))
    base = memoryview(bytes.fromhex(content["base"])) if "base" in content else None
    Decoder().decode(
        content["codec"], memoryview(bytes.fromhex(content["payload"])), memoryview(out), base
    )
    assert out == raw


def test_each_order_of_differences_is_among_them() -> None:
    stored = [json.loads(path.read_text()) for path in GOLDEN.glob("delta-*.json")]
    assert {bytes.fromhex(one["payload"])[2] for one in stored} == {0, 1, 2, 4, 8}


def test_no_stored_payload_is_missing_or_unknown() -> None:
    assert sorted(path.stem for path in GOLDEN.iterdir()) == NAMES


def test_each_kind_of_group_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And both kinds of numbers in sparse ones: planes and pairs."""
    seen = set()
    for kind in ("dense", "sparse", "pairs"):
        name = f"_decode_{kind}"
        decode = getattr(GroupCoder, name)

        def traced(*args: Any, kind: str = kind, decode: Any = decode) -> Any:
            within.append(kind)
            seen.add("/".join(within))
            decode(*args)
            within.pop()

        monkeypatch.setattr(GroupCoder, name, traced)
    within: list[str] = []
    for name in NAMES:
        test_a_stored_payload_decodes_to_what_it_always_did(name)
    assert seen == {"dense", "sparse", "pairs", "sparse/pairs"}
