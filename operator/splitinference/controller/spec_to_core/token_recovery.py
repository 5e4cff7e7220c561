"""From a limit on token recovery to rules of trust: which layers only a trusted node may run.

A node that runs a layer has the hidden states on both of its sides, whatever the segments are. So the limit is kept if each layer with a
boundary above it runs on trusted nodes, and the planner needs no other constraint. Tokens enter before the first layer and leave after the
last: there, all of them are read.
"""

import itertools

from splitinference.controller.api.sections.privacy_spec import Privacy
from splitinference.controller.api.spec import FieldProblem
from splitinference.core.values.problem import TrustRule

_PATH = "spec.privacy.tokenRecoveryPercent"


def rules(privacy: Privacy, layers: int) -> tuple[TrustRule, ...] | FieldProblem:
    """One rule for each run of layers that reveal more than the limit, with the figures; none without a limit.

    FieldProblem where the table is not this model's.
    """
    limit, table = privacy.max_token_recovery_percent, privacy.token_recovery_percent
    if table is not None and len(table) != layers - 1:
        message = (
            f"it has {len(table)} figures; the model has {layers} layers, so {layers - 1} boundaries between them. "
            "Measure this model with `splitinference bench privacy --model DIR --yaml`"
        )
        return FieldProblem(path=_PATH, message=message)
    if limit is None or table is None:
        return ()
    boundaries = (100.0, *table, 100.0)
    revealed = [max(before, after) for before, after in itertools.pairwise(boundaries)]
    lowest = min(revealed)
    if lowest > limit:
        layer = revealed.index(lowest)
        because = f"no cut keeps maxTokenRecoveryPercent {limit}: the lowest is {lowest:g} %, by layer {layer} alone"
        return (TrustRule(start=0, end=layers, labels=privacy.trusted_node_labels, because=because),)
    return tuple(
        TrustRule(
            start=start,
            end=end,
            labels=privacy.trusted_node_labels,
            because=f"token recovery of {min(revealed[start:end]):g} to {max(revealed[start:end]):g} %, the limit is {limit} %",
        )
        for start, end in _runs([share > limit for share in revealed])
    )


def _runs(marked: list[bool]) -> list[tuple[int, int]]:
    """Half-open ranges of what is marked."""
    found: list[tuple[int, int]] = []
    for index, is_marked in enumerate(marked):
        if is_marked and found and found[-1][1] == index:
            found[-1] = (found[-1][0], index + 1)
        elif is_marked:
            found.append((index, index + 1))
    return found
