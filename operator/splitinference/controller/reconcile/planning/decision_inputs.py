"""What the core is told of one resource: the problem, with what observed stages taught, and the facts that a decision goes by."""

from collections.abc import Iterator
from dataclasses import replace

from splitinference.controller.api.sections.scaling_spec import MOST_PIPELINES
from splitinference.controller.history.calibration import compare
from splitinference.controller.plan_io.plan_status import Built, Planned, asked_for
from splitinference.controller.plan_io.serving import Serving, serving_plan, serving_stages
from splitinference.controller.reconcile.planning.desired import Asked
from splitinference.controller.reconcile.planning.gather import Seen
from splitinference.controller.reconcile.planning.second_copies import second_copies
from splitinference.controller.spec_to_core import plan_constraints
from splitinference.core.cost.fitting.learn import counting
from splitinference.core.decide.base.policy import DecisionInputs, StageTime, Traffic
from splitinference.core.decide.feasibility.restrict import without_classes
from splitinference.core.decide.pipelines import as_many_as_fit
from splitinference.core.values.problem import Problem
from splitinference_protocol.report import ALONE_SECONDS


def calibrated(asked: Asked, planned: Planned | None, built: Built | None, seen: Seen) -> tuple[Seen, Problem]:
    """What is seen with what the stages that serve say of the cost model, and the problem with the factors that count."""
    plain = _problem(asked, planned, seen)
    known, notes = compare(seen.calibration, serving_stages(planned, built, seen.stored, seen.report), plain, seen.now)
    reading = replace(seen.reading, notes=tuple(dict.fromkeys([*seen.reading.notes, *notes])))
    problem = plain.model_copy(update={"snapshot": known.applied_to(plain.snapshot, seen.now)})
    return replace(seen, calibration=known, reading=reading), problem


def facts_of(asked: Asked, problem: Problem, planned: Planned | None, built: Built | None, seen: Seen) -> DecisionInputs:
    """All that a decision goes by, but for what the walk shows: `plan_pass` adds that."""
    serving = serving_stages(planned, built, seen.stored, seen.report)
    return DecisionInputs(
        now=seen.now,
        problem=problem,
        spec_digest=asked.digest,
        only_scaled=planned is not None and asked.digest != planned.asked and asked.digest == _scaled(planned, asked),
        quarantined={**seen.recall.quarantined(seen.now), **seen.lost},
        distrusted=seen.recall.distrusted_now(seen.now),
        pressured=seen.reading.pressured,
        preempted=seen.preempted,
        rejected=seen.recall.rejected_now(seen.now),
        moves=seen.recall.moves,
        traffic=_traffic(seen),
        stages=tuple(_stage_times(serving, seen)),
        measured_windows=seen.calibration.measured(serving),
        serving=serving_plan(seen.observed, asked.profile),
    )


def _scaled(planned: Planned, asked: Asked) -> str:
    """The hash of what the plan was made for, with the number of pipelines that is asked for now."""
    return asked_for({**planned.spec, "replicas": asked.resource.spec.replicas}, asked.profile)


def _problem(asked: Asked, planned: Planned | None, seen: Seen) -> Problem:
    plan = planned.plan if planned and planned.plan.model_digest == asked.profile.digest else None
    spec = asked.resource.spec
    problem = Problem(
        profile=asked.profile,
        snapshot=without_classes(seen.reading.snapshot.for_dtype(asked.profile.dtype), asked.barred),
        workload=plan_constraints.workload(spec),
        objective=plan_constraints.objective(spec),
        constraints=asked.constraints,
        slo=plan_constraints.slo(spec),
        link_encoding=plan_constraints.link_encoding(spec),
        serving=tuple((s.start, s.end, s.node) for s in plan.segments) if plan else (),
        rooms=seen.rooms,
        second_copies=second_copies(spec, seen.owned, seen.recall.distrusted_now(seen.now), seen.segment_millicores),
    )
    return as_many_as_fit(problem, MOST_PIPELINES) if spec.objective.goal == "throughput" else problem


def _stage_times(serving: Serving | None, seen: Seen) -> Iterator[StageTime]:
    """What stages took lately where steps were computed alone. The gateway was asked in this pass, so nothing is older than its window."""
    learned = counting(seen.calibration.nodes, seen.now)
    if serving is None or serving.traffic is None:
        return
    for stage in serving.stages:
        found = serving.traffic.stages.get(stage.name)
        if found is not None and found.alone_ms and found.alone_steps:
            yield StageTime(
                node=stage.node,
                processor=stage.processor,
                start=stage.start,
                end=stage.end,
                alone_ms=found.alone_ms,
                steps=found.alone_steps,
                age_seconds=ALONE_SECONDS,
                learned=stage.place in learned,
            )


def _traffic(seen: Seen) -> Traffic:
    """What clients got over the serving route; nothing where the gateway cannot be asked or is still at another route."""
    if seen.report is None or seen.stored is None or seen.report.revision != seen.stored.route.revision:
        return Traffic()
    found = seen.report.observed
    return Traffic(
        requests=found.requests,
        time_to_first_token_ms=found.time_to_first_token_ms.p95,
        time_per_output_token_ms=found.time_per_output_token_ms.p95,
    )
