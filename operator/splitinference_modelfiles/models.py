"""Whether a model is served, and why not: the one answer that the planner, `splitinference plan` and the segments give.

The first refusal is the answer; the checks go from what the user can see at once (the kind of model) to what only the tables say.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from splitinference_modelfiles import chains
from splitinference_modelfiles.checkpoints import FP8, Checkpoint, Stored, read_checkpoint
from splitinference_modelfiles.held import AS_STORED, BITS, INT8, WEIGHTS, Held, quantized_form, stored_form
from splitinference_modelfiles.quantization import FLOATS
from splitinference_modelfiles.rules import rope
from splitinference_modelfiles.rules.blocks import decoder_shapes
from splitinference_modelfiles.rules.experts import Experts, experts_of
from splitinference_modelfiles.rules.families import (
    ACTIVATIONS,
    CHAIN,
    DECODERS,
    ENCODER_HEADS,
    ENCODERS,
    NOT_SERVED,
    SERVED,
    EncoderFamily,
    Family,
)
from splitinference_modelfiles.rules.kinds import check_kinds
from splitinference_modelfiles.rules.settings import refuse_nulls, shown, whole, yes
from splitinference_modelfiles.rules.shapes import Shapes, Sizes, encoder_shapes
from splitinference_modelfiles.stored.headers import ModelRefusedError, TensorInfo

Table = Mapping[str, TensorInfo | None]
"""Name → entry; None where the file that holds the tensor is not here, as in a segment that fetched only its own files."""

HEAD = "lm_head.weight"
FORMER_NAMES = (("LayerNorm.gamma", "LayerNorm.weight"), ("LayerNorm.beta", "LayerNorm.bias"), ("embed_out.weight", HEAD))
"""How older checkpoints end names of BERT's norms, and GPT-NeoX its head."""
_NO_WEIGHT = re.compile(
    r"\.rotary_emb\.inv_freq$|\.(?:attn|attention)\.(?:bias|masked_bias)$|(?:^|\.)embeddings\.(?:position_ids|token_type_ids)$"
)
_PARTS = ("text_config", "text_encoder", "decoder", "generator")
_NOT_NULL_OF_GPT2 = frozenset({"n_embd", "n_layer", "n_head", "n_positions", "vocab_size", "activation_function"})
_NOT_NULL = frozenset(
    {"hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size", "intermediate_size", "max_position_embeddings", "hidden_act"}
    | {"type_vocab_size"}
)


@dataclass(frozen=True)
class Model:
    """A model that is served. `used`: its weights under transformers' names → as stored. `sizes` is None of a chain of layers.

    `table`: all stored tensors, those of a quantized checkpoint as if they were not. `quantized`: how those are stored that are, by that
    name. `held`: matrices that a segment holds in codes, by transformers' names; all others have the serving data type."""

    family: str
    sizes: Sizes | None
    positions: int | None
    tied: bool
    used: Mapping[str, str]
    rope: str | None = None
    head: str | None = None
    experts: Experts | None = None
    table: Table = field(default_factory=dict)
    quantized: Mapping[str, Stored] = field(default_factory=dict)
    held: Mapping[str, Held] = field(default_factory=dict)

    def held_bytes(self, name: str, size: int) -> int:
        """Bytes that a segment holds of a tensor, by transformers' name, where the serving data type has `size` bytes."""
        if (held := self.held.get(name)) is not None:
            return held.bytes(size)
        return self.tensor(name).elements * size

    def tensor(self, name: str) -> TensorInfo:
        """The table's entry, by transformers' name. KeyError where its file is not here."""
        if (info := self.table[self.used[name]]) is None:
            raise KeyError(name)
        return info


