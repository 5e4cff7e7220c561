"""A decode step through a decoder's blocks as segments run them, for the measurement of a node: what a layer takes besides its products.

That is the launch of some dozens of small operations, norms, and attention to a short context. It hardly depends on the model, and on small
models it is the larger part of a layer's time. The blocks are those that serve, of a usual shape, from random weights.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_ops import attention
from splitinference_segment.torch_ops.attention import Row
from splitinference_segment.torch_ops.joining import can_join, join
from splitinference_segment.torch_ops.kv_torch import KvShape
from splitinference_segment.torch_ops.packing import can_pack, packed
from splitinference_segment.torch_ops.spans import Span

HIDDEN, HEADS, KV_HEADS, INNER = 512, 8, 2, 1536
BLOCKS = 12
"""Together more weights than a core keeps in its caches, so that each block finds them as cold as in a real step."""
CONTEXT = 64
WEIGHTS = HIDDEN * (2 * HIDDEN + 2 * KV_HEADS * HIDDEN // HEADS + 3 * INNER)
"""Of one block's linear layers."""


def decode_step(dtype: torch.dtype) -> Callable[[], Any]:
    """One token through all BLOCKS after CONTEXT others. Call it in inference mode."""
    config = LlamaConfig(
        hidden_size=HIDDEN, intermediate_size=INNER, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, num_hidden_layers=BLOCKS,
        vocab_size=8,
    )  # fmt: skip
    with torch.device("meta"):
        whole = AutoModelForCausalLM.from_config(config, dtype=dtype)
    whole.config._attn_implementation = attention.NAME
    blocks = whole.model.layers.to_empty(device="cpu").eval().requires_grad_(False)
    for parameter in blocks.parameters():
        nn.init.uniform_(parameter, -0.01, 0.01)
    rotary = type(whole.model.rotary_emb)(config=config)
    for block in blocks:
        if can_join(dtype, torch.device("cpu")):
            join(block)
        if can_pack(dtype, torch.device("cpu")):
            packed(block)
    entry = KvEntry("measured", KvShape(BLOCKS, KV_HEADS, HIDDEN // HEADS, dtype, "cpu").allocate(2 * CONTEXT))
    entry.length = CONTEXT
    token = torch.rand(1, 1, HIDDEN).to(dtype)
    position = torch.tensor([[CONTEXT]])

    def step() -> Any:
        row, hidden = Row([Span(entry, 0, 1, CONTEXT)], 0), token
        rotation = rotary(hidden, position_ids=position)
        for block in blocks:
            hidden = block(hidden, row=row, position_embeddings=rotation)
        return hidden

    return step
