"""OpenAI's Python client."""

import json
import math

import openai
from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, PARIS, QUESTION, SCHEMA, must, tried

TEXT = openai.OpenAI(base_url=f"{DECODER_URL}/v1", api_key="none", max_retries=0, timeout=300)
SENTENCES = openai.OpenAI(base_url=f"{ENCODER_URL}/v1", api_key="none", max_retries=0, timeout=300)
ASKED = [{"role": "user", "content": QUESTION}]


@tried("models")
def _() -> None:
    must([model.id for model in TEXT.models.list()] == [DECODER])
    must(TEXT.models.retrieve(DECODER).id == DECODER)


@tried("chat")
def _() -> None:
    made = TEXT.chat.completions.create(model=DECODER, messages=ASKED, temperature=0, max_tokens=16)
    must(PARIS in made.choices[0].message.content, made)
    must(made.usage.total_tokens == made.usage.prompt_tokens + made.usage.completion_tokens)


@tried("chat, streamed")
def _() -> None:
    stream = TEXT.chat.completions.create(
        model=DECODER, messages=ASKED, temperature=0, max_tokens=16, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    must(PARIS in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices))
    must(chunks[-1].usage.completion_tokens > 0)


@tried("structured output")
def _() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": SCHEMA, "strict": True}}
    made = TEXT.chat.completions.create(model=DECODER, messages=ASKED, temperature=0, max_tokens=60, response_format=form)
    must(json.loads(made.choices[0].message.content)["city"] in ("Paris", "Rome"), made)


@tried("tools")
def _() -> str:
    tools = [{"type": "function", "function": {"name": "f", "parameters": SCHEMA}}]
    try:
        TEXT.chat.completions.create(model=DECODER, messages=ASKED, max_tokens=60, tools=tools, tool_choice="required")
    except openai.BadRequestError as refused:
        must("takes no tools" in str(refused), refused)
        return "400: this model's template knows no tools"
    return ""


@tried("text completion")
def _() -> None:
    made = TEXT.completions.create(model=DECODER, prompt="The capital of France is", temperature=0, max_tokens=4)
    must(PARIS in made.choices[0].text, made)


@tried("log-probabilities")
def _() -> None:
    made = TEXT.completions.create(model=DECODER, prompt="One two three", temperature=0, max_tokens=0, echo=True, logprobs=1)
    must(made.choices[0].logprobs.token_logprobs[0] is None, made)
    must(all(value < 0 for value in made.choices[0].logprobs.token_logprobs[1:]), made)
    made = TEXT.chat.completions.create(model=DECODER, messages=ASKED, max_tokens=2, logprobs=True, top_logprobs=3)
    must(len(made.choices[0].logprobs.content[0].top_logprobs) == 3)


@tried("embeddings")
def _() -> None:
    made = SENTENCES.embeddings.create(model=ENCODER, input=["a cat", "a kitten", "a tax law"])
    vectors = [entry.embedding for entry in made.data]
    must(all(math.isclose(sum(x * x for x in vector), 1, abs_tol=1e-5) for vector in vectors))
    near, far = (sum(x * y for x, y in zip(vectors[0], other, strict=True)) for other in vectors[1:])
    must(near > far + 0.3, (near, far))


@tried("responses")
def _() -> None:
    made = TEXT.responses.create(model=DECODER, input=QUESTION, temperature=0, max_output_tokens=16)
    must(PARIS in made.output_text, made)
    again = [{"role": "user", "content": QUESTION}, *made.output, {"role": "user", "content": "And of Italy?"}]
    must(TEXT.responses.create(model=DECODER, input=again, temperature=0, max_output_tokens=16).output_text)


@tried("responses, streamed")
def _() -> None:
    with TEXT.responses.stream(model=DECODER, input=QUESTION, temperature=0, max_output_tokens=16) as stream:
        said = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        must(said == stream.get_final_response().output_text, said)


@tried("errors")
def _() -> None:
    for client, call, kind in (
        (TEXT, lambda: TEXT.chat.completions.create(model="other", messages=ASKED), openai.NotFoundError),
        (TEXT, lambda: TEXT.chat.completions.create(model=DECODER, messages=ASKED, temperature=-1), openai.BadRequestError),
        (TEXT, lambda: TEXT.embeddings.create(model=DECODER, input="a"), openai.BadRequestError),
        (SENTENCES, lambda: SENTENCES.embeddings.create(model=ENCODER, input="word " * 3000), openai.BadRequestError),
    ):
        try:
            call()
        except kind:
            continue
        raise ValueError(f"no {kind.__name__} from {client.base_url}")
