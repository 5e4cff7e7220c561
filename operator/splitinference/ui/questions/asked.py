"""What the what-if form asks: changes to a problem, and the problem with them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitinference.controller.api.sections.spec_value import LayerRange
from splitinference.core.values.plan import Plan
from splitinference.core.values.problem import Problem, Slo, TrustRule

MOST_NODES = 100


class UnanswerableError(Exception):
    """The question cannot be answered; the message says why and what to do."""


@dataclass(frozen=True)
class Basis:
    """What a question is about: the problem as it is, the plan in force (None: none yet), and what could not be known."""

    problem: Problem
    plan: Plan | None = None
    notes: tuple[str, ...] = ()


class Rule(BaseModel):
    """A privacy rule: these layers may run only on nodes with these labels. `layers`: first, last, or a range such as 0-8."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    layers: LayerRange
    labels: Mapping[str, str] = Field(min_length=1, max_length=8)


class Question(BaseModel):
    """The form. `remove`: nodes that are gone; `busy`: percent of each node's processors that others use; limits in ms: None leaves the
    resource's own, 0 takes it away."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    resource: str = Field(min_length=3, max_length=600)
    remove: tuple[str, ...] = Field(default=(), max_length=MOST_NODES)
    busy: Mapping[str, float] = Field(default_factory=dict, max_length=MOST_NODES)
    first_token_ms: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    next_token_ms: float | None = Field(default=None, ge=0, le=1e9, allow_inf_nan=False)
    rules: tuple[Rule, ...] = Field(default=(), max_length=8)


def read_question(body: Any) -> Question:
    """The question that a browser sent. Raises UnanswerableError with each fault."""
    try:
        return Question.model_validate(body)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_context=False, include_input=False)[:8]
        words = (f"{'.'.join(map(str, fault['loc'])) or 'the question'}: {fault['msg']}" for fault in faults)
        raise UnanswerableError("; ".join(words)) from error


def changed(problem: Problem, question: Question) -> Problem:
    """The problem with what the question changes. Raises UnanswerableError for names and layers that it does not have."""
    names = {node.name for node in problem.snapshot.nodes}
    unknown = sorted({*question.remove, *question.busy} - names)
    if unknown:
        raise UnanswerableError(f"There is no node {unknown[0][:80]!r}. The form lists the nodes that exist.")
    gone = frozenset(question.remove)
    if gone >= names:
        raise UnanswerableError("Without any node there is nothing to plan.")
    for name, percent in question.busy.items():
        if not 0 <= percent <= 100:
            raise UnanswerableError(f"{name[:80]}: expected a load from 0 to 100 %, got {percent:g}.")
    nodes = tuple(
        node.model_copy(update={"utilization": question.busy[node.name] / 100}) if node.name in question.busy else node
        for node in problem.snapshot.nodes
        if node.name not in gone
    )
    network = problem.snapshot.network
    kept = {
        "links": tuple(link for link in network.links if link.source not in gone and link.target not in gone),
        "closed": tuple(way for way in network.closed if way.source not in gone and way.target not in gone),
        "ingress": "" if network.ingress in gone else network.ingress,
    }
    snapshot = problem.snapshot.model_copy(update={"nodes": nodes, "network": network.model_copy(update=kept)})
    constraints = problem.constraints.model_copy(update={"trust": (*problem.constraints.trust, *_rules(question, problem))})
    serving = tuple(entry for entry in problem.serving if entry[2] not in gone)
    slo = Slo(
        time_to_first_token_ms=_limit(question.first_token_ms, problem.slo.time_to_first_token_ms),
        time_per_output_token_ms=_limit(question.next_token_ms, problem.slo.time_per_output_token_ms),
    )
    # Validated anew: a limit may not go with the goal.
    fields = {name: getattr(problem, name) for name in type(problem).model_fields}
    try:
        return Problem(**{**fields, "snapshot": snapshot, "constraints": constraints, "slo": slo, "serving": serving})
    except ValidationError as error:
        raise UnanswerableError("; ".join(str(fault["msg"]) for fault in error.errors(include_url=False, include_context=False))) from error


def _limit(given: float | None, before: float | None) -> float | None:
    return before if given is None else (given or None)


def _rules(question: Question, problem: Problem) -> tuple[TrustRule, ...]:
    layers, found = len(problem.profile.layers), []
    for rule in question.rules:
        run = rule.layers.of(layers)
        if run is None:
            raise UnanswerableError(f"The model has {layers} layers, so there are no layers {rule.layers.text}.")
        found.append(TrustRule(start=run[0], end=run[1], labels=rule.labels))
    return tuple(found)
