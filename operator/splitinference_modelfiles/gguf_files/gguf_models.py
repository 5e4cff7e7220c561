"""Which GGUF models are served, and why others are not: architectures, sizes, and which layers need which tensors. Pure.

Names of metadata and tensors are those of llama.cpp (`llama-arch.cpp`). Layer 0 is the embedding, 1..N are the blocks, N+1 is the norm with
the head, as of all decoders. Its text also runs in pods.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from splitinference_modelfiles.gguf_files.gguf import QUANTIZED, GgufModel
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

GGUF_KEY = "splitinference.dev/gguf"
"""The key under which a GGUF file's own words stand where other models have their config.json."""

GGUF_SERVED: Mapping[str, str] = {
    "llama": "Llama, Mistral, Mixtral, SmolLM, SmolLM2",
    "qwen2": "Qwen2, Qwen2.5",
    "qwen2moe": "Qwen1.5-MoE, Qwen2-MoE",
    "qwen3": "Qwen3",
    "qwen3moe": "Qwen3-MoE",
    "gemma2": "Gemma 2",
    "gemma3": "Gemma 3, text",
    "phi3": "Phi-3, Phi-3.5, Phi-4",
    "gpt-oss": "gpt-oss",
    "smollm3": "SmolLM3",
}
"""`general.architecture` → models. Those with which the engine's own tests compare a chain of slices with the unsplit model."""

UNSPLIT_BLOCKS: Mapping[str, int] = {"gemma2": 46, "gemma3": 62}
"""libllama takes a model of so many blocks for a size with another attention scale, which no key can state: it is served unsplit."""
CUT_EVERY: Mapping[str, int] = {"smollm3": 4}
"""What these compute in a block depends on its number: cuts are at multiples of so many blocks alone."""
MOST_RUNNING_SEQUENCES = 235
"""libllama knows 256 sequences in one context; the engine needs some itself."""

_STATEFUL = "its layers keep a state other than keys and values"
_CODER = "encoders and encoder-decoders are served by the torch engine or not at all"
GGUF_NOT_SERVED: Mapping[str, str] = {
    "mamba": _STATEFUL, "mamba2": _STATEFUL, "jamba": _STATEFUL, "rwkv6": _STATEFUL, "rwkv7": _STATEFUL, "falcon-h1": _STATEFUL,
    "qwen3next": _STATEFUL, "lfm2": _STATEFUL, "granitehybrid": _STATEFUL, "nemotron_h": _STATEFUL, "plamo2": _STATEFUL,
    "bert": _CODER, "nomic-bert": _CODER, "modern-bert": _CODER, "jina-bert-v2": _CODER, "t5": _CODER, "t5encoder": _CODER,
    "gemma-embedding": _CODER,
    "clip": "it projects images or sound for another model",
    "gemma3n": "each of its blocks needs the token itself, which only the first segment has",
}  # fmt: skip
UNTESTED = "the llama.cpp engine is not tested with it"

KV_BYTES_PER_VALUE = 2
"""llama.cpp keeps keys and values as float16."""
_BLOCK = re.compile(r"blk\.(\d+)\.(.+)")
_EXPERTS = re.compile(r"_exps\.(?:weight|bias)$")
_FIRST = frozenset({"token_embd.weight"})
_NORMS = frozenset({"output_norm.weight", "output_norm.bias"})
_LAST = _NORMS | {"output.weight", "output.bias"}
_EVERYWHERE = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})
"""Small tables of RoPE that each block reads."""
SERVED_TYPES = frozenset({"F32", "F16", "BF16"}) | QUANTIZED
_MOST_KEPT_TEXT = 4096
_MOST_KEPT_LIST = 1024
_MOST = 2**31


@dataclass(frozen=True)
class GgufSizes:
    """Sizes of a GGUF model. `key` and `value` are sizes of one head."""

    architecture: str
    blocks: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    key: int
    value: int
    positions: int
    experts: int
    experts_used: int
    tied: bool

    @property
    def kv_bytes_per_token(self) -> int:
        """Of one block and one token."""
        return KV_BYTES_PER_VALUE * self.kv_heads * (self.key + self.value)

    @property
    def split_points(self) -> tuple[int, ...]:
        """Boundaries at which the model may be cut. Each segment has a block, as libllama computes nothing without one."""
        if UNSPLIT_BLOCKS.get(self.architecture) == self.blocks:
            return ()
        every = CUT_EVERY.get(self.architecture, 1)
        return tuple(point for point in range(2, self.blocks + 1) if not (point - 1) % every)

    def share(self, tensor: str) -> float:
        """The part of a tensor that one token reads: of experts those that it is routed to."""
        return self.experts_used / self.experts if self.experts and _EXPERTS.search(tensor) else 1.0


