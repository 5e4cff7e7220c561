"""LlamaIndex with its packages for servers that speak OpenAI's API."""

from features import DECODER, DECODER_URL, ENCODER, ENCODER_URL, PARIS, QUESTION, must, tried
from llama_index.core.llms import ChatMessage
from llama_index.embeddings.openai_like import OpenAILikeEmbedding
from llama_index.llms.openai_like import OpenAILike


def model(*, chat: bool) -> OpenAILike:
    options = {"api_base": f"{DECODER_URL}/v1", "api_key": "none", "temperature": 0, "max_retries": 0, "context_window": 2048}
    return OpenAILike(model=DECODER, is_chat_model=chat, max_tokens=16, timeout=300, **options)


@tried("chat")
def _() -> None:
    must(PARIS in model(chat=True).chat([ChatMessage(role="user", content=QUESTION)]).message.content)


@tried("chat, streamed")
def _() -> None:
    must(PARIS in "".join(part.delta or "" for part in model(chat=True).stream_chat([ChatMessage(role="user", content=QUESTION)])))


@tried("text completion")
def _() -> None:
    must(PARIS in model(chat=False).complete("The capital of France is").text)


@tried("embeddings")
def _() -> None:
    embedding = OpenAILikeEmbedding(model_name=ENCODER, api_base=f"{ENCODER_URL}/v1", api_key="none", max_retries=0)
    must([len(vector) for vector in embedding.get_text_embedding_batch(["a cat", "a kitten", ""])] == [384] * 3)
