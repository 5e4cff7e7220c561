"""Print what a model's folder says about itself: config.json, its tensor table and the names of its files; or of its GGUF file the same.

Runs in a pod on a node that has the folder; the operator reads the pod's log. The output is packed (packed.py):
`{"config": {...}, "tensors": {name: [dtype, shape, bytes]}, "files": [name], "content": {...}}`. What is wrong goes to stderr in one line,
exit 1. `content` has the digests of all tensors (splitinference_modelfiles/stored/digests.py), if they could be read in time.

Usage: read_model.py <folder> <what users call it> <seconds for digests> [<digest that the model must have, or empty> [<engine> [<file>]]]
"""

import sys

from splitinference.inpod.packed import complain, hand_over
from splitinference_modelfiles.gguf_files.gguf_folder import WhatIsAsked, described, gguf_model, gguf_names
from splitinference_modelfiles.stored.digests import MISMATCH, Digests, folder_digests
from splitinference_modelfiles.stored.folder import CONFIG, file_names, read_json, tensor_tables


def checked(found: Digests | None, expected: str) -> dict[str, object] | None:
    """The digests to hand over. ValueError where the model is not the expected one."""
    if found is not None and expected and found.root != expected:
        raise ValueError(f"{MISMATCH}: the model's digest is {found.root}, expected {expected}")
    return found.as_json() if found is not None else None


def read_folder(folder: str, seconds: float, expected: str) -> None:
    """Print the model whose weights are safetensors."""
    config = read_json(folder, CONFIG)
    file_of, table = tensor_tables(folder)
    found = folder_digests(folder, file_of, table, None if expected else seconds) if expected or seconds else None
    tensors = {name: [info.dtype, info.shape, info.bytes] for name, info in table.items()}
    hand_over(config, tensors, file_names(folder), checked(found, expected))


def read_gguf_file(folder: str, names: list[str], wanted: str) -> None:
    """Print the model of the GGUF file."""
    model = gguf_model(folder, names, wanted)
    tensors = {name: [info.dtype, info.shape, info.bytes] for name, info in model.tensors.items()}
    hand_over(described(model), tensors, file_names(folder))


def main(folder: str, called: str, seconds: str = "0", *said: str) -> int:
    """Print the model in `folder`, which users know as `called`; return the exit status. `said`: the fields of `WhatIsAsked`."""
    asked = WhatIsAsked(*said)
    try:
        names = gguf_names(folder, asked.file)
        if asked.takes_gguf(names):
            read_gguf_file(folder, names, asked.file)
        else:
            read_folder(folder, float(seconds), asked.digest)
    except (OSError, ValueError) as error:
        complain(str(error).replace(folder, called))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:7]))
