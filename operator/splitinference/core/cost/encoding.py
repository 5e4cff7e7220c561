"""On which links of a plan hidden states travel in eight bits: where that saves a time that a client notices.

The choice is made for the links of a plan that the search has found. The search counts all links in eight bits, and no choice takes less:
so its bound holds for each of them, and what it misses is at most `LEAST_SAVED_MS` for each link.
"""

from collections.abc import Callable

from splitinference.core.cost.link import Links, bytes_per_token
from splitinference.core.values.cluster import LinkQuality
from splitinference.core.values.plan import Plan, Segment
from splitinference.core.values.problem import Goal, Problem
from splitinference.core.values.profile import LinkEncoding

LEAST_SAVED_MS = 100.0
"""Milliseconds of a whole request that eight bits have to save on a link: from about a tenth of a second on, people notice a delay."""
CODING_MS_PER_VALUE = 8e-6
"""Milliseconds of one core for encoding and decoding a value: measured, 33 us for a token of width 4,096."""
LARGEST_ERROR = 0.5 / 127
"""Of a value in eight bits, as a share of the largest of the 64 neighbours with which it shares a scale: half a step of 127."""


def saved_ms(problem: Problem, boundary: int, there: LinkQuality) -> float:
    """Milliseconds of a request, its prompt and its output tokens, that eight bits save over this boundary and link; 0 where nothing can be
    encoded."""
    values = problem.profile.layers[boundary - 1].boundary_values_per_token
    if values is None:
        return 0.0
    tokens = problem.workload.prompt_tokens + problem.workload.output_tokens - 1
    fewer = bytes_per_token(problem, boundary, LinkEncoding.PLAIN) - bytes_per_token(problem, boundary, LinkEncoding.INT8)
    return tokens * (1e3 * fewer / there.bandwidth_bytes_per_s - CODING_MS_PER_VALUE * values)


def searched(problem: Problem) -> Problem:
    """The problem that the search is given: with one encoding for all links. For throughput, whose flows are cut by link, that is plain."""
    if problem.link_encoding is not LinkEncoding.AUTO:
        return problem
    encoding = LinkEncoding.PLAIN if problem.objective.goal is Goal.THROUGHPUT else LinkEncoding.INT8
    return problem.model_copy(update={"link_encoding": encoding})


def without(plan: Plan) -> Plan:
    """The plan without encodings of its own."""
    return _with(plan, lambda segment, following: None)


def encoded(plan: Plan, problem: Problem, *, everywhere: bool = False) -> Plan:
    """The plan with eight bits on the links where they save enough; or `everywhere`, as the search has counted."""
    if problem.link_encoding is not LinkEncoding.AUTO or problem.objective.goal is Goal.THROUGHPUT:
        return plan
    links = Links(problem.snapshot.network, problem.snapshot.nodes)

    def chosen(segment: Segment, following: Segment) -> LinkEncoding | None:
        ways = [links.quality(a, b) for a in segment.nodes for b in following.nodes]
        saved = max(saved_ms(problem, segment.end, there) for there in ways)
        return LinkEncoding.INT8 if saved >= LEAST_SAVED_MS or (everywhere and saved) else None

    return _with(plan, chosen)


def _with(plan: Plan, chosen: Callable[[Segment, Segment], LinkEncoding | None]) -> Plan:
    pipelines = []
    for pipeline in plan.pipelines:
        pairs = zip(pipeline.segments, pipeline.segments[1:], strict=False)
        segments = [segment.model_copy(update={"link_encoding": chosen(segment, following)}) for segment, following in pairs]
        pipelines.append(pipeline.model_copy(update={"segments": (*segments, pipeline.segments[-1])}))
    return plan.model_copy(update={"pipelines": tuple(pipelines)})


def in_words(plan: Plan, problem: Problem) -> list[str]:
    """A sentence for each link in eight bits: what it saves and what it costs."""
    links = Links(problem.snapshot.network, problem.snapshot.nodes)
    lines = []
    for pipeline in plan.pipelines:
        for segment, following in zip(pipeline.segments, pipeline.segments[1:], strict=False):
            if (segment.link_encoding or problem.link_encoding) is not LinkEncoding.INT8:
                continue
            plain, eight = (bytes_per_token(problem, segment.end, each) for each in (LinkEncoding.PLAIN, LinkEncoding.INT8))
            if plain == eight:
                continue
            saved = max(saved_ms(problem, segment.end, links.quality(a, b)) for a in segment.nodes for b in following.nodes)
            loss = f"each value is off by at most {LARGEST_ERROR:.1%} of the largest of its 64 neighbours"
            lines.append(
                f"{segment.node} sends {following.node} eight bits for a value: {eight} bytes a token instead of {plain}, "
                f"{max(0.0, saved):.0f} ms less in a request; {loss}"
            )
    return lines
