"""Times that a status remembers, against the clock of now: one from the future, by a clock that was wrong or by a wrong hand, must not keep
anything waiting until then."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

from splitinference.core.values.value import Value

T = TypeVar("T")


def not_after(remembered: T, now: datetime) -> T:
    """The same value, where each time after `now` is `now`, and one without a zone is in UTC."""
    found: T = _clamped(remembered, now)
    return found


def _clamped(value: Any, now: datetime) -> Any:
    if isinstance(value, datetime):
        aware = value if value.tzinfo is not None else value.replace(tzinfo=UTC)
        return min(aware, now)
    if isinstance(value, Value):
        there = {name: getattr(value, name) for name in type(value).model_fields}
        changed = {name: new for name, old in there.items() if (new := _clamped(old, now)) is not old}
        return value.model_copy(update=changed) if changed else value
    if isinstance(value, Mapping):
        made = {key: _clamped(each, now) for key, each in value.items()}
        return made if any(made[key] is not value[key] for key in made) else value
    if isinstance(value, tuple):
        several = tuple(_clamped(each, now) for each in value)
        return several if any(a is not b for a, b in zip(several, value, strict=True)) else value
    return value
