"""Which tensors a model takes and gives, read from the same `config.json` that its segments read.

Decoders give the logits of the last position, encoders what their architecture's head gives, generic chains their one output.
Encoders with the files of sentence-transformers also give `sentence_embedding`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from splitinference_gateway.tensor_io.tensors import TensorSpec
from splitinference_gateway.tokens.sentence import Sentence, activation
from splitinference_gateway.tokens.tokenizer import ModelFilesError
from splitinference_protocol.wire.pooling import SENTENCE_EMBEDDING

INPUT_IDS = "input_ids"
ATTENTION_MASK = "attention_mask"
TOKEN_TYPES = "token_type_ids"
LOGITS = "logits"
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})


class Kind(StrEnum):
    """How a model is run."""

    DECODER = "decoder"
    ENCODER = "encoder"
    CHAIN = "sequential"


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs by name; the first dimension of each counts rows."""

    kind: Kind
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sentence: Sentence = field(default_factory=Sentence)
    activation: str = ""  # of a classifier's one logit, where pairs of texts are scored

    @property
    def of_texts(self) -> TensorSpec | None:
        """The output that says something of a text as a whole, [rows, width]: the embedding, or a classifier's logits."""
        names = (SENTENCE_EMBEDDING,) if self.sentence.pooling is not None else (LOGITS,)
        return next((spec for spec in self.outputs if self.kind is Kind.ENCODER and spec.name in names and len(spec.shape) == 2), None)

    @classmethod
    def read(cls, folder: Path) -> "Signature":
        """Of the model in `folder`; without a config.json that of a decoder.

        Raises:
            ModelFilesError: config.json is there and cannot be understood.
        """
        file = folder / "config.json"
        try:
            config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            signature = _chain(config) if config.get("model_type") == Kind.CHAIN else _of_tokens(config)
            return _with_embeddings(signature, folder, config) if signature.kind is Kind.ENCODER else signature
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise ModelFilesError(f"{file}: {error!r}") from error


def _of_tokens(config: Mapping[str, Any]) -> Signature:
    ids = TensorSpec(INPUT_IDS, "INT64", (-1, -1))
    mask = TensorSpec(ATTENTION_MASK, "INT64", (-1, -1), optional=True)
    if config.get("model_type") not in _ENCODERS:
        return Signature(Kind.DECODER, (ids, mask), (TensorSpec(LOGITS, "FP32", (-1, int(config.get("vocab_size", -1)))),))
    types = TensorSpec(TOKEN_TYPES, "INT64", (-1, -1), optional=True)
    hidden, architecture = int(config["hidden_size"]), str((config.get("architectures") or ["Model"])[0])
    labels = len(config["id2label"]) if config.get("id2label") else int(config.get("num_labels", 2))
    if architecture.endswith("ForMaskedLM"):
        outputs: tuple[TensorSpec, ...] = (TensorSpec(LOGITS, "FP32", (-1, -1, int(config["vocab_size"]))),)
    elif architecture.endswith("ForTokenClassification"):
        outputs = (TensorSpec(LOGITS, "FP32", (-1, -1, labels)),)
    elif architecture.endswith("ForSequenceClassification"):
        outputs = (TensorSpec(LOGITS, "FP32", (-1, labels)),)
    else:
        outputs = (TensorSpec("last_hidden_state", "FP32", (-1, -1, hidden)),)
        if config["model_type"] == "bert":
            outputs += (TensorSpec("pooler_output", "FP32", (-1, hidden)),)
    return Signature(Kind.ENCODER, (ids, mask, types), outputs)


def _with_embeddings(signature: Signature, folder: Path, config: Mapping[str, Any]) -> Signature:
    sentence = Sentence.read(folder)
    if sentence.pooling is None:
        return replace(signature, sentence=sentence, activation=activation(config))
    width = int(config["hidden_size"]) * len(sentence.pooling.modes)
    spec = TensorSpec(SENTENCE_EMBEDDING, "FP32", (-1, width))
    return replace(signature, outputs=(*signature.outputs, spec), sentence=sentence)


def _chain(config: Mapping[str, Any]) -> Signature:
    """The output's shape is not known here beyond its rows: the segments compute it."""
    given = config["input"]
    takes = TensorSpec(str(given.get("name", "input")), "FP32", (-1, *(int(size) for size in given["shape"])))
    output = config.get("output") or {}
    shape = tuple(int(size) for size in output.get("shape", (-1,)))
    return Signature(Kind.CHAIN, (takes,), (TensorSpec(str(output.get("name", "output")), "FP32", (-1, *shape)),))
