"""A model's configuration as transformers has it, without what segments decide themselves or never use."""

import re
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from splitinference_modelfiles.rules.families import DECODERS
from splitinference_modelfiles.stored.folder import CONFIG, read_json

QUANTIZATION = ("quantization_config", "compression_config")
_NOT_READ = frozenset(
    {
        "auto_map",  # code of the model's own is never run
        "dtype", "torch_dtype",  # the resource says it
        *QUANTIZATION,  # this package unpacks codes
        "attn_implementation", "_attn_implementation",  # attention is this package's
    }
)  # fmt: skip
_OF_CLASSIFIERS = frozenset({"num_labels", "id2label", "label2id", "problem_type"})
_OF_ROPE = frozenset({"rope_scaling", "rope_parameters", "rope_theta"})
_OF_TRAINING = re.compile(r"(?:dropout|dropout_prob|_pdrop|router_jitter_noise|router_aux_loss_coef)$")


def configuration(folder: Path) -> Any:
    """Of a model that is accepted. What config.json says of other things is left out, so that nothing there can fail."""
    told = read_json(str(folder), CONFIG)
    kind = told.pop("model_type")
    left_out = _NOT_READ | _OF_CLASSIFIERS if kind in DECODERS else _NOT_READ
    if kind not in DECODERS or DECODERS[kind].rotary is None:
        left_out |= _OF_ROPE
    return AutoConfig.for_model(
        kind, **{name: value for name, value in told.items() if name not in left_out and not _OF_TRAINING.search(name)}
    )


def is_quantized(folder: Path) -> bool:
    """Whether config.json speaks of quantized weights."""
    return any(read_json(str(folder), CONFIG).get(key) is not None for key in QUANTIZATION)
