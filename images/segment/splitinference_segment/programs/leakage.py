"""segment-leakage: how many of a client's tokens a linear map reads from the hidden states at each boundary of a model.

Whoever runs a segment has the hidden states at its boundaries, and the model's weights are mostly public. So two maps are learned by ridge
regression on public text, and tried on text that they have not seen:

    prompt: hidden state → the embedding of the token at this position; the nearest embedding by cosine is what was read
    answer: hidden state → what the model's head is given for this position; the head's best token is what was read, compared with the token
            that the model itself would say next

A map of a better form, or one that looks at several positions, reads more: the figures are a lower bound of what an attacker learns.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.functional import normalize

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_models.loading import load_layers
from splitinference_segment.torch_models.variants import configuration
from splitinference_segment.torch_ops.attention import Row
from splitinference_segment.torch_ops.spans import Span

WINDOW = 256  # tokens that are run at once, each window from position 0
RIDGE = 10.0
"""Penalty on the map's squared coefficients, for inputs that are scaled to a variance of 1 and as many rows as tokens."""
TRAIN_TOKENS, TEST_TOKENS = 12_288, 2_048
ROWS = 256  # of logits at once
LEAST_DEVIATION = 1e-3


class TooLittleTextError(Exception):
    """There is not enough text to learn from or to try the map on; the message has the numbers."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """What is read at one boundary, in percent of the tokens tried. `boundary`: how many layers are before it; layer 0 is the embedding."""

    boundary: int
    prompt: float
    answer: float

    @property
    def percent(self) -> float:
        """What the planner counts: the better of the two maps."""
        return max(self.prompt, self.answer)


def windows(layers: Layers, tokens: Sequence[int]) -> Iterator[tuple[torch.Tensor, list[torch.Tensor]]]:
    """Token ids [WINDOW] and the hidden states [WINDOW, hidden] after the embedding and after each block, float32, window by window."""
    for start in range(0, len(tokens) - WINDOW + 1, WINDOW):
        ids = torch.tensor(tokens[start : start + WINDOW])
        row = Row([Span(KvEntry("leakage", layers.kv_shape.allocate(WINDOW)), 0, WINDOW, 0)], 0)
        positions = torch.arange(WINDOW)[None]
        embedding = layers.embedding
        if embedding is None:
            raise TypeError("the maps need the whole model")
        hidden = embedding(ids[None])
        if layers.positions is not None:
            hidden = hidden + layers.positions(positions)
        rotation = layers.rotary(hidden, position_ids=positions) if layers.rotary is not None else None
        extra = {"position_embeddings": rotation} if rotation is not None else {}
        found = [hidden[0].float()]
        for block in layers.blocks:
            hidden = block(hidden, row=row, **extra)
            found.append(hidden[0].float())
        yield ids, found


class Map:
    """A linear map to be learned by ridge regression; only sums are kept, so memory does not grow with the text."""

    def __init__(self, inputs: int, outputs: int) -> None:
        """No rows yet."""
        self._inner = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self._cross = torch.zeros(inputs + 1, outputs, dtype=torch.float64)

    def add(self, given: torch.Tensor, wanted: torch.Tensor) -> None:
        """Rows [n, inputs] and what they should become, [n, outputs]."""
        ones = _with_ones(given).double()
        self._inner += ones.T @ ones
        self._cross += ones.T @ wanted.double()

    def learned(self) -> torch.Tensor:
        """The map [inputs + 1, outputs], float32; the last row is the offset. The penalty is on inputs scaled to a variance of 1."""
        rows = self._inner[-1, -1]
        mean = self._inner[-1, :-1] / rows
        variance = (self._inner.diagonal()[:-1] / rows - mean**2).clamp(min=LEAST_DEVIATION**2)
        penalty = torch.cat([RIDGE * variance, torch.tensor([1e-6 * rows])])
        return torch.linalg.solve(self._inner + torch.diag(penalty), self._cross).float()


def _with_ones(given: torch.Tensor) -> torch.Tensor:
    return torch.cat([given, torch.ones(len(given), 1)], dim=1)


def recovery(layers: Layers, train: Sequence[int], test: Sequence[int]) -> list[Recovery]:
    """What is read at each boundary from 1 to the one before the head.

    Raises:
        TooLittleTextError: there is less than a window of either text.
    """
    if len(train) < WINDOW or len(test) < WINDOW:
        raise TooLittleTextError(
            f"{len(train)} tokens to learn from and {len(test)} to try the map on; at least {WINDOW} of each are needed"
        )
    if layers.embedding is None or layers.norm is None or layers.head is None:
        raise TypeError("the maps need the whole model")
    embeddings = next(iter(layers.embedding.parameters())).float()
    with torch.inference_mode():
        boundaries = len(layers.blocks) + 1
        prompts = [Map(layers.hidden, layers.hidden) for _ in range(boundaries)]
        answers = [Map(layers.hidden, layers.hidden) for _ in range(boundaries)]
        for ids, states in windows(layers, train):
            token = embeddings[ids]
            said = layers.norm(states[-1].to(layers.dtype)).float()
            for hidden, prompt, answer in zip(states, prompts, answers, strict=True):
                prompt.add(hidden, token)
                answer.add(hidden, said)
        maps = [(prompt.learned(), answer.learned()) for prompt, answer in zip(prompts, answers, strict=True)]
        return _tried(layers, maps, test, normalize(embeddings, dim=1))


def _tried(layers: Layers, maps: Sequence[tuple[torch.Tensor, torch.Tensor]], test: Sequence[int], names: torch.Tensor) -> list[Recovery]:
    read, tokens = torch.zeros(len(maps), 2, dtype=torch.int64), 0
    for ids, states in windows(layers, test):
        next_tokens = torch.cat([layers.logits(rows.to(layers.dtype)).argmax(dim=1) for rows in states[-1].split(ROWS)])
        tokens += len(ids)
        for number, (hidden, (prompt, answer)) in enumerate(zip(states, maps, strict=True)):
            given = _with_ones(hidden)
            read[number, 0] += int((normalize(given @ prompt, dim=1) @ names.T).argmax(dim=1).eq(ids).sum())
            read[number, 1] += int(_heard(layers, given @ answer).eq(next_tokens).sum())
    percent = (100.0 * read / tokens).tolist()
    return [Recovery(number + 1, round(prompt, 1), round(answer, 1)) for number, (prompt, answer) in enumerate(percent)]


def _heard(layers: Layers, said: torch.Tensor) -> torch.Tensor:
    """The head's best token for what it would be given."""
    if layers.head is None:
        raise TypeError("only the last segment has a head")
    return torch.cat([layers.head(rows.to(layers.dtype)).float().argmax(dim=1) for rows in said.split(ROWS)])


