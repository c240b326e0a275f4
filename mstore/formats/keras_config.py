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
_LOOKUPS = {"StringLookup", "IntegerLookup", "IndexLookup", "TextVectorization", "Hashing"}
# Modules of Keras whose functions are no part of a model but read, write and fetch files.
_TOOLS = {"keras.utils", "keras.saving", "keras.models", "keras.config", "keras.preprocessing"}


def config_findings(text: str, where: str) -> list[Finding]:
    """What building the model would run or read; `where` is the place of `text` in the file.

    Raises FormatError if it is no JSON, LimitExceededError if it is nested too deeply.
    """
    try:
        value = json.loads(text)  # as Keras reads it: NaN is a number, the last of two keys counts
    except RecursionError:
        raise LimitExceededError("its configuration is nested too deeply") from None
    except ValueError as error:
        raise FormatError(f"its configuration is no JSON: {error}") from None
    found = {
        Finding(finding.danger, finding.what, where): None
        for node in _objects(value)
        for finding in _judge(node)
    }
    return list(found)


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
    yield from _judge_origin(node, name, config)


def _judge_origin(node: dict[str, object], name: str, config: object) -> Iterator[Finding]:
    """What is to be said of the module that an object comes from."""
    module, registered = node.get("module"), node.get("registered_name")
    is_function = name == "function"
    shown = quote(str(config) if is_function else name)
    if not isinstance(module, str):
        if isinstance(registered, str) and "module" in node:
            yield Finding("unknown", f"uses {shown}, which is not of Keras")
        return
    package = module.partition(".")[0]
    if package in sys.stdlib_module_names - {"builtins"}:
        yield Finding("dangerous", f"uses {shown} of Python's own module {quote(module)}")
    elif package not in _KERAS:
        yield Finding("unknown", f"uses {shown} of {quote(module)}, which is not of Keras")
    elif is_function and any(f"{module}.".startswith(f"{tool}.") for tool in _TOOLS):
        yield Finding("dangerous", f"calls {quote(f'{module}.{config}')}, which no model needs")
