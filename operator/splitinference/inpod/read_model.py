"""Print what a model's folder says about itself: config.json and the tensor tables of its *.safetensors files.

Runs in a pod on a node that has the folder; the operator reads the pod's log. The output is packed (packed.py):
`{"config": {...}, "tensors": {name: [dtype, shape, bytes]}}`. What is wrong goes to stderr in one line, exit 1.
"""

import json
import os
import sys
from typing import Any

from splitinference.inpod.packed import complain, hand_over

HEADER_LIMIT = 32 * 2**20
HEADERS_LIMIT = 96 * 2**20
CONFIG_LIMIT = 4 * 2**20


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
        text = file.read(CONFIG_LIMIT + 1)
    if len(text) > CONFIG_LIMIT:
        raise ValueError(f"{folder}/config.json is longer than {CONFIG_LIMIT} characters")
    config = json.loads(text)
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
        found = read_model(folder)
        hand_over(found["config"], found["tensors"])
    except RecursionError:
        complain(f"{called}: config.json or a tensor table is nested too deeply")
        return 1
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        complain(str(error).replace(folder, called))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
