"""Print what a model's folder says about itself: config.json, its tensor table and the names of its files.

Runs in a pod on a node that has the folder; the operator reads the pod's log. The output is packed (packed.py):
`{"config": {...}, "tensors": {name: [dtype, shape, bytes]}, "files": [name]}`. What is wrong goes to stderr in one line, exit 1.
"""

import sys

from splitinference.inpod.packed import complain, hand_over
from splitinference_modelfiles.folder import CONFIG, file_names, read_json, tensor_tables


def main(folder: str, called: str) -> int:
    """Print the model in `folder`, which users know as `called`; return the exit status."""
    try:
        config = read_json(folder, CONFIG)
        _, table = tensor_tables(folder)
        hand_over(config, {name: [info.dtype, info.shape, info.bytes] for name, info in table.items()}, file_names(folder))
    except (OSError, ValueError) as error:
        complain(str(error).replace(folder, called))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
