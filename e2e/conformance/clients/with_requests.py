"""Requests as Open WebUI and Continue send them, without a client library: their fields, their streams, and what a browser asks first."""

import json
import urllib.error
import urllib.request

from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, PARIS, QUESTION, must, tried

OPEN_WEBUI = {
    "stream": True,
    "model": DECODER,
    "messages": [{"role": "user", "content": QUESTION}],
    "max_tokens": 16,
    "temperature": 0,
    "top_k": 40,
    "top_p": 0.9,
    "min_p": 0.05,
    "frequency_penalty": 0.1,
    "presence_penalty": 0,
    "seed": 0,
    "stop": ["<|end|>", "</s>", "User:", "###"],
    "logit_bias": {"5": -100},
    "chat_template_kwargs": {"enable_thinking": False},
    "stream_options": {"include_usage": True},
    "session_id": "x",
    "chat_id": "y",
    "features": {"web_search": False},
    "background_tasks": {"title_generation": True},
}
CONTINUE = {
    "model": DECODER,
    "messages": [{"role": "system", "content": "You edit code."}, {"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
    "max_tokens": 16.0,
    "temperature": 0.01,
    "stream": True,
    "presence_penalty": None,
    "frequency_penalty": None,
    "top_p": None,
    "stop": [f"<stop {number}>" for number in range(20)],
    "prediction": None,
    "tools": [],
}


def asked(url: str, body: object = None) -> str:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json", "Authorization": "Bearer none"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        text: str = answer.read().decode()
        return text


def said(body: object) -> str:
    text = asked(f"{DECODER_URL}/v1/chat/completions", body)
    must(text.rstrip().endswith("data: [DONE]"), text[-100:])
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in events if event["choices"])


@tried("models")
def _() -> None:
    must(json.loads(asked(f"{DECODER_URL}/v1/models"))["data"][0]["id"] == DECODER)
    must(json.loads(asked(f"{DECODER_URL}/v1/models/"))["data"][0]["id"] == DECODER)


@tried("Open WebUI: chat, streamed")
def _() -> None:
    must(PARIS in said(OPEN_WEBUI))


@tried("Open WebUI: embeddings")
def _() -> None:
    made = json.loads(asked(f"{ENCODER_URL}/v1/embeddings", {"input": ["a cat", "a kitten"], "model": ENCODER}))
    must([len(entry["embedding"]) for entry in made["data"]] == [384, 384])


@tried("Open WebUI: scores and ranks")
def _() -> None:
    body = {"model": ENCODER, "query": "a cat", "documents": ["a tax law", "a kitten"], "top_n": 2}
    must(json.loads(asked(f"{ENCODER_URL}/v1/rerank", body))["results"][0]["index"] == 1)


@tried("Continue: chat, streamed")
def _() -> None:
    must(said(CONTINUE))


@tried("Continue: code completion")
def _() -> None:
    body = {
        "model": DECODER,
        "prompt": "def f(",
        "max_tokens": 8,
        "temperature": 0.01,
        "stop": ["\n\n", "/src/"],
        "suffix": None,
        "stream": True,
    }
    must(asked(f"{DECODER_URL}/v1/completions", body).rstrip().endswith("data: [DONE]"))


@tried("errors")
def _() -> None:
    try:
        asked(f"{DECODER_URL}/v1/chat/completions", {"model": "other", "messages": OPEN_WEBUI["messages"]})
    except urllib.error.HTTPError as error:
        must(error.code == 404 and json.load(error)["error"]["code"] == "model_not_found")
        return
    raise ValueError("an unknown model was no error")
