"""Statuses of pods in the form in which kubelets and schedulers write them."""

from typing import Any

IMAGE = "registry.example/segment:1"


def waiting(name: str, reason: str, message: str = "", restarts: int = 0, last: dict[str, Any] | None = None) -> dict[str, Any]:
    """A container that waits."""
    state = {"waiting": {"reason": reason} | ({"message": message} if message else {})}
    return status(name, state, restarts=restarts, last=last)


def status(
    name: str, state: dict[str, Any], *, ready: bool = False, started: bool = False, restarts: int = 0, last: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Any container status."""
    last_state = {"terminated": last} if last else {}
    return {
        "name": name,
        "state": state,
        "lastState": last_state,
        "ready": ready,
        "started": started,
        "restartCount": restarts,
        "image": IMAGE,
        "imageID": "",
    }


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
READY = status("segment", RUNNING, ready=True, started=True)

WRONG_ARCHITECTURE = waiting(
    "segment",
    "ImagePullBackOff",
    f'Back-off pulling image "{IMAGE}": ErrImagePull: no match for platform in manifest: not found',
)
REGISTRY_DOWN = waiting(
    "segment", "ErrImagePull", f'failed to pull and unpack image "{IMAGE}": dial tcp 10.0.0.9:5000: connect: connection refused'
)
NO_SECRET = waiting("segment", "CreateContainerConfigError", 'secret "chat-segment-tls" not found')
EXEC_FORMAT = waiting(
    "segment",
    "CrashLoopBackOff",
    "back-off 20s restarting failed container=segment pod=chat-0-2-x_team(uid)",
    restarts=2,
    last={"exitCode": 255, "reason": "Error", "message": "exec /usr/bin/segment: exec format error"},
)
KILLED = waiting(
    "segment", "CrashLoopBackOff", "back-off 40s restarting failed container", restarts=3, last={"exitCode": 137, "reason": "OOMKilled"}
)
NEVER_PULL = waiting("segment", "ErrImageNeverPull", f'Container image "{IMAGE}" is not present with pull policy of Never')
CREATING = waiting("segment", "ContainerCreating")
INITIALIZING = waiting("segment", "PodInitializing")
FETCH_CRASHES = waiting(
    "fetch-model",
    "CrashLoopBackOff",
    "back-off 10s restarting failed container",
    restarts=1,
    last={"exitCode": 1, "reason": "Error", "message": "https://hub.example/m: 401 Unauthorized"},
)
FETCH_ENDED = status("fetch-model", {"terminated": {"exitCode": 1, "reason": "Error", "message": "no space left on device"}})
MESH = status("istio-proxy", RUNNING, ready=True, started=True)
MESH_NOT_READY = status("istio-proxy", RUNNING)

NO_FOLDER = 'FailedMount: MountVolume.SetUp failed for volume "model" : hostPath type check failed: /models/m is not a directory'
ATTACHED = 'FailedAttachVolume: Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node'
