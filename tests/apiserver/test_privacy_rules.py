"""What the API server itself refuses of privacy and verification, and what it fills in."""

from typing import Any

import pytest
from kubernetes import client

from splitinference.controller.api.sections.privacy_spec import TRUSTED

TABLE = {"tokenRecoveryPercent": [99.9, 70, 100]}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"privacy": {"maxTokenRecoveryPercent": 50}}, "needs tokenRecoveryPercent: measure your model with `splitinference bench privacy"),
    ({"privacy": {"maxTokenRecoveryPercent": 101, **TABLE}}, "should be less than or equal to 100"),
    ({"privacy": {"maxTokenRecoveryPercent": -1, **TABLE}}, "should be greater than or equal to 0"),
    ({"privacy": {"tokenRecoveryPercent": []}}, "should have at least 1 items"),
    ({"privacy": {"tokenRecoveryPercent": [101]}}, "should be less than or equal to 100"),
    ({"privacy": {"tokenRecoveryPercent": ["a lot"]}}, "must be of type number"),
    ({"privacy": {"trustedNodeLabels": {}}}, "should have at least 1 properties"),
    ({"verification": {}}, "spec.verification.samplePercent: Required value"),
    ({"verification": {"samplePercent": 0}}, "samplePercent must be more than 0; remove spec.verification to check nothing"),
    ({"verification": {"samplePercent": 101}}, "should be less than or equal to 100"),
    ({"verification": {"samplePercent": 1, "tolerance": 0}}, "spec.verification.tolerance must be more than 0"),
    ({"verification": {"samplePercent": 1, "tolerance": 1.5}}, "should be less than or equal to 1"),
    ({"verification": {"samplePercent": 1, "replicas": 2}}, "replicas 2 compares every step: spec.verification.samplePercent must be 100"),
    ({"verification": {"samplePercent": 1, "replicas": 0}}, "should be greater than or equal to 1"),
    ({"verification": {"samplePercent": 100, "replicas": 3}}, "should be less than or equal to 2"),
    ({"verification": {"samplePercent": 1}, "segments": {"linkEncoding": "Int8"}}, "needs spec.segments.linkEncoding Plain"),
]


def create(api: client.ApiClient, namespace: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    body = {
        "apiVersion": "splitinference.dev/v1alpha1",
        "kind": "SplitInference",
        "metadata": {"name": name},
        "spec": {"model": {"id": "m", "source": {"hostPath": {"path": "/m"}}}, **spec},
    }
    made: dict[str, Any] = client.CustomObjectsApi(api).create_namespaced_custom_object(
        "splitinference.dev", "v1alpha1", namespace, "splitinferences", body
    )
    return made


@pytest.mark.parametrize(("spec", "sentence"), REFUSED, ids=[sentence[:50] for _, sentence in REFUSED])
def test_refused_with_a_sentence(api: client.ApiClient, namespace: str, spec: dict[str, Any], sentence: str) -> None:
    with pytest.raises(client.ApiException) as refused:
        create(api, namespace, "a", spec)
    assert refused.value.status == 422
    assert sentence in str(refused.value.body)


def test_what_may_be_said_is_taken_and_filled_in(api: client.ApiClient, namespace: str) -> None:
    limited = create(api, namespace, "limited", {"privacy": {"maxTokenRecoveryPercent": 70, **TABLE}})
    assert limited["spec"]["privacy"]["trustedNodeLabels"] == {TRUSTED: "true"}
    checked = create(api, namespace, "checked", {"verification": {"samplePercent": 0.5, "tolerance": 0.02, "replicas": 1}})
    assert checked["spec"]["verification"] == {"samplePercent": 0.5, "tolerance": 0.02, "replicas": 1}
