"""What the API server itself refuses, in which words, and what it fills in."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.api.spec import Resource, read_resource
from splitinference.controller.ports import RefusedError
from tests.integration.conftest import ROOT, a_resource
from tests.integration.refused_specs import HUB, REFUSED, locked, model, pin, rule, source, template, tolerate


@pytest.mark.parametrize(("changes", "sentence"), REFUSED, ids=[sentence[:60] for _, sentence in REFUSED])
def test_refused_with_a_sentence_that_names_the_field_and_the_limit(cluster: KubeCluster, changes, sentence):
    with pytest.raises(RefusedError) as refused:
        cluster.create(a_resource("default", **changes))
    assert sentence in str(refused.value)


def test_every_rule_of_the_schema_is_shown_to_refuse():
    crd = yaml.safe_load((ROOT / "crds" / "splitinference.yaml").read_text())
    messages = set(rules(crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]))
    tried = [sentence for _, sentence in REFUSED] + [sentence for _, sentence in NAMES]
    assert [message for message in messages if not any(sentence in message for sentence in tried)] == []
    assert len(messages) > 20


def rules(schema: dict[str, Any]) -> list[str]:
    """Messages of all CEL rules under a schema."""
    found = [entry["message"] for entry in schema.get("x-kubernetes-validations", [])]
    parts = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for part in parts:
        if isinstance(part, dict):
            found += rules(part)
    return found


NAMES = [
    ("a" * 41, "metadata.name must be at most 40 characters"),
    ("1-chat", "metadata.name must be a DNS label that starts with a letter"),
    ("chat.b", "metadata.name must be a DNS label that starts with a letter"),
]


@pytest.mark.parametrize(("name", "sentence"), NAMES)
def test_names_that_segments_could_not_have_are_refused(cluster: KubeCluster, name, sentence):
    with pytest.raises(RefusedError) as refused:
        cluster.create(a_resource("default", name=name))
    assert sentence in str(refused.value)


def test_the_longest_name_is_taken(cluster: KubeCluster, namespace: str):
    cluster.create(a_resource(namespace, name="a" * 40))


@pytest.mark.parametrize(
    "changes",
    [
        model(weights="Int4"),
        model(engine="LlamaCpp", file="q4/m-Q4_K_M-00001-of-00002.gguf"),
        model(encryption=locked(url="https://kbs.example:8080/under/here", caConfigMapRef={"name": "kbs-ca"})),
        {"verification": {"samplePercent": 100, "replicas": 2}},
        source(hostPath={"path": "/models/m.gguf"}),
        source(huggingFace={**HUB, "tokenSecretRef": {"name": "hub"}}),
        source(persistentVolumeClaim={"claimName": "models"}),
        source(persistentVolumeClaim={"claimName": "models", "path": "a..b/c"}),
        {"slo": {"timeToFirstToken": "1m1.5s", "timePerOutputToken": "40ms"}},
        pin("last") | rule("0:4"),
        {"placement": {"maxNodes": 2}, "partition": {"minSegments": 2}},
        {"partition": {"allowedSplitPoints": []}},
        tolerate(operator="Exists"),
        {"gateway": {"replicas": 4, "auth": {"tokenReview": {"audience": "chat"}}}},
        {"gateway": {"auth": {"tokenReview": {}}}},
        {"gateway": {"auth": {"apiKeysSecretRef": {"name": "keys"}}}},
        {"adaptation": {"cooldown": "0s", "drain": "0s", "window": "1h"}},
        {"adaptation": {"mode": "Frozen", "maxMovesPerHour": 0}},
        {"adaptation": {"window": "3s"}},
        {"adaptation": {"stabilization": "0s"}},
        {"adaptation": {"stabilization": "24h"}},
        template("segments", labels={"a": "b"}, env=[{"name": "A", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]),
        template("gateway", dnsConfig={"nameservers": ["10.0.0.1"]}, securityContext={"runAsUser": 1000660000}),
        {"partition": {"pins": [{"layers": "first", "node": "a"}, {"layers": "last", "node": "b"}, {"layers": "first", "node": "a"}]}},
    ],
)
def test_what_has_a_meaning_is_taken_and_read_in_full(cluster: KubeCluster, namespace: str, changes):
    cluster.create(a_resource(namespace, **changes))
    read = read_resource(cluster.split_inference(namespace, "chat") or {})
    assert isinstance(read, Resource), str(read)


def test_defaults_of_the_server_are_those_of_the_operator(cluster: KubeCluster, namespace: str):
    bare = a_resource(namespace)
    cluster.create(bare)
    filled = cluster.split_inference(namespace, "chat")
    assert filled is not None
    assert filled["spec"]["adaptation"]["window"] == "60s"
    assert filled["spec"]["model"]["dtype"] == "bfloat16"
    from_server, from_us = read_resource(filled), read_resource(bare)
    assert isinstance(from_server, Resource)
    assert isinstance(from_us, Resource)
    assert from_server.spec == from_us.spec


def test_a_field_that_is_not_in_the_schema_is_pointed_out(api: client.ApiClient):
    custom = client.CustomObjectsApi(api)
    with pytest.raises(client.ApiException) as refused:
        custom.create_namespaced_custom_object(
            "splitinference.dev", "v1alpha1", "default", "splitinferences", a_resource("default", replica=3), field_validation="Strict"
        )
    assert "unknown field" in refused.value.body
    assert "spec.replica" in refused.value.body


@pytest.mark.parametrize("sample", sorted((ROOT / "config" / "samples").glob("*.yaml")), ids=lambda path: path.name)
def test_samples_are_taken(cluster: KubeCluster, namespace: str, sample: Path):
    for body in yaml.safe_load_all(sample.read_text()):
        cluster.create({**body, "metadata": {**body["metadata"], "namespace": namespace}})


# --- status and columns --------------------------------------------------------------------------------------------------------------
