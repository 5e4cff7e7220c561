"""Values of request fields as clients send them, in the types that they stand for; and what is known, but not done here."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from splitinference_gateway.errors import ApiError, invalid

MOST_STOPS = 64
_MOST_STOP_CHARACTERS = 4096  # of all of them: each is looked for at every token
MOST_BIASES = 1024
MOST_STOP_TOKENS = 128


def _whole(value: Any) -> Any:
    """JavaScript has one kind of numbers, and JSON's 5.0 is 5."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]


def _no_share(value: Any) -> Any:
    """OpenAI's 0 leaves the likeliest token alone."""
    return _LEAST_SHARE if value == 0 and not isinstance(value, bool) else value


_LEAST_SHARE = 1e-6
TopP = Annotated[float, BeforeValidator(_no_share)]


def _none_if_empty(value: Any) -> Any:
    """PHP writes an empty object as an empty list."""
    return None if value == [] else value


IfNotEmpty = BeforeValidator(_none_if_empty)


def _count(value: int) -> int:
    if value < 1 and value != WHAT_IS_LEFT:
        raise ValueError(f"Input should be greater than or equal to 1, or {WHAT_IS_LEFT} for what the context leaves")
    return value


WHAT_IS_LEFT = -1
"""llama.cpp's word for an answer that may fill the context."""
MostTokens = Annotated[Whole, AfterValidator(_count)]
TokenId = Annotated[Whole, Field(ge=0, le=2**31 - 1)]


def _stops(value: Any) -> Any:
    if value == "":  # it stops nothing
        return None
    if isinstance(value, list):
        value = [stop for stop in value if stop != ""]
    if isinstance(value, list) and sum(len(stop) for stop in value if isinstance(stop, str)) > _MOST_STOP_CHARACTERS:
        raise ValueError(f"all stop strings together have more than {_MOST_STOP_CHARACTERS} characters")
    return value


_Stop = Annotated[str, Field(min_length=1, max_length=512)]
Stops = Annotated[_Stop | Annotated[list[_Stop], Field(max_length=MOST_STOPS)] | None, BeforeValidator(_stops)]


def _biases(value: Any) -> Any:
    """JSON's names are texts; token ids stand in them. By hand: an error for each entry would be too many."""
    if value == []:
        return None
    if not isinstance(value, dict):
        return value
    if len(value) > MOST_BIASES:
        raise ValueError(f"{len(value)} token ids are too many, at most {MOST_BIASES}")
    made: dict[int, float] = {}
    for name, bias in value.items():
        if not (name.isascii() and name.isdigit()) or len(name) > 10:
            raise ValueError(f"{name!r:.40} is not a token id")
        if not isinstance(bias, int | float) or isinstance(bias, bool) or not -100 <= bias <= 100:
            raise ValueError(f"the bias of token {name} should be a number from -100 to 100")
        made[int(name)] = float(bias)
    return made


Biases = Annotated[dict[int, float] | None, BeforeValidator(_biases)]


def _not_false(value: Any) -> Any:
    """Some clients send false for "no log-probabilities", and true for some."""
    return None if value is False else 1 if value is True else value


Logprobs = Annotated[Annotated[Whole, Field(ge=0, le=20)] | None, BeforeValidator(_not_false)]


def _template_kwargs(value: dict[str, Any] | None) -> dict[str, Any] | None:
    if value is not None and (len(value) > _MOST_KWARGS or any(name in _TEMPLATE_OWN for name in value)):
        raise ValueError(f"at most {_MOST_KWARGS} names, and none of {', '.join(sorted(_TEMPLATE_OWN))}")
    return value


_MOST_KWARGS = 64
_TEMPLATE_OWN = frozenset({"messages", "tools", "documents", "raise_exception", "strftime_now"})
TemplateKwargs = Annotated[dict[str, Any] | None, AfterValidator(_template_kwargs), IfNotEmpty]


def texts_or_ids(value: Any, name: str, most: int) -> Any:
    """A text, token ids, or a list of either. By hand: trying each form of each entry would list an error for each. ApiError 400."""
    if isinstance(value, str):
        return value
    value = _whole_ids(value)
    if not isinstance(value, list):
        raise _of_another_type(name, f"a text, token ids, or a list of either, but got {type(value).__name__} instead")
    kinds = {type(entry) for entry in value}
    if kinds <= {int}:
        return value
    if len(value) > most:
        raise invalid(f"Invalid value for '{name}': {len(value)} {name}s are too many, at most {most}.", name, "invalid_value")
    if kinds <= {str}:
        return value
    if kinds <= {list}:
        if any(type(token) is not int for entry in value for token in entry):
            raise _of_another_type(name, "whole numbers as token ids")
        return value
    raise _of_another_type(name, "a text, token ids, or a list of either, all of one kind")


def _whole_ids(value: Any) -> Any:
    """Token ids that are written as floats are those numbers."""
    if not isinstance(value, list):
        return value
    return [[_whole(token) for token in one] if isinstance(one, list) else _whole(one) for one in value]


def one_by_one(value: Any) -> tuple[str | list[int], ...]:
    """What `texts_or_ids` has let pass, each a text or token ids."""
    if isinstance(value, str):
        return (value,)
    if not value:
        return ()
    return (value,) if isinstance(value[0], int) else tuple(value)


def _of_another_type(name: str, expected: str) -> ApiError:
    return invalid(f"Invalid type for '{name}': expected {expected}.", name, "invalid_type")


WITHOUT_EFFECT = frozenset(
    {
        "user", "store", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention",
        "safety_identifier", "prediction", "reasoning_effort", "verbosity", "extra_body", "request_id", "priority", "cache_salt",
    }
)  # fmt: skip
"""Known to clients, without effect on the text here; accepted without a word."""

ONLY_NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "functions": ([],),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "prompt_logprobs": (),
    "chat_template": ("",),
    "documents": ([],),
    "continue_final_message": (False,),
    "add_special_tokens": (),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "include_stop_str_in_output": (False,),
    "truncate_prompt_tokens": (),
    "logits_processors": ([],),
    "bad_words": ([],),
    "allowed_token_ids": (),
    "prompt_embeds": (),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "mirostat_mode": (0,),
    "dry_multiplier": (0,),
}
"""They would change the text, and are not done here: only the value that asks for nothing is accepted."""
