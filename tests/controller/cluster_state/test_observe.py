"""Pods as segments, proofs of their processes, and what is remembered of failures."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.cluster_state.segment_pods import Known, SegmentPod, read_segments
from splitinference.controller.cluster_state.segment_probes import Proofs, Prover
from splitinference.controller.history.adaptation_state import Recall, read_recall
from splitinference.controller.identity import Owner
from splitinference.controller.manifests.route import cut_over, old_routes, read_route
from splitinference.controller.ports import Proof
from splitinference.core.transition.state import Phase, Route
from splitinference_protocol.report import GatewayReport, RouteState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
USABLE = frozenset({"a", "b"})


def a_pod(name: str = "chat-0-2-x", node: str = "a", ready: bool = True, restarts: int = 0, **more: Any) -> dict[str, Any]:
    container = {
        "name": "segment",
        "restartCount": restarts,
        "state": more.pop("state", {"running": {}}),
        "lastState": more.pop("last", {}),
    }
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "namespace": "team",
            "labels": {
                "app.kubernetes.io/component": "segment",
                "splitinference.dev/layers": "0-2",
                "splitinference.dev/model": "01234567",
            },
            **more.pop("metadata", {}),
        },
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": "segment", "env": [{"name": "SI_DTYPE", "value": "float32"}], "resources": {"requests": {"memory": "100Mi"}}}
            ],
        },
        "status": {
            "phase": "Running",
            "podIP": "10.0.0.1",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
            "containerStatuses": [container],
            **more,
        },
    }


def seen(pod: dict[str, Any], **known: Any) -> SegmentPod:
    return read_segments([pod], Known(**{"now": NOW, "usable": USABLE, **known}))[0]


def phase(pod: dict[str, Any], **known: Any) -> tuple[Phase, str]:
    found = seen(pod, **known).segment
    return found.phase, found.why


def test_a_segment_pod_is_read_whole():
    found = seen(a_pod())
    assert (found.name, found.model, found.ip, found.proof_key) == ("chat-0-2-x", "seg-01234567-0-2", "10.0.0.1", "uid-chat-0-2-x/0")
    assert (found.segment.start, found.segment.end, found.segment.node, found.segment.family) == (0, 2, "a", "01234567/float32")
    assert found.segment.memory_bytes == 100 * 2**20


def test_phases():
    assert phase(a_pod(ready=False)) == (Phase.STARTING, "")
    assert phase(a_pod()) == (Phase.READY, "")
    assert phase(a_pod(), proven=frozenset({"uid-chat-0-2-x/0"})) == (Phase.PROVEN, "")
    assert phase(a_pod(metadata={"deletionTimestamp": "now"})) == (Phase.LEAVING, "")
    assert phase(a_pod(), broken={"uid-chat-0-2-x/0": "stub gone"}) == (Phase.FAILED, "stub gone")


def test_pods_of_a_resource_that_had_the_same_name_before_are_leaving():
    theirs = a_pod(metadata={"ownerReferences": [{"uid": "old"}]})
    assert phase(theirs, owner="new") == (Phase.LEAVING, "")
    assert phase(theirs, owner="old") == (Phase.READY, "")


def test_a_proof_is_of_one_process_not_of_its_successor():
    assert phase(a_pod(restarts=1), proven=frozenset({"uid-chat-0-2-x/0"}))[0] is Phase.READY


def test_a_proven_process_serves_though_a_probe_of_the_kubelet_was_late():
    assert phase(a_pod(ready=False), proven=frozenset({"uid-chat-0-2-x/0"}))[0] is Phase.PROVEN


def test_a_pod_that_ended_failed_and_holds_no_memory():
    found = seen(a_pod(phase="Failed", reason="Evicted", message="low on memory")).segment
    assert (found.phase, found.why, found.memory_bytes) == (Phase.FAILED, "Evicted: low on memory", 0)


def test_a_failed_pod_may_be_held_back():
    found, why = phase(a_pod(phase="Failed", reason="Evicted"), held_back={"chat-0-2-x": "made again soon"})
    assert (found, why) == (Phase.STARTING, "Evicted; made again soon")


def test_a_lost_node_means_failure_unless_the_plan_hopes_for_it():
    assert phase(a_pod(node="z")) == (Phase.FAILED, "z is not ready")
    assert phase(a_pod(node="z"), wanted=frozenset({"chat-0-2-x"})) == (Phase.STARTING, "z is not ready")


def test_what_a_pod_waits_for_is_said():
    unscheduled = a_pod(ready=False)
    unscheduled["status"]["conditions"].append({"type": "PodScheduled", "status": "False", "message": "0/3 nodes: Insufficient memory"})
    assert phase(unscheduled) == (Phase.STARTING, "not scheduled: 0/3 nodes: Insufficient memory")
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    assert phase(a_pod(ready=False, state=waiting)) == (Phase.STARTING, "ImagePullBackOff: no such image")
    crashed = a_pod(ready=False, state={"waiting": {"reason": "CrashLoopBackOff"}}, last={"terminated": {"exitCode": 137}})
    assert phase(crashed) == (Phase.STARTING, "CrashLoopBackOff, last exit code 137")


def test_what_waiting_will_not_mend():
    crashing = {"state": {"waiting": {"reason": "CrashLoopBackOff"}}, "last": {"terminated": {"exitCode": 137}}, "ready": False}
    assert seen(a_pod(restarts=2, **crashing)).lasting == ""
    assert seen(a_pod(restarts=3, **crashing)).lasting == "3 restarts, CrashLoopBackOff, last exit code 137"
    assert seen(a_pod(restarts=30, ready=False)).lasting == "", "many restarts long ago are no reason"
    pod = a_pod(ready=False)
    condition = {"type": "PodScheduled", "status": "False", "message": "no", "lastTransitionTime": "2025-12-31T23:59:50Z"}
    pod["status"]["conditions"].append(condition)
    assert seen(pod).lasting == ""
    condition["lastTransitionTime"] = "2025-12-31T23:59:30Z"
    assert seen(pod).lasting == "not scheduled: no"


def test_pods_without_readable_layers_are_left_out():
    odd = a_pod()
    odd["metadata"]["labels"]["splitinference.dev/layers"] = "x"
    assert read_segments([odd], Known(now=NOW, usable=USABLE)) == ()


# --- proofs --------------------------------------------------------------------------------------------------------------------------


class Asked:
    """A segment that answers as told, and counts."""

    def __init__(self, *answers: Proof) -> None:
        self.answers = list(answers)
        self.count = 0

    def prove(self, owner: Owner, segment: str, model: str, pod_ip: str) -> Proof:
        self.count += 1
        return self.answers[min(self.count, len(self.answers)) - 1]


GONE = Proof(ok=False, unreachable=True, why="no connection")
OK, DEAD, SLOW = Proof(ok=True), Proof(ok=False, dead=True, why="answered 500"), Proof(ok=False, why="did not answer within 2 s")


def proving(
    port: Asked, proofs: Proofs, pod: dict[str, Any], seconds: float = 0, failing: tuple[str, ...] = (), *, since: float | None = None
) -> Proofs:
    now = NOW + timedelta(seconds=seconds)
    failed_at = NOW + timedelta(seconds=seconds if since is None else since)
    segments = read_segments([pod], Known(now=now, usable=USABLE, proven=proofs.proven))
    return Prover(port=port, owner=Owner(namespace="team", name="chat", uid="u"), now=now).prove(
        proofs, segments, dict.fromkeys(failing, failed_at)
    )


def test_a_ready_process_is_asked_once():
    port = Asked(OK)
    proofs = proving(port, Proofs(), a_pod())
    proofs = proving(port, proofs, a_pod())
    assert (port.count, proofs.proven) == (1, {"uid-chat-0-2-x/0"})


def test_a_process_that_is_not_ready_is_not_asked():
    port = Asked(OK)
    assert proving(port, Proofs(), a_pod(ready=False)).proven == frozenset()
    assert port.count == 0


def test_a_proven_process_is_asked_again_when_requests_fail_or_the_kubelet_doubts():
    port = Asked(OK)
    proofs = proving(port, Proofs(), a_pod())
    proofs = proving(port, proofs, a_pod(), failing=("chat-0-2-x",))
    proofs = proving(port, proofs, a_pod(ready=False))
    assert port.count == 3
    assert proofs.proven


def test_errors_of_a_process_that_served_make_it_broken_after_a_while():
    port = Asked(OK, DEAD)
    proofs = proving(port, Proofs(), a_pod())
    for seconds in (1, 3):
        proofs = proving(port, proofs, a_pod(), seconds, ("chat-0-2-x",))
        assert proofs.proven == frozenset()
        assert proofs.broken(NOW + timedelta(seconds=seconds)) == {}
    proofs = proving(port, proofs, a_pod(), 6, ("chat-0-2-x",))
    assert proofs.broken(NOW + timedelta(seconds=6)) == {"uid-chat-0-2-x/0": "answered 500"}


@pytest.mark.parametrize("first", [OK, SLOW])
def test_a_slow_process_is_never_broken_only_unproven(first: Proof):
    port = Asked(first, SLOW)
    proofs = Proofs()
    for seconds in range(60):
        proofs = proving(port, proofs, a_pod(), seconds, ("chat-0-2-x",))
    assert proofs.broken(NOW + timedelta(seconds=60)) == {}
    assert proofs.proven == frozenset()


def test_a_process_out_of_reach_is_lost_when_requests_cannot_get_past_it_either():
    port = Asked(OK, GONE)
    proofs = proving(port, Proofs(), a_pod())
    for seconds in (1, 3, 6):
        proofs = proving(port, proofs, a_pod(), seconds, ("chat-0-2-x",))
    now = NOW + timedelta(seconds=6)
    assert proofs.lost(now) == {"uid-chat-0-2-x/0"}
    (segment,) = read_segments([a_pod()], Known(now=now, usable=USABLE, broken=proofs.broken(now), lost=proofs.lost(now)))
    assert (segment.segment.phase, segment.lost, segment.lasting) == (Phase.FAILED, "no connection", "")


def test_what_requests_met_before_the_operator_looked_counts_whatever_the_gateways_clock_says():
    for since, lost_after in ((2.0, 7.0), (6.0, 11.0), (-1e6, 8.0), (1e6, 11.0)):
        port = Asked(OK, GONE)
        proofs = proving(port, Proofs(), a_pod())
        for seconds in (6, 7, 8, 9, 10, 11):
            proofs = proving(port, proofs, a_pod(), seconds, ("chat-0-2-x",), since=since)
            lost = proofs.lost(NOW + timedelta(seconds=seconds))
            assert bool(lost) is (seconds >= max(lost_after, 8.0)), (since, seconds)  # three times in any case


def test_a_process_that_only_we_cannot_reach_is_not_lost():
    port = Asked(OK, GONE)
    proofs = proving(port, Proofs(), a_pod())
    for seconds in range(1, 60):
        proofs = proving(port, proofs, a_pod(ready=False), seconds)
    assert proofs.lost(NOW + timedelta(seconds=60)) == frozenset()
    assert proofs.broken(NOW + timedelta(seconds=60)) == {}


def test_a_process_that_never_served_is_left_to_the_kubelet():
    port = Asked(DEAD)
    proofs = Proofs()
    for seconds in range(60):
        proofs = proving(port, proofs, a_pod(), seconds)
    assert proofs.broken(NOW + timedelta(seconds=60)) == {}


def test_one_good_answer_ends_all_doubt():
    port = Asked(OK, DEAD, OK)
    proofs = proving(port, Proofs(), a_pod())
    proofs = proving(port, proofs, a_pod(), 1, ("chat-0-2-x",))
    proofs = proving(port, proofs, a_pod(), 2)
    assert proofs == Proofs(proven=frozenset({"uid-chat-0-2-x/0"}))


# --- failures ------------------------------------------------------------------------------------------------------------------------


def failing(uid: str) -> SegmentPod:
    return seen(a_pod(phase="Failed", reason="OOMKilled", metadata={"uid": uid}))


WANTED = frozenset({"chat-0-2-x"})


def test_failures_are_counted_once_each_and_end_in_quarantine():
    recall = Recall()
    for count, uid in enumerate(("1", "1", "2", "3")):
        assert recall.quarantined(NOW) == {}
        recall = recall.failed([failing(uid)], WANTED, NOW + timedelta(seconds=count))
    assert recall.quarantined(NOW + timedelta(seconds=5)) == {
        "a": "3 failures since 00:00:00, last: OOMKilled; the node is avoided until 00:10:03"
    }
    assert recall.quarantined(NOW + timedelta(minutes=11)) == {}


def test_the_first_failure_is_answered_at_once_the_next_ones_later():
    recall = Recall().failed([failing("1")], WANTED, NOW)
    assert recall.held_back([failing("1")], NOW) == {}
    recall = recall.failed([failing("2")], WANTED, NOW)
    assert recall.held_back([failing("2")], NOW) == {"chat-0-2-x": "made again soon"}
    assert recall.held_back([failing("2")], NOW + timedelta(seconds=3)) == {}


def test_segments_that_no_plan_wants_may_fail():
    assert Recall().failed([failing("1")], frozenset(), NOW) == Recall()


def test_recall_survives_the_status_and_bad_statuses():
    recall = Recall().moved(NOW).failed([failing("1")], WANTED, NOW)
    assert read_recall({"adaptation": recall.as_status()}) == recall
    assert read_recall({"adaptation": {"moves": "x"}}) == Recall()
    assert read_recall({}) == Recall()


# --- the route -----------------------------------------------------------------------------------------------------------------------

OLD, NEW = Route(pipelines=(("s1", "s2"),)), Route(pipelines=(("s1", "s3"),))
MODELS = {"s1": "m1", "s2": "m2", "s3": "m3"}


def after_cutover() -> Any:
    first = read_route({"data": cut_over(None, OLD, MODELS, 30, NOW)})
    return read_route({"data": cut_over(first, NEW, MODELS, 30, NOW)})


def in_flight(report: GatewayReport | None, seconds: float, gateway_runs: bool = True) -> bool:
    (old,) = old_routes(after_cutover(), report, gateway_runs, NOW + timedelta(seconds=seconds))
    assert old.names == {"s1", "s2"}
    return old.in_flight


def test_a_route_is_written_as_the_gateway_reads_it_and_read_again():
    data = cut_over(None, OLD, MODELS, 30, NOW)
    assert data["route.json"] == (
        '{"drainSeconds": 30, "pipelines": [[{"model": "m1", "segment": "s1"}, {"model": "m2", "segment": "s2"}]], '
        f'"revision": "{OLD.revision}", "v": 1}}'
    )
    stored = read_route({"data": data})
    assert stored is not None
    assert (stored.route, stored.models, stored.former) == (OLD, {"s1": "m1", "s2": "m2"}, ())


def test_what_is_in_flight_on_an_old_route():
    busy = GatewayReport(revision=NEW.revision, routes={OLD.revision: RouteState(in_flight=2)})
    idle = GatewayReport(revision=NEW.revision, routes={OLD.revision: RouteState(in_flight=0)})
    assert in_flight(busy, 10)
    assert not in_flight(idle, 0)
    assert not in_flight(GatewayReport(revision=NEW.revision), 0), "a route that is not named has nothing in flight"
    assert not in_flight(busy, 36), "the gateway has replayed"


def test_a_gateway_that_has_not_taken_the_new_route_has_everything_in_flight():
    late = GatewayReport(revision=OLD.revision, routes={})
    assert in_flight(late, 0)
    assert in_flight(late, 3600)


def test_a_gateway_that_cannot_be_asked():
    assert in_flight(None, 3600)
    assert in_flight(None, 10, gateway_runs=False)
    assert not in_flight(None, 70, gateway_runs=False)


def test_going_back_to_an_old_route_takes_it_off_the_old_ones():
    back = read_route({"data": cut_over(after_cutover(), OLD, MODELS, 30, NOW)})
    assert back is not None
    assert [entry.revision for entry in back.former] == [NEW.revision]


def test_old_routes_are_forgotten_when_they_cannot_matter_any_more():
    later = cut_over(after_cutover(), Route(pipelines=(("s3",),)), MODELS, 30, NOW + timedelta(minutes=5))
    stored = read_route({"data": later})
    assert stored is not None
    assert [entry.revision for entry in stored.former] == [NEW.revision]


@pytest.mark.parametrize("text", ["", "x", "[]", '{"v": 2}', '{"v": 1, "revision": "r", "pipelines": []}'])
def test_a_route_that_cannot_be_read_is_none(text: str):
    assert read_route({"data": {"route.json": text}}) is None
    assert read_route(None) is None
