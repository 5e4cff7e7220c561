"""`splitinference digest`: the digest of a model's folder, for spec.model.digest."""

import argparse
import sys
from pathlib import Path
from typing import Any

from splitinference_modelfiles.stored.digests import folder_digests
from splitinference_modelfiles.stored.folder import tensor_tables


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("digest", help="the digest of a model's folder, for spec.model.digest", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with config.json and *.safetensors; all of it is read once")
    parser.add_argument("--tensors", action="store_true", help="also the digest of each tensor, or of each block where there are very many")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read and print; 2 where the folder holds no model that can be read."""
    try:
        found = folder_digests(str(args.folder), *tensor_tables(str(args.folder)), None)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{args.folder}: {error}\n")
        return 2
    assert found is not None  # noqa: S101 - without a limit of time it is always whole
    print(found.root)
    if args.tensors:
        for name, digest in sorted({**found.tensors, **found.groups}.items()):
            print(f"{digest}  {name}")
    return 0
