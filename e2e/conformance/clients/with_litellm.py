"""LiteLLM, as a library."""

import json

import litellm
from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, PARIS, QUESTION, SCHEMA, must, tried

ASKED = [{"role": "user", "content": QUESTION}]
TEXT = {"model": f"openai/{DECODER}", "api_base": f"{DECODER_URL}/v1", "api_key": "none", "temperature": 0, "num_retries": 0}


@tried("chat")
def _() -> None:
    must(PARIS in litellm.completion(messages=ASKED, max_tokens=16, **TEXT).choices[0].message.content)


@tried("chat, streamed")
def _() -> None:
    stream = litellm.completion(messages=ASKED, max_tokens=16, stream=True, **TEXT)
    must(PARIS in "".join(chunk.choices[0].delta.content or "" for chunk in stream))


@tried("structured output")
def _() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    made = litellm.completion(messages=ASKED, max_tokens=60, response_format=form, **TEXT)
    must(json.loads(made.choices[0].message.content)["city"] in ("Paris", "Rome"), made)


@tried("text completion")
def _() -> None:
    model = {**TEXT, "model": f"text-completion-openai/{DECODER}"}
    must(PARIS in litellm.text_completion(prompt="The capital of France is", max_tokens=4, **model).choices[0].text)


@tried("embeddings")
def _() -> None:
    made = litellm.embedding(model=f"openai/{ENCODER}", input=["a cat", "a kitten"], api_base=f"{ENCODER_URL}/v1", api_key="none")
    must([len(entry["embedding"]) for entry in made.data] == [384, 384])


@tried("scores and ranks")
def _() -> None:
    where = {"api_base": f"{ENCODER_URL}/v1/rerank", "api_key": "none"}
    made = litellm.rerank(model=f"hosted_vllm/{ENCODER}", query="a cat", documents=["a tax law", "a kitten"], top_n=1, **where)
    must(made.results[0]["index"] == 1, made)


@tried("responses")
def _() -> None:
    must(PARIS in litellm.responses(input=QUESTION, max_output_tokens=16, **TEXT).output[0].content[0].text)


@tried("responses, streamed")
def _() -> None:
    stream = litellm.responses(input=QUESTION, max_output_tokens=16, stream=True, **TEXT)
    must(PARIS in "".join(event.delta for event in stream if event.type == "response.output_text.delta"))


@tried("errors")
def _() -> None:
    try:
        litellm.completion(messages=ASKED, **{**TEXT, "model": "openai/other"})
    except litellm.NotFoundError:
        return
    raise ValueError("an unknown model was no error")
