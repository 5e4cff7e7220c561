"""Reading single settings of config.json, with errors that name the key and its value."""

from collections.abc import Mapping
from typing import Any

from splitinference_modelfiles.stored.headers import ModelRefusedError

MOST = 2**31


def whole(config: Mapping[str, Any], *names: str, default: int | None = None, least: int = 1) -> int:
    """A whole number, under the first of these names that is there; `default` where none is there, or it is null."""
    for name in names:
        value = config.get(name)
        if type(value) is int and least <= value < MOST:
            return value
        if value is not None or (name in config and default is None):
            raise ModelRefusedError(f"config.json: {name} is {shown(value)}, expected a {'positive ' if least else ''}whole number")
    if default is None:
        raise ModelRefusedError(f"config.json: {' or '.join(names)} is missing")
    return default


def yes(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """A boolean that may be missing and may not be null."""
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ModelRefusedError(f"config.json: {name} is {shown(value)}, expected true or false")
    return value


def refuse_nulls(config: Mapping[str, Any], names: frozenset[str]) -> None:
    """ModelRefusedError where one of these keys is there and null."""
    for name in sorted(names):
        if name in config and config[name] is None:
            raise ModelRefusedError(f"config.json: {name} is null, expected a value")


def shown(value: object) -> str:
    """A value in a message, as JSON says it where that differs, and cut off where it is long."""
    text = {None: "null", True: "true", False: "false"}.get(value) if value is None or isinstance(value, bool) else repr(value)
    return str(text)[:60]
