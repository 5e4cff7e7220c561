"""Configurations of public models of the most used families, as facts: keys and values that decide whether a model is served."""
# ruff: noqa: E501

from collections.abc import Mapping
from typing import Any

from tests.modelfiles import family_corpus, tables
from tests.modelfiles.case import Case


def _llama(kind: str, name: str, sizes: tuple[int, int, int, int, int, int], more: Mapping[str, Any] | None = None, *, tied: bool | None = False,
           refused: str = "", numbers: int | None = None, positions: int | None = None) -> Case:  # fmt: skip
    """`sizes`: hidden, inner, blocks, heads, KV heads, vocabulary."""
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "vocab_size")
    architecture = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3", "gemma": "Gemma"}.get(kind, "Other")
    config = {
        "model_type": kind,
        "architectures": [f"{architecture}ForCausalLM"],
        "rms_norm_eps": 1e-5,
        **dict(zip(keys, sizes, strict=True)),
    }
    config |= {} if tied is None else {"tie_word_embeddings": tied}
    config |= more or {}
    shapes = tables.llama(config, qkv_bias=kind == "qwen2", norms=kind == "qwen3", head=tied is False)
    return Case(name, config, refused, numbers, positions, shapes)


_LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
_L31 = {"max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": _LLAMA3, "hidden_act": "silu"}
_NO_ROPE = {"rope_scaling": None, "hidden_act": "silu"}
_QWEN3 = {"head_dim": 128, "max_position_embeddings": 40960, "attention_bias": False, "use_sliding_window": False, "sliding_window": None,
          **_NO_ROPE}  # fmt: skip


def _other(kind: str, refused: str = "is not served", more: Mapping[str, Any] | None = None) -> Case:
    return _llama(kind, f"a {kind}", (512, 1024, 2, 8, 2, 1000), more, refused=refused)


def _bert(kind: str, name: str, sizes: tuple[int, int, int, int, int], positions: int, head: str = "Model", *, types: int = 2,
          numbers: int | None = None, prefix: str = "", refused: str = "", more: Mapping[str, Any] | None = None) -> Case:  # fmt: skip
    keys = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    classes = {"bert": "Bert", "roberta": "Roberta", "xlm-roberta": "XLMRoberta"}[kind]
    config = {"model_type": kind, "architectures": [classes + head], "hidden_act": "gelu", "type_vocab_size": types, "pad_token_id": 0 if kind == "bert" else 1,
              "max_position_embeddings": positions, **dict(zip(keys, sizes, strict=True)), **(more or {})}  # fmt: skip
    expected = positions if kind == "bert" else positions - 2
    return Case(name, config, refused, numbers, expected, tables.bert(config, head, prefix))


def _gpt2(name: str, n: int, blocks: int, heads: int, numbers: int) -> Case:
    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"], "n_embd": n, "n_layer": blocks, "n_head": heads, "n_positions": 1024,
              "n_ctx": 1024, "vocab_size": 50257, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}  # fmt: skip
    return Case(name, config, "", numbers, 1024, tables.gpt2(config))


