"""The GGUF parser, against files of the gguf package and against hostile ones."""

import struct
import tracemalloc

import gguf
import numpy as np
import pytest
from damage import changed_runs, flipped, judge
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFEndian, GGUFReader, GGUFWriter
from hypothesis import given

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError, LimitExceededError
from mstore.formats import gguf as gguf_module
from mstore.formats import gguf_cursor
from mstore.formats.base import BytesReader
from mstore.formats.gguf import BLOCKS, PLAIN, GgufFormat
from mstore.layout import Tensor

RANDOM = np.random.default_rng(5)
QUANTISED = [kind for kind in GGMLQuantizationType if int(kind) in BLOCKS]


def layout(data):
    return GgufFormat().layout(BytesReader(data))


def tensors(data):
    return {s.tensor.name: (s, s.tensor) for s in layout(data).segments if s.tensor is not None}


def blocks(kind, shape=(2, 3, 512)):
    """Rows of blocks: weights that the package quantises, or any bytes where it cannot."""
    weights = RANDOM.normal(size=shape).astype(np.float32)
    try:
        return gguf.quants.quantize(weights, kind)
    except (NotImplementedError, KeyError):
        per_block, size = GGML_QUANT_SIZES[kind]
        return RANDOM.integers(0, 256, (*shape[:-1], shape[-1] // per_block * size), np.uint8)


def written(path, endian=GGUFEndian.LITTLE, fill=lambda writer: None, **options):
    writer = GGUFWriter(path, "llama", endianess=endian, **options)
    fill(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def plain(writer):
    for dtype in (np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64):
        array = RANDOM.normal(size=(2, 3, 5)).astype(np.float32).astype(dtype)
        writer.add_tensor(f"blk.0.{np.dtype(dtype)}", array)
    for shape in ((7,), (1, 1), (2, 3, 4, 5)):
        writer.add_tensor(
            f"shape{len(shape)}", np.arange(np.prod(shape), dtype="f4").reshape(shape)
        )


def metadata(writer):
    writer.add_uint8("a.u8", 1)
    writer.add_int8("a.i8", -1)
    writer.add_uint16("a.u16", 1)
    writer.add_int16("a.i16", -1)
    writer.add_uint32("a.u32", 1)
    writer.add_int32("a.i32", -1)
    writer.add_float32("a.f32", 1.5)
    writer.add_uint64("a.u64", 1)
    writer.add_int64("a.i64", -1)
    writer.add_float64("a.f64", 1.5)
    writer.add_bool("a.bool", True)
    writer.add_token_list([f"token{i}" * (i % 7) for i in range(4_000)])
    writer.add_token_scores([0.5] * 4_000)
    writer.add_array("a.empty", [1])
    writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")


def same_as_reader(path, data):
    """Every tensor is that of the package's own reader; the rest is no tensor."""
    found = tensors(data)
    read = GGUFReader(path).tensors
    assert [t.name for t in read] == list(found)
    for one in read:
        segment, tensor = found[one.name]
        raw = data[segment.offset : segment.offset + segment.length]
        assert raw == one.data.tobytes()
        expected = one.data.shape
        if one.tensor_type == GGMLQuantizationType.BF16:
            expected = (*expected[:-1], expected[-1] // 2)  # of bytes in the package
        assert tensor.shape == expected
        name = one.tensor_type.name.lower()
        assert tensor.kind == (name if int(one.tensor_type) in BLOCKS else "")
        if tensor.dtype.word > 1 and name != "bf16":
            assert tensor.dtype.big_endian == (one.data.dtype.byteorder == ">")
    return found


def test_types_are_those_of_the_package():
    package = {int(kind): sizes for kind, sizes in GGML_QUANT_SIZES.items()}
    assert package.keys() == PLAIN.keys() | BLOCKS.keys()
    for kind, dtype in PLAIN.items():
        assert package[kind] == (1, dtype.itemsize)
        assert GGMLQuantizationType(kind).name.lower() == dtype.name
    for kind, (name, elements, size) in BLOCKS.items():
        assert package[kind] == (elements, size)
        assert GGMLQuantizationType(kind).name.lower() == name


@pytest.mark.parametrize("endian", list(GGUFEndian))
@pytest.mark.parametrize("alignment", [32, 8, 4096])
def test_plain_types(tmp_path, endian, alignment):
    def fill(writer):
        writer.add_custom_alignment(alignment)
        plain(writer)
        metadata(writer)

    path = tmp_path / "model.gguf"
    data = written(path, endian, fill)
    assert GgufFormat().sniff(data[:4096], BytesReader(data))
    found = same_as_reader(path, data)
    prefix = ">" if endian == GGUFEndian.BIG else ""
    assert found["blk.0.int16"][1] == Tensor("blk.0.int16", BY_NAME[f"{prefix}i16"], (2, 3, 5))
    assert found["shape4"][1].shape == (2, 3, 4, 5)
    assert GgufFormat().examine(BytesReader(data))[1] is None
    assert GgufFormat().findings(BytesReader(data)) == []


@pytest.mark.parametrize("endian", list(GGUFEndian))
def test_every_quantised_type(tmp_path, endian):
    kinds = [*QUANTISED, GGMLQuantizationType.BF16]

    def fill(writer):
        for kind in kinds:
            rows = blocks(kind)
            writer.add_tensor(kind.name, rows, raw_dtype=kind, tensor_endianess=endian)

    path = tmp_path / "model.gguf"
    data = written(path, endian, fill)
    assert len(same_as_reader(path, data)) == len(kinds)


def test_other_ways_of_writing(tmp_path):
    for number, (fill, options) in enumerate(
        [
            (plain, {"use_temp_file": True}),
            (lambda writer: writer.add_description("nothing else"), {}),
            (metadata, {}),
        ]
    ):
        path = tmp_path / f"{number}.gguf"
        data = written(path, fill=fill, **options)
        same_as_reader(path, data)
        assert GgufFormat().examine(BytesReader(data))[1] is None


# Files by hand


def string(text, mark="<"):
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack(f"{mark}Q", len(raw)) + raw


def entry(key, kind, value):
    return string(key) + struct.pack("<I", kind) + value


def info(name, dims, kind, offset):
    dims = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return string(name) + dims + struct.pack("<IQ", kind, offset)


def build(entries=(), infos=(), data=b"", version=3, counts=None, alignment=32):
    counts = counts or (len(infos), len(entries))
    head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join((*entries, *infos))
    return head + bytes(-len(head) % alignment) + data


ALIGN = "general.alignment"
ONE = info("a", [8], 24, 0)
U32, STRING, ARRAY = 4, 8, 9


def array(kind, count, content=b""):
    return struct.pack("<IQ", kind, count) + content


GOOD = {
    "version 2": build(infos=[ONE], data=bytes(8), version=2),
    "alignment 1": build([entry(ALIGN, U32, b"\1\0\0\0")], [ONE], bytes(8), alignment=1),
    "strings": build([entry("s", ARRAY, array(STRING, 2, string("") + string("x" * 300_000)))]),
    "arrays": build([entry("s", ARRAY, array(ARRAY, 2, array(0, 3, b"abc") + array(STRING, 0)))]),
    "no dimension": build(infos=[info("a", [], 24, 0)], data=b"1"),
    "empty": build(infos=[info("a", [0, 3], 0, 0)]),
    "not in order": build(infos=[info("a", [3], 24, 32), ONE.replace(b"a", b"b")], data=bytes(35)),
    "gap": build(infos=[ONE, info("b", [3], 24, 128)], data=bytes(131)),
    "more behind": build(infos=[ONE], data=bytes(100)),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD.keys())
def test_good_files_by_hand(data):
    assert len(tensors(data)) == int.from_bytes(data[8:16], "little")
    assert GgufFormat().sniff(data[:4096], BytesReader(data))


MALFORMED = {
    "magic only": b"GGUF",
    "version 0": build(version=0),
    "version 1": build(version=1),
    "version 4": build(version=4),
    "cut in the counts": build()[:20],
    # Class 36: counts, strings and arrays that overflow.
    "2^64 tensors": build(counts=(2**64 - 1, 0)),
    "2^64 entries": build(counts=(0, 2**64 - 1)),
    "more tensors than there are": build(infos=[ONE], data=bytes(60), counts=(2, 0)),
    "more entries than there are": build([entry("k", 0, b"1")], counts=(0, 2), alignment=1),
    "key of 2^60": build([struct.pack("<Q", 60_000) + b"x" * 50]),
    "string of 2^64": build([entry("k", STRING, b"\xff" * 8)]),
    "string to the end and one more": build([entry("k", STRING, struct.pack("<Q", 40))]),
    "array of 2^64 numbers": build([entry("k", ARRAY, array(10, 2**64 - 1))]),
    "array that overflows": build([entry("k", ARRAY, array(10, 2**61))]),
    "array of 2^64 strings": build([entry("k", ARRAY, array(STRING, 2**64 - 1))]),
    "array of 2^64 arrays": build([entry("k", ARRAY, array(ARRAY, 2**64 - 1))]),
    "strings in array overflow": build([entry("k", ARRAY, array(STRING, 2, b"\xff" * 16))]),
    "type of value": build([entry("k", 13, b"1234")]),
    "type in array": build([entry("k", ARRAY, array(13, 1, b"1"))]),
    "template cut": build([entry("tokenizer.chat_template", STRING, struct.pack("<Q", 90_000))]),
    "dimensions overflow": build(infos=[info("a", [2**40, 2**40], 0, 0)], data=bytes(8)),
    "dimensions overflow to 0": build(infos=[info("a", [2**63, 2, 2], 0, 0)], data=bytes(8)),
    "dimension 0 and overflow": build(infos=[info("a", [0, 2**63, 4], 0, 0)], data=bytes(8)),
    "blocks overflow": build(infos=[info("a", [2**63, 2**10], 2, 0)], data=bytes(8)),
    "offset 2^64": build(infos=[info("a", [8], 24, 2**64 - 32)], data=bytes(8)),
    "beyond the end": build(infos=[info("a", [9], 24, 0)], data=bytes(8)),
    "no data": build(infos=[ONE]),
    # Class 37: alignment, duplicates, dimensions, overlap.
    "alignment 0": build([entry(ALIGN, U32, bytes(4))], [ONE], bytes(8)),
    "alignment 3": build([entry(ALIGN, U32, b"\3\0\0\0")], [ONE], bytes(8)),
    "alignment a u64": build([entry(ALIGN, 10, b"\x20" + bytes(7))], [ONE], bytes(8)),
    "alignment twice": build([entry(ALIGN, U32, b"\x20\0\0\0")] * 2, [ONE], bytes(8)),
    "key twice": build([entry("k", 0, b"1")] * 2, [ONE], bytes(8)),
    "tensor twice": build(infos=[ONE, info("a", [8], 24, 32)], data=bytes(64)),
    "5 dimensions": build(infos=[info("a", [1] * 5, 24, 0)], data=bytes(8)),
    "2^32 dimensions": build(infos=[string("a") + b"\xff" * 16], data=bytes(8)),
    "overlap": build(infos=[info("a", [33], 24, 0), info("b", [8], 24, 32)], data=bytes(64)),
    "the same data": build(infos=[ONE, info("b", [8], 24, 0)], data=bytes(64)),
    "not aligned": build(infos=[ONE, info("b", [8], 24, 8)], data=bytes(64)),
    "half a block": build(infos=[info("a", [48], 2, 0)], data=bytes(64)),
    "block without dimension": build(infos=[info("a", [], 2, 0)], data=bytes(64)),
    "name not UTF-8": build(infos=[info(b"\xff", [8], 24, 0)], data=bytes(8)),
    "unknown inside another": build(
        infos=[info("a", [65], 24, 0), info("b", [8], 99, 64)], data=bytes(99)
    ),
    "unknown beyond the end": build(infos=[info("b", [8], 99, 64)], data=bytes(63)),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed(data):
    assert len(data) < 500_000
    with pytest.raises(FormatError):
        layout(data)


def test_too_much(monkeypatch):
    long_key = build([entry("k" * 65_536, 0, b"1")])
    long_name = build(infos=[info("n" * 65_536, [8], 24, 0)], data=bytes(8))
    deep = entry("k", ARRAY, array(ARRAY, 1) * 6 + array(0, 0))
    for data in (long_key, long_name, build([deep])):
        with pytest.raises(LimitExceededError):
            layout(data)
    data = GOOD["strings"]
    for module, limit, value in (
        (gguf_cursor, "MAX_STRINGS", 1),
        (gguf_cursor, "MAX_HEAD", 1000),
        (gguf_module, "MAX_ENTRIES", 0),
    ):
        layout(data)
        with monkeypatch.context() as patched:
            patched.setattr(module, limit, value)
            with pytest.raises(LimitExceededError):
                layout(data)
    monkeypatch.setattr(gguf_module, "MAX_TENSORS", 0)
    with pytest.raises(LimitExceededError):
        layout(GOOD["version 2"])


def test_unknown_types_stay_opaque():
    infos = [ONE, info("b", [8], 99, 32), info("c", [8], 24, 96), info("d", [8], 31, 128)]
    data = build(infos=infos, data=bytes(200))
    found, note = GgufFormat().examine(BytesReader(data))
    assert [s.tensor.name for s in found.segments if s.tensor] == ["a", "c"]
    assert note == "opaque bytes for 2 of 4 tensors: 'b' is of type 99, 'd' is of type 31"


def test_templates_that_may_leave_their_sandbox():
    def found(template, key="tokenizer.chat_template"):
        data = build([entry(key, STRING, string(template))], [ONE], bytes(8))
        assert len(tensors(data)) == 1
        return [(f.danger, f.where) for f in GgufFormat().findings(BytesReader(data))]

    key = "tokenizer.chat_template"
    assert found("{{ messages }}") == []
    assert found("{{ ''.__class__.__mro__ }}") == [("unknown", key)]
    assert found(r"{{ ''|attr('\x5F\x5fclass') }}") == [("unknown", key)]
    assert found("__", f"{key}.tool_use") == [("unknown", f"{key}.tool_use")]
    assert found("x" * ((1 << 20) + 1)) == [("unknown", key)]
    assert found("__", "general.description") == []


def test_sniff():
    for data in (b"GGUF models are quantised", b"GGUF", b"", b"GGML\3\0\0\0"):
        assert not GgufFormat().sniff(data, BytesReader(data))
    assert GgufFormat().sniff(b"GGUF\1\0\0\0", BytesReader(b""))


def test_a_vocabulary_is_not_built():
    tokens = b"".join(string(f"token{i}") for i in range(150_000))
    data = build([entry("tokenizer.ggml.tokens", ARRAY, array(STRING, 150_000, tokens))])
    tracemalloc.start()
    layout(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


SMALL = build(
    [
        entry(ALIGN, U32, b"\x20\0\0\0"),
        entry("k", ARRAY, array(STRING, 2, string("abc") + string(""))),
        entry("tokenizer.chat_template", STRING, string("x")),
    ],
    [info("a", [4, 2], 0, 0), info("b", [32, 2], 2, 32), info("c", [3], 25, 96)],
    bytes(range(102)),
)


def test_truncation_at_every_length():
    assert len(tensors(SMALL)) == 3
    for size in range(len(SMALL)):
        with pytest.raises(FormatError):
            layout(SMALL[:size])


def test_flipped_bits():
    for _, changed in flipped(SMALL):
        judge(GgufFormat(), changed)


@given(changed_runs(SMALL))
def test_changed_bytes(data):
    judge(GgufFormat(), data)
