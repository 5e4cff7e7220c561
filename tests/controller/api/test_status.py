"""The status: times of conditions, decisions that are news, figures for columns, and patches of what changed alone."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitinference.controller.api.conditions import (
    Condition,
    Decision,
    Kind,
    conditions,
    decisions,
    merge_patch,
)
from splitinference.controller.api.sections.adaptation_spec import Adaptation
from splitinference.controller.api.spec import Rejected, Resource, SpecReader
from splitinference.controller.manifests.segment import Manifests
from splitinference.controller.plan_io.columns import duration, latency, nodes, observed
from splitinference.controller.plan_io.plan_status import Planned, asked_for, build, read_plan, write_plan
from splitinference.controller.spec_to_core.policy import policy
from splitinference.core.decide.base.policy import Mode
from splitinference.core.transition.state import Phase, Route
from splitinference.core.values.profile import LinkEncoding
from splitinference_protocol.report import ObservedTraffic
from tests.controller.objects import merged, parsed
from tests.controller.world import SETTINGS, a_body, seen_traffic
from tests.core.planning import a_node, a_plan, a_problem, a_profile

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(minutes=5)


def ready(holds: bool | None, message: str = "") -> Condition:
    return Condition(kind=Kind.READY, holds=holds, reason="Serving" if holds else "NotServing", message=message)


def test_a_condition_as_kubernetes_has_it():
    assert conditions([], [ready(None, "why")], 3, NOW) == [
        {
            "type": "Ready",
            "status": "Unknown",
            "reason": "NotServing",
            "message": "why",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
            "observedGeneration": 3,
        }
    ]


def test_the_time_of_transition_changes_with_the_status_only():
    first = conditions([], [ready(True, "one")], 1, NOW)
    same = conditions(first, [ready(True, "two")], 2, LATER)
    assert (same[0]["message"], same[0]["lastTransitionTime"]) == ("two", "2026-01-01T00:00:00Z")
    other = conditions(same, [ready(False)], 2, LATER)
    assert other[0]["lastTransitionTime"] == "2026-01-01T00:05:00Z"


def test_a_condition_that_holds_no_longer_is_gone():
    first = conditions([], [ready(True), Condition(kind=Kind.STALLED, holds=True, reason="Infeasible")], 1, NOW)
    assert [c["type"] for c in conditions(first, [ready(True)], 1, LATER)] == ["Ready"]


def decision(reason: str, transition: str = "migration", message: str = "m") -> Decision:
    return Decision(time=NOW, reason=reason, message=message, transition=transition, revision="r")


def test_the_last_ten_decisions_newest_first():
    kept: list[dict[str, Any]] = []
    for number in range(12):
        kept = decisions(kept, decision(f"R{number}"))
    assert [entry["reason"] for entry in kept] == [f"R{number}" for number in range(11, 1, -1)]
    assert kept[0] == {"time": "2026-01-01T00:00:00Z", "reason": "R11", "message": "m", "transition": "migration", "revision": "r"}


def test_staying_again_for_the_same_reason_is_no_news_but_moving_again_is():
    kept = decisions([], decision("GainTooSmall", "keep", "3 %"))
    assert decisions(kept, decision("GainTooSmall", "keep", "4 %")) == kept
    assert len(decisions(kept, decision("Infeasible", "keep"))) == 2
    moved = decisions([], decision("NodeLost"))
    assert len(decisions(moved, decision("NodeLost"))) == 2
    assert decisions(moved, None) == moved


def test_observed_figures_are_renewed_now_and_then():
    first = observed({}, seen_traffic(requests=3), "r1", NOW)
    assert (first["requests"], first["revision"]) == (3, "r1")
    assert observed(first, seen_traffic(requests=9), "r1", NOW + timedelta(seconds=10)) == first
    assert observed(first, seen_traffic(requests=9), "r1", NOW + timedelta(seconds=16))["requests"] == 9


def test_without_requests_the_last_figures_stay_and_those_of_another_route_do_not():
    first = observed({}, seen_traffic(), "r1", NOW)
    assert observed(first, ObservedTraffic(), "r1", LATER) == first
    assert observed(first, None, "r1", LATER) == first
    assert observed(first, ObservedTraffic(), "r2", LATER) == {}


def test_columns():
    assert latency(observed({}, seen_traffic(per_token=12), "r", NOW), 128) == "1.6s"
    assert latency({}, 128) == ""
    assert [duration(ms) for ms in (8.4, 840, 1940, 75_300)] == ["8ms", "840ms", "1.9s", "75s"]
    assert nodes(Route(pipelines=(("x", "y"), ("z",))), {"x": "a", "y": "b"}) == "a,b | ?"
    assert nodes(None, {}) == ""


# --- patches -------------------------------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.booleans() | st.integers(-3, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text("abc", max_size=1), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text("abc", max_size=1), JSON, max_size=4)


@given(OBJECTS, OBJECTS)
def test_a_patch_leads_from_one_status_to_the_other(before: dict[str, Any], after: dict[str, Any]):
    assert merged(before, json.loads(json.dumps(merge_patch(before, after)))) == after


@given(OBJECTS)
def test_nothing_changed_is_nothing_to_write(status: dict[str, Any]):
    assert merge_patch(status, json.loads(json.dumps(status))) == {}


# --- the plan in the status ----------------------------------------------------------------------------------------------------------

PROBLEM = a_problem(a_node("a"), a_node("b"))


def planned() -> Planned:
    plan = a_plan("a[0:2] b[2:4]", PROBLEM).model_copy(
        update={"value": 12.5, "bound": 12.5, "gap": 0.0, "optimal": True, "explanation": ("because",)}
    )
    body = a_body()
    return Planned(plan=plan, resource=parsed(body), spec=body["spec"], asked=asked_for(body["spec"], a_profile()))


def written() -> dict[str, Any]:
    built = build(planned(), a_profile(), Manifests(SETTINGS))
    names = list(built.target.segments)
    found: dict[str, Any] = json.loads(json.dumps(write_plan(planned(), built, {names[0]: Phase.PROVEN})))
    return found


def of_the_body(spec: Mapping[str, Any]) -> Resource | Rejected:
    return SpecReader().read(a_body(), spec)


def read_back(plan: Mapping[str, Any]) -> Planned | None:
    return read_plan({"plan": plan}, of_the_body)


def test_a_plan_survives_the_status():
    back = read_back(written())
    assert back is not None
    assert back.plan.revision == planned().plan.revision
    assert (back.plan.value, back.plan.gap, back.plan.optimal, back.plan.explanation) == (12.5, 0.0, True, ("because",))
    assert (back.spec, back.asked) == (planned().spec, planned().asked)
    assert back.plan.prediction is not None
    assert planned().plan.prediction is not None
    assert [s.memory_bytes for s in back.plan.prediction.stages] == [s.memory_bytes for s in planned().plan.prediction.stages]
    assert back.plan.prediction.stages[0].link_ms == pytest.approx(planned().plan.prediction.stages[0].link_ms, abs=1e-3)


def test_the_encoding_of_a_link_survives_the_status():
    plan = planned().plan
    first, last = plan.segments
    eight = first.model_copy(update={"link_encoding": LinkEncoding.INT8})
    chosen = plan.model_copy(update={"pipelines": (plan.pipelines[0].model_copy(update={"segments": (eight, last)}),)})
    found = replace(planned(), plan=chosen)
    built = build(found, a_profile(), Manifests(SETTINGS))
    said = json.loads(json.dumps(write_plan(found, built, {})))
    assert [segment.get("linkEncoding") for segment in said["segments"]] == ["Int8", None]
    back = read_back(said)
    assert back is not None
    assert back.plan.revision == chosen.revision != plan.revision


def test_a_plan_is_written_the_same_after_it_was_read():
    back = read_back(written())
    assert back is not None
    built = build(back, a_profile(), Manifests(SETTINGS))
    again = json.loads(json.dumps(write_plan(back, built, {next(iter(built.target.segments)): Phase.PROVEN})))
    assert merge_patch(written(), again) == {}


def test_a_plans_segments_are_said_with_what_they_need_and_take():
    first, second = written()["segments"]
    assert {k: first[k] for k in ("pipeline", "start", "end", "node", "weightMiB", "kvMiB", "phase")} == {
        "pipeline": 0,
        "start": 0,
        "end": 2,
        "node": "a",
        "weightMiB": 200,
        "kvMiB": 0,
        "phase": "Proven",
    }
    assert second["phase"] == "Missing"
    assert first["linkMs"] > 0
    assert second["linkMs"] == 0


@pytest.mark.parametrize("broken", ["segments", "predicted", "modelDigest", "madeFor", "asked"])
def test_a_plan_that_cannot_be_read_is_none(broken: str):
    plan = written()
    del plan[broken]
    assert read_back(plan) is None
    assert read_plan({}, of_the_body) is None
    assert read_back({"segments": "x"}) is None


def test_a_plan_for_a_specification_that_is_none_any_more_is_none():
    """As after an upgrade that no longer knows a field: then another plan is made, and the pass does not fail again and again."""
    assert read_back({**written(), "madeFor": {**a_body()["spec"], "fieldOfAnEarlierVersion": 1}}) is None


def test_a_specification_is_read_once_while_it_stays_the_same():
    reader, body = SpecReader(), a_body()
    first = reader.read(body)
    assert isinstance(first, Resource)
    again = reader.read(a_body())
    assert isinstance(again, Resource)
    assert again.spec is first.spec
    older = {**body["spec"], "slo": {"timePerOutputToken": "1s"}}
    before, wrong = reader.read(body, older), reader.read(body, {"model": {}})
    assert isinstance(before, Resource)
    assert before.spec.slo.time_per_output_token == timedelta(seconds=1)
    assert (before.name, before.uid) == (first.name, first.uid)
    assert isinstance(wrong, Rejected)
    changed = reader.read({**body, "spec": older})
    assert isinstance(changed, Resource)
    assert changed.spec.slo == before.spec.slo


def test_how_to_adapt_is_no_part_of_what_a_plan_is_made_for():
    spec = a_body()["spec"]
    profile = a_profile()
    assert asked_for({**spec, "adaptation": {"mode": "Frozen"}}, profile) == asked_for(spec, profile)
    assert asked_for({**spec, "slo": {"timePerOutputToken": "1s"}}, profile) != asked_for(spec, profile)
    assert asked_for(spec, a_profile(digest="f" * 16)) != asked_for(spec, profile)


def test_the_policy_is_what_the_spec_says():
    found = policy(
        Adaptation.model_validate({"mode": "Advisory", "window": "10s", "minGainPercent": 5, "thresholds": {"utilizationPercent": 80}})
    )
    assert (found.mode, found.window, found.min_gain, found.utilization_limit) == (Mode.ADVISORY, timedelta(seconds=10), 0.05, 0.8)