def gguf_config(model: GgufModel, refused: str = "") -> dict[str, Any]:
    """What is kept of a model's metadata, in the place of a config.json: what describes it, and not its tokens. `refused`: why its
    tokenizer cannot be built, empty if it can."""
    kept = {key: value for key, value in model.metadata.items() if not key.startswith("tokenizer.") and _small(value)}
    about = {key.removeprefix("tokenizer."): value for key, value in model.metadata.items() if key.startswith("tokenizer.ggml.")}
    tokens = about.get("ggml.tokens")
    tokenizer = {"model": str(about.get("ggml.model"))[:60], "tokens": len(tokens) if isinstance(tokens, list) else 0, "refused": refused}
    return {GGUF_KEY: {"version": model.version, "files": list(model.files), "metadata": kept, "tokenizer": tokenizer}}


def _small(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _MOST_KEPT_TEXT and value.isprintable()
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, list):
        return len(value) <= _MOST_KEPT_LIST and all(isinstance(one, int | float) and math.isfinite(one) for one in value)
    return True


def gguf_sizes(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> GgufSizes:
    """The model's sizes from `gguf_config` and its tensors. ModelRefusedError says why it is not served."""
    about = config[GGUF_KEY]
    metadata, tokenizer = about["metadata"], about["tokenizer"]
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelRefusedError(
            f"general.type is {str(kind)[:40]!r}: it is a part of a model ({_what_of(str(kind))}), expected a whole one"
        )
    name = str(metadata.get("general.architecture"))
    if name not in GGUF_SERVED:
        why = GGUF_NOT_SERVED.get(name, UNTESTED)
        raise ModelRefusedError(f"GGUF architecture {name[:40]!r} is not served: {why}. Tested are {', '.join(GGUF_SERVED)}")
    read = _Metadata(metadata, name)
    blocks, hidden = read.whole("block_count"), read.whole("embedding_length")
    heads = read.each("attention.head_count", blocks)
    kv_heads = read.each("attention.head_count_kv", blocks, heads)
    usual = max(1, hidden // heads)
    if blocks > _MOST_KEPT_LIST:
        raise ModelRefusedError(f"{name}.block_count is {blocks}, more than {_MOST_KEPT_LIST}")
    experts, used = read.whole("expert_count", 0), read.whole("expert_used_count", 0)
    if used > experts or (experts and not used):
        raise ModelRefusedError(f"{name}.expert_used_count is {used}, {name}.expert_count is {experts}")
    embedding = tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2 or embedding.shape[1] != hidden:
        found = "missing" if embedding is None else f"of shape {list(embedding.shape)}"
        raise ModelRefusedError(f"tensor token_embd.weight is {found}, expected [any, {hidden}]")
    sizes = GgufSizes(
        name, blocks, hidden, embedding.shape[0], heads, kv_heads, read.whole("attention.key_length", usual),
        read.whole("attention.value_length", usual), read.whole("context_length"), experts, used, "output.weight" not in tensors,
    )  # fmt: skip
    _check_tensors(sizes, tensors)
    if tokenizer.get("refused"):
        raise ModelRefusedError(f"the gateway cannot build the model's tokenizer: {tokenizer['refused']}")
    if tokenizer.get("tokens") != sizes.vocabulary:
        raise ModelRefusedError(f"token_embd.weight has {sizes.vocabulary} rows, the tokenizer has {tokenizer.get('tokens')} tokens")
    return sizes


def layer_of_tensor(name: str, blocks: int) -> int:
    """The layer that a tensor belongs to."""
    if found := _BLOCK.fullmatch(name):
        return int(found[1]) + 1
    return 0 if name in _FIRST | _EVERYWHERE else blocks + 1


def layers_of_tensor(name: str, blocks: int, tied: bool) -> tuple[int, ...]:
    """The layers whose segments need a tensor. A tied head needs the embedding, too, and libllama wants the last norm in every file."""
    if name in _EVERYWHERE | _NORMS:
        return tuple(range(blocks + 2))
    own = layer_of_tensor(name, blocks)
    return (own, blocks + 1) if tied and name in _FIRST else (own,)


def _what_of(kind: str) -> str:
    return {"adapter": "an adapter, which needs its base model", "mmproj": "a projector for images", "imatrix": "statistics"}.get(
        kind, kind[:40]
    )


class _Metadata:
    """Numbers of one architecture, with errors that name the key and its value."""

    def __init__(self, metadata: Mapping[str, Any], name: str) -> None:
        self._metadata = metadata
        self._name = name

    def whole(self, key: str, default: int | None = None) -> int:
        """A positive whole number."""
        value = self._metadata.get(f"{self._name}.{key}", default)
        return self._checked(key, value, 0 if default == 0 else 1)

    def each(self, key: str, blocks: int, default: int | None = None) -> int:
        """One number for all blocks; in the file it may stand in a list with one for each."""
        value = self._metadata.get(f"{self._name}.{key}", default)
        if not isinstance(value, list):
            return self._checked(key, value, 1)
        if len(value) < blocks:
            raise ModelRefusedError(f"{self._name}.{key} has {len(value)} numbers for {blocks} blocks")
        if len(set(value[:blocks])) > 1:
            raise ModelRefusedError(f"{self._name}.{key} is not the same for all blocks, and the llama.cpp engine could not hand KV over")
        return self._checked(key, value[0], 1)

    def _checked(self, key: str, value: Any, least: int) -> int:
        if type(value) is not int or not least <= value < _MOST:
            found = "missing" if value is None else repr(value)[:40]
            raise ModelRefusedError(f"{self._name}.{key} is {found}, expected a positive whole number")
        return value


def _check_tensors(sizes: GgufSizes, tensors: Mapping[str, TensorInfo]) -> None:
    present: set[int] = set()
    for name, info in tensors.items():
        if info.dtype not in SERVED_TYPES:
            raise ModelRefusedError(f"tensor {name} is stored as {info.dtype}, which is no type of weights")
        if found := _BLOCK.fullmatch(name):
            number = int(found[1])
            if number >= sizes.blocks:
                raise ModelRefusedError(f"tensor {name} belongs to block {number}, block_count is {sizes.blocks}")
            present.add(number)
            _check_shape(sizes, found[2], name, info)
        elif name not in _FIRST | _LAST | _EVERYWHERE:
            raise ModelRefusedError(f"tensor {name} belongs neither to the embedding, nor to a block, nor to norm and head")
    if absent := sorted(set(range(sizes.blocks)) - present):
        raise ModelRefusedError(f"no tensors for block {absent[0]} of {sizes.blocks}")
    for number in range(sizes.blocks):
        for names in (("attn_q.weight", "attn_qkv.weight"), ("attn_output.weight",), ("ffn_down.weight", "ffn_down_exps.weight")):
            if not any(f"blk.{number}.{name}" in tensors for name in names):
                raise ModelRefusedError(f"tensor blk.{number}.{names[0]} is missing")
    if "output_norm.weight" not in tensors:
        raise ModelRefusedError("tensor output_norm.weight is missing")
    head = tensors.get("output.weight")
    if head is not None and head.shape != (sizes.vocabulary, sizes.hidden):
        raise ModelRefusedError(f"tensor output.weight has shape {list(head.shape)}, expected {[sizes.vocabulary, sizes.hidden]}")


def _check_shape(sizes: GgufSizes, part: str, name: str, info: TensorInfo) -> None:
    queries = sizes.heads * sizes.key
    keys, values = sizes.kv_heads * sizes.key, sizes.kv_heads * sizes.value
    expected: tuple[int, ...] | None = {
        "attn_norm.weight": (sizes.hidden,),
        "attn_q.weight": (queries, sizes.hidden),
        "attn_k.weight": (keys, sizes.hidden),
        "attn_v.weight": (values, sizes.hidden),
        "attn_qkv.weight": (queries + keys + values, sizes.hidden),
        "attn_output.weight": (sizes.hidden, sizes.heads * sizes.value),
    }.get(part)
    if expected is not None and info.shape != expected:
        raise ModelRefusedError(f"tensor {name} has shape {list(info.shape)}, the metadata says {list(expected)}")
    if _EXPERTS.search(part) and info.shape[0] != sizes.experts:
        raise ModelRefusedError(f"tensor {name} holds {info.shape[0]} experts, {sizes.architecture}.expert_count is {sizes.experts}")
