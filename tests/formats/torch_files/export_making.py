"""Archives of torch.export.save made by hand, without torch: what it writes, and what it would not."""

import io
import json
import zipfile

import numpy as np

SIX = np.arange(6, dtype=np.float32).tobytes()


def meta(shape=(2, 3), strides=(3, 1), offset=0, dtype=7, layout=7):
    """What is said of a tensor; anything but an int counts as it is."""

    def number(value):
        return {"as_int": value} if type(value) is int else value

    return {
        "dtype": dtype,
        "sizes": [number(one) for one in shape],
        "requires_grad": False,
        "device": {"type": "cpu", "index": None},
        "strides": [number(one) for one in strides],
        "storage_offset": number(offset),
        "layout": layout,
    }


def entry(path="weight_0", use_pickle=False, tensor_meta=None, **how):
    """One weight or constant."""
    return {
        "path_name": path,
        "is_param": False,
        "use_pickle": use_pickle,
        "tensor_meta": meta(**how) if tensor_meta is None else tensor_meta,
    }


def configured(entries):
    """The text of a configuration."""
    return json.dumps({"config": entries}).encode()


def archive(weights=None, constants=None, *, folder="m", model="model", compressed=(), **members):
    """An archive of a model; `members` are by their paths, and a None takes one away."""
    made = {
        "data/weights/weight_0": SIX,
        f"data/weights/{model}_weights_config.json": weights or {},
        f"data/constants/{model}_constants_config.json": constants or {},
        f"models/{model}.json": b"{}",
        "archive_format": b"pt2",
        "archive_version": b"0",
        ".data/version": b"6\n",
        "byteorder": b"little",
        **members,
    }
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        for path, content in made.items():
            if content is None:
                continue
            raw = configured(content) if isinstance(content, dict) else content
            how = zipfile.ZIP_DEFLATED if path in compressed else zipfile.ZIP_STORED
            opened.writestr(zipfile.ZipInfo(f"{folder}/{path}"), raw, how)
    return file.getvalue()
