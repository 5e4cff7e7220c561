"""What contention takes that use does not show: pressure stall information of nodes and segments → the share of a node that is lost.

Use says which part of a node's time is taken. It does not say whether who wants to run gets to run: cores that a host sells twice, limits
of a group of containers, or bursts that meet make tasks wait on a node that looks idle. How long tasks wait, the kernel counts.

- A segment that runs for r core-seconds a second and waits for w of it is busy for b = w + r / threads, and computes with r / b cores while
  it is. What it lacks of the node's cores is lost.
- On a node without a busy segment of ours, others' tasks show it: who runs for r and waits for w gets r / (r + w). Waiting for which
  CPU limits of containers are the reason is left out: it is theirs alone, and the kernel counts it for the node, too.

What is small is noise and no loss. What is not known is unknown, not zero: then use alone counts.
"""

import math
from collections.abc import Sequence

from splitinference.controller.cluster_state.figures.node_metrics import Judge, Measured

TELLING_BUSY = 0.05
"""Tasks that ran or waited for less of the time say nothing about what one gets."""
NOISE = 0.15
"""A loss up to this is what wake-ups and hyper-threads cost on any node; calibration takes up what of it is steady."""
_HALF_OF_A_PERIOD = 0.5
"""Of a scheduler's period in which a CPU limit held a container back, so much is taken to be lost: it was some, more is not known."""


def lost(measured: Measured, node: str, cores: float, own_pods: Sequence[str], judge: Judge) -> float | None:
    """Share 0..1 of the node that we lose to waiting; 0 where it is noise, None where it is not known."""
    if cores <= 0:
        return None
    known = [found for pod in own_pods if (found := _of_segment(measured, pod, cores, judge)) is not None]
    if known:
        return _telling(max(known))
    if own_pods and _busy(measured, own_pods, judge):
        return None  # what the node waits for may be our own segments
    found = _of_node(measured, node, judge)
    return None if found is None else _telling(found)


def _telling(share: float) -> float:
    return 0.0 if share <= NOISE else round(min(1.0, share), 3)


def _of_segment(measured: Measured, pod: str, cores: float, judge: Judge) -> float | None:
    ran = judge.value(measured.segment_cpu_cores, pod, "CPU use")
    if ran is None or ran <= 0:
        return None
    waited = judge.share(measured.segment_cpu_waiting, pod, "time that tasks waited")
    if waited is None:
        held = judge.share(measured.segment_cpu_throttled, pod, "periods held back by a CPU limit")
        return None if held is None or ran < TELLING_BUSY * cores else _HALF_OF_A_PERIOD * held
    busy = waited + ran / max(1, math.ceil(cores))
    return None if busy < TELLING_BUSY else max(0.0, 1.0 - ran / busy / cores)


def _busy(measured: Measured, own_pods: Sequence[str], judge: Judge) -> bool:
    """Whether our own segments there compute, or may do."""
    used = [judge.value(measured.segment_cpu_cores, pod, "CPU use") for pod in own_pods]
    return any(cores is None or cores >= TELLING_BUSY for cores in used)


def _of_node(measured: Measured, node: str, judge: Judge) -> float | None:
    ran = judge.value(measured.node_cpu_cores, node, "CPU use")
    waited = judge.share(measured.node_cpu_waiting, node, "time that tasks waited")
    if ran is None or waited is None:
        return None
    limited = judge.share(measured.node_cpu_limited, node, "time that CPU limits held containers back") or 0.0
    waited = max(0.0, waited - limited)
    return None if ran + waited < TELLING_BUSY else waited / (ran + waited)
