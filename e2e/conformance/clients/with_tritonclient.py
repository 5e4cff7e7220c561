"""NVIDIA's client for Triton, over HTTP and gRPC: to it the whole chain is one model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tritonclient.grpc as over_grpc
import tritonclient.http as over_http
from features import DECODER, DECODER_GRPC, DECODER_URL, ENCODER, ENCODER_FOLDER, ENCODER_GRPC, ENCODER_URL, must, tried

WORDS = json.loads((Path(ENCODER_FOLDER) / "tokenizer.json").read_text())["model"]["vocab"]
IDS = np.array([[WORDS[word] for word in ("[CLS]", "a", "cat", "[SEP]")]], dtype=np.int64)
KINDS = {
    "HTTP": (over_http, lambda: over_http.InferenceServerClient(ENCODER_URL.removeprefix("http://"), network_timeout=300), DECODER_URL),
    "gRPC": (over_grpc, lambda: over_grpc.InferenceServerClient(ENCODER_GRPC), DECODER_GRPC),
}


def each(feature: str) -> Callable[[Callable[[object, object, str], None]], None]:
    """Try over HTTP and over gRPC."""

    def run(function: Callable[[object, object, str], None]) -> None:
        for name, (kind, client, other) in KINDS.items():
            tried(f"{feature}, {name}")(lambda kind=kind, client=client, other=other: function(kind, client(), other))

    return run


@each("KServe metadata")
def _(kind: object, client: object, other: str) -> None:
    must(client.is_server_live() and client.is_server_ready() and client.is_model_ready(ENCODER))
    told = client.get_model_metadata(ENCODER, **({"as_json": True} if kind is over_grpc else {}))
    must("sentence_embedding" in [tensor["name"] for tensor in told["outputs"]], told)


@each("KServe inference")
def _(kind: object, client: object, other: str) -> None:
    given = kind.InferInput("input_ids", list(IDS.shape), "INT64")
    given.set_data_from_numpy(IDS)
    made = client.infer(ENCODER, [given], outputs=[kind.InferRequestedOutput("sentence_embedding")]).as_numpy("sentence_embedding")
    must(made.shape == (1, 384) and math.isclose(float((made**2).sum()), 1, abs_tol=1e-5), made.shape)


@each("KServe logits of a decoder")
def _(kind: object, client: object, other: str) -> None:
    address = other.removeprefix("http://")
    decoder = kind.InferenceServerClient(address, **({"network_timeout": 300} if kind is over_http else {}))
    given = kind.InferInput("input_ids", [1, 4], "INT64")
    given.set_data_from_numpy(np.array([[504, 3575, 282, 4649]], dtype=np.int64))
    must(decoder.infer(DECODER, [given]).as_numpy("logits").shape[0] == 1)


@each("errors")
def _(kind: object, client: object, other: str) -> None:
    given = kind.InferInput("input_ids", [1, 1], "FP32")
    given.set_data_from_numpy(np.ones((1, 1), dtype=np.float32))
    for name, said in ((ENCODER, "expected INT64"), ("other", "does not exist")):
        try:
            client.infer(name, [given])
        except Exception as error:
            if said not in str(error):
                raise
            continue
        raise ValueError(f"no error about {said}")
