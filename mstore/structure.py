"""Nested Python values as one virtual safetensors file, and back.

`flatten` puts every array into the file as a tensor and writes down the rest, the nesting and the
plain values, as JSON in the file's metadata under `mstore.structure`. `restore` is its inverse.
What comes back has the same nesting, types, shapes and bits; arrays of other libraries come back
as numpy arrays. Grammar of that JSON, where "name" is the name of a tensor of the file:

    null, true, false             None, True, False
    7, 0.5, "text"                int of at most 64 bits, finite float, str of at most 1024
    {"key": value, …}             dict whose keys are all plain str; the order is kept
    ["list", value, …]            list; ["tuple", value, …] likewise
    ["dict", key, value, …]       dict with other keys
    ["ordered", key, value, …]    collections.OrderedDict
    ["set", value, …]             set, of what may be a key; ["frozenset", value, …] likewise
    ["array", name]               numpy array of the tensor's own type and shape
    ["array", name, dtype, "F"]   numpy array of another type (or null), column-major (or "C")
    ["objects", [extent, …], value, …]       numpy array of Python objects, row-major
    ["scalar", dtype, base64]     numpy scalar
    ["str_", value], ["bytes_", base64]      numpy str_ and bytes_
    ["numbers", "list", name]     list (or "tuple") of at least 64 float or int, as a F64 or I64
    ["int", "-1f…"]               int of more than 64 bits, hexadecimal
    ["float", "7ff8000000000001"] float that JSON lacks (nan, inf), by its bits
    ["complex", bits, bits]       complex
    ["str", base64]               str with lone surrogates, as UTF-8 ("surrogatepass")
    ["bytes", base64]             bytes; ["bytearray", base64] likewise
    ["blob", "bytes", name]       long bytes (or "bytearray", or "str" in UTF-8), as a U8 tensor

    dtype = a type string of numpy, such as "<f4" or "<M8[ns]"
          | the name of an ml_dtypes type, with ">" before it if big-endian
          | ["struct", item size, aligned, [field name, offset, dtype, subarray shape], …]
            (a field may have its title as a fifth item)

The dtype of an array is given when the tensor has another one, its carrier: the same without ">"
for big-endian numbers, I64 for dates, F64 with a last dimension of 2 for complex128, and for all
the rest U8 with a last dimension of the item size.

Tensors are named by their place: keys and indices joined by dots, so a flat dict keeps its names.
An array on its own is called "array". A name that is taken gets "#2" (then "#3", …) at its end.
"""

import json
from collections.abc import Callable, Iterable, Mapping

from mstore.arrayfile import ArrayFile, pack_arrays
from mstore.errors import LimitExceededError
from mstore.numpy_dtypes import Array
from mstore.strictjson import parse_json
from mstore.structure_read import Restorer
from mstore.structure_write import Flattener

STRUCTURE_KEY = "mstore.structure"
"""The key of the structure in the metadata of a safetensors file."""

MAX_STRUCTURE = 32 * 1024 * 1024
"""Most characters of a structure; 50,000 tensors take about 5 million."""


def flatten(value: object) -> ArrayFile:
    """The safetensors file that holds `value`.

    Accepts dicts, OrderedDicts, lists, tuples and sets, nested, of arrays and plain values; arrays
    are numpy's, and whatever offers `__array__` or `__dlpack__`. Buffers of the result are views
    of contiguous little-endian arrays.

    Raises InvalidInputError, naming the place inside `value`, for anything that would not come
    back equal; LimitExceededError for more nesting or plain values than could be read back.
    """
    flattener = Flattener()
    text = json.dumps(flattener.node(value), separators=(",", ":"), allow_nan=False)
    _check_length(text)
    return pack_arrays(flattener.arrays, {STRUCTURE_KEY: text})


def restore(
    metadata: Mapping[str, str],
    names: Iterable[str],
    load: Callable[[str], Array],
    convert: Callable[[Array], object] = lambda array: array,
) -> object:
    """The value that `flatten` made a file of.

    `metadata` is that of the file, `names` are its tensors, and `load` gives one of them as a
    numpy array of the type its dtype stands for. A file without a structure is a flat dict of its
    tensors. `convert` makes of each array what is to stand for it in the value. Memory is bounded
    by the file's size: a structure can use each tensor only once.

    Raises FormatError for a structure that breaks the grammar or does not use every tensor,
    LimitExceededError for one that is too long or deep.
    """
    text = metadata.get(STRUCTURE_KEY)
    if text is None:
        return {name: convert(load(name)) for name in names}
    _check_length(text)
    restorer = Restorer(names, load, convert)
    value = restorer.value(parse_json(text), 0)
    restorer.finish()
    return value


def _check_length(text: str) -> None:
    if len(text) > MAX_STRUCTURE:
        raise LimitExceededError(
            f"the nesting and plain values take {len(text)} characters; the most is "
            f"{MAX_STRUCTURE}",
            hint="put long lists of numbers into arrays",
        )
