"""What Keras does when it builds the model of a configuration, beside building it.

A configuration is JSON: objects with a `class_name`, and in Keras 3 also the `module` that it comes
from and a `registered_name`. Keras 3 refuses the worst of it unless told otherwise
(`safe_mode=False`); Keras 2 refuses nothing. Source: keras/src/saving/serialization_lib.py and
keras/src/layers/core/lambda_layer.py of Keras 3.15, and what was reported of earlier versions as
CVE-2024-3660, CVE-2025-1550, CVE-2025-49655 and CVE-2025-12058.
"""

import json
import sys
from collections.abc import Iterator

from mstore.errors import FormatError, LimitExceededError
from mstore.formats.base import Finding, quote

MAX_CONFIG = 16 << 20
"""Most bytes of a configuration; 1000 for each layer are usual."""

_KERAS = {"keras", "keras_hub", "keras_cv", "keras_nlp", "tf_keras", "tensorflow", "builtins"}
_LAYOUTS = {"src", "api", "_tf_keras", "python", "keras", "tf_keras", "tensorflow"}
_LOOKUPS = {"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization", "Hashing"}
# Modules of Keras whose functions are no part of a model but read, write and fetch files.
_TOOLS = {"utils", "saving", "models", "config", "preprocessing", "datasets", "legacy", "export"}
# Modules and functions of TensorFlow that do so, or run code.
_TOOLS_OF_TENSORFLOW = {
    *("io", "gfile", "raw_ops", "saved_model", "data", "summary", "debugging", "train"),
    *("load_op_library", "load_library", "py_function", "py_func", "numpy_function"),
}
_OPERATIONS = {"TFOpLambda", "SlicingOpLambda", "ClassMethod"}  # layers of Keras 2


def config_findings(text: str, where: str) -> list[Finding]:
    """What building the model would run or read; `where` is the place of `text` in the file.

    Raises FormatError if it is no JSON, LimitExceededError if it is nested too deeply.
    """
    found = {
        Finding(finding.danger, finding.what, where): None
        for node in _objects(_parsed(text))
        for finding in _judge(node)
    }
    return list(found)


def is_model(text: str) -> bool:
    """Whether a text may be the configuration of a model: an object that says its class.

    Raises as `config_findings` does.
    """
    value = _parsed(text)
    return isinstance(value, dict) and "class_name" in value


def _parsed(text: str) -> object:
    try:
        return json.loads(text)  # as Keras reads it: NaN is a number, the last of two keys counts
    except RecursionError:
        raise LimitExceededError("its configuration is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"its configuration is no JSON: {error}") from None


def _objects(value: object) -> Iterator[dict[str, object]]:
    """Every JSON object in a value, the outer ones first."""
    waiting = [value]
    while waiting:
        at = waiting.pop()
        if isinstance(at, dict):
            yield at
            waiting.extend(reversed(at.values()))
        elif isinstance(at, list):
            waiting.extend(reversed(at))


def _judge(node: dict[str, object]) -> Iterator[Finding]:
    """What an object makes Keras do."""
    name, config = node.get("class_name"), node.get("config")
    if not isinstance(name, str):
        return
    inner = config if isinstance(config, dict) else {}
    shown = quote(str(inner.get("name", name)))
    if name == "__lambda__":
        yield Finding("dangerous", "runs Python code that is marshalled in its configuration")
    elif name == "Lambda" and isinstance(inner.get("function"), list):  # as Keras 2 writes it
        yield Finding("dangerous", f"runs Python code that is marshalled in its layer {shown}")
    elif name == "TorchModuleWrapper" and isinstance(inner.get("module"), str):
        yield Finding("dangerous", f"unpickles a PyTorch module in its layer {shown}")
    elif name == "TFSMLayer":
        yield Finding("dangerous", f"loads a SavedModel from elsewhere for its layer {shown}")
    elif name in _LOOKUPS and isinstance(inner.get("vocabulary"), str):
        yield Finding("dangerous", f"reads the file {quote(str(inner['vocabulary']))}")
    elif name in _OPERATIONS and _runs(str(inner.get("function"))):
        yield Finding("dangerous", f"calls {quote('tf.' + str(inner['function']))}")
    yield from _judge_origin(node, name, config)


def _runs(function: str) -> bool:
    """Whether a function of TensorFlow, by its name with dots, is more than arithmetic."""
    return not _TOOLS_OF_TENSORFLOW.isdisjoint(function.split("."))


def _judge_origin(node: dict[str, object], name: str, config: object) -> Iterator[Finding]:
    """What is to be said of the module that an object comes from."""
    module, registered = node.get("module"), node.get("registered_name")
    used = str(config) if name == "function" else name
    shown = quote(used)
    if not isinstance(module, str):
        if isinstance(registered, str) and "module" in node:
            yield Finding("unknown", f"uses {shown}, which is not of Keras")
        return
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names - {"builtins"}:
        yield Finding("dangerous", f"uses {shown} of Python's own module {quote(module)}")
    elif package not in _KERAS:
        yield Finding("unknown", f"uses {shown} of {quote(module)}, which is not of Keras")
    elif not used[:1].isupper() and _is_tool(module, used):
        yield Finding("dangerous", f"calls {quote(f'{module}.{used}')}, which no model needs")


def _is_tool(module: str, function: str) -> bool:
    """Whether a function of Keras or TensorFlow is no part of a model.

    Keras takes the name of a function for that of a class, too.
    """
    parts = module.split(".")
    if parts[0] == "tensorflow" and _runs(f"{module}.{function}"):
        return True
    inner = (part for part in parts if part not in _LAYOUTS)
    return next(inner, "") in _TOOLS