def served_model(
    config: Mapping[str, Any], tensors: Table, files: Collection[str] | None, *, tokenizer: bool = True, weights: str = AS_STORED
) -> Model:
    """What the model is. ModelRefusedError says why it is not served.

    `files`: names in its folder; None where they are not known. `tokenizer`: whether one must be among them if the model needs one.
    `weights`: `spec.model.weights`, how segments are to hold matrices.
    """
    if weights not in WEIGHTS:
        raise ModelRefusedError(f"weights {shown(weights)} is not known; known are {', '.join(WEIGHTS)}")
    family = config.get("model_type")
    if family is None:
        raise ModelRefusedError("config.json: model_type is missing")
    if family not in SERVED:
        why = NOT_SERVED.get(str(family), "")
        raise ModelRefusedError(f"model_type {shown(family)} is not served{': ' if why else ''}{why}. Served are {', '.join(SERVED)}")
    checkpoint = read_checkpoint(config, tensors, files or ())
    if family not in DECODERS and (checkpoint.quantized or weights != AS_STORED):
        what = "its checkpoint is quantized" if checkpoint.quantized else f"weights {weights} was asked for"
        raise ModelRefusedError(f"quantized weights are served for decoders alone, and this is {shown(family)}: {what}")
    if family == CHAIN:
        return Model(CHAIN, None, None, False, chains.used(config, tensors), table=tensors)
    refuse_nulls(config, _NOT_NULL_OF_GPT2 if family == "gpt2" else _NOT_NULL)
    check_kinds(config, str(family))
    _check_parts(config)
    if family in DECODERS:
        return _decoder(config, str(family), checkpoint, files if tokenizer else None, weights)
    return _encoder(config, str(family), ENCODERS[str(family)], tensors)


def _decoder(config: Mapping[str, Any], name: str, checkpoint: Checkpoint, files: Collection[str] | None, weights: str) -> Model:
    family, tensors = DECODERS[name], checkpoint.tensors
    refuse_nulls(config, family.not_null)
    architecture = _architecture(config)
    if architecture and not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ModelRefusedError(f"architecture {architecture[:60]!r} is not served: of {name} those that generate text are (…ForCausalLM)")
    sizes = decoder_sizes(config, name, family)
    kind = rope.kind(config, family) if family.rotary else None
    positions = rope.positions(config, family, sizes.positions) if family.rotary else sizes.positions
    for key, needed in (("add_cross_attention", False), ("is_encoder_decoder", False), ("use_bidirectional_attention", False)):
        if config.get(key) is not None and config[key] is not needed:
            raise ModelRefusedError(f"config.json: {key} is {shown(config[key])}, which is not served for {name}")
    _check_activation(config, family.activation)
    _check_window(config, name, family, sizes)
    _check_no_rope(config, name, sizes)
    experts = experts_of(config, family.experts, sizes.blocks) if family.experts else None
    stored = _canonical(tensors, family.base, (HEAD,))
    tied = yes(config, "tie_word_embeddings", family.tied)
    expected = decoder_shapes(config, family, sizes, experts)
    head: tuple[int | None, ...] = (sizes.vocabulary, sizes.hidden)
    # transformers ties a head that is not stored, or is stored with the embedding's own values. One that is stored with other values is
    # used as it is, though tie_word_embeddings is true (PreTrainedModel.tie_weights of 5.23). So a stored head is always the head.
    if HEAD not in stored and not tied:
        raise ModelRefusedError(f"tie_word_embeddings is false and {HEAD} is missing")
    _check_table(
        stored,
        tensors,
        expected | ({HEAD: head} if HEAD in stored else {}),
        sizes.blocks,
        re.compile(rf"^{re.escape(family.blocks)}\.(\d+)\."),
    )
    if files is not None and (missing := missing_tokenizer(files)):
        raise ModelRefusedError(missing)
    _check_weights(checkpoint, experts, weights)
    quantized = {name: checkpoint.quantized[found] for name, found in stored.items() if found in checkpoint.quantized}
    held = _held(family, {n: expected.get(n, head) for n in stored}, experts, quantized, weights)
    more = {"experts": experts, "table": tensors, "quantized": checkpoint.quantized, "held": held}
    return Model(name, sizes, positions, HEAD not in stored, stored, kind, **more)  # type: ignore[arg-type]