def public_text() -> str:
    """Python's own documentation of its language, some 500,000 characters of English, as every installation of Python has it."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def texts(files: Iterable[Path]) -> str:
    """The files' text, one after the other. OSError where one cannot be read."""
    return "\n".join(file.read_text(errors="replace") for file in files)


def encoded(folder: Path, text: str) -> list[int]:
    """The text's token ids, by the folder's tokenizer. OSError where there is none, ValueError where it cannot be read."""
    from tokenizers import Tokenizer

    content = (folder / "tokenizer.json").read_text()
    try:
        return list(Tokenizer.from_str(content).encode(text).ids)
    except Exception as error:  # the library raises nothing more particular
        raise ValueError(f"{folder / 'tokenizer.json'}: {error}") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print JSON: `tokens`, `layers`, `text`, and `boundaries` with boundary, prompt and answer; 2 for bad input."""
    parser = argparse.ArgumentParser(prog="segment-leakage", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder with config.json, tokenizer.json and safetensors")
    parser.add_argument("--dtype", default="bfloat16", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--tokens", type=int, default=TRAIN_TOKENS, help=f"that the maps learn from (default {TRAIN_TOKENS})")
    parser.add_argument("--test-tokens", type=int, default=TEST_TOKENS, help=f"that they are tried on (default {TEST_TOKENS})")
    parser.add_argument("--threads", type=int, default=1)
    words = "text to learn from and to try, the last part of it; may be given several times (default: Python's documentation)"
    parser.add_argument("--text", type=Path, action="append", default=[], metavar="FILE", help=words)
    options = parser.parse_args(arguments)
    torch.set_num_threads(max(1, options.threads))
    try:
        ids = encoded(options.model, texts(options.text) if options.text else public_text())
        wanted = options.tokens + options.test_tokens
        if len(ids) < wanted:
            raise TooLittleTextError(f"the text has {len(ids)} tokens, {wanted} are needed: give more with --text, or ask for fewer")
        # One split of the text: what is tried is none of what was learned from.
        layers = _whole(options.model, getattr(torch, options.dtype))
        found = recovery(layers, ids[: options.tokens], ids[-options.test_tokens :])
    except (TooLittleTextError, UnsupportedModelError, OSError, ValueError) as problem:
        print(f"segment-leakage: {problem}", file=sys.stderr)
        return 2
    report = {
        "v": 1,
        "text": ", ".join(map(str, options.text)) or "Python's documentation (pydoc_data.topics)",
        "tokens": {"train": options.tokens, "test": options.test_tokens},
        "layers": layers.count,
        "boundaries": [{"boundary": each.boundary, "prompt": each.prompt, "answer": each.answer} for each in found],
    }
    print(json.dumps(report, separators=(",", ":")))
    return 0


def _whole(folder: Path, dtype: torch.dtype) -> Layers:
    count = int(configuration(folder).num_hidden_layers) + 2
    layers = load_layers(folder, 0, count, dtype)
    if not isinstance(layers, Layers):
        raise UnsupportedModelError("what a boundary tells is measured of models that keep sequences; this one keeps none")
    return layers


if __name__ == "__main__":
    sys.exit(main())
