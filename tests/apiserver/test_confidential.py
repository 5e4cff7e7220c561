"""What the API server says of rules of privacy with a RuntimeClass, and of a model's digest."""

from typing import Any

import pytest
from kubernetes import client

from splitinference.controller.api.group import GROUP, PLURAL, VERSION
from splitinference.controller.api.spec import Rejected, Resource, read_resource


def create(api: client.ApiClient, namespace: str, *rules: dict[str, str], digest: str | None = None) -> dict[str, Any]:
    given = [{"layers": "first", "nodeLabels": {"attested": "true"}, **rule} for rule in rules]
    model = {"id": "m", "source": {"hostPath": {"path": "/models/m"}}} | ({} if digest is None else {"digest": digest})
    body = {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": "SplitInference",
        "metadata": {"generateName": "chat-"},
        "spec": {"model": model} | ({"privacy": {"rules": given}} if given else {}),
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
        ([{"runtimeClassName": "a" * 64}], "Too long"),
    ],
)
def test_what_no_pod_could_have_is_refused(api: client.ApiClient, namespace: str, rules: list[dict[str, str]], said: str):
    with pytest.raises(client.ApiException) as refused:
        create(api, namespace, *rules)
    assert refused.value.status == 422
    assert said in str(refused.value.body)


def test_a_digest_is_taken_and_read(api: client.ApiClient, namespace: str):
    read = read_resource(create(api, namespace, digest="sha256:" + "5" * 64))
    assert isinstance(read, Resource)
    assert read.spec.model.digest == "sha256:" + "5" * 64


@pytest.mark.parametrize("digest", ["", "5" * 64, "sha256:" + "A" * 64, "sha256:" + "5" * 63, "sha256:" + "5" * 65, "sha512:" + "5" * 64])
def test_what_is_no_digest_is_refused(api: client.ApiClient, namespace: str, digest: str):
    with pytest.raises(client.ApiException) as refused:
        create(api, namespace, digest=digest)
    assert refused.value.status == 422
    assert "spec.model.digest" in str(refused.value.body)