def _check_weights(checkpoint: Checkpoint, experts: Experts | None, weights: str) -> None:
    if weights != AS_STORED and checkpoint.quantized:
        raise ModelRefusedError(
            f"weights {weights} is for checkpoints in 16 or 32 bits, and this one is quantized already: use {AS_STORED}"
        )
    if weights != AS_STORED and experts is not None:
        raise ModelRefusedError(f"weights {weights} is not served for mixtures of experts: use {AS_STORED}")


def _held(family: Family, shapes: Shapes, experts: Experts | None, quantized: Mapping[str, Stored], weights: str) -> dict[str, Held]:
    """Which matrices are held in codes: those of linear layers, and where weights are quantized here, embedding and head in eight bits."""
    found: dict[str, Held] = {}
    for name, shape in shapes.items():
        in_block = name.startswith(f"{family.blocks}.")
        if not name.endswith(".weight") or len(shape) != 2 or (in_block and experts is not None and f".{experts.form.path}." in name):
            continue
        rows, columns = (size or 0 for size in (reversed(shape) if in_block and family is DECODERS["gpt2"] else shape))
        origin, form = quantized.get(name), None
        if weights != AS_STORED and name != f"{family.positions}.weight":
            form = quantized_form(columns, BITS[weights] if in_block else BITS[INT8])
        elif origin is not None and origin.kind != FP8 and in_block and origin.rows:
            form = stored_form(origin.columns, origin.bits, origin.group)
        if form is not None:
            found[name] = Held(form, rows, columns)
    return found


