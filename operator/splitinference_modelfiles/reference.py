"""The page of models that are served, and why others are not, from the rules themselves."""

from splitinference_modelfiles.chains import ARGUMENTS
from splitinference_modelfiles.gguf_files.gguf_models import (
    CUT_EVERY,
    GGUF_NOT_SERVED,
    GGUF_SERVED,
    MOST_RUNNING_SEQUENCES,
    SERVED_TYPES,
    UNSPLIT_BLOCKS,
    UNTESTED,
)
from splitinference_modelfiles.gguf_files.gguf_tokenizer import PRE_TOKENIZERS
from splitinference_modelfiles.rules import rope
from splitinference_modelfiles.rules.families import CHAIN, DECODERS, ENCODER_HEADS, ENCODERS, NOT_SERVED, Family

_HEAD = """# Models

Which models are served, and why others are not: safetensors by `model_type` of their `config.json`, [GGUF files](#gguf) by architecture.
Operator, segments and `splitinference plan` decide by the same rules, which wrote this page: `python -m tests.models_reference`.

A model that is not served is refused when it is planned.
The condition `Accepted` is False with reason `ModelNotServed`, and its message says why.
`splitinference plan -f FILE --model FOLDER` says the same without a cluster.

## Families

| `model_type` | served | why |
|---|---|---|
"""
_REST = """
Any other `model_type` is not served.
Models that run code of their own (`auto_map`) are served by their `model_type` alone; that code is never run.

Of mixtures of experts a segment holds all experts of its blocks. The planner counts their bytes for memory, and for time those of the
experts that a token is routed to. Checkpoints hold experts one by one (Mixtral, Qwen3-MoE) or together (gpt-oss in 16 bits).

## Rotary positions

| RoPE kind | served | why |
|---|---|---|
{ropes}
Phi-3 and Phi-4 have `longrope`, with one set of frequencies up to `original_max_position_embeddings` and another beyond.
transformers computes the whole sequence anew when it grows past that length. Segments do not, so such a model has these positions alone.
The value at the top of `config.json` counts (4096 where it is missing), not one among the settings of RoPE, as in transformers.

Gemma 3 has two kinds of RoPE, one for full and one for sliding attention. Each may be of a served kind.

`maxContextTokens` above the positions of a decoder is refused with both numbers.
Linear and YaRN stretch a model's positions by their factor.
Requests to encoders that are too long are answered with 400.

## Weights

| what | what happens |
|---|---|
| `safetensors` in float64, float32, float16 or bfloat16 | served; cast to `spec.model.dtype` |
| quantized, as [below](#quantized-checkpoints) | served, decoders alone |
| quantized: bitsandbytes, MXFP4, ModelOpt, or told by nothing in `config.json` | refused with the method and where it is said |
| GGUF | [served by llama.cpp](#gguf); `segment-convert` makes safetensors of it for the torch engine |
| other formats (`.bin`, `.pth`) | refused |
| `model.safetensors.index.json` | decides: files beside those that it names are ignored (`consolidated.safetensors`) |
| no index, and `model.safetensors` | that file alone |
| no index, and several files | all but `consolidated*` and `adapter_model*`; a tensor in two of them is refused |
| a head that is stored though `tie_word_embeddings` is true | is the head, as in transformers 5 |
| no head stored, and `tie_word_embeddings` true | the embedding is the head |
| a missing or unknown tensor, a shape that `config.json` contradicts, a file that is cut short | refused with file and reason |
| a link that leaves the model's folder | refused: a pod mounts the folder alone |

## Other settings

| in `config.json` | what happens |
|---|---|
| settings of another family (`logits_scaling`, `final_logit_softcapping`, …) | not read, as in transformers |
| `auto_map`, `dtype`, `torch_dtype`, `attn_implementation`, dropout | not read |
| `text_config`, `text_encoder`, `decoder`, `generator` | refused: the model has several parts |
| `layer_types` | read for families with windows. Otherwise full attention alone, without a window, is accepted |
| null, or a value of a kind that transformers refuses | refused, with the key |

## Quantized checkpoints

`quantization_config` in `config.json` (or `compression_config`, as older files have it) says what the codes mean:

| method | served | held as |
|---|---|---|
| GPTQ (`gptq`, `gptq_v2`), 4 or 8 bits, also with act-order | yes | its codes |
| AWQ (`gemm`), 4 bits with zero points | yes | its codes |
| compressed-tensors `pack-quantized`, 4 or 8 bits (W4A16, W8A16), without act-order or with it | yes | its codes |
| compressed-tensors `int-quantized` (W8A8) | yes; activations stay in 16 bits | its codes |
| compressed-tensors `float-quantized`, `fp8` with blocks, `fbgemm_fp8` | yes; activations stay in 16 bits | `spec.model.dtype` |
| GPTQ of 2 or 3 bits, `marlin`, `dynamic`; AWQ `gemv` or without zero points | no | |
| compressed-tensors of other formats (NVFP4, sparse) | no | |
| bitsandbytes | no: its layout is for its own GPU kernels. transformers' `dequantize()` and `save_pretrained` make 16 bits of it | |

Codes in groups of 16, a quantized head and quantized experts are held in `spec.model.dtype`.

`spec.model.weights: Int8 | Int4` quantizes a decoder in 16 or 32 bits when it is loaded:
[how](../how-to/quantized-model.md#quantize-when-loading).
Matrices whose inputs are no multiple of 32 keep their data type.

## Tokenizer

The gateway reads `tokenizer.json`. A decoder without one (only `tokenizer.model`, `vocab.json`, …) is refused.
transformers' `AutoTokenizer` and `save_pretrained` write it.

## Encoders

Architectures:

{architectures}
Norms that are stored as `gamma` and `beta`, as in a BERT of the first years, are read.

## Generic chains

`model_type: sequential` with these layers and arguments:

| layer | arguments |
|---|---|
{chains}
## GGUF

`spec.model.engine` decides what computes a model.
`Auto` takes llama.cpp where the source or `spec.model.file` names a GGUF file, or the folder has no safetensors.
The profile comes from the file's header: metadata and tensor table, versions 2 and 3, also of split files (`…-00001-of-0000N.gguf`).
Weights keep the types in which they are stored, and the planner counts those bytes. The KV cache is float16.

| `general.architecture` | models | cuts |
|---|---|---|
{gguf}
Other architectures are refused when they are planned, because the engine's tests do not cover them:

| `general.architecture` | why not |
|---|---|
{gguf_not}| any other | {untested} |

Each segment has at least one block.
Adapters, projectors (`mmproj`) and files with a vocabulary alone are refused. So are models whose heads differ from block to block.

Types of weights: {types}.

| what | what happens |
|---|---|
| several GGUF models in a folder or repository | refused with their names; `spec.model.file` chooses one |
| a missing part, parts of different models, a file that is cut short, an unknown version or type | refused with the file and the reason |
| a repository of the hub | each node fetches the header and the tensors of its layers, by ranges of bytes |
| `spec.model.digest`, `spec.verification`, `spec.segments.weights: Stored` | refused: the llama.cpp engine does not have them |
| `maxConcurrentSequences` above {sequences} | refused: llama.cpp knows 256 sequences at a time |

The gateway's tokenizer is built from `tokenizer.ggml.*`:

| `tokenizer.ggml.model` | built | from |
|---|---|---|
| `gpt2` | byte-level BPE | tokens, merges, and `tokenizer.ggml.pre`: {pre} |
| `llama` | SentencePiece's BPE | tokens and scores |
| any other (`bert`, `t5`, `rwkv`, …) | no | refused when the model is planned |

The chat template is `tokenizer.chat_template`.
Answers end with the tokens that the file names (`eos`, `eot`, `eom`), and with control tokens that are known to end a turn.
"""


