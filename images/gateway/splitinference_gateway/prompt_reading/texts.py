"""From bodies of embeddings, scores and ranks to rows of tokens, each within bounds that are checked before the tokenizer runs."""

import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from splitinference_gateway.client_requests.text_requests import EmbeddingRequest, RerankRequest, ScoreRequest, parse_texts
from splitinference_gateway.errors import ApiError, invalid
from splitinference_gateway.prompt_reading.reading import Reader, check_model
from splitinference_gateway.tokens.sentence import Sentence

MOST_TOKENS = 300_000
"""Of all texts of one request, as OpenAI has it."""


@dataclass(frozen=True)
class Texts:
    """Rows of tokens for an encoder. `types` are there where texts stand in pairs.

    `first`: so many rows are first texts and the others second ones, where texts are compared by their embeddings; 0: each row is a pair.
    `size`: numbers of an embedding, None for all. `top`: how many documents are wanted; `documents`: their texts, where they are.
    """

    model: str
    rows: tuple[Sequence[int], ...]
    types: tuple[Sequence[int], ...] = ()
    first: int = 0
    base64: bool = False
    size: int | None = None
    top: int = 0
    documents: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Of all rows."""
        return sum(map(len, self.rows))

    def as_frame(self) -> tuple[dict[str, Any], bytes]:
        """For another process: values, and the tokens of all rows, then their types."""
        fields = {**self.__dict__, "rows": [len(row) for row in self.rows], "types": bool(self.types)}
        return fields, b"".join(array.array("i", row).tobytes() for row in (*self.rows, *self.types))

    @classmethod
    def of_frame(cls, fields: Mapping[str, Any], content: bytes) -> "Texts":
        """The other way."""
        every, made, start = array.array("i", content), [], 0
        for length in fields["rows"] * (2 if fields["types"] else 1):
            made.append(every[start : start + length])
            start += length
        count = len(fields["rows"])
        lists = {"documents": tuple(fields["documents"]), "ignored": tuple(fields["ignored"])}
        return cls(**{**fields, **lists, "rows": tuple(made[:count]), "types": tuple(made[count:])})


@dataclass(frozen=True)
class TextReader:
    """Reads bodies for one encoder. `width`: numbers of an embedding; 0 where the model is a classifier of texts or pairs."""

    reader: Reader
    sentence: Sentence
    width: int

    @property
    def most_tokens(self) -> int:
        """The longest text, with its special tokens."""
        return min(self.reader.context_tokens, self.sentence.most_tokens or self.reader.context_tokens)

    def embedding(self, body: bytes) -> Texts:
        """POST /v1/embeddings.

        Raises:
            ApiError: the request is wrong, or does not fit.
        """
        asked, ignored = parse_texts(EmbeddingRequest, body, refuse_unknown=self.reader.refuse_unknown)
        check_model(asked.model, self.reader.model)
        if not asked.texts:
            raise invalid("Invalid value for 'input': at least one text is needed.", "input", "invalid_value")
        if asked.dimensions is not None and not self.sentence.allows(asked.dimensions, self.width):
            raise self._wrong_size()
        rows = self._embedded(asked.texts, asked.truncate_prompt_tokens, "input")
        return Texts(asked.model, rows, base64=asked.encoding_format == "base64", size=asked.dimensions, ignored=ignored)

    def score(self, body: bytes) -> Texts:
        """POST /v1/score. ApiError as above."""
        asked, ignored = parse_texts(ScoreRequest, body, refuse_unknown=self.reader.refuse_unknown)
        check_model(asked.model, self.reader.model)
        rows, types, first = self._compared(asked.pairs, asked.truncate_prompt_tokens, "text_2")
        return Texts(asked.model, rows, types, first, ignored=ignored)

    def rerank(self, body: bytes) -> Texts:
        """POST /v1/rerank. ApiError as above."""
        asked, ignored = parse_texts(RerankRequest, body, refuse_unknown=self.reader.refuse_unknown)
        check_model(asked.model, self.reader.model)
        pairs = [(asked.query, text) for text in asked.texts]
        rows, types, first = self._compared(pairs, asked.truncate_prompt_tokens, "documents")
        documents = () if asked.return_documents is False else tuple(asked.texts)
        return Texts(asked.model, rows, types, first, top=asked.top_n or len(pairs), documents=documents, ignored=ignored)

    def _compared(self, pairs: Sequence[tuple[str, str]], cut: int | None, param: str) -> tuple[tuple[Any, ...], tuple[Any, ...], int]:
        """Rows, types, and how many of the rows are first texts: a classifier reads pairs, an embedding model each text by itself."""
        if self.width:
            firsts = list(dict.fromkeys(first for first, _ in pairs))
            if len(firsts) > 1:
                firsts = [first for first, _ in pairs]
            return self._embedded([*firsts, *(second for _, second in pairs)], cut, param), (), len(firsts)
        self._check_characters([first + second for first, second in pairs], cut, param)
        self.reader.phase("tokenizer")
        most = self._most(cut, pair=True, param=param)
        read = [self._pair(first, second, most if cut is not None else None, param) for first, second in pairs]
        self._check_all([ids for ids, _ in read], param)
        with_types = any(any(types) for _, types in read)
        return tuple(ids for ids, _ in read), tuple(types for _, types in read) if with_types else (), 0

    def _pair(self, first: str, second: str, most: int | None, param: str) -> tuple[list[int], list[int]]:
        ids, types = self.reader.tokenizer.encode_cut(first, second, most)
        if len(ids) > self.most_tokens:
            raise _too_long(self.most_tokens, len(ids), param)
        return ids, types

    def _embedded(self, texts: Sequence[str | list[int]], cut: int | None, param: str) -> tuple[Sequence[int], ...]:
        self._check_characters(texts, cut, param)
        self.reader.phase("tokenizer")
        most, rows = self._most(cut, pair=False, param=param), []
        for text in texts:
            if isinstance(text, str):
                row, _ = self.reader.tokenizer.encode_cut(self._prepared(text), None, most if cut is not None else None)
            else:
                self.reader.check_known(text, param)
                row = text if cut is None else text[:most]
            if not row:
                raise invalid(f"Invalid value for '{param}': each entry must have at least one token.", param, "invalid_value")
            if len(row) > self.most_tokens:
                raise _too_long(self.most_tokens, len(row), param)
            rows.append(row)
        self._check_all(rows, param)
        return tuple(rows)

    def _prepared(self, text: str) -> str:
        """As sentence-transformers hands it to the tokenizer."""
        whole = self.sentence.prefix + text
        return whole.lower() if self.sentence.lower else whole

    def _most(self, cut: int | None, *, pair: bool, param: str) -> int:
        """Tokens that a text keeps. -1 asks for as many as the model takes."""
        if cut is None or cut == -1:
            return self.most_tokens
        if cut > self.most_tokens or cut <= (around := self.reader.tokenizer.special_count(pair=pair)):
            least = self.reader.tokenizer.special_count(pair=pair) + 1
            message = f"Invalid value for 'truncate_prompt_tokens': -1, or {least} to {self.most_tokens} with this model."
            raise invalid(message, "truncate_prompt_tokens", "invalid_value")
        return max(cut, around + 1)

    def _check_characters(self, texts: Sequence[str | list[int]], cut: int | None, param: str) -> None:
        """Before the tokenizer runs. A text that is to be cut may be longer; what all may take is bounded by the worker's time."""
        if cut is None:
            for text in texts:
                characters = len("".join(text.split())) if isinstance(text, str) else len(text) * self.reader.longest_token
                if (fewest := -(-characters // self.reader.longest_token)) > self.most_tokens:
                    raise _too_long(self.most_tokens, fewest, param)
        self._check_all([text for text in texts if not isinstance(text, str)], param)

    def _check_all(self, rows: Sequence[Sequence[int]], param: str) -> None:
        if (tokens := sum(map(len, rows))) > MOST_TOKENS:
            message = f"The request has {tokens} tokens in all; at most {MOST_TOKENS} are accepted. Send fewer texts at a time."
            raise invalid(message, param, "too_many_tokens")

    def _wrong_size(self) -> ApiError:
        sizes = self.sentence.sizes or ()
        allowed = f"1 to {self.width}" if self.sentence.sizes is None else " or ".join(map(str, sorted({*sizes, self.width})))
        message = f"Invalid value for 'dimensions': embeddings of this model have {allowed} numbers."
        return invalid(message, "dimensions", "invalid_value")


def _too_long(limit: int, tokens: int, param: str) -> ApiError:
    message = (
        f"This model's maximum context length is {limit} tokens. However, one of your texts has {tokens} or more. "
        "Send a shorter text, or set 'truncate_prompt_tokens' to -1 to leave out its end."
    )
    return invalid(message, param, "context_length_exceeded")
