"""Models in several files: the index beside sharded safetensors, `*.safetensors.index.json`.

{"metadata": {…}, "weight_map": {"tensor name": "model-00001-of-00002.safetensors", …}}
"""

from collections.abc import Collection

from mstore.errors import MstoreError
from mstore.formats.base import quote
from mstore.strictjson import parse_json

INDEX_SUFFIX = ".safetensors.index.json"
"""How the name of an index ends."""

MAX_INDEX = 64 * 1024 * 1024
"""Most characters of an index that is read; about 100 for each tensor are usual."""

_MAX_SHOWN = 5


def check_shards(text: str, beside: Collection[str]) -> list[str]:
    """Warnings about an index with the given text, in a folder of files called `beside`.

    One warning if it cannot be understood, one if shards it names are missing; none if all is
    well. Never raises because of the text.
    """
    if len(text) > MAX_INDEX:
        return [f"the shard index is too long to read: {len(text)} characters"]
    try:
        index = parse_json(text)
    except MstoreError as error:
        return [f"the shard index cannot be read: {error.message}"]
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        return ["the shard index has no weight_map"]
    shards = [shard for shard in weight_map.values() if isinstance(shard, str)]
    if len(shards) != len(weight_map):
        return ["the shard index names shards that are no file names"]
    missing = sorted(set(shards).difference(beside))
    if not missing:
        return []
    shown = ", ".join(map(quote, missing[:_MAX_SHOWN]))
    more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
    return [f"the shard index names files that are not here: {shown}{more}"]
