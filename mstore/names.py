"""Names of tensors as they are compared across file formats."""

_WRAPPERS = frozenset(
    {"state_dict", "model_state_dict", "model", "module", "_orig_mod", "params", "variables"}
)
"""What checkpoints keep a model's own names under: those of training loops, PyTorch's parallel and
compiled modules, and Flax."""


def canonical_name(name: str) -> str:
    """What names of one tensor in files of different formats have in common.

    Parts are separated by dots, as in PyTorch; parts in front that only say "the model" are
    dropped, and so is the `:0` that TensorFlow adds. `state_dict/module/a/b:0` becomes `a.b`. Two
    tensors of one file may have the same canonical name.
    """
    if "/" in name or ":" in name:
        name = name.removesuffix(":0").replace("/", ".").lstrip(".")
    first, dot, rest = name.partition(".")
    while dot and first in _WRAPPERS:
        name = rest
        first, dot, rest = name.partition(".")
    return name
