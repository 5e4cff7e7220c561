"""What packed weights and encoded links cost in exactness: perplexity and agreement of tokens on a fixed text, beside the plain model.

python -m splitinference_segment.programs.loss --model DIR --text FILE [--tokens N] [--cuts 12,22]
"""

import argparse
import hashlib
import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoTokenizer

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.encoding import decode, encode
from splitinference_segment.torch_ops.spans import Span


@dataclass(frozen=True, slots=True)
class Way:
    """A way to run the layers: with packed weights or not, with encoded links or not."""

    name: str
    packed: bool = False
    int8: bool = False


WAYS = (Way("plain"), Way("int8 links", int8=True), Way("packed weights", packed=True), Way("both", packed=True, int8=True))


def logits_of(parts: Sequence[Layers], ids: Sequence[int], *, int8: bool, chunk: int = 256) -> torch.Tensor:
    """Logits after every token, [tokens, vocabulary], in chunks as the gateway sends them."""
    entries = [KvEntry("s", part.kv_shape.allocate(len(ids))) for part in parts]
    found = []
    with torch.inference_mode():
        for start in range(0, len(ids), chunk):
            values = torch.tensor(list(ids[start : start + chunk]))
            for part, entry in zip(parts, entries, strict=True):
                if int8 and part is not parts[0]:
                    values = decode(encode(values), values.shape, part.dtype)
                values = part.run(values, [Span(entry, 0, values.shape[0], start)])
            found.append(parts[-1].logits(values))
    return torch.cat(found)


def measured(logits: torch.Tensor, plain: torch.Tensor, ids: Sequence[int]) -> dict[str, float]:
    """Perplexity of the text, and the share of positions where the likeliest token is that of the plain model."""
    surprise = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(list(ids[1:])))
    agreement = (logits.argmax(-1) == plain.argmax(-1)).float().mean()
    return {"perplexity": round(float(surprise.exp()), 4), "agreement": round(float(agreement), 5)}


def main() -> None:
    """Print one line of JSON for each way."""
    parser = argparse.ArgumentParser(prog="splitinference_segment.programs.loss", description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--cuts", default="12,22", help="inner boundaries, comma-separated")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16"))
    options = parser.parse_args()
    text = options.text.read_text()
    ids = AutoTokenizer.from_pretrained(options.model)(text)["input_ids"][: options.tokens]
    layers = json.loads((options.model / "config.json").read_text())["num_hidden_layers"] + 2
    cuts = [0, *(int(cut) for cut in options.cuts.split(",")), layers]
    plain: torch.Tensor | None = None
    for way in WAYS:
        parts = [Layers(options.model, start, end, getattr(torch, options.dtype)) for start, end in itertools.pairwise(cuts)]
        if way.packed and not all(map(Layers.pack, parts)):
            continue
        logits = logits_of(parts, ids, int8=way.int8)
        plain = logits if plain is None else plain
        said = {"way": way.name, "tokens": len(ids), "text": hashlib.sha256(text.encode()).hexdigest()[:12], "cuts": cuts}
        print(json.dumps(said | measured(logits, plain, ids)), flush=True)


if __name__ == "__main__":
    main()
