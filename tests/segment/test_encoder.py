"""Encoders cut anywhere give exactly what transformers' unsplit model gives: hidden states, pooled, and the logits of every head."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BertConfig, PreTrainedConfig, RobertaConfig, XLMRobertaConfig

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import TensorMeta
from splitinference_segment.torch_models.encoder import EncoderLayers
from splitinference_segment.torch_models.families import UnsupportedModelError
from splitinference_segment.torch_models.loading import is_stateless, load_layers
from splitinference_segment.torch_models.weights import MissingWeightsError

_SMALL: dict[str, Any] = {
    "vocab_size": 211,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "max_position_embeddings": 66,
    "initializer_range": 0.25,
    "num_labels": 3,
}
BERT = BertConfig(**_SMALL, type_vocab_size=2)
ROBERTA = RobertaConfig(**_SMALL, type_vocab_size=1, pad_token_id=1)
ARCHITECTURES: Mapping[str, PreTrainedConfig] = {
    "BertModel": BERT,
    "BertForMaskedLM": BERT,
    "BertForSequenceClassification": BERT,
    "BertForTokenClassification": BERT,
    "RobertaModel": ROBERTA,
    "RobertaForMaskedLM": ROBERTA,
    "RobertaForSequenceClassification": ROBERTA,
    "RobertaForTokenClassification": ROBERTA,
    "XLMRobertaForTokenClassification": XLMRobertaConfig(**_SMALL, type_vocab_size=1, pad_token_id=1),
}
IDS = [[5, 99, 17, 3, 150, 42, 42, 8, 201, 77], [30, 12, 64, 9, 110, 23, 7, 181, 55, 2]]
TYPES = [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1], [0] * 10]


def written(architecture: str, folder: Path) -> Path:
    """A random model of this architecture, the same every time."""
    torch.manual_seed(7)
    model = getattr(transformers, architecture)(ARCHITECTURES[architecture])
    for parameter in model.parameters():  # biases and norms too: zeros and ones would hide a tensor that is not loaded
        torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    return folder


def unsplit(architecture: str, folder: Path, *given: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
    names = ("input_ids", "token_type_ids")
    model = getattr(transformers, architecture).from_pretrained(folder).eval()
    with torch.inference_mode():
        made = model(**{name: torch.tensor(values) for name, values in zip(names, given, strict=False)})
    wanted = ("last_hidden_state", "pooler_output") if architecture == "BertModel" else ("last_hidden_state", "logits")
    return {name: made[name] for name in wanted if name in made}


def split(folder: Path, cuts: Sequence[int], *given: Sequence[Sequence[int]]) -> Mapping[str, torch.Tensor]:
    hidden, layers = torch.tensor(given), None
    with torch.inference_mode():
        for start, end in itertools.pairwise(cuts):
            layers = EncoderLayers(folder, start, end, torch.float32)
            data = hidden.contiguous().view(-1).view(torch.uint8)
            meta = TensorMeta(str(hidden.dtype).removeprefix("torch."), tuple(hidden.shape))
            hidden = layers.run(layers.values(meta, data, 64))
        assert layers is not None
        return layers.outputs(hidden)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_split_point_gives_the_unsplit_models_tensors_bit_for_bit(architecture: str, tmp_path: Path) -> None:
    folder = written(architecture, tmp_path)
    expected = unsplit(architecture, folder, IDS)
    for cuts in ([0, 6], *([0, cut, 6] for cut in range(1, 6)), list(range(7))):
        made = split(folder, cuts, IDS)
        assert made.keys() == expected.keys()
        for name, tensor in expected.items():
            assert torch.equal(made[name], tensor), (cuts, name)


def test_token_types_reach_the_embedding(tmp_path: Path) -> None:
    folder = written("BertModel", tmp_path)
    expected = unsplit("BertModel", folder, IDS, TYPES)["last_hidden_state"]
    assert torch.equal(split(folder, [0, 3, 6], IDS, TYPES)["last_hidden_state"], expected)
    assert not torch.equal(split(folder, [0, 3, 6], IDS)["last_hidden_state"], expected)


def test_rows_without_their_padding_give_what_padded_and_masked_rows_give(tmp_path: Path) -> None:
    folder = written("BertModel", tmp_path)
    model = transformers.BertModel.from_pretrained(folder).eval()
    mask = torch.tensor([[1] * 6 + [0] * 4, [1] * 10])
    with torch.inference_mode():
        padded = model(input_ids=torch.tensor(IDS), attention_mask=mask).last_hidden_state
    alone = split(folder, [0, 2, 6], [IDS[0][:6]])["last_hidden_state"]
    torch.testing.assert_close(alone[0], padded[0, :6], atol=1e-5, rtol=1e-5)


def test_segments_hold_their_own_layers_alone_and_no_kv(tmp_path: Path) -> None:
    folder = written("BertForTokenClassification", tmp_path)
    whole = load_layers(folder, 0, 6, torch.float32)
    parts = [load_layers(folder, start, end, torch.float32) for start, end in ((0, 1), (1, 4), (4, 6))]
    assert sum(part.weight_bytes() for part in parts) == whole.weight_bytes()
    assert is_stateless(whole)
    assert whole.kv_shape.bytes_per_token == 0


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((1, 1, 65), "65 tokens are beyond the longest context, 64"),
        ((3, 1, 4), r"take int64 \[1 or 2, rows, tokens\]"),
        ((4,), "take int64"),
    ],
)
def test_a_tensor_that_the_embedding_does_not_take_is_refused(shape: tuple[int, ...], said: str, tmp_path: Path) -> None:
    layers = EncoderLayers(written("RobertaModel", tmp_path), 0, 2, torch.float32)
    values = torch.ones(shape, dtype=torch.int64)
    with pytest.raises(SegmentError, match=said):
        layers.values(TensorMeta("int64", shape), values.view(-1).view(torch.uint8), 128)


@pytest.mark.parametrize(("row", "value", "said"), [(0, 211, "token ids should be 0 to 210"), (0, -1, "token ids"), (1, 2, "token types")])
def test_a_token_or_type_outside_the_model_is_refused(row: int, value: int, said: str, tmp_path: Path) -> None:
    layers = EncoderLayers(written("BertModel", tmp_path), 0, 2, torch.float32)
    values = torch.ones((2, 1, 4), dtype=torch.int64)
    values[row, 0, 2] = value
    with pytest.raises(SegmentError, match=said):
        layers.values(TensorMeta("int64", (2, 1, 4)), values.view(-1).view(torch.uint8), 64)


def test_an_architecture_without_a_known_head_is_refused(tmp_path: Path) -> None:
    config = BertConfig(**_SMALL)
    config.architectures = ["BertForMultipleChoice"]
    config.save_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match="BertForMultipleChoice"):
        EncoderLayers(tmp_path, 0, 2, torch.float32)


def test_a_pooler_that_is_not_stored_is_named(tmp_path: Path) -> None:
    written("BertForMaskedLM", tmp_path)
    config = BertConfig(**_SMALL)
    config.architectures = ["BertModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(MissingWeightsError, match=r"pooler\.dense\.weight"):
        EncoderLayers(tmp_path, 3, 6, torch.float32)


def test_a_bert_as_first_published_has_its_norms_under_other_names(tmp_path: Path) -> None:
    folder = written("BertModel", tmp_path)
    expected = split(folder, [0, 3, 6], IDS)["last_hidden_state"]
    tensors = load_file(folder / "model.safetensors")
    former = {n.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t for n, t in tensors.items()}
    assert former.keys() != tensors.keys()
    save_file(former, folder / "model.safetensors", metadata={"format": "pt"})
    assert is_stateless(load_layers(folder, 1, 3, torch.float32))
    assert torch.equal(split(folder, [0, 3, 6], IDS)["last_hidden_state"], expected)
