"""Priorities: who gives way to whom where memory does not do for all.

A resource is planned onto memory that segments of resources with a lower `spec.priority` hold only if there is no plan otherwise, and takes
from as few of them as it can, the lowest first. Its plan is in its status then, and holds the memory. Those of lower priority see it there:
each moves away if it can, and otherwise gives its segments away and waits, with its gateway there and a condition that says for whom.
Nothing is created where a segment of theirs still is. Equal priorities never give way to each other.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from splitinference.controller.api.group import DEFAULT_CLASS
from splitinference.controller.cluster_state.node_capacity import Owner, Standing
from splitinference.controller.cluster_state.snapshot import NOBODY_YIELDS, Held, Yielding
from splitinference.controller.ports import Listing, Manifest
from splitinference.controller.reconcile.planning.gather import Looker, Seen, owner_of
from splitinference.controller.reconcile.planning.plan_pass import PassPlan
from splitinference.core.decide.base.decision import Keep, Kept
from splitinference.core.decide.base.triggers import Reason
from splitinference.core.transition.steps import CreateSegment, Steps
from splitinference.settings import PreemptionScope

_MOST_TRIES = 4
"""So many sets of resources are asked to give way in one pass: each costs a solve."""


@dataclass(frozen=True)
class Rank:
    """A resource and its priority."""

    priority: int
    owner: Owner

    def __str__(self) -> str:
        return f"{'/'.join(self.owner)} (priority {self.priority})"


@dataclass(frozen=True)
class Precedence:
    """Resources of a lower priority than one of `own`, the lowest first, and those of a higher one."""

    own: int
    lower: tuple[Rank, ...] = ()
    higher: tuple[Rank, ...] = ()


def precedence(body: Manifest, resources: Sequence[Manifest], scope: PreemptionScope) -> Precedence:
    """Of all resources that this one may take from or must give way to: of the same operator class, and within the scope."""
    own, (namespace, _) = _priority(body), owner_of(body)
    if scope is PreemptionScope.NEVER:
        return Precedence(own)
    others = [
        Rank(_priority(other), owner_of(other))
        for other in resources
        if _class(other) == _class(body)
        and not other["metadata"].get("deletionTimestamp")
        and (scope is PreemptionScope.CLUSTER or owner_of(other)[0] == namespace)
    ]
    ranks = sorted(others, key=lambda rank: (rank.priority, rank.owner))
    return Precedence(own, tuple(r for r in ranks if r.priority < own), tuple(r for r in ranks if r.priority > own))


def _priority(body: Manifest) -> int:
    found = (body.get("spec") or {}).get("priority", 0)
    return found if isinstance(found, int) else 0


def _class(body: Manifest) -> str:
    return str((body.get("spec") or {}).get("operatorClass") or DEFAULT_CLASS)


@dataclass(frozen=True)
class Contest:
    """What one pass knows of who holds what. `yielding`: for each node of the resource's own plan that is short of memory, those of lower
    priority who hold some there; `room_bytes`: what is free on nodes now, without anybody giving way."""

    looker: Looker
    seen: Seen
    resources: Listing
    ranks: Precedence
    yielding: Yielding
    room_bytes: Mapping[str, int]

    @staticmethod
    def of(looker: Looker, seen: Seen, resources: Listing, scope: PreemptionScope) -> "Contest":
        """With what is seen as the resource's priority shows it: its own plan is not short of memory because of those below it, and where
        it is because of those above it, `seen.preempted` says so."""
        ranks = precedence(seen.body, resources, scope)
        plain = Contest(looker, seen, resources, ranks, NOBODY_YIELDS, _free(seen))
        short = plain.short_of(seen)
        if not short or not (ranks.lower or ranks.higher):
            return plain
        below = {name: owners for name, owners in plain.holders(ranks.lower).items() if name in short}
        if below:
            plain = replace(plain, seen=plain.seen_without(below), yielding=below)
        short = plain.short_of(plain.seen)
        above = {name: owners for name, owners in plain.holders(ranks.higher).items() if name in short}
        if not above:
            return plain
        there = _free(plain.seen_without({name: owners | below.get(name, frozenset()) for name, owners in above.items()}))
        words = {
            name: f"its memory is needed by {_names(ranks.higher, owners)}, and this resource has priority {ranks.own}"
            for name, owners in above.items()
            if _needs(seen).get(name, 0) <= there.get(name, 0)
        }
        return replace(plain, seen=replace(plain.seen, preempted=words))

    def short_of(self, seen: Seen) -> frozenset[str]:
        """Nodes that have less memory than the resource's plan needs there."""
        free = _free(seen)
        return frozenset(name for name, needed in _needs(seen).items() if name in free and needed > free[name])

    def holders(self, ranks: Sequence[Rank]) -> Mapping[str, frozenset[Owner]]:
        """For each node those of these resources that hold memory there, by segments or by a plan."""
        standing, held = self._standing()
        found: dict[str, set[Owner]] = defaultdict(set)
        for rank in ranks:
            for name in {*standing.nodes_of(rank.owner), *held.by_owner.get(rank.owner, ())}:
                found[name].add(rank.owner)
        return {name: frozenset(owners) for name, owners in found.items()}

    def seen_without(self, yielding: Yielding) -> Seen:
        """What is seen where these give way."""
        seen = self.seen
        return seen.with_reading(self.looker.read(seen.now, seen.nodes, seen.pods, seen.measured, self.resources, yielding=yielding))

    def tries(self) -> Iterator[Yielding]:
        """Sets of resources that might give way: the lowest alone, then the next besides, and so on; at last all of them. None while one of
        them moves: it holds memory twice then, and when it has moved there may be room for all."""
        holding = [rank for rank in self.ranks.lower if self.holders([rank])]
        moving = {owner_of(found) for found in self.resources if (found.get("status") or {}).get("transition")}
        if any(rank.owner in moving for rank in holding):
            return
        counts = [*range(1, min(len(holding), _MOST_TRIES - 1) + 1), len(holding)] if holding else []
        yield from (self.holders(holding[:count]) for count in dict.fromkeys(counts))

    def words(self, yielding: Yielding, nodes: Mapping[str, int]) -> str:
        """Who gives way for a plan that needs so many bytes on `nodes`, in words; empty where nobody has to."""
        found = [
            f"{_names(self.ranks.lower, owners)} gives way on {name}"
            for name, owners in sorted(yielding.items())
            if nodes.get(name, 0) > self.room_bytes.get(name, 0)
        ]
        return "; ".join(found)

    def held_back(self, made: PassPlan, yielding: Yielding) -> PassPlan:
        """Without segments on nodes where those who give way still are, if there is no room for them beside these."""
        if not yielding or not isinstance(made.steps, Steps):
            return made
        standing, _ = self._standing()
        left = {name: room - self.seen.observed.held_bytes(name) for name, room in self.room_bytes.items()}
        waiting: list[str] = []
        actions = []
        for action in made.steps.actions:
            if isinstance(action, CreateSegment):
                node, needed = action.segment.node, action.segment.memory_bytes
                there = [
                    rank for rank in self.ranks.lower if rank.owner in yielding.get(node, ()) and node in standing.nodes_of(rank.owner)
                ]
                if there and needed > left.get(node, 0):
                    waiting.append(f"{', '.join(map(str, there))} gives way on {node}")
                    continue
                left[node] = left.get(node, 0) - needed
            actions.append(action)
        return replace(made, steps=Steps(actions=tuple(actions), waiting=(*made.steps.waiting, *dict.fromkeys(waiting))))

    def _standing(self) -> tuple[Standing, Held]:
        seen, sight = self.seen, self.looker.sight
        standing = sight.picture(seen.nodes, seen.pods, seen.measured).standing
        return standing, sight.held(self.resources, standing)


