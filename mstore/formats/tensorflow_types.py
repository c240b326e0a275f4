"""The element types of TensorFlow by their numbers, for its checkpoints and its graphs.

Source: `types.proto` of TensorFlow.
"""

from mstore.dtypes import BY_NAME, DType

TYPES: dict[int, tuple[DType, str]] = {
    number: (BY_NAME[name], kind)
    for number, name, kind in [
        (1, "f32", ""), (2, "f64", ""), (3, "i32", ""), (4, "u8", ""), (5, "i16", ""),
        (6, "i8", ""), (8, "c64", ""), (9, "i64", ""), (10, "bool", ""), (11, "i8", "qint8"),
        (12, "u8", "quint8"), (13, "i32", "qint32"), (14, "bf16", ""), (15, "i16", "qint16"),
        (16, "u16", "quint16"), (17, "u16", ""), (18, "c128", ""), (19, "f16", ""),
        (22, "u32", ""), (23, "u64", ""), (24, "f8_e5m2", ""), (25, "f8_e4m3", ""),
        (26, "f8_e4m3fnuz", ""), (27, "u8", "float8_e4m3b11fnuz"), (28, "f8_e5m2fnuz", ""),
        (29, "i8", ""), (30, "u8", ""), (31, "i8", ""), (32, "u8", ""),
        (33, "u8", "float4_e2m1fn"),
    ]
}  # fmt: skip
"""Each with a word for what the type itself does not say; empty where it says all.

Those of less than a byte take a whole one for each element.
"""

NO_NUMBERS = frozenset({7, 20, 21})
"""The numbers of strings, resources and variants."""