def rendered() -> str:
    """The whole page."""
    rows = [f"| `{name}` | yes | decoder{_of(family)} |\n" for name, family in sorted(DECODERS.items())]
    rows += [f"| `{name}` | yes | encoder |\n" for name in sorted(ENCODERS)]
    rows.append(f"| `{CHAIN}` | yes | generic chain of layers |\n")
    rows += [f"| `{name}` | no | {why} |\n" for name, why in sorted(NOT_SERVED.items())]
    ropes = [f"| `{name}` | yes | its frequencies are fixed |\n" for name in rope.SERVED]
    ropes += [f"| `{name}` | no | {why} |\n" for name, why in rope.NOT_SERVED.items()]
    architectures = "".join(f"- {', '.join(f'`{family.classes}{head}`' for head in ENCODER_HEADS)}\n" for family in ENCODERS.values())
    chains = [f"| `{kind}` | {', '.join(f'`{name}`' for name in sorted(names)) or 'none'} |\n" for kind, names in ARGUMENTS.items()]
    gguf = [f"| `{name}` | {models} | {_cuts(name)} |\n" for name, models in GGUF_SERVED.items()]
    gguf_not = [f"| `{name}` | {why} |\n" for name, why in sorted(GGUF_NOT_SERVED.items())]
    return (
        _HEAD
        + "".join(rows)
        + _REST.format(
            ropes="".join(ropes),
            architectures=architectures,
            chains="".join(chains),
            gguf="".join(gguf),
            gguf_not="".join(gguf_not),
            untested=UNTESTED,
            types=", ".join(f"`{name}`" for name in sorted(SERVED_TYPES)),
            sequences=MOST_RUNNING_SEQUENCES // 4,
            pre=", ".join(f"`{name}`" for name in PRE_TOKENIZERS),
        )
    )


def _of(family: Family) -> str:
    own = {
        "mixture of experts": family.experts is not None,
        "windows": family.windows == "sliding",
        "sinks": family.sinks,
        "longrope": family.longrope,
    }
    said = ", ".join(what for what, has in own.items() if has)
    return f" ({said})" if said else ""


def _cuts(name: str) -> str:
    if name in UNSPLIT_BLOCKS:
        return f"between all blocks; a model of {UNSPLIT_BLOCKS[name]} blocks is served unsplit"
    every = CUT_EVERY.get(name, 1)
    return "between all blocks" if every == 1 else f"before each block whose number is a multiple of {every}"
