"""What keeps pods from starting, read from statuses as real clusters write them: the cause in words, and when the node is avoided."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from splitinference.controller.kube_values.start_failures import Hindrance, Limits, Told, hindrance, is_silent
from tests.controller import kubelet
from tests.controller.cluster_state.test_observe import a_pod as observed_pod
from tests.controller.cluster_state.test_observe import phase, seen

BOUND = datetime(2026, 1, 1, tzinfo=UTC)
LIMITS = Limits(failure_seconds=60, start_seconds=600)


def a_pod(*containers: dict[str, Any], inits: tuple[dict[str, Any], ...] = (), **more: Any) -> dict[str, Any]:
    at = BOUND.isoformat()
    pod = observed_pod(ready=False)
    pod["status"] = {
        "phase": "Pending",
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": at},
            {"type": "Ready", "status": "False", "lastTransitionTime": at, "reason": "ContainersNotReady"},
        ],
        "containerStatuses": list(containers),
        "initContainerStatuses": list(inits),
        "startTime": at,
        **more,
    }
    return pod


def after(seconds: float, pod: dict[str, Any], warning: str = "") -> Hindrance | None:
    return hindrance(pod, "segment", BOUND + timedelta(seconds=seconds), LIMITS, warning)


@pytest.mark.parametrize(
    ("own", "reason", "words"),
    [
        (kubelet.WRONG_ARCHITECTURE, "ImagePullBackOff", "no match for platform"),
        (kubelet.REGISTRY_DOWN, "ErrImagePull", "connection refused"),
        (kubelet.NO_SECRET, "CreateContainerConfigError", 'secret "chat-segment-tls" not found'),
        (kubelet.EXEC_FORMAT, "CrashLoopBackOff", "last exit code 255: exec /usr/bin/segment: exec format error"),
        (kubelet.NEVER_PULL, "ErrImageNeverPull", "not present with pull policy of Never"),
        (kubelet.waiting("segment", "SomethingNew", "of a later Kubernetes"), "SomethingNew", "of a later Kubernetes"),
    ],
)
def test_a_container_that_cannot_start_is_said_at_once_and_its_node_avoided_after_a_minute(own, reason, words):
    pod = a_pod(own)
    found = after(1, pod)
    assert found is not None
    assert (found.reason, found.since) == (reason, BOUND)
    assert words in found.text
    assert not found.lasts(BOUND + timedelta(seconds=59))
    assert found.lasts(BOUND + timedelta(seconds=61))
    assert seen(pod, now=BOUND + timedelta(seconds=61), limits=LIMITS).lasting == found.text


def test_the_third_crash_is_enough():
    found = after(1, a_pod(kubelet.KILLED))
    assert found is not None
    assert found.lasts(BOUND)
    assert found.text.startswith("3 restarts, CrashLoopBackOff, last exit code 137 (OOMKilled)")


@pytest.mark.parametrize(("init", "words"), [(kubelet.FETCH_CRASHES, "401 Unauthorized"), (kubelet.FETCH_ENDED, "no space left on device")])
def test_an_init_container_that_crashes_is_named(init, words):
    found = after(61, a_pod(kubelet.INITIALIZING, inits=(init,)))
    assert found is not None
    assert found.text.startswith("init container fetch-model: ")
    assert words in found.text
    assert found.lasts(BOUND + timedelta(seconds=61))


@pytest.mark.parametrize("warning", [kubelet.NO_FOLDER, kubelet.ATTACHED])
def test_what_only_an_event_says_counts_too(warning):
    pod = a_pod(kubelet.CREATING)
    assert is_silent(pod, "segment", BOUND + timedelta(seconds=11))
    found = after(20, pod, warning)
    assert found is not None
    assert found.text == warning
    assert found.lasts(BOUND + timedelta(seconds=61))


def test_an_image_that_is_pulled_for_long_is_no_failure():
    pod = a_pod(kubelet.CREATING)
    assert after(30, pod) is None
    found = after(120, pod)
    assert found is not None
    assert "the image is pulled, or a volume is mounted" in found.text
    assert not found.lasts(BOUND + timedelta(seconds=599))
    assert found.lasts(BOUND + timedelta(seconds=601))


def test_a_model_that_is_fetched_for_an_hour_is_no_failure():
    fetching = kubelet.status("fetch-model", kubelet.RUNNING)
    found = after(3600, a_pod(kubelet.INITIALIZING, inits=(fetching,)))
    assert found is not None
    assert found.text == "init container fetch-model runs"
    assert not found.lasts(BOUND + timedelta(hours=1))


def test_a_gate_of_a_queue_is_waited_for():
    pod = a_pod()
    pod["spec"].pop("nodeName")
    gate = {"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "Scheduling is blocked due to gates"}
    pod["status"]["conditions"] = [gate | {"lastTransitionTime": BOUND.isoformat()}]
    found = after(3600, pod)
    assert found is not None
    assert not found.lasts(BOUND + timedelta(hours=1))


def test_a_process_that_never_gets_ready_is_given_up_after_its_second_start():
    again = kubelet.status("segment", kubelet.RUNNING, restarts=1)
    found = after(700, a_pod(again))
    assert found is not None
    assert found.text == "it runs, but did not become ready in 2 starts"
    assert found.lasts(BOUND + timedelta(seconds=661))
    assert after(700, a_pod(kubelet.status("segment", kubelet.RUNNING, started=True, restarts=9))) is None


# --- containers of others ------------------------------------------------------------------------------------------------------------


def test_our_own_container_is_judged_wherever_it_stands_in_the_list():
    for order in ((kubelet.MESH_NOT_READY, kubelet.READY), (kubelet.READY, kubelet.MESH_NOT_READY)):
        assert phase(a_pod(*order))[0] == "Ready", "a sidecar that is late does not make the segment late"
    ours_waits = a_pod(kubelet.MESH, kubelet.REGISTRY_DOWN)
    assert phase(ours_waits)[0] == "Starting"
    assert "connection refused" in phase(ours_waits)[1]


def test_a_native_sidecar_that_runs_does_not_hinder():
    assert after(3600, a_pod(kubelet.READY, inits=(kubelet.MESH,))) is None
    assert phase(a_pod(kubelet.READY, inits=(kubelet.MESH,)))[0] == "Ready"


# --- events are asked for rarely -----------------------------------------------------------------------------------------------------


def test_events_are_asked_for_only_of_silent_pods_and_not_at_every_pass():
    asked: list[str] = []

    def ask(namespace: str, uid: str) -> str:
        asked.append(f"{namespace}/{uid}")
        return kubelet.NO_FOLDER

    told, pods = Told(), [(a_pod(kubelet.CREATING), "segment")]
    for seconds in range(40):
        found = told.warnings(pods, BOUND + timedelta(seconds=seconds), ask)
    assert found == {"uid-chat-0-2-x": kubelet.NO_FOLDER}
    assert len(asked) == 2
    told.warnings([(a_pod(kubelet.REGISTRY_DOWN), "segment")], BOUND + timedelta(minutes=5), ask)
    assert len(asked) == 2, "its status says why"
