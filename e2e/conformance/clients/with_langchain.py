"""LangChain with its package for OpenAI."""

from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, PARIS, QUESTION, SCHEMA, must, tried
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings


def chat(**more: object) -> ChatOpenAI:
    return ChatOpenAI(
        base_url=f"{DECODER_URL}/v1", api_key="none", model=DECODER, temperature=0, max_retries=0, **{"max_tokens": 16, **more}
    )


@tried("chat")
def _() -> None:
    messages = [SystemMessage("Be short."), HumanMessage("Hi."), AIMessage("Hello."), HumanMessage(QUESTION)]
    must(PARIS in chat().invoke(messages).content)


@tried("chat, streamed")
def _() -> None:
    chunks = list(chat(stream_usage=True).stream(QUESTION))
    must(PARIS in "".join(chunk.content for chunk in chunks))
    must(any(chunk.usage_metadata for chunk in chunks))


@tried("structured output")
def _() -> None:
    schema = {"title": "answer", "description": "the answer", **SCHEMA}
    made = chat(max_tokens=60).with_structured_output(schema, method="json_schema").invoke(QUESTION)
    must(made["city"] in ("Paris", "Rome"), made)


@tried("text completion")
def _() -> None:
    model = OpenAI(base_url=f"{DECODER_URL}/v1", api_key="none", model=DECODER, temperature=0, max_tokens=4, max_retries=0)
    must(PARIS in model.invoke("The capital of France is"))


@tried("embeddings")
def _() -> str:
    """By default it sends tokens of OpenAI's own vocabulary, which no other model has: its documentation says to switch that off."""
    options = {"base_url": f"{ENCODER_URL}/v1", "api_key": "none", "model": ENCODER, "max_retries": 0}
    made = OpenAIEmbeddings(check_embedding_ctx_length=False, **options).embed_documents(["a cat", "a kitten"])
    must([len(vector) for vector in made] == [384, 384])
    return "with check_embedding_ctx_length=False"


@tried("responses")
def _() -> None:
    must(PARIS in chat(use_responses_api=True).invoke(QUESTION).text)


@tried("responses, streamed")
def _() -> None:
    must(PARIS in "".join(chunk.text for chunk in chat(use_responses_api=True).stream(QUESTION)))
