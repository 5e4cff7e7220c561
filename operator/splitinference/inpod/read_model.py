"""Print what a model's folder says about itself: config.json and the tensor tables of its *.safetensors files.

Runs in a pod on a node that has the folder; the operator reads the pod's log. The output is JSON, gzipped and in base64, between two
marks, so that a long table fits in a log: `{"config": {...}, "tensors": {name: [dtype, shape, bytes]}}`. What is wrong goes to stderr in
one line, exit 1.
"""
# ruff: noqa: T201

import base64
import gzip
import json
import os
import sys
from typing import Any

BEGIN = "-----BEGIN SPLITINFERENCE MODEL-----"
END = "-----END SPLITINFERENCE MODEL-----"
HEADER_LIMIT = 100 * 2**20


def read_table(path: str) -> dict[str, list[Any]]:
    """The tensor table at the start of one safetensors file. ValueError says what is wrong with it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= HEADER_LIMIT:
            raise ValueError(f"{path} is not a safetensors file: its header would be {length} bytes long")
        table = json.loads(file.read(length))
    needed = 8 + length + max((entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"), default=0)
    if os.path.getsize(path) < needed:
        raise ValueError(f"{path} is cut short: it has {os.path.getsize(path)} bytes, its header speaks of {needed}")
    return {
        name: [entry["dtype"], entry["shape"], entry["data_offsets"][1] - entry["data_offsets"][0]]
        for name, entry in table.items()
        if name != "__metadata__"
    }


def read_model(folder: str) -> dict[str, Any]:
    """Configuration and tensors of the model in `folder`. OSError, ValueError: what is missing or wrong."""
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    names = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    if not names:
        raise ValueError(f"{folder} has no *.safetensors file")
    tensors = {}
    for name in names:
        tensors.update(read_table(os.path.join(folder, name)))
    return {"config": config, "tensors": tensors}


def main(folder: str, called: str) -> int:
    """Print the model in `folder`, which users know as `called`; return the exit status."""
    try:
        text = json.dumps(read_model(folder), separators=(",", ":"))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(str(error).replace(folder, called), file=sys.stderr)
        return 1
    packed = base64.b64encode(gzip.compress(text.encode(), mtime=0)).decode()
    print(BEGIN)
    for start in range(0, len(packed), 1000):
        print(packed[start : start + 1000])
    print(END, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
