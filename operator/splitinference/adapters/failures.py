"""Why a request failed, in words that are the same each time it fails so: they go into conditions, which must not change by themselves."""

import re

_OBJECT = re.compile(r"(<[^<>]*object at 0x[0-9a-f]+>|\bHTTPS?Connection(?:Pool)?\([^()]*\)): ?")


def in_words(error: BaseException) -> str:
    """The innermost reason that requests and urllib3 wrap, without addresses of objects and without the URL."""
    reason: object = error
    for _ in range(5):
        arguments: list[object] = list(getattr(reason, "args", ()))
        inner = getattr(reason, "reason", None) or (arguments[0] if len(arguments) == 1 else None)
        if not isinstance(inner, BaseException):
            break
        reason = inner
    text = _OBJECT.sub("", str(reason)).strip()
    return (text or type(reason).__name__)[:300]
