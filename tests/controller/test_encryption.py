"""An encrypted model: what its segments are given, what contradicts it, and what is said of one that cannot be decrypted."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from splitinference.controller.kube_values.start_failures import USUAL, hindrance
from splitinference.controller.manifests.segment import SEGMENT, Manifests
from splitinference.core.model_files.safetensors import with_content
from splitinference.core.values.plan import Segment
from splitinference.settings import Settings
from splitinference_modelfiles.sealed import REASONS
from tests.controller.api.test_resource import problems
from tests.controller.manifests.built import a_profile, a_resource, variables
from tests.controller.objects import parsed

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SOURCE: dict[str, Any] = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}
BROKER = {"url": "https://kbs.example:8080", "resource": "default/models/chat"}
ROOT = "sha256:" + "5" * 64


def model(**broker: Any) -> dict[str, Any]:
    return {**SOURCE, "encryption": {"keyBroker": {**BROKER, **broker}}}


def made(**spec: Any) -> Any:
    profile = with_content(a_profile(), ROOT, "")
    return Manifests(Settings()).segment(parsed(a_resource(**spec)), profile, Segment(start=0, end=4, node="n"), 2**29, 2**20)


def test_a_segment_knows_where_the_key_is_and_not_the_key():
    pod = made(model=model()).pod["spec"]
    given = variables(pod["containers"][0])
    assert {name: value for name, value in given.items() if "KEY" in name} == {
        "SI_KEY_BROKER_URL": "https://kbs.example:8080",
        "SI_KEY_RESOURCE": "default/models/chat",
    }
    assert "SI_MODEL_DIGEST" not in given, "what was listed is the ciphertext"
    assert "key-broker" not in json.dumps(pod)
    assert made(model=model()).name != made(model=SOURCE).name != made(model=model(resource="a/b/c")).name


def test_the_brokers_authority_is_mounted():
    pod = made(model=model(caConfigMapRef={"name": "kbs-ca"})).pod["spec"]
    (volume,) = [volume for volume in pod["volumes"] if volume["name"] == "key-broker"]
    assert volume["configMap"] == {"name": "kbs-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    assert variables(pod["containers"][0])["SI_KEY_BROKER_CA"] == "/key-broker/ca.crt"
    (mount,) = [mount for mount in pod["containers"][0]["volumeMounts"] if mount["name"] == "key-broker"]
    assert mount == {"name": "key-broker", "mountPath": "/key-broker", "readOnly": True}


@pytest.mark.parametrize(
    ("wrong", "path"),
    [
        (model(url="http://kbs"), "spec.model.encryption.keyBroker.url"),
        (model(url="https://a@b"), "spec.model.encryption.keyBroker.url"),
        (model(url="https://kbs?x=1"), "spec.model.encryption.keyBroker.url"),
        (model(resource="one/two"), "spec.model.encryption.keyBroker.resource"),
        (model(resource="../../admin/x"), "spec.model.encryption.keyBroker.resource"),
        ({**model(), "digest": ROOT}, "spec.model"),
        ({**model(), "engine": "LlamaCpp"}, "spec.model"),
        ({**model(), "file": "m.gguf"}, "spec.model"),
        ({**SOURCE, "encryption": {}}, "spec.model.encryption.keyBroker"),
    ],
)
def test_what_contradicts_itself_is_refused_by_name(wrong, path):
    assert path in problems(model=wrong)


def a_pod(message: str, exit_code: int = 1) -> dict[str, Any]:
    ended = {"exitCode": exit_code, "reason": "Error", "message": message}
    return {
        "metadata": {"name": "s", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "status": {
            "phase": "Running",
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {"name": "segment", "restartCount": 1, "ready": False, "state": {"waiting": {"reason": "CrashLoopBackOff"}},
                 "lastState": {"terminated": ended}}
            ],
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reason", "limit"),
    [
        ("KeyBrokerUnreachable", None),  # no node is better
        ("ModelKeyMissing", None),
        ("ModelKeyNotReleased", USUAL.failure_seconds),
        ("AttestationUnavailable", 0),
        ("AttestationRefused", 0),
        ("WrongModelKey", 0),
        ("ModelTampered", 0),
        ("ModelNotEncrypted", 0),
    ],
)
def test_each_reason_is_a_conditions_and_only_some_are_the_nodes(reason, limit):
    assert reason in REASONS
    found = hindrance(a_pod(f"{reason}: what happened, and what to do\n"), SEGMENT, NOW)
    assert found is not None
    assert (found.reason, found.limit_seconds) == (reason, limit)
    assert "what happened, and what to do" in found.text


def test_every_reason_is_in_the_pages_of_the_status():
    page = Path("docs/reference/status.md").read_text("utf-8")
    assert all(f"| `{reason}` |" in page for reason in REASONS)
