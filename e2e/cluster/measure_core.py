"""Run in the segment image, on one core: a decoder of SmolLM2-135M's shape with packed weights, over a prompt and in decode steps.

Prints {"gflops", "gbps"}: the best of several rounds, in processor time.
"""

import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

LAYERS, HIDDEN, HEADS, KV_HEADS, INNER, VOCABULARY, PROMPT = 30, 576, 9, 3, 1536, 49152, 64
WIDTH = HIDDEN // HEADS
SHAPES = ((HIDDEN, HIDDEN + 2 * KV_HEADS * WIDTH), (HIDDEN, HIDDEN), (HIDDEN, 2 * INNER), (INNER, HIDDEN))


def linear(inner: int, outer: int) -> Callable[[Any], Any]:
    """One matrix, packed where this torch and processor can."""
    weight = torch.randn(outer, inner).bfloat16() / inner**0.5
    if torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")
    return lambda x: torch.nn.functional.linear(x, weight)


def norm(x: Any) -> Any:
    """RMS norm, as decoders have it: in float32."""
    y = x.float()
    return (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype)


def forward(blocks: Iterable[Sequence[Callable[[Any], Any]]], head: Any, x: Any, past: Any) -> Any:
    """All layers, and the head for the last token. `past`: keys and values of earlier tokens."""
    for qkv, out, up, down in blocks:
        q, k, v = qkv(norm(x)).split([HIDDEN, KV_HEADS * WIDTH, KV_HEADS * WIDTH], dim=-1)
        q = q.view(-1, HEADS, WIDTH).transpose(0, 1)
        k, v = (y.view(-1, KV_HEADS, WIDTH).transpose(0, 1).repeat_interleave(HEADS // KV_HEADS, 0) for y in (k, v))
        k, v = torch.cat((past, k), 1), torch.cat((past, v), 1)
        seen = torch.nn.functional.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=q.shape[1] > 1)[0]
        x = x + out(seen.transpose(0, 1).reshape(-1, HIDDEN))
        gate, value = up(norm(x)).chunk(2, -1)
        x = x + down(torch.nn.functional.silu(gate) * value)
    return torch.nn.functional.linear(norm(x[-1:]), head)


def best(rounds: int, times: int, run: Callable[[], object]) -> float:
    """Seconds of one run: the least mean of so many rounds."""
    found = []
    for _ in range(rounds):
        begun = time.process_time()
        for _ in range(times):
            run()
        found.append((time.process_time() - begun) / times)
    return min(found)


def main() -> None:
    """Measure and print."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weights = LAYERS * sum(a * b for a, b in SHAPES)
    with torch.inference_mode():
        blocks = [tuple(linear(*shape) for shape in SHAPES) for _ in range(LAYERS)]
        head = torch.randn(VOCABULARY, HIDDEN).bfloat16() / HIDDEN**0.5
        prompt, token = torch.randn(PROMPT, HIDDEN).bfloat16(), torch.randn(1, HIDDEN).bfloat16()
        nothing, past = torch.empty(HEADS, 0, WIDTH).bfloat16(), torch.randn(HEADS, PROMPT, WIDTH).bfloat16()
        forward(blocks, head, prompt, nothing)
        prefill = best(4, 2, lambda: forward(blocks, head, prompt, nothing))
        decode = best(4, 10, lambda: forward(blocks, head, token, past))
    flops, read = 2 * (PROMPT * weights + VOCABULARY * HIDDEN), 2 * (weights + VOCABULARY * HIDDEN)
    print(json.dumps({"gflops": round(flops / prefill / 1e9, 2), "gbps": round(read / decode / 1e9, 3)}))


if __name__ == "__main__":
    main()
