"""What the API server says of rules of privacy with a RuntimeClass."""

from typing import Any

import pytest
from kubernetes import client

from splitinference.controller.api.spec import GROUP, PLURAL, VERSION, Rejected, read_resource


def create(api: client.ApiClient, namespace: str, *rules: dict[str, str]) -> dict[str, Any]:
    given = [{"layers": "first", "nodeLabels": {"attested": "true"}, **rule} for rule in rules]
    model = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}}
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "SplitInference",
        "metadata": {"generateName": "chat-"},
        "spec": {"model": model, "privacy": {"rules": given}},
    }
    made: dict[str, Any] = client.CustomObjectsApi(api).create_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, body)
    return made


@pytest.mark.parametrize(
    "rules",
    [
        [{"runtimeClassName": "kata-qemu-snp"}],
        [{"runtimeClassName": "kata-qemu-snp"}, {"layers": "last", "runtimeClassName": "kata-qemu-snp"}],
        [{}, {"layers": "2:4"}, {"layers": "last", "runtimeClassName": "a.b-c"}],
        [{"layers": "0:4"}] * 31 + [{"runtimeClassName": "k"}],
    ],
)
def test_one_runtime_class_is_taken_and_read(api: client.ApiClient, namespace: str, rules: list[dict[str, str]]):
    assert not isinstance(read_resource(create(api, namespace, *rules)), Rejected)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ([{"runtimeClassName": "kata-a"}, {"layers": "last", "runtimeClassName": "kata-b"}], "at most one runtimeClassName"),
        ([{}, {"runtimeClassName": "kata-a"}, {}, {"layers": "1:2", "runtimeClassName": "kata-b"}], "at most one runtimeClassName"),
        ([{"runtimeClassName": "Kata"}], "must be the name of a RuntimeClass"),
        ([{"runtimeClassName": ""}], "must be the name of a RuntimeClass"),
        ([{"runtimeClassName": "a" * 254}], "Too long"),
    ],
)
def test_what_no_pod_could_have_is_refused(api: client.ApiClient, namespace: str, rules: list[dict[str, str]], said: str):
    with pytest.raises(client.ApiException) as refused:
        create(api, namespace, *rules)
    assert refused.value.status == 422
    assert said in str(refused.value.body)
