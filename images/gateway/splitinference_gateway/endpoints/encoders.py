"""Answers of encoders about texts: OpenAI's embeddings, and scores and ranks as vLLM and Jina's rerankers have them."""

import array
import asyncio
import base64
import json
import math
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from functools import partial

from starlette.responses import JSONResponse, Response

from splitinference_gateway.answers.replies import warning
from splitinference_gateway.client_requests.cache_control import CacheControl
from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.prompt_reading.texts import Texts
from splitinference_gateway.tensor_io.signature import Kind
from splitinference_gateway.tensor_io.tensors import Tensor

_MOST_NUMBERS = 1 << 20  # of an answer in JSON


def check_embeds(gateway: Gateway) -> None:
    """Raise ApiError 400 where the model gives no embeddings of texts, with the reason."""
    _check_reads_texts(gateway, "embeddings", "has no embeddings")
    if gateway.inference.signature.sentence.pooling is None:
        why = gateway.inference.signature.sentence.refused
        raise _refused(f"The model '{gateway.settings.served_model}' gives no embeddings of texts: {why}.")


def check_scores(gateway: Gateway) -> None:
    """Raise ApiError 400 where texts cannot be compared: neither by embeddings, nor by a classifier of pairs with one number."""
    _check_reads_texts(gateway, "scores", "scores no texts")
    signature, name = gateway.inference.signature, gateway.settings.served_model
    spec = signature.of_texts
    if spec is None:
        raise _refused(f"The model '{name}' scores no texts: it is no classifier of texts, and {signature.sentence.refused}.")
    if signature.sentence.pooling is None and (spec.shape[-1] != 1 or not signature.activation):
        what = f"it tells {spec.shape[-1]} classes apart" if spec.shape[-1] != 1 else "its activation function is not served"
        raise _refused(f"The model '{name}' scores no pairs of texts: {what}. Ask it by KServe v2 at /v2/models/{name}/infer.")


def _check_reads_texts(gateway: Gateway, what: str, lacks: str) -> None:
    name, kind = gateway.settings.served_model, gateway.inference.signature.kind
    if kind is Kind.DECODER:
        raise _refused(
            f"The model '{name}' generates text and {lacks}. Use /v1/chat/completions or /v1/completions, or an encoder for {what}."
        )
    if kind is Kind.CHAIN:
        raise _refused(f"The model '{name}' reads no text and {lacks}; ask it by KServe v2 at /v2/models/{name}/infer.")
    if not gateway.prompts.with_tokenizer:
        raise _refused(f"The model '{name}' reads no text, as its folder has no tokenizer.json; ask it by KServe v2 with token ids.")


def _refused(message: str) -> ApiError:
    return invalid(message, "model", "unsupported_model")


async def embeddings(gateway: Gateway, asked: Texts, client: str, control: CacheControl) -> Response:
    """POST /v1/embeddings."""
    spec = gateway.inference.signature.of_texts
    assert spec is not None  # noqa: S101 - as checked before the body was read
    width = spec.shape[-1]
    size = asked.size or width
    if not asked.base64 and (numbers := size * len(asked.rows)) > _MOST_NUMBERS:
        more = "Ask for encoding_format 'base64', or send fewer texts."
        raise invalid(f"The answer has {numbers} numbers; JSON carries at most {_MOST_NUMBERS}. {more}", "input", "answer_too_large")
    made, kept = await _made(gateway, asked, client, control)
    pooling = gateway.inference.signature.sentence.pooling
    normalize = pooling is not None and pooling.normalize and size < width
    parts = []
    for index in range(len(asked.rows)):
        vector = made.data[4 * width * index :][: 4 * size]
        if normalize:
            vector = _packed(_scaled(_numbers(vector)))
        shown = base64.b64encode(vector).decode() if asked.base64 else _numbers(vector)
        parts.append(json.dumps({"object": "embedding", "index": index, "embedding": shown}, separators=(",", ":")))
        if index % 16 == 15:
            await asyncio.sleep(0)
    usage = json.dumps({"prompt_tokens": asked.tokens, "total_tokens": asked.tokens})
    body = f'{{"object":"list","data":[{",".join(parts)}],"model":{json.dumps(asked.model)},"usage":{usage}}}'
    return Response(body, media_type="application/json", headers={**warning(asked.ignored), **kept})


async def score(gateway: Gateway, asked: Texts, client: str, control: CacheControl) -> Response:
    """POST /v1/score."""
    scores, kept = await _scores(gateway, asked, client, control)
    data = [{"index": index, "object": "score", "score": value} for index, value in enumerate(scores)]
    told = {"id": f"score-{uuid.uuid4().hex}", "object": "list", "created": int(time.time()), "model": asked.model, "data": data}
    usage = {"prompt_tokens": asked.tokens, "total_tokens": asked.tokens}
    return JSONResponse({**told, "usage": usage}, headers={**warning(asked.ignored), **kept})


async def rerank(gateway: Gateway, asked: Texts, client: str, control: CacheControl) -> Response:
    """POST /v1/rerank: the best first; of equal ones the one that came first."""
    scores, kept = await _scores(gateway, asked, client, control)
    ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: asked.top]
    results = [
        {"index": index, "relevance_score": scores[index]} | ({"document": {"text": asked.documents[index]}} if asked.documents else {})
        for index in ranked
    ]
    told = {"id": f"rerank-{uuid.uuid4().hex}", "model": asked.model, "usage": {"total_tokens": asked.tokens}, "results": results}
    return JSONResponse(told, headers={**warning(asked.ignored), **kept})


async def _made(gateway: Gateway, asked: Texts, client: str, control: CacheControl) -> tuple[Tensor, Mapping[str, str]]:
    """What the encoder makes of the rows, or made of them before, and the headers that say which."""
    run = partial(gateway.inference.embedded, asked.rows, client, asked.types, anew=control.no_cache or control.no_store)
    return await gateway.reuse.embedded(asked, client, control, run)


async def _scores(gateway: Gateway, asked: Texts, client: str, control: CacheControl) -> tuple[list[float], Mapping[str, str]]:
    made, kept = await _made(gateway, asked, client, control)
    width = made.shape[-1]
    vectors = [_numbers(made.data[4 * width * index :][: 4 * width]) for index in range(len(asked.rows))]
    if not asked.first:
        return [_activated(vector[0], gateway.inference.signature.activation) for vector in vectors], kept
    scaled = [_scaled(vector) for vector in vectors]
    first, second = scaled[: asked.first], scaled[asked.first :]
    return [sum(map(float.__mul__, first[index if len(first) > 1 else 0], other)) for index, other in enumerate(second)], kept


def _activated(logit: float, activation: str) -> float:
    if activation == "identity":
        return logit
    return 1 / (1 + math.exp(-logit)) if logit >= 0 else math.exp(logit) / (1 + math.exp(logit))


def _scaled(vector: Sequence[float]) -> list[float]:
    """To length 1, as torch does it: with a length of 1e-12 at least."""
    length = max(math.sqrt(sum(value * value for value in vector)), 1e-12)
    return [value / length for value in vector]


def _numbers(data: bytes) -> list[float]:
    values = array.array("f", data)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tolist()


def _packed(vector: Sequence[float]) -> bytes:
    values = array.array("f", vector)
    if sys.byteorder == "big":
        values.byteswap()
    return values.tobytes()
