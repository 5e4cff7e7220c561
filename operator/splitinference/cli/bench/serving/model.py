"""The model that benches of the data plane take: where it is, and how many bytes its layers have."""

import json
import os
import re
import struct
from pathlib import Path

from splitinference.cli.bench.serving.containers import MeasurementError


def layer_bytes(model: Path) -> list[float]:
    """Bytes that decoding reads of each layer: embedding (one row: nothing), blocks, head; from the headers of the safetensors.

    Raises:
        MeasurementError: the folder holds no such model.
    """
    sizes: dict[str, int] = {}
    for file in sorted(model.glob("*.safetensors")):
        with file.open("rb") as opened:
            header = json.loads(opened.read(struct.unpack("<Q", opened.read(8))[0]))
        sizes |= {name: entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"}
    blocks: dict[int, float] = {}
    for name, size in sizes.items():
        if found := re.search(r"\.(?:layers|h)\.(\d+)\.", name):
            blocks[int(found[1])] = blocks.get(int(found[1]), 0) + size
    if not blocks:
        raise MeasurementError(f"{model} holds no safetensors of a language model.")
    embeddings = [size for name, size in sizes.items() if re.search(r"(embed_tokens|wte)\.weight$", name)]
    head = next((float(size) for name, size in sizes.items() if name.endswith("lm_head.weight")), float(max(embeddings, default=0)))
    return [0.0, *(blocks[i] for i in sorted(blocks)), head]


def model_here() -> Path:
    """The model that the demo converted.

    Raises:
        MeasurementError: there is none.
    """
    configs = sorted(_cache().glob("models/*/config.json"))
    found = [path.parent for path in configs if not (path.parent / "modules.json").exists()]  # sentence encoders lie there too
    if not found:
        raise MeasurementError("No model: give a folder with --model, or let `make demo` convert one.")
    return found[0]


def gguf_here() -> Path:
    """A GGUF file that the test cluster keeps.

    Raises:
        MeasurementError: there is none.
    """
    found = sorted(_cache().glob("models/*/*.gguf"))
    if not found:
        raise MeasurementError("No GGUF file: name the same model as a GGUF file with --gguf.")
    return found[0]


def hidden_size(model: Path) -> int:
    """Width of the model's hidden states."""
    config = json.loads((model / "config.json").read_text())
    return int(config.get("hidden_size") or config["n_embd"])


def _cache() -> Path:
    base = os.environ.get("SPLITINFERENCE_CACHE") or f"{os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache'}/splitinference"
    return Path(base).expanduser()
