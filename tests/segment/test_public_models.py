"""Every configuration of a public model that the planner accepts is loaded: shrunken, it gives the unsplit model's logits."""

import functools
import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import write_random
from transformers import AutoConfig, AutoModelForCausalLM

from splitinference_modelfiles.rules.families import DECODERS
from splitinference_segment.cache.kv import KvEntry
from splitinference_segment.torch_models.accepted import accepted
from splitinference_segment.torch_models.layers import Layers
from splitinference_segment.torch_ops.spans import Span
from tests.modelfiles.corpus import SERVED

DECODER_ROWS = [case for case in SERVED if case.config["model_type"] in DECODERS]
IDS = [5, 99, 17, 3, 150, 42, 42, 8, 201, 77, 30, 12, 64, 9, 110, 23]
BLOCKS = 2


def shrunken(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same settings at a size that a test can compute: what decides how it is computed stays."""
    if config["model_type"] == "gpt2":
        return {**config, "n_embd": 64, "n_layer": BLOCKS, "n_head": 4, "n_positions": 256, "n_ctx": 256, "vocab_size": 211,
                "bos_token_id": None, "eos_token_id": None}  # fmt: skip
    heads, kv_heads = config["num_attention_heads"], config.get("num_key_value_heads")
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "vocab_size": 211,
             "num_key_value_heads": None if kv_heads is None else 4 if kv_heads == heads else 1 if kv_heads == 1 else 2,
             "head_dim": 16, "num_experts": 6, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 40,
             "layer_types": [*(config.get("layer_types") or [])[:1], "full_attention"], "no_rope_layers": [1, 0],
             "query_pre_attn_scalar": 16, "sliding_window": 8 if config.get("sliding_window") else None}  # fmt: skip
    made = {**config, **{key: value for key, value in sizes.items() if key in config}, "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None, "initializer_range": 0.25}  # fmt: skip
    if config["model_type"] == "gpt_neox":
        made.pop("num_key_value_heads")
    rope = made.get("rope_scaling")
    if rope and "short_factor" in rope:
        pairs = int(16 * made.get("partial_rotary_factor", 1.0)) // 2
        made["rope_scaling"] = {**rope, "short_factor": rope["short_factor"][:pairs], "long_factor": rope["long_factor"][:pairs]}
    return made


@functools.cache
def compared(config: str, root: Path) -> int:
    """Compare at every split point; returns how many there are. Rows that shrink to the same are computed once."""
    torch.set_num_threads(1)
    made = json.loads(config)
    folder = write_random(AutoConfig.for_model(made.pop("model_type"), **made), root / str(abs(hash(config))))
    assert accepted(folder)[1].sizes is not None
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    last = BLOCKS + 2
    with torch.inference_mode():
        expected = model(torch.tensor([IDS])).logits[0, -1]
        for at in range(1, last):
            values = torch.tensor(IDS)
            for part in (Layers(folder, start, end, torch.float32) for start, end in itertools.pairwise((0, at, last))):
                values = part.run(values, [Span(KvEntry("s", part.kv_shape.allocate(32)), 0, len(IDS), 0)])
            torch.testing.assert_close(part.logits(values[-1:])[0], expected, atol=2e-4, rtol=2e-4, msg=f"cut at {at}")
    return last - 1


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("public")


@pytest.mark.parametrize("case", DECODER_ROWS, ids=lambda case: case.name)
def test_a_shrunken_public_model_gives_the_unsplit_models_logits_at_every_split_point(case: Any, root: Path) -> None:
    assert compared(json.dumps(shrunken(case.config), sort_keys=True), root) == BLOCKS + 1
