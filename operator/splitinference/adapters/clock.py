"""The time."""

from datetime import UTC, datetime


class SystemClock:
    """Implements `Clock`."""

    def now(self) -> datetime:
        """Now, aware, UTC."""
        return datetime.now(UTC)
