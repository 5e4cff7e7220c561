"""Waiting in tests: as long as a busy machine needs, and not much longer than an idle one where what is waited for will not come."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SLOW = 3.0
"""An idle machine may be so many times slower than the one that the times were taken on."""
BUSY = 8.0
"""A second in which programs waited for a processor all the time counts as one such part of a second."""
PRESSURE = Path("/proc/pressure/cpu")


def waited_seconds(pressure: Path = PRESSURE) -> float | None:
    """Seconds since the machine started in which some program waited for a processor. None: this kernel does not say."""
    try:
        (some,) = (line for line in pressure.read_text().splitlines() if line.startswith("some "))
        return float(some.rpartition("total=")[2]) / 1e6
    except (OSError, ValueError):
        return None


class Patience:
    """A clock that goes slowly while the machine is busy."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, waited: Callable[[], float | None] = waited_seconds) -> None:
        self._clock, self._waited = clock, waited
        self._last = clock(), waited()
        self.seconds = 0.0

    def spent(self) -> float:
        """Seconds by this clock since it was made. Call it often: what was waited is looked at from call to call."""
        now, waited = self._clock(), self._waited()
        passed = now - self._last[0]
        busy = 1.0 if waited is None or self._last[1] is None else min(passed, max(0.0, waited - self._last[1])) / passed if passed else 0.0
        self._last = now, waited
        self.seconds += passed * (1.0 - busy * (1.0 - 1.0 / BUSY))
        return self.seconds


def until(
    holds: Callable[[], Any],
    seconds: float,
    what: str,
    *,
    ended: Callable[[], str | None] = lambda: None,
    pause_seconds: float = 0.05,
    patience: Patience | None = None,
) -> Any:
    """The first true value of `holds`; an OSError of it counts as not yet. `seconds` is what it takes on an idle machine.

    Raises AssertionError when SLOW times as long has passed by the clock of `Patience`, and at once when `ended` says why it cannot come.
    """
    patience, began = patience or Patience(), time.monotonic()
    while True:
        try:
            if value := holds():
                return value
        except OSError:
            pass
        if why := ended():
            raise AssertionError(f"{what}: {why}")
        if patience.spent() > seconds * SLOW:
            raise AssertionError(f"{what}: not within {time.monotonic() - began:.0f} s")
        time.sleep(pause_seconds)
