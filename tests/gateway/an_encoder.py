"""A small BERT of random weights: how the segment image's own Python writes it with the unsplit model's answer, what to ask it, and whether
an answer is that one.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

LAYERS = 6  # embedding, four blocks, head
CONTEXT = 64
IDS = [[5, 99, 17, 3, 150, 42], [8, 201, 77, 0, 0, 0], [30, 12, 64, 9, 0, 0]]
MASK = [[1] * 6, [1, 1, 1, 0, 0, 0], [1, 1, 1, 1, 0, 0]]
TYPES = [[0, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 0, 1, 1, 0, 0]]
GIVEN = {"input_ids": IDS, "attention_mask": MASK, "token_type_ids": TYPES}
_UNSPLIT = """
import json, pathlib, sys, torch
from transformers import BertConfig, BertModel
folder, given = sys.argv[1], json.loads(sys.argv[2])
torch.manual_seed(3)
config = BertConfig(vocab_size=211, hidden_size=64, intermediate_size=96, num_hidden_layers=4, num_attention_heads=4,
                    max_position_embeddings=64, initializer_range=0.25)
model = BertModel(config).eval()
model.save_pretrained(folder)
for file in pathlib.Path(folder).iterdir():
    file.chmod(0o644)  # for segments, which run as another user
with torch.inference_mode():
    made = model(**{name: torch.tensor(values) for name, values in given.items()})
print(json.dumps({name: made[name].tolist() for name in ("last_hidden_state", "pooler_output")}))
"""


def unsplit(folder: str) -> list[str]:
    """The command of the segment image that writes the model into `folder` and prints what transformers gives, whole."""
    return ["/opt/segment/bin/python", "-c", _UNSPLIT, folder, json.dumps(GIVEN)]


def answer(printed: str) -> Mapping[str, Any]:
    """What the command printed, by output."""
    found: Mapping[str, Any] = json.loads(printed.splitlines()[-1])
    return found


def inputs(kind: Any) -> list[Any]:
    """The question for `tritonclient.http` or `tritonclient.grpc`."""
    made = []
    for name, rows in GIVEN.items():
        values = np.array(rows, dtype=np.int64)
        made.append(kind.InferInput(name, list(values.shape), "INT64"))
        made[-1].set_data_from_numpy(values)
    return made


def same(expected: Mapping[str, Any], found: Any) -> None:
    """Fail where the answer of a client is not the unsplit model's."""
    for name, rows in expected.items():
        made, wanted = found.as_numpy(name), np.array(rows, dtype=np.float32)
        if name == "last_hidden_state":
            wanted = wanted * np.array(MASK, dtype=np.float32)[:, :, None]  # what is padding is zeros
        assert made.dtype == np.float32
        np.testing.assert_allclose(made, wanted, atol=2e-5, rtol=1e-5)
