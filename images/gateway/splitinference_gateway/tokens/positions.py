"""What a model's `config.json` says of the longest text that it can take, and of its vocabulary."""

import json
from pathlib import Path
from typing import Any

_STRETCHED = frozenset({"linear", "dynamic", "yarn"})
_ROBERTA = frozenset({"roberta", "xlm-roberta", "camembert"})


def positions(folder: Path) -> int | None:
    """How many tokens the model has positions for; None where its files do not say so.

    RoPE that is stretched by a factor reaches so many times as far (longrope and llama3 write the stretched number themselves).
    """
    config = _config(folder)
    given = config.get("max_position_embeddings") or config.get("n_positions") or config.get("n_ctx")
    if not isinstance(given, int) or given < 1:
        return None
    scaling = config.get("rope_scaling") or config.get("rope_parameters")
    if isinstance(scaling, dict) and (scaling.get("rope_type") or scaling.get("type")) in _STRETCHED:
        factor, original = scaling.get("factor"), scaling.get("original_max_position_embeddings")
        if isinstance(factor, int | float) and factor >= 1:
            base = original if isinstance(original, int) and original > 0 else given
            return max(given, int(base * factor))
    if config.get("model_type") in _ROBERTA:  # the first positions are the padding's
        pad = config.get("pad_token_id", 1)
        return max(1, given - (pad if isinstance(pad, int) else 1) - 1)
    return given


def vocabulary(folder: Path) -> int:
    """Tokens that the model gives logits for; 0 where its files do not say so."""
    given = _config(folder).get("vocab_size")
    return given if isinstance(given, int) else 0


def _config(folder: Path) -> dict[str, Any]:
    """Empty where there is none that can be read: others say so."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(config, dict):
        return {}
    text = config.get("text_config")
    return {**config, **text} if isinstance(text, dict) else config
