"""Run in the segment image, on one core: a segment's own layers of SmolLM2-135M's shape, over a prompt and in decode steps.

Prints {"gflops", "gbps"}: of the median step, in processor time. The layers are those that serve, from random weights: an imitation without
transformers' modules and the segment's attention took 1.0 ms for a block where the real one takes 1.7.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from splitinference_segment.attention import Span
from splitinference_segment.kv import KvEntry
from splitinference_segment.layers import Layers

HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY, PROMPT, MOST_TOKENS = 576, 9, 3, 1536, 49152, 64, 256
PAUSE_SECONDS = 0.05
BLOCKS, MEASURED = 30, 10
"""The model has so many; so few are measured, which is enough that their weights do not stay in a cache."""


def layers(folder: Path) -> tuple[Layers, Layers]:
    """Some blocks of the model, and its head."""
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, num_hidden_layers=MEASURED,
        vocab_size=VOCABULARY, tie_word_embeddings=True,
    )  # fmt: skip
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    found = [Layers(folder, start, end, torch.bfloat16) for start, end in ((1, MEASURED + 1), (MEASURED + 1, MEASURED + 2))]
    for each in found:
        each.pack()
    return found[0], found[1]


def median(times: int, run: Callable[[], object]) -> float:
    """Seconds of one run. Between two, as between two tokens, others have the processor and its caches."""
    run()
    found = []
    for _ in range(times):
        time.sleep(PAUSE_SECONDS)
        begun = time.process_time()
        run()
        found.append(time.process_time() - begun)
    return statistics.median(found)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        blocks, head = layers(Path(folder))
    weights, words = MEASURED * HIDDEN * (2 * HIDDEN + 2 * KV_HEADS * HIDDEN // HEADS + 3 * INNER), VOCABULARY * HIDDEN
    with torch.inference_mode():
        prompt, token = torch.randn(PROMPT, HIDDEN).bfloat16(), torch.randn(1, HIDDEN).bfloat16()
        entry = KvEntry("measured", blocks.kv_shape.allocate(MOST_TOKENS))
        prefill = median(15, lambda: blocks.run(prompt, [Span(entry, 0, PROMPT, 0)]))
        entry.length = PROMPT
        decode = median(60, lambda: blocks.run(token, [Span(entry, 0, 1, PROMPT)]))
        last = median(60, lambda: head.logits(token))
    share = BLOCKS / MEASURED
    flops, read = 2 * (PROMPT * share * weights + words), 2 * (share * weights + words)
    print(json.dumps({"gflops": round(flops / (share * prefill + last) / 1e9, 2), "gbps": round(read / (share * decode + last) / 1e9, 3)}))


if __name__ == "__main__":
    main()
