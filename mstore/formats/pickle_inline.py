"""Arrays in the stream of a pickle, between its opcodes, as `joblib.dump` writes them.

In place of an array joblib pickles a wrapper that says its shape, order and type. Right after the
opcode that sets the wrapper's state there follow, outside of any frame:

    newer   a byte n, then n bytes FF, so that the elements start at a multiple of 16
    all     the elements; for an array of objects a pickle of its own instead, and no padding

Source: `NumpyArrayWrapper` in joblib/numpy_pickle.py of joblib 0.10 to 1.6.
"""

from mstore.dtypes import BY_NAME
from mstore.errors import FormatError
from mstore.formats.base import check_shape
from mstore.formats.pickle_arguments import Arguments
from mstore.formats.pickle_dtypes import ElementType, element_type
from mstore.formats.pickle_values import Call, Chars, Dict, Global

_WRAPPERS = (
    "joblib.numpy_pickle.NumpyArrayWrapper",
    "sklearn.externals.joblib.numpy_pickle.NumpyArrayWrapper",
)
_MADE_BY = ("copyreg._reconstructor", "copy_reg._reconstructor")
_MAX_PADDING = 64
_PADDING = b"\xff"
_BYTES = BY_NAME["u8"]


def is_wrapper(call: Call) -> bool:
    """Whether an object stands for an array that follows."""
    made = call.function
    if str(made) in _MADE_BY and call.arguments:  # in protocols 0 and 1
        made = call.arguments[0]
    return isinstance(made, Global) and str(made) in _WRAPPERS


def attributes(wrapper: Call) -> dict[str, object]:
    """What a wrapper says of its array, by name; a later state adds to an earlier one."""
    states = [state for state in wrapper.states if isinstance(state, Dict)]
    pairs = (pair for state in states for pair in state.pairs)
    return {key: value for key, value in pairs if isinstance(key, str)}


def read_inline(wrapper: Call, arguments: Arguments) -> Chars | None:
    """Where the elements are that follow a wrapper; they are stepped over.

    None for an array of objects, whose pickle is still to be read. Raises FormatError for what
    joblib would not write, or if the elements cannot be there.
    """
    said = attributes(wrapper)
    kind = element_type(said.get("dtype"))
    if kind.objects:
        return None
    size = _size(kind, said.get("shape"))
    if said.get("numpy_array_alignment_bytes") is not None:
        padding = arguments.u8()
        if padding > _MAX_PADDING or arguments.take(padding).strip(_PADDING):
            raise arguments.fail("has no padding before an array")
    place = Chars("raw", arguments.position, size)
    arguments.skip(size)
    return place


def _size(kind: ElementType, shape: object) -> int:
    """Bytes of an array."""
    if kind.itemsize is None:
        raise FormatError("it has an array whose type is not known")
    if not isinstance(shape, tuple) or any(type(extent) is not int for extent in shape):
        raise FormatError("it has an array without a shape")
    return check_shape(_BYTES, (*shape, kind.itemsize), "an array in it")
