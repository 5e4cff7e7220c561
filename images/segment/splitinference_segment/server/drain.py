"""segment-drain: a pod's preStop hook. Waits until no sequence has been stepped for a moment, or until the given seconds are over.

Triton unloads its model as soon as it is told to stop, so whatever still runs must be done before.
"""

import os
import sys
import time
from collections.abc import Callable

from splitinference_segment.server.probe import ProbeError, ask

LONGEST_S = 30.0
QUIET_S = 2.0
PERIOD_S = 0.25


def wait_until_quiet(
    steps: Callable[[], int], longest_s: float, quiet_s: float, clock: Callable[[], float], sleep: Callable[[float], None]
) -> bool:
    """Ask for the number of steps until it has stood still for `quiet_s`: True. False when `longest_s` is over first."""
    started = changed = clock()
    last = steps()
    while clock() - started < longest_s:
        if clock() - changed >= quiet_s:
            return True
        sleep(PERIOD_S)
        now = steps()
        if now != last:
            last, changed = now, clock()
    return False


def main() -> int:
    """`segment-drain [LONGEST_SECONDS [QUIET_SECONDS]]`. Exit code 0 always but for wrong arguments: the pod ends anyway."""
    try:
        longest = float(sys.argv[1]) if len(sys.argv) > 1 else LONGEST_S
        quiet = float(sys.argv[2]) if len(sys.argv) > 2 else QUIET_S
    except ValueError:
        print("usage: segment-drain [LONGEST_SECONDS [QUIET_SECONDS]]", file=sys.stderr)
        return 2
    port, model = int(os.environ.get("SI_HTTP_PORT", "8000")), os.environ.get("SI_MODEL_NAME", "")

    def steps() -> int:
        return int(ask(port, model, {"op": "stats"}, 2.0)["steps"])

    try:
        quiet_reached = wait_until_quiet(steps, longest, quiet, time.monotonic, time.sleep)
    except (OSError, ValueError, KeyError, ProbeError) as gone:
        print(f"segment-drain: the server does not answer, nothing to wait for: {gone}", file=sys.stderr)
        return 0
    print("quiet" if quiet_reached else f"still stepping after {longest:g} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