def decoder_sizes(config: Mapping[str, Any], name: str, family: Family) -> Sizes:
    """Sizes of a decoder, with transformers' defaults where config.json is silent. ModelRefusedError where they cannot be."""
    hidden = whole(config, *(("n_embd", "hidden_size") if name == "gpt2" else ("hidden_size",)))
    blocks = whole(config, *(("n_layer", "num_hidden_layers") if name == "gpt2" else ("num_hidden_layers",)))
    heads = whole(config, *(("n_head", "num_attention_heads") if name == "gpt2" else ("num_attention_heads",)))
    vocabulary = whole(config, "vocab_size")
    keys = ("n_positions", "max_position_embeddings") if name == "gpt2" else ("max_position_embeddings",)
    most = whole(config, *keys, default=family.most_positions)
    if name == "gpt2":
        if hidden % heads:
            raise ModelRefusedError(f"config.json: n_embd {hidden} is not a multiple of n_head {heads}")
        return Sizes(hidden, blocks, heads, heads, hidden // heads, whole(config, "n_inner", default=4 * hidden), vocabulary, most)
    if name == "gpt_neox":  # it has neither, whatever config.json says
        config = {key: value for key, value in config.items() if key not in ("head_dim", "num_key_value_heads")}
    # What is missing has the family's default; null means as many as heads.
    silent = family.kv_heads if "num_key_value_heads" not in config else None
    kv_heads = whole(config, "num_key_value_heads", default=silent or heads)
    if heads % kv_heads:
        raise ModelRefusedError(f"config.json: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
    head_dim = whole(config, "head_dim", default=family.head_dim or hidden // heads or 1)
    if (config.get("head_dim") is None and family.head_dim is None and hidden % heads) or (family.whole_heads and hidden % heads):
        raise ModelRefusedError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    if head_dim % 2:
        raise ModelRefusedError(f"config.json: heads of {head_dim} numbers cannot be rotated; an even number is expected")
    return Sizes(hidden, blocks, heads, kv_heads, head_dim, whole(config, "intermediate_size"), vocabulary, most)


def _encoder(config: Mapping[str, Any], name: str, family: EncoderFamily, tensors: Table) -> Model:
    architecture = _architecture(config) or f"{family.classes}Model"
    head = architecture.removeprefix(family.classes)
    if not architecture.startswith(family.classes) or head not in ENCODER_HEADS:
        known = ", ".join(family.classes + ending for ending in ENCODER_HEADS)
        raise ModelRefusedError(f"architecture {architecture[:60]!r} of {name} is not served; served are {known}")
    if yes(config, "is_decoder", False) or yes(config, "add_cross_attention", False):
        raise ModelRefusedError(f"{name} as a decoder is not served")
    if config.get("position_embedding_type") not in (None, "absolute"):
        raise ModelRefusedError(
            f"config.json: position_embedding_type {shown(config['position_embedding_type'])} is not served, 'absolute' is"
        )
    hidden, heads = whole(config, "hidden_size"), whole(config, "num_attention_heads")
    if hidden % heads:
        raise ModelRefusedError(f"config.json: hidden_size {hidden} is not a multiple of num_attention_heads {heads}")
    _check_activation(config, "hidden_act")
    most = whole(config, "max_position_embeddings", default=family.most_positions)
    if family.padding is not None:
        refuse_nulls(config, frozenset({"pad_token_id"}))
    blocks, inner = whole(config, "num_hidden_layers"), whole(config, "intermediate_size")
    sizes = Sizes(hidden, blocks, heads, heads, hidden // heads, inner, whole(config, "vocab_size"), most)
    padding = None if family.padding is None else whole(config, "pad_token_id", default=family.padding, least=0)
    positions = most if padding is None else most - padding - 1
    if positions < 1:
        raise ModelRefusedError(f"config.json: max_position_embeddings {most} leaves no position after the padding's {padding}")
    unused = [name for name in tensors if _unused_of_encoder(name, family, head)]
    stored = _canonical({n: t for n, t in tensors.items() if n not in unused}, family.base, ("cls.", "lm_head.", "classifier."))
    expected, ties = encoder_shapes(config, family, head, sizes)
    needed = {n: shape for n, shape in expected.items() if n not in ties or n in stored}
    _check_table(stored, tensors, needed, blocks, re.compile(rf"^{family.base}\.encoder\.layer\.(\d+)\."))
    tied = any(n.endswith("decoder.weight") and n not in stored for n in ties)
    return Model(name, sizes, positions, tied, stored, head=head, table=tensors)


def _unused_of_encoder(name: str, family: EncoderFamily, head: str) -> bool:
    if "seq_relationship." in name:
        return True
    if "pooler." in name:
        return family.base != "bert" or head in ("ForMaskedLM", "ForTokenClassification")
    return head == "Model" and name.startswith(("cls.", "lm_head.", "classifier."))


def _architecture(config: Mapping[str, Any]) -> str:
    found = config.get("architectures")
    if found is None or found == []:
        return ""
    if not isinstance(found, list) or not isinstance(found[0], str):
        raise ModelRefusedError(f"config.json: architectures is {shown(found)}, expected a list of names")
    return found[0]


def _check_activation(config: Mapping[str, Any], key: str) -> None:
    if (found := config.get(key)) is not None and (not isinstance(found, str) or found not in ACTIVATIONS):
        raise ModelRefusedError(f"config.json: {key} {shown(found)} is not served; served are {', '.join(sorted(ACTIVATIONS))}")


def _check_window(config: Mapping[str, Any], name: str, family: Family, sizes: Sizes) -> None:
    if name != "llama" and config.get("sliding_window") is not None:
        whole(config, "sliding_window")
    kinds = config.get("layer_types")
    if not family.windows and kinds is not None and ("sliding_attention" in kinds or config.get("sliding_window") is not None):
        raise ModelRefusedError(f"config.json: layer_types is not served for {name}, whose blocks all have the same window or none")
    if not family.windows or (kinds is None and family.windows != "sliding"):
        return
    some = kinds is None or "sliding_attention" in kinds
    if family.windows == "sliding" and some and "sliding_window" in config and config["sliding_window"] is None:
        raise ModelRefusedError("config.json: sliding_window is null, and some blocks have sliding_attention")
    if family.windows == "list" and some and not (config.get("use_sliding_window") and config.get("sliding_window")):
        raise ModelRefusedError("config.json: layer_types has sliding_attention, and no sliding_window is in use")


def _check_no_rope(config: Mapping[str, Any], name: str, sizes: Sizes) -> None:
    found = config.get("no_rope_layers")
    if name == "smollm3" and found is not None and len(found) < sizes.blocks:
        raise ModelRefusedError(f"config.json: no_rope_layers has {len(found)} entries for {sizes.blocks} blocks")


def _check_parts(config: Mapping[str, Any]) -> None:
    """transformers reads both of any family, whether it uses them or not."""
    for key in _PARTS:
        if config.get(key) is not None:
            raise ModelRefusedError(f"config.json: {key} is there, so the model has several parts; served are models of one")
    kinds, known = config.get("layer_types"), ("full_attention", "sliding_attention")
    blocks = config.get("num_hidden_layers", config.get("n_layer"))
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != blocks or any(kind not in known for kind in kinds)):
        raise ModelRefusedError(f"config.json: layer_types should name one of {', '.join(known)} for each of {shown(blocks)} blocks")


def _canonical(tensors: Table, base: str, outside: tuple[str, ...]) -> dict[str, str]:
    """transformers' name → stored name. Some checkpoints leave out the base model's prefix. Buffers that are computed are left out."""
    found: dict[str, str] = {}
    for stored in tensors:
        if _NO_WEIGHT.search(stored):
            continue
        name = stored
        for former, now in FORMER_NAMES:
            name = name.removesuffix(former) + now if name.endswith(former) else name
        name = name if name.startswith((*outside, f"{base}.")) else f"{base}.{name}"
        if name in found:
            raise ModelRefusedError(f"tensor {name} is stored twice, as {found[name]} and as {stored}")
        found[name] = stored
    return found


def _check_table(stored: Mapping[str, str], tensors: Table, expected: Shapes, blocks: int, block: re.Pattern[str]) -> None:
    """Exactly the expected tensors, of their shapes, in data types that are served."""
    for name, as_stored in stored.items():
        if name not in expected:
            number = block.search(name)
            if number and int(number.group(1)) >= blocks:
                raise ModelRefusedError(f"tensor {as_stored} belongs to block {number.group(1)}, config.json says {blocks} blocks")
            where = (
                f"has no place in block {number.group(1)}"
                if number
                else "belongs neither to the embedding, nor to a block, nor to norm and head"
            )
            raise ModelRefusedError(f"tensor {as_stored} {where} of this kind of model")
    present = {int(found.group(1)) for name in stored if (found := block.search(name))}
    if absent := sorted(set(range(blocks)) - present):
        raise ModelRefusedError(f"no tensors for block {absent[0]} of {blocks}: a safetensors file is missing")
    if missing := [name for name in expected if name not in stored]:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ModelRefusedError(f"tensor {missing[0]}{more} is missing")
    for name, shape in expected.items():
        tensor = tensors[stored[name]]
        if tensor is not None:
            check_tensor(stored[name], tensor, shape)


def check_tensor(name: str, tensor: TensorInfo, shape: tuple[int | None, ...]) -> None:
    """ModelRefusedError where the shape contradicts the configuration, or the data type is none of a weight."""
    if len(tensor.shape) != len(shape) or any(want is not None and want != got for want, got in zip(shape, tensor.shape, strict=True)):
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ModelRefusedError(f"tensor {name} has shape {list(tensor.shape)}, config.json says [{wanted}]")
    if tensor.dtype not in FLOATS:
        raise ModelRefusedError(f"tensor {name} is stored as {tensor.dtype}; served are {', '.join(sorted(FLOATS))}")


def missing_tokenizer(files: Collection[str]) -> str:
    """What is wrong with the tokenizer's files; nothing where there is a tokenizer.json, which is all that the gateway needs."""
    if "tokenizer.json" in files:
        return ""
    other = next((name for name in ("tokenizer.model", "spiece.model", "tekken.json", "vocab.json", "vocab.txt") if name in files), None)
    has = f"the model has only {other}" if other else "the model has none"
    return (
        f"there is no tokenizer.json, {has}: load its tokenizer once with transformers' AutoTokenizer and save_pretrained into the folder"
    )
