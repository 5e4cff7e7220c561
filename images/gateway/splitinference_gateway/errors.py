"""Errors as clients of OpenAI's API expect them: a status, and a body with message, type, param and code."""

from collections.abc import Mapping

_MOST_CHARACTERS = 1000


class ApiError(Exception):
    """What a client is told. `retry_after` (seconds) becomes the header of that name."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = _sayable(message)
        self.kind = kind
        self.param = None if param is None else _sayable(param)[:100]
        self.code = code
        self.retry_after = retry_after

    @property
    def body(self) -> dict[str, object]:
        """The JSON body, also used for an error in the middle of a stream."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> Mapping[str, str]:
        """Headers that belong to the error."""
        return {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request itself is wrong."""
    return ApiError(400, message, param=param, code=code)


def unsupported(name: str) -> ApiError:
    """400 for a field that is known, with a value that asks for what is not done."""
    return invalid(f"Unsupported parameter: '{name}' is not supported with this model.", name, "unsupported_parameter")


def no_route() -> ApiError:
    """503: no wholly ready pipeline serves the model at this moment."""
    return ApiError(503, "The model is not being served yet: there is no route.", kind="server_error", code="no_route", retry_after=2)


def still_starting(held_seconds: float, wakes_in: int) -> ApiError:
    """503: the model was unloaded, and its first pipeline does not serve yet."""
    message = f"The model is not loaded. It did not start within the {held_seconds:.0f} s for which the request was held. Try again later."
    return ApiError(503, message, kind="server_error", code="model_starting", retry_after=wakes_in)


def overloaded(message: str, code: str = "overloaded", retry_after: int = 1) -> ApiError:
    """429: capacity is taken."""
    return ApiError(429, message, kind="rate_limit_error", code=code, retry_after=retry_after)


def context_too_long(limit: int, prompt: int, wanted: int, param: str = "messages") -> ApiError:
    """400: prompt and answer do not fit in the context."""
    return invalid(
        f"This model's maximum context length is {limit} tokens. However, you requested {prompt + wanted} tokens "
        f"({prompt} in the prompt, {wanted} in the completion). Please reduce the length of the prompt or the completion.",
        param=param,
        code="context_length_exceeded",
    )


def _sayable(text: str) -> str:
    """Text that can be sent whatever a client put into it: no lone surrogates, and not longer than an error should be."""
    short = text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS] + "…"
    return short.encode(errors="replace").decode()
