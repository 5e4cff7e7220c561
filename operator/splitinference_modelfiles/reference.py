"""The page of models that are served, and why others are not, from the rules themselves."""

from splitinference_modelfiles import rope
from splitinference_modelfiles.chains import ARGUMENTS
from splitinference_modelfiles.families import CHAIN, DECODERS, ENCODER_HEADS, ENCODERS, NOT_SERVED

_HEAD = """# Models

Which models are served, by `model_type` of their `config.json`, and why others are not.
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

## Rotary positions

| RoPE kind | served | why |
|---|---|---|
{ropes}
`maxContextTokens` above the positions of a decoder is refused with both numbers.
Linear and YaRN stretch a model's positions by their factor.
Requests to encoders that are too long are answered with 400.

## Weights

| what | what happens |
|---|---|
| `safetensors` in float64, float32, float16 or bfloat16 | served; cast to `spec.model.dtype` |
| quantized: GPTQ, AWQ, bitsandbytes, compressed-tensors, FP8, MXFP4, ModelOpt | refused with the method and where it is said |
| other formats (`.bin`, `.gguf`, `.pth`) | refused; GGUF can be converted with `segment-convert` |
| `model.safetensors.index.json` | decides: files beside those that it names are ignored (`consolidated.safetensors`) |
| no index, and `model.safetensors` | that file alone |
| no index, and several files | all but `consolidated*` and `adapter_model*`; a tensor in two of them is refused |
| a head that is stored though `tie_word_embeddings` is true | is the head, as in transformers 5 |
| no head stored, and `tie_word_embeddings` true | the embedding is the head |
| a missing or unknown tensor, a shape that `config.json` contradicts, a file that is cut short | refused with file and reason |
| a link that leaves the model's folder | refused: a pod mounts the folder alone |

## Tokenizer

The gateway reads `tokenizer.json`. A decoder without one (only `tokenizer.model`, `vocab.json`, …) is refused.
transformers' `AutoTokenizer` and `save_pretrained` write it.

## Encoders

Architectures:

{architectures}
A BERT whose norms are stored as `gamma` and `beta` is refused: save it once with transformers 5.

## Generic chains

`model_type: sequential` with these layers and arguments:

| layer | arguments |
|---|---|
{chains}"""


def rendered() -> str:
    """The whole page."""
    rows = [f"| `{name}` | yes | decoder |\n" for name in sorted(DECODERS)]
    rows += [f"| `{name}` | yes | encoder |\n" for name in sorted(ENCODERS)]
    rows.append(f"| `{CHAIN}` | yes | generic chain of layers |\n")
    rows += [f"| `{name}` | no | {why} |\n" for name, why in sorted(NOT_SERVED.items())]
    ropes = [f"| `{name}` | yes | its frequencies are fixed |\n" for name in rope.SERVED]
    ropes += [f"| `{name}` | no | {why} |\n" for name, why in rope.NOT_SERVED.items()]
    architectures = "".join(f"- {', '.join(f'`{family.classes}{head}`' for head in ENCODER_HEADS)}\n" for family in ENCODERS.values())
    chains = [f"| `{kind}` | {', '.join(f'`{name}`' for name in sorted(names)) or 'none'} |\n" for kind, names in ARGUMENTS.items()]
    return _HEAD + "".join(rows) + _REST.format(ropes="".join(ropes), architectures=architectures, chains="".join(chains))