LLAMA_LIKE = (
    _llama("llama", "Llama-2-7B", (4096, 11008, 32, 32, 32, 32000), {"max_position_embeddings": 4096, **_NO_ROPE}, numbers=6_738_415_616),
    _llama("llama", "Llama-2-70B", (8192, 28672, 80, 64, 8, 32000), {"max_position_embeddings": 4096}, numbers=68_976_648_192),
    _llama("llama", "Llama-3-8B", (4096, 14336, 32, 32, 8, 128256), {"max_position_embeddings": 8192, **_NO_ROPE}, numbers=8_030_261_248),
    _llama("llama", "Llama-3.1-8B", (4096, 14336, 32, 32, 8, 128256), _L31, numbers=8_030_261_248, positions=131072),
    _llama("llama", "Llama-3.1-70B", (8192, 28672, 80, 64, 8, 128256), _L31, numbers=70_553_706_496),
    _llama("llama", "Llama-3.2-1B", (2048, 8192, 16, 32, 8, 128256), {**_L31, "head_dim": 64}, tied=True, numbers=1_235_814_400),
    _llama("llama", "Llama-3.2-3B", (3072, 8192, 28, 24, 8, 128256), {**_L31, "head_dim": 128}, tied=True, numbers=3_212_749_824),
    _llama("llama", "TinyLlama-1.1B", (2048, 5632, 22, 32, 4, 32000), {"max_position_embeddings": 2048}, numbers=1_100_048_384, positions=2048),
    _llama("llama", "SmolLM2-135M", (576, 1536, 30, 9, 3, 49152), {"max_position_embeddings": 8192}, tied=True, numbers=134_515_008),
    _llama("llama", "SmolLM2-360M", (960, 2560, 32, 15, 5, 49152), {"max_position_embeddings": 8192}, tied=True, numbers=361_821_120),
    _llama("llama", "SmolLM2-1.7B", (2048, 8192, 24, 32, 32, 49152), {"max_position_embeddings": 8192}, tied=True, numbers=1_711_376_384),
    _llama("llama", "Yi-6B", (4096, 11008, 32, 32, 4, 64000), {"max_position_embeddings": 4096}, numbers=6_061_035_520),
    _llama("llama", "deepseek-coder-6.7B", (4096, 11008, 32, 32, 32, 32256),
           {"max_position_embeddings": 16384, "rope_scaling": {"type": "linear", "factor": 4.0}}, positions=65536),
    _llama("llama", "CodeLlama-7B", (4096, 11008, 32, 32, 32, 32016), {"max_position_embeddings": 16384, "rope_theta": 1e6}),
    _llama("llama", "DeepSeek-R1-Distill-Llama-8B", (4096, 14336, 32, 32, 8, 128256), _L31, numbers=8_030_261_248),
    _llama("mistral", "Mistral-7B-v0.1", (4096, 14336, 32, 32, 8, 32000), {"sliding_window": 4096, "max_position_embeddings": 32768},
           numbers=7_241_732_096, positions=32768),
    _llama("mistral", "Mistral-7B-v0.3", (4096, 14336, 32, 32, 8, 32768), {"sliding_window": None, "max_position_embeddings": 32768},
           numbers=7_248_023_552),
    _llama("mistral", "Mistral-Nemo-12B", (5120, 14336, 40, 32, 8, 131072), {"head_dim": 128, "sliding_window": None}, numbers=12_247_782_400),
    _llama("mistral", "Mistral-Small-24B", (5120, 32768, 40, 32, 8, 131072), {"head_dim": 128, "sliding_window": None}, numbers=23_572_403_200),
    _llama("qwen2", "Qwen2.5-0.5B", (896, 4864, 24, 14, 2, 151936), {"use_sliding_window": False, "sliding_window": 32768}, tied=True,
           numbers=494_032_768, positions=32768),
    _llama("qwen2", "Qwen2.5-1.5B", (1536, 8960, 28, 12, 2, 151936), {"max_position_embeddings": 32768}, tied=True, numbers=1_543_714_304),
    _llama("qwen2", "Qwen2.5-7B", (3584, 18944, 28, 28, 4, 152064), {"max_position_embeddings": 32768}, numbers=7_615_616_512),
    _llama("qwen2", "Qwen2.5-7B with YaRN", (3584, 18944, 28, 28, 4, 152064),
           {"max_position_embeddings": 32768, "rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}},
           positions=131072),
    _llama("qwen2", "QwQ-32B", (5120, 27648, 64, 40, 8, 152064), {"max_position_embeddings": 40960}, numbers=32_763_876_352),
    _llama("qwen3", "Qwen3-0.6B", (1024, 3072, 28, 16, 8, 151936), _QWEN3, tied=True, numbers=596_049_920, positions=40960),
    _llama("qwen3", "Qwen3-4B", (2560, 9728, 36, 32, 8, 151936), _QWEN3, tied=True, numbers=4_022_468_096),
    _llama("qwen3", "Qwen3-8B", (4096, 12288, 36, 32, 8, 151936), _QWEN3, numbers=8_190_735_360),
    _llama("gemma", "Gemma-2B", (2048, 16384, 18, 8, 1, 256000), {"head_dim": 256, "hidden_act": "gelu", "hidden_activation": None},
           tied=None, numbers=2_506_172_416, positions=8192),
    _llama("gemma", "Gemma-7B", (3072, 24576, 28, 16, 16, 256000), {"head_dim": 256}, tied=None, numbers=8_537_680_896),
    _gpt2("GPT-2", 768, 12, 12, 124_439_808),
    _gpt2("GPT-2 medium", 1024, 24, 16, 354_823_168),
    _gpt2("GPT-2 XL", 1600, 48, 25, 1_557_611_200),
    _bert("bert", "all-MiniLM-L6-v2", (384, 1536, 6, 12, 30522), 512, numbers=22_713_216),
    _bert("bert", "bge-base-en-v1.5", (768, 3072, 12, 12, 30522), 512, numbers=109_482_240),
    _bert("bert", "a BERT for tokens", (768, 3072, 12, 12, 28996), 512, "ForTokenClassification", prefix="bert."),
    _bert("bert", "a BERT for sentences", (768, 3072, 12, 12, 30522), 512, "ForSequenceClassification", prefix="bert."),
    _bert("bert", "a BERT for masks", (768, 3072, 12, 12, 30522), 512, "ForMaskedLM", prefix="bert."),
    _bert("roberta", "roberta-base", (768, 3072, 12, 12, 50265), 514, "ForMaskedLM", types=1, numbers=124_697_433, prefix="roberta."),
    _bert("roberta", "a RoBERTa for sentences", (768, 3072, 12, 12, 50265), 514, "ForSequenceClassification", types=1, prefix="roberta."),
    _bert("xlm-roberta", "multilingual-e5-base", (768, 3072, 12, 12, 250002), 514, types=1, numbers=277_453_056),
)  # fmt: skip

_SMALL = (512, 1024, 2, 8, 2, 1000)
REFUSED = (
    *(_other(kind) for kind in (
        "falcon", "phi", "stablelm", "cohere", "opt",
        "bloom", "glm4", "exaone4", "modernbert", "distilbert", "t5", "nobody-knows-it",
    )),
    *(_other(kind, "mixtures of experts of this kind are not served") for kind in ("qwen2_moe", "deepseek_v2", "deepseek_v3", "olmoe")),
    *(_other(kind, "images, sound or video") for kind in ("llama4", "mllama", "qwen2_5_vl", "gemma3", "mistral3")),
    *(_other(kind, "keep a state") for kind in ("mamba2", "jamba", "qwen3_next")),
    *(_other("llama", f"RoPE kind '{kind}' is not served", {"rope_scaling": {"type": kind, "factor": 2.0}})
      for kind in ("dynamic", "longrope", "su", "mrope", "nobody-knows-it")),
    _other("llama", "RoPE kind 'dynamic' is not served", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}),
    _other("llama", "needs the number low_freq_factor", {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}),
    _other("llama", "needs the number factor", {"rope_scaling": {"type": "linear", "factor": None}}),
    _other("qwen3", "differ by kind of layer", {"head_dim": 64, "rope_parameters": {"full_attention": {"rope_type": "default"}}}),
    _llama("mistral", "an embedding model of Mistral", _SMALL, {"architectures": ["MistralModel"]}, refused="architecture 'MistralModel'"),
    _llama("qwen2", "a reward model", _SMALL, {"architectures": ["Qwen2ForSequenceClassification"]}, refused="Qwen2ForSequenceClassification"),
    _bert("bert", "a BERT as decoder", (64, 128, 2, 4, 100), 64, refused="as a decoder", more={"is_decoder": True}),
    _bert("bert", "a BERT of relative positions", (64, 128, 2, 4, 100), 64, refused="relative_key", more={"position_embedding_type": "relative_key"}),
    _bert("bert", "a BERT for choices", (64, 128, 2, 4, 100), 64, refused="BertForMultipleChoice", more={"architectures": ["BertForMultipleChoice"]}),
    _bert("bert", "BertLMHeadModel", (64, 128, 2, 4, 100), 64, refused="BertLMHeadModel", more={"architectures": ["BertLMHeadModel"]}),
)  # fmt: skip
SERVED = (*LLAMA_LIKE, *family_corpus.SERVED)
CORPUS = (*SERVED, *REFUSED, *family_corpus.REFUSED)
