"""segment-verification: how far honest outputs of a segment differ, how far dishonest ones do, and how soon a tolerance tells them apart.

The reference is what a verifier computes: the same layers, with packed weights where the machine can, a whole chunk at once. Honest
variations are other kernels (stored weights), decode steps one by one, and decode steps of several sequences together. All are compared as
a verifier does it, in checks of 64 tokens.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.programs.leakage import encoded, public_text
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.variants import configuration
from splitinference_segment.torch_ops.comparison import errors
from splitinference_segment.torch_ops.spans import Span
from splitinference_segment.verdicts import bound

CHECK_TOKENS = 64
SEQUENCE_TOKENS = 128
PREFILL_TOKENS = 64  # of each sequence; its other tokens are decoded
TOGETHER = 3
TAIL = 0.01  # share of the largest errors that the extrapolation goes by
FALSE_ALARMS = 1e-6
_BITS4, _BITS8, _E4M3_MOST = 15, 127, 448.0

Change = Callable[[torch.Tensor], torch.Tensor]
Run = Callable[[Layers, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Cheat:
    """One dishonest segment: what it does to its weights, its blocks, or its output [tokens, hidden]."""

    name: str
    weights: Change | None = None
    skipped: int = 0
    output: Change | None = None


def int8_per_channel(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to 8 bits, a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / _BITS8
    return (weight / scale).round().clamp(-_BITS8, _BITS8) * scale


def int4_groups(size: int) -> Change:
    """Rounded to 4 bits, with scale and offset for each group of `size` values of a row."""

    def rounded(weight: torch.Tensor) -> torch.Tensor:
        rows, columns = weight.shape
        if columns % size:
            return weight
        groups = weight.reshape(rows, columns // size, size)
        least = groups.amin(2, keepdim=True)
        scale = ((groups.amax(2, keepdim=True) - least) / _BITS4).clamp(min=1e-9)
        return (((groups - least) / scale).round().clamp(0, _BITS4) * scale + least).reshape(rows, columns)

    return rounded


def float8(weight: torch.Tensor) -> torch.Tensor:
    """Rounded to float8 (e4m3), a scale for each row."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / _E4M3_MOST
    return (weight / scale).to(torch.float8_e4m3fn).float() * scale


def other_weights(share: float) -> Change:
    """Changed at random by this share of their standard deviation, as by fine-tuning."""
    return lambda weight: weight + torch.randn_like(weight) * weight.std() * share


def noise(share: float, every: int = 1) -> Change:
    """Noise of this share of each token's norm, on one token in `every`."""

    def noisy(output: torch.Tensor) -> torch.Tensor:
        wide = output.float()
        added = torch.randn_like(wide) * wide.norm(dim=1, keepdim=True) / math.sqrt(wide.shape[1]) * share
        added[torch.arange(len(wide)) % every != every - 1] = 0
        return (wide + added).to(output.dtype)

    return noisy


CHEATS = (
    Cheat("a block is skipped", skipped=1),
    Cheat("weights in float8 (e4m3, per row)", weights=float8),
    Cheat("weights in int8 (per row)", weights=int8_per_channel),
    Cheat("weights in int4 (groups of 32)", weights=int4_groups(32)),
    Cheat("weights in int4 (groups of 64)", weights=int4_groups(64)),
    Cheat("other weights: 3 % of their deviation", weights=other_weights(0.03)),
    Cheat("other weights: 1 % of their deviation", weights=other_weights(0.01)),
    Cheat("other weights: 0.3 % of their deviation", weights=other_weights(0.003)),
    Cheat("noise of 2 % on every token", output=noise(0.02)),
    Cheat("noise of 1 % on every token", output=noise(0.01)),
    Cheat("noise of 10 % on one token in 16", output=noise(0.1, 16)),
)


def whole(layers: Layers, given: torch.Tensor) -> torch.Tensor:
    """All tokens in one chunk."""
    return layers.run(given, [Span(KvEntry("w", layers.kv_shape.allocate(len(given))), 0, len(given), 0)])


