"""A request's JSON, read within bounds: UTF-8, no numbers that JSON does not have, no lone surrogates, not too deep.

Only processes that may be ended call this (see `prompt_worker`): how long it takes is up to the body.
"""

import json
import re
from typing import Any, NoReturn

from splitinference_gateway.errors import ApiError, invalid

_MOST_DEPTH = 32
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def read_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        ApiError: 400, saying what is wrong with it.
    """
    try:
        text = body.decode()
        content = json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise invalid(f"We could not parse the JSON body of your request: {error or 'it is nested too deeply'}") from error
    if not isinstance(content, dict):
        raise invalid("The body of your request must be a JSON object.")
    if _deeper_than(content, _MOST_DEPTH):
        raise invalid(f"We could not parse the JSON body of your request: it is nested deeper than {_MOST_DEPTH} levels.")
    if _SURROGATE.search(text):
        _check_text(content)
    return content


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _deeper_than(content: object, most: int) -> bool:
    level: list[Any] = [content]
    for _ in range(most):
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
            if isinstance(inner, dict | list)
        ]
        if not level:
            return False
    return True


def _check_text(content: dict[str, Any]) -> None:
    """Half of a surrogate pair is no character: no UTF-8 text can hold it."""
    try:
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise surrogate() from None


def surrogate() -> ApiError:
    """400 for text that is not Unicode."""
    return invalid("Your request has text that is not Unicode: half of a surrogate pair (\\ud800 to \\udfff).", code="invalid_value")
