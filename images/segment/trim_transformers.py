"""Step of the images' build: of transformers' models those stay that segments are made from, compiled.

It reads the files of all models that are there whenever it is imported: seven tenths of a second of a core, at each start of a segment.
"""

import shutil
import sys
from pathlib import Path

import tritonclient.grpc  # noqa: F401 - compiled
from transformers import (  # noqa: F401 - compiled, and what is asked for below
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BertForMaskedLM,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaForCausalLM,
    GPT2LMHeadModel,
    GPTNeoXForCausalLM,
    GptOssForCausalLM,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MistralForCausalLM,
    MixtralForCausalLM,
    Olmo2ForCausalLM,
    Phi3ForCausalLM,
    Qwen2ForCausalLM,
    Qwen3ForCausalLM,
    Qwen3MoeForCausalLM,
    RobertaForMaskedLM,
    SmolLM3ForCausalLM,
    Starcoder2ForCausalLM,
    XLMRobertaForMaskedLM,
    models,
)
from transformers.integrations.gguf import GGUF_TOKENIZER_MAPPING  # noqa: F401 - reads tokenizers of some families more

MODELS = Path(str(models.__file__)).parent


def main() -> None:
    """Remove the folders of all models that were not imported."""
    used = {name.split(".")[2] for name in sys.modules if name.startswith("transformers.models.")}
    for folder in MODELS.iterdir():
        if folder.is_dir() and folder.name not in used:
            shutil.rmtree(folder)


if __name__ == "__main__":
    main()
