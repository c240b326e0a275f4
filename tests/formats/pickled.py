"""What tests of pickles share: making them in two ways, and looking at all that is in one."""

import io
import pickle

import joblib

from mstore.formats.pickle_values import children


def by_pickle_and_joblib(value: object, protocol: int = 4) -> list[bytes]:
    """The same value as both write it."""
    stream = io.BytesIO()
    joblib.dump(value, stream, protocol=protocol)
    return [pickle.dumps(value, protocol), stream.getvalue()]


def reachable(root: object) -> list[object]:
    """Every value in what was walked, once."""
    seen: dict[int, object] = {}
    stack = [root]
    while stack:
        value = stack.pop()
        if id(value) not in seen:
            seen[id(value)] = value
            stack += [child for _, child in children(value)]
    return list(seen.values())
