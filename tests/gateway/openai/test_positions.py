"""How many tokens a model's own files allow, in the words of its family."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway.tokens.positions import positions, vocabulary

_OF_32K = {"original_max_position_embeddings": 32768}
_OF_8K = {"original_max_position_embeddings": 8192}


@pytest.mark.parametrize(
    ("config", "number"),
    [
        ({}, None),
        ({"n_positions": 1024}, 1024),
        ({"max_position_embeddings": 4096, "rope_scaling": None}, 4096),
        ({"max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0}}, 16384),
        ({"max_position_embeddings": 2048, "rope_parameters": {"rope_type": "dynamic", "factor": 2}}, 4096),
        ({"max_position_embeddings": 32768, "rope_scaling": {"rope_type": "yarn", "factor": 4, **_OF_32K}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "yarn", "factor": 4, **_OF_32K}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"rope_type": "llama3", "factor": 8, **_OF_8K}}, 131072),
        ({"max_position_embeddings": 131072, "rope_scaling": {"type": "longrope", "original_max_position_embeddings": 4096}}, 131072),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}, 512),
        ({"text_config": {"max_position_embeddings": 8192}}, 8192),
        ({"max_position_embeddings": "many"}, None),
    ],
)  # fmt: skip
def test_positions_as_families_write_them(tmp_path: Path, config: dict[str, Any], number: int | None) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert positions(tmp_path) == number


@pytest.mark.parametrize("content", ["", "[]", "{", '{"vocab_size": null}'])
def test_what_is_not_said_is_not_known(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    assert (positions(tmp_path), vocabulary(tmp_path)) == (None, 0)
    assert positions(tmp_path / "nowhere") is None
