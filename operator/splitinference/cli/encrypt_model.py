"""`splitinference encrypt-model`: a copy of a model's folder whose weights only pods with the key can read.

Configuration, tokenizer, and names, shapes and data types of the weights stay readable: the planner needs them. Give the key to a key
broker (Trustee), and name both in spec.model.encryption.
"""

import argparse
import os
import secrets
import shutil
import sys
from pathlib import Path
from typing import Any

from splitinference_modelfiles.sealed import KEY_BYTES
from splitinference_modelfiles.sealing import encrypt
from splitinference_modelfiles.stored.folder import inside, tensor_tables
from splitinference_modelfiles.stored.headers import SUFFIX, ModelRefusedError


def register(subparsers: "argparse._SubParsersAction[Any]") -> None:
    """Add the command."""
    parser = subparsers.add_parser("encrypt-model", help="encrypt a model's weights", description=__doc__)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="with config.json and *.safetensors")
    parser.add_argument("target", type=Path, metavar="TARGET", help="the folder to make; it must not exist")
    parser.add_argument("--key-file", type=Path, required=True, metavar="FILE", help="32 random bytes; made if it is not there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Encrypt, and say what to do with the key; 2 where that is not possible. A target that was begun is removed."""
    try:
        files = sorted(set(tensor_tables(str(args.folder))[0].values()))
        names = [name for name in sorted(os.listdir(args.folder)) if (args.folder / name).is_file()]
        if stray := [name for name in names if name.endswith((SUFFIX, ".bin", ".pt", ".pth", ".gguf")) and name not in files]:
            raise ModelRefusedError(f"{stray[0]} may hold weights and would stay readable: remove it from the folder")
        args.target.mkdir(parents=True)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{args.folder}: {error}\n")
        return 2
    try:
        key = _key(args.key_file)
        for name in names:
            source, target = Path(inside(str(args.folder), name)), args.target / name
            if name in files:
                encrypt(source, target, key)
            else:
                shutil.copyfile(source, target)
    except (OSError, ValueError) as error:
        shutil.rmtree(args.target)
        sys.stderr.write(f"{args.folder}: {error}\n")
        return 2
    print(f"{len(files)} files of weights are encrypted in {args.target}.")
    print(f"Store {args.key_file} in your key broker, and name the resource in spec.model.encryption.keyBroker.")
    print("Use a new key for each model, and for each version of it.")
    return 0


def _key(path: Path) -> bytes:
    """The key in the file, which is made if it is not there. ValueError where it holds something else."""
    if not path.exists():
        made = secrets.token_bytes(KEY_BYTES)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(made)
        return made
    found = path.read_bytes()
    if len(found) != KEY_BYTES:
        raise ValueError(f"{path} has {len(found)} bytes, a key has {KEY_BYTES}: openssl rand -out {path} {KEY_BYTES}")
    return found
