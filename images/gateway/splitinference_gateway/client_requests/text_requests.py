"""What clients may ask of encoders: bodies of embeddings, scores and ranks, as OpenAI, vLLM and Jina's rerankers have them."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from splitinference_gateway.client_requests.bodies import read_json
from splitinference_gateway.client_requests.fields import WITHOUT_EFFECT, Whole, one_by_one, texts_or_ids
from splitinference_gateway.client_requests.requests import parse_plain
from splitinference_gateway.errors import invalid, unsupported

MOST_TEXTS = 2048
_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "add_special_tokens": (None, True),
    "chat_template": (None, ""),
    "chat_template_kwargs": (None, {}),
    "normalize": (None,),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "native", "little"),
    "softmax": (None,),
    "use_activation": (None, True),
    "activation": (None, True),
    "mm_processor_kwargs": (None, {}),
    "input_type": (None,),
    "task": (None,),
    "instruction": (None, ""),
    "max_tokens_per_doc": (None, 0),
    "max_chunks_per_doc": (None,),
    "rank_fields": (None, []),
}
"""They would change the numbers, and are not done here: only values that ask for nothing are accepted."""


class _OfTexts(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    model: Annotated[str, Field(max_length=512)]
    truncate_prompt_tokens: Whole | None = Field(default=None, ge=-1, le=2**31 - 1)

    @model_validator(mode="before")
    @classmethod
    def _asks_for_what_is_done(cls, value: Any) -> Any:
        if isinstance(value, dict):
            for name, neutral in _NEUTRAL.items():
                if name in value and value[name] not in neutral:
                    raise unsupported(name)
        return value

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _leaves_something(cls, value: int | None) -> int | None:
        if value == 0:
            raise invalid("Invalid value for 'truncate_prompt_tokens': -1 or at least 1.", "truncate_prompt_tokens", "invalid_value")
        return value


class EmbeddingRequest(_OfTexts):
    """POST /v1/embeddings."""

    input: Annotated[Any, Field()]
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Whole | None = Field(default=None, ge=1, le=1 << 20)

    @field_validator("input")
    @classmethod
    def _is_text_or_ids(cls, value: Any) -> Any:
        return texts_or_ids(value, "input", MOST_TEXTS)

    @property
    def texts(self) -> tuple[str | list[int], ...]:
        """Each a text or token ids."""
        return one_by_one(self.input)


_Texts = str | Annotated[list[str], Field(min_length=1, max_length=MOST_TEXTS)]


class ScoreRequest(_OfTexts):
    """POST /v1/score: one text against each of the others, or pair by pair."""

    text_1: _Texts
    text_2: _Texts

    @model_validator(mode="before")
    @classmethod
    def _newer_names(cls, value: Any) -> Any:
        """vLLM also calls them queries and documents."""
        if not isinstance(value, dict):
            return value
        names = {"queries": "text_1", "documents": "text_2", "items": "text_2", "data_1": "text_1", "data_2": "text_2"}
        return {(names[name] if name in names and names[name] not in value else name): given for name, given in value.items()}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """What is compared. ApiError 400 for lists that do not go together."""
        first = [self.text_1] if isinstance(self.text_1, str) else self.text_1
        second = [self.text_2] if isinstance(self.text_2, str) else self.text_2
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            message = f"Invalid value for 'text_2': {len(second)} texts for {len(first)} of 'text_1'; as many are needed, or one 'text_1'."
            raise invalid(message, "text_2", "invalid_value")
        return list(zip(first, second, strict=True))


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True)

    text: str


class RerankRequest(_OfTexts):
    """POST /v1/rerank."""

    query: str
    documents: Annotated[list[str | _Document], Field(min_length=1, max_length=MOST_TEXTS)]
    top_n: Whole | None = Field(default=None, ge=0, le=2**31 - 1)
    return_documents: bool | None = None

    @field_validator("documents", mode="before")
    @classmethod
    def _are_not_too_many(cls, value: Any) -> Any:
        """Before each of them is looked at."""
        if isinstance(value, list) and len(value) > MOST_TEXTS:
            message = f"Invalid value for 'documents': {len(value)} are too many, at most {MOST_TEXTS}."
            raise invalid(message, "documents", "invalid_value")
        return value

    @property
    def texts(self) -> list[str]:
        """Of the documents."""
        return [document if isinstance(document, str) else document.text for document in self.documents]


_T = TypeVar("_T", bound=_OfTexts)


def parse_texts(kind: type[_T], body: bytes, *, refuse_unknown: bool) -> tuple[_T, tuple[str, ...]]:
    """The request, and the names of fields that nobody here knows.

    Raises:
        ApiError: 400, saying what is wrong with which parameter.
    """
    content = read_json(body)
    request = parse_plain(kind, content)
    aliases = {"queries", "documents", "items", "data_1", "data_2"} if kind is ScoreRequest else set()
    known = kind.model_fields.keys() | WITHOUT_EFFECT | _NEUTRAL.keys() | aliases
    unknown = tuple(name for name in content if name not in known)
    if unknown and refuse_unknown:
        raise invalid(f"Unrecognized request argument supplied: {unknown[0]}", unknown[0], "unknown_parameter")
    return request, unknown
