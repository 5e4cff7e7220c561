"""Weights brought to likely targets before anything moves: a pod that fetches a segment's files into the node's cache and ends.

What is there is the memory of it: a pod for a plan's segment on a usable node outside of the plan is the choice, and stays, ended, as long
as the plan does. So a target does not wander with the load, and nothing is fetched twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from splitinference.controller.api.spec import Resource
from splitinference.controller.cluster_state.pods import labels_of, node_of
from splitinference.controller.manifests.pod_parts import COMPONENT, LAYERS_LABEL, MODEL_LABEL
from splitinference.controller.names import PREFETCH
from splitinference.controller.ports import Manifest, Ports, RefusedError
from splitinference.core.cost.checks.eligible import forbidden, unusable
from splitinference.core.decide.feasibility.prefetch_targets import likely_target
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Problem
from splitinference.core.values.profile import Profile


@dataclass(frozen=True)
class Wanted:
    """What is to be done: names of pods to delete, and segments to prefetch, each with its target as its node."""

    delete: tuple[str, ...] = ()
    fetch: tuple[Segment, ...] = ()


def wanted(plan: Plan, problem: Problem, pods: Sequence[Manifest]) -> Wanted:
    """For each segment of the plan a likely target, where there is one; pods for other plans' segments, or where none may run, go."""
    mine = _there(pods)
    delete, fetch = {str(pod["metadata"]["name"]) for pod in mine}, []
    for segment in plan.segments:
        chosen = next((pod for pod in mine if _is_for(pod, segment, plan) and _may(node_of(pod), segment, plan, problem)), None)
        if chosen is not None:
            delete.discard(str(chosen["metadata"]["name"]))
        elif (target := likely_target(segment, plan, problem)) is not None:
            fetch.append(segment.model_copy(update={"node": target}))
    return Wanted(delete=tuple(sorted(delete)), fetch=tuple(fetch))


def _there(pods: Sequence[Manifest]) -> list[Manifest]:
    return [pod for pod in pods if labels_of(pod).get(COMPONENT) == PREFETCH and not pod["metadata"].get("deletionTimestamp")]


def _is_for(pod: Manifest, segment: Segment, plan: Plan) -> bool:
    found = labels_of(pod)
    return found.get(LAYERS_LABEL) == f"{segment.start}-{segment.end}" and found.get(MODEL_LABEL) == plan.model_digest[:8]


def _may(node: str, segment: Segment, plan: Plan, problem: Problem) -> bool:
    """Whether the segment may still go to the node, outside of the plan."""
    found = next((each for each in problem.snapshot.nodes if each.name == node), None)
    if found is None or node in {name for other in plan.segments for name in other.nodes} or unusable(found, problem):
        return False
    return not any(forbidden(found, layer, problem.constraints) for layer in range(segment.start, segment.end))


@dataclass(frozen=True)
class Prefetcher:
    """Makes and deletes the pods of one resource, which is as it was when the plan was made."""

    ports: Ports
    resource: Resource
    profile: Profile

    def keep(self, plan: Plan | None, problem: Problem, pods: Sequence[Manifest]) -> tuple[str, ...]:
        """Have the pods that the plan wants and no others, of all `pods` of the resource; None wants none. Returns what the API server did
        not take. Each step may be done twice."""
        if plan is None or self.ports.builder.prefetch(self.resource, self.profile, plan.segments[0]) is None:
            what = Wanted(delete=tuple(str(pod["metadata"]["name"]) for pod in _there(pods)))
        else:
            what = wanted(plan, problem, pods)
        for name in what.delete:
            self.ports.cluster.delete("Pod", self.resource.namespace, name)
        refused = []
        for segment in what.fetch:
            pod = self.ports.builder.prefetch(self.resource, self.profile, segment)
            try:
                if pod is not None:
                    self.ports.cluster.create(pod)
            except RefusedError as error:
                refused.append(f"prefetch of [{segment.start}, {segment.end}) to {segment.node}: refused: {error}")
        return tuple(refused)