def stepped(layers: Layers, given: torch.Tensor) -> torch.Tensor:
    """A prefill, and then token by token."""
    return together(layers, [given])[0]


def together(layers: Layers, sequences: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The same of several sequences of one length, whose decode steps are computed in one batch."""
    entries = [KvEntry(str(number), layers.kv_shape.allocate(len(given))) for number, given in enumerate(sequences)]
    made = []
    for entry, given in zip(entries, sequences, strict=True):
        made.append([layers.run(given[:PREFILL_TOKENS], [Span(entry, 0, PREFILL_TOKENS, 0)])])
    for position in range(PREFILL_TOKENS, len(sequences[0])):
        spans = [Span(entry, row, 1, position) for row, entry in enumerate(entries)]
        rows = layers.run(torch.stack([given[position] for given in sequences]), spans)
        for parts, row in zip(made, rows, strict=True):
            parts.append(row[None])
    return [torch.cat(parts) for parts in made]


@dataclass(frozen=True, slots=True)
class Figures:
    """Errors of single tokens, and which share of sequences some check of 64 tokens refuses."""

    name: str
    tokens: int
    p50: float
    p99: float
    worst: float
    largest_mean: float
    refused: float

    def as_json(self) -> dict[str, object]:
        """Errors to four digits."""
        short = {name: float(f"{getattr(self, name):.4g}") for name in ("p50", "p99", "worst", "largest_mean", "refused")}
        return {"name": self.name, "tokens": self.tokens, **short}


def figures(name: str, found: Sequence[torch.Tensor], tolerance: float) -> Figures:
    """Of the errors of each sequence's tokens."""
    single = torch.cat(list(found))
    checks = [list(sequence.split(CHECK_TOKENS)) for sequence in found]
    means = [float(part.mean()) for parts in checks for part in parts if len(part) == CHECK_TOKENS]
    refused = [any(_is_refused(part, tolerance) for part in parts) for parts in checks]
    at = torch.quantile(single, torch.tensor([0.5, 0.99])).tolist()
    return Figures(name, len(single), at[0], at[1], float(single.max()), max(means, default=0.0), sum(refused) / len(refused))


def _is_refused(part: torch.Tensor, tolerance: float) -> bool:
    return float(part.mean()) > bound(tolerance, len(part)) or float(part.max()) > bound(tolerance, 1)


def extrapolated(found: torch.Tensor, probability: float = FALSE_ALARMS) -> float:
    """The error that one token exceeds with this probability: an exponential tail of the logarithm, fitted to the largest share TAIL.

    The mean excess over a threshold is the tail's scale (peaks over threshold, with shape 0: Pickands–Balkema–de Haan).
    """
    logs = found[found > 0].log().sort().values
    count = max(2, int(TAIL * len(logs)))
    threshold, top = logs[-count - 1], logs[-count:]
    scale = float((top - threshold).mean())
    return math.exp(float(threshold) + scale * math.log(TAIL / probability))


def inputs(first: Layers, tokens: Sequence[int], sequences: int) -> list[torch.Tensor]:
    """The hidden states [SEQUENCE_TOKENS, hidden] that the segment gets, of sequences spread over the text."""
    apart = max(SEQUENCE_TOKENS, len(tokens) // sequences)
    starts = range(0, len(tokens) - SEQUENCE_TOKENS + 1, apart)
    return [whole(first, torch.tensor(tokens[start : start + SEQUENCE_TOKENS])) for start in list(starts)[:sequences]]


class Bench:
    """A segment's layers of one model, loaded anew for each variation."""

    def __init__(self, folder: Path, start: int, end: int, dtype: torch.dtype) -> None:
        """Nothing is loaded yet."""
        self._folder, self._start, self._end, self._dtype = folder, start, end, dtype

    def first(self) -> Layers:
        """The layers before."""
        return Layers(self._folder, 0, self._start, self._dtype)

    def layers(self, cheat: Cheat | None = None, *, pack: bool = True) -> Layers:
        """The segment's, honest or not."""
        made = Layers(self._folder, self._start, self._end, self._dtype)
        for _ in range(cheat.skipped if cheat else 0):
            made.blocks.pop()
        if cheat is not None and cheat.weights is not None:
            for module in [part for block in made.blocks for part in block.modules() if isinstance(part, nn.Linear)]:
                changed = cheat.weights(module.weight.detach().float())
                module.weight = nn.Parameter(changed.to(self._dtype), requires_grad=False)
        if pack:
            made.pack()
        return made


def honest(bench: Bench, given: Sequence[torch.Tensor], references: Sequence[torch.Tensor]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """Name and errors of each honest variation."""
    packed, stored = bench.layers(), bench.layers(pack=False)
    ways: tuple[tuple[str, Layers, Run], ...] = (
        ("stored weights, whole", stored, whole),
        ("stored weights, step by step", stored, stepped),
        ("packed weights, step by step", packed, stepped),
    )
    for name, layers, run in ways:
        yield name, [errors(reference, run(layers, each)) for each, reference in zip(given, references, strict=True)]
    found = []
    for start in range(0, len(given) - TOGETHER + 1, TOGETHER):
        outputs = together(packed, given[start : start + TOGETHER])
        found += [errors(reference, output) for reference, output in zip(references[start : start + TOGETHER], outputs, strict=True)]
    yield f"packed weights, {TOGETHER} sequences together", found


def measure(bench: Bench, tokens: Sequence[int], sequences: int, tolerance: float) -> dict[str, object]:
    """All figures, as JSON."""
    torch.manual_seed(0)
    with torch.inference_mode():
        given = inputs(bench.first(), tokens, sequences)
        verifier = bench.layers()
        references = [whole(verifier, each) for each in given]
        variations, all_honest = [], []
        for name, found in honest(bench, given, references):
            variations.append(figures(name, found, tolerance).as_json())
            all_honest += found
        cheats = []
        for cheat in CHEATS:
            layers, change = bench.layers(cheat), cheat.output or (lambda output: output)
            found = [errors(reference, change(whole(layers, each))) for each, reference in zip(given, references, strict=True)]
            cheats.append(figures(cheat.name, found, tolerance).as_json())
    single = torch.cat(all_honest)
    return {
        "v": 1,
        "tolerance": tolerance,
        "honest": {
            "tokens": len(single),
            "worst": float(f"{float(single.max()):.4g}"),
            "refused": sum(bool(_is_refused(part, tolerance)) for each in all_honest for part in each.split(CHECK_TOKENS)),
            "limit_of_one_token": float(f"{bound(tolerance, 1):.4g}"),
            "extrapolated_at_1e-6": float(f"{extrapolated(single):.4g}"),
            "variations": variations,
        },
        "cheats": cheats,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print JSON; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="segment-verification", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, tokenizer.json and safetensors")
    parser.add_argument("--layers", default="", metavar="START:END", help="of the segment (default: the middle third)")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--sequences", type=int, default=24, help=f"of {SEQUENCE_TOKENS} tokens each (default 24)")
    parser.add_argument("--tolerance", type=float, default=0.016)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, options.threads))
    try:
        count = int(configuration(options.model).num_hidden_layers) + 2
        start, _, end = (options.layers or f"{count // 3}:{2 * count // 3}").partition(":")
        if not (start.isdigit() and end.isdigit() and 1 <= int(start) < int(end) < count):
            raise ValueError(f"--layers should be START:END within 1:{count - 1}, got {options.layers!r}")
        if options.sequences < TOGETHER or not 0 < options.tolerance <= 1:
            raise ValueError(f"--sequences should be at least {TOGETHER}, and --tolerance above 0 and at most 1")
        tokens = encoded(options.model, public_text())
        bench = Bench(options.model, int(start), int(end), getattr(torch, options.dtype))
        report = measure(bench, tokens, options.sequences, options.tolerance)
    except (UnsupportedModelError, OSError, ValueError) as problem:
        print(f"segment-verification: {problem}", file=sys.stderr)
        return 2
    print(json.dumps({**report, "layers": f"{start}:{end}", "dtype": options.dtype, "sequences": options.sequences}, separators=(",", ":")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
