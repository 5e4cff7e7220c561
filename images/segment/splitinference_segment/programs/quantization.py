"""segment-quantization: what quantized weights cost in exactness and need in memory, beside the model in its own data type.

    perplexity: exp of the mean negative log-likelihood of a text's tokens, in windows that each begin anew
    agreement: the share of positions where the likeliest next token is that of the model as stored
    memory: what was planned for the weights, and what the kernel counts of this process more after they are loaded than before

`--checkpoint NAME=DIR` adds a checkpoint of the same model that another tool quantized. The tokens are those of the model's tokenizer.
"""

import argparse
import ctypes
import gc
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from splitinference_modelfiles.held import AS_STORED, INT4, INT8
from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.programs.leakage import TooLittleTextError, encoded, public_text, texts
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.weights import MissingWeightsError
from splitinference_segment.torch_ops.spans import Span

WINDOW = 512
"""Tokens of the text that see each other."""
ROWS = 128
"""Of logits at a time."""
TOKENS = 4096


class OtherModelError(Exception):
    """A checkpoint is not of the same model; the message says what differs."""


@dataclass(frozen=True, slots=True)
class Way:
    """A folder, and how its weights are held."""

    name: str
    folder: Path
    weights: str = AS_STORED


@dataclass(frozen=True, slots=True)
class Found:
    """Of one way. `measured_bytes`: anonymous memory of this process, after loading less before."""

    name: str
    perplexity: float
    agreement: float
    planned_bytes: int
    measured_bytes: int


def measured(ways: Sequence[Way], ids: Sequence[int], dtype: torch.dtype) -> Iterator[Found]:
    """Each way on these tokens; the first one is what the others are compared with.

    Raises:
        OtherModelError: a way has another vocabulary or another number of layers than the first.
    """
    reference: torch.Tensor | None = None
    size = (0, 0)
    for way in ways:
        model = accepted(way.folder, way.weights)[1]
        if model.sizes is None:
            raise UnsupportedModelError("what quantized weights cost is measured of decoders")
        own = (model.sizes.blocks, model.sizes.vocabulary)
        size = own if reference is None else size
        if own != size:
            raise OtherModelError(f"{way.name} has {own[0]} blocks and {own[1]} tokens, the model has {size[0]} and {size[1]}")
        count = model.sizes.blocks + 2
        Layers(way.folder, count - 1, count, dtype, weights=way.weights)  # what loading needs once, and keeps
        before = _anonymous()
        layers = Layers(way.folder, 0, count, dtype, weights=way.weights)
        grown = _anonymous() - before
        likeliest, surprise = _said(layers, ids)
        reference = likeliest if reference is None else reference
        agreement = float((likeliest == reference).float().mean())
        planned = sum(model.held_bytes(name, dtype.itemsize) for name in model.used)
        yield Found(way.name, round(float(surprise.exp()), 3), round(agreement, 4), planned, grown)
        del layers


def _said(layers: Layers, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """The likeliest token after each one, and the mean surprise of those that follow, in nats."""
    likeliest, surprises = [], []
    with torch.inference_mode():
        for start in range(0, len(ids) - WINDOW + 1, WINDOW):
            window = torch.tensor(list(ids[start : start + WINDOW]))
            hidden = layers.run(window, [Span(KvEntry("w", layers.kv_shape.allocate(WINDOW)), 0, WINDOW, 0)])
            logits = torch.cat([_scored(layers, hidden, window, row) for row in range(0, WINDOW, ROWS)], 1)
            likeliest.append(logits[0].long())
            surprises.append(logits[1, :-1])
    return torch.cat(likeliest), torch.cat(surprises).mean()


def _scored(layers: Layers, hidden: torch.Tensor, window: torch.Tensor, row: int) -> torch.Tensor:
    """[2, ROWS], float64: the likeliest token after each row, and the surprise of the one that follows."""
    logits = layers.logits(hidden[row : row + ROWS])
    following = torch.nn.functional.pad(window, (0, 1))[row + 1 : row + 1 + len(logits)]
    return torch.stack([logits.argmax(1).double(), torch.nn.functional.cross_entropy(logits, following, reduction="none").double()])


def _anonymous() -> int:
    """Bytes of memory that belong to this process alone, as the kernel counts them; memory that is free is given back before."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print JSON: `text`, `tokens`, `dtype`, and `ways`; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="segment-quantization", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, required=True, help="folder with config.json, tokenizer.json and safetensors in 16 or 32 bits"
    )
    parser.add_argument("--checkpoint", action="append", default=[], metavar="NAME=DIR", help="a quantized checkpoint of the same model")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tokens", type=int, default=TOKENS, help=f"of the text (default {TOKENS}); whole windows of {WINDOW} are used")
    parser.add_argument("--threads", type=int, default=1)
    words = "text to be read; may be given several times (default: Python's documentation)"
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE", help=words)
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, options.threads))
    try:
        ways = [Way(AS_STORED, options.model), Way(INT8, options.model, INT8), Way(INT4, options.model, INT4)]
        for each in options.checkpoint:
            name, _, folder = each.partition("=")
            if not name or not folder:
                raise ValueError(f"--checkpoint should be NAME=DIR, got {each!r}")
            ways.append(Way(name, Path(folder)))
        ids = encoded(options.model, texts(options.text) if options.text else public_text())[: options.tokens]
        if len(ids) < WINDOW:
            raise TooLittleTextError(f"{len(ids)} tokens of text are there; at least {WINDOW} are needed")
        found = [asdict(each) for each in measured(ways, ids, getattr(torch, options.dtype))]
    except (TooLittleTextError, OtherModelError, UnsupportedModelError, MissingWeightsError, OSError, ValueError) as problem:
        print(f"segment-quantization: {problem}", file=sys.stderr)
        return 2
    text = ", ".join(map(str, options.text)) or "Python's documentation (pydoc_data.topics)"
    tokens = len(ids) // WINDOW * WINDOW
    print(json.dumps({"v": 1, "text": text, "tokens": tokens, "dtype": options.dtype, "ways": found}, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