def wants_more(made: PassPlan) -> bool:
    """Whether the pass found no plan for a reason that cannot wait."""
    decision = made.decision
    return isinstance(decision, Keep) and decision.reason is Kept.INFEASIBLE and decision.trigger is not None and decision.trigger.mandatory


def gives_up(made: PassPlan) -> str:
    """Why the resource gives its segments away, in words; empty where it does not: another plan was found, or may be found yet."""
    decision = made.decision
    if not isinstance(decision, Keep) or decision.trigger is None or decision.trigger.reason is not Reason.PREEMPTED:
        return ""
    return decision.message if decision.reason in (Kept.INFEASIBLE, Kept.BLOCKED) else ""


def _needs(seen: Seen) -> Mapping[str, int]:
    """Bytes that the plan in the status needs, by node."""
    found: dict[str, int] = defaultdict(int)
    for segment in (seen.status.get("plan") or {}).get("segments") or ():
        found[str(segment.get("node"))] += int(segment.get("memoryBytes") or 0)
    return found


def _free(seen: Seen) -> Mapping[str, int]:
    return {node.name: node.memory_free_bytes for node in seen.reading.snapshot.nodes}


def _names(ranks: Sequence[Rank], owners: frozenset[Owner]) -> str:
    return ", ".join(str(rank) for rank in ranks if rank.owner in owners)
