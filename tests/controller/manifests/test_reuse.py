"""`spec.reuse`: what it refuses, and what it makes of the gateway's pod."""

from typing import Any

import pytest
from pydantic import ValidationError

from splitinference.controller.api.spec import Spec
from splitinference.settings import Settings
from tests.controller.manifests.built import CLAIM, HUB, a_resource, gateway, variables

KEYS = {"auth": {"apiKeysSecretRef": {"name": "keys"}}}


def pod(**spec: Any) -> dict[str, Any]:
    return gateway(a_resource(**spec), Settings(gateway_memory="192Mi"))["Deployment"]["spec"]["template"]["spec"]


def server(**spec: Any) -> dict[str, Any]:
    return pod(**spec)["containers"][0]


def test_off_by_default_and_nothing_of_the_pod_changes() -> None:
    plain = server()
    assert not any(name.startswith("SI_REUSE") for name in variables(plain))
    assert plain["resources"]["limits"]["memory"] == "192Mi"


def test_the_gateway_is_told_and_has_the_memory() -> None:
    made = server(reuse={"ttl": "90s", "memoryMiB": 100}, gateway=KEYS)
    told = variables(made)
    assert (told["SI_REUSE"], told["SI_REUSE_SECONDS"], told["SI_REUSE_BYTES"]) == ("client", "90", str(100 * 2**20))
    assert (told["SI_REUSE_BY_CUTS"], "SI_REUSE_SERVER" in told) == ("false", False)
    assert made["resources"]["limits"]["memory"] == made["resources"]["requests"]["memory"] == "292Mi"
    assert variables(server(reuse={"scope": "All"}))["SI_REUSE"] == "all"


def test_what_shapes_answers_changes_the_identity_and_nothing_else_does() -> None:
    def identity(**spec: Any) -> str:
        return variables(server(reuse={"scope": "All"}, **spec))["SI_REUSE_IDENTITY"]

    base = identity()
    assert identity(model=CLAIM) != base
    assert identity(model=HUB) != base
    assert identity(segments={"weights": "Stored"}) != base
    assert identity(segments={"linkEncoding": "Int8"}) != base
    assert identity(segments={"threads": 3}, gateway={"replicas": 2}, workload={"promptTokens": 7}) == base
    assert variables(server(reuse={"scope": "All"}, segments={"linkEncoding": "Int8"}))["SI_REUSE_BY_CUTS"] == "true"


def test_only_keys_meant_for_the_server_are_mounted() -> None:
    made = pod(reuse={"scope": "All", "server": {"url": "valkeys://cache:6379/0", "secretRef": {"name": "cache"}}})
    told = variables(made["containers"][0])
    assert told["SI_REUSE_SERVER"] == "valkeys://cache:6379/0"
    (volume,) = (volume for volume in made["volumes"] if volume["name"] == "reuse")
    (mount,) = (mount for mount in made["containers"][0]["volumeMounts"] if mount["name"] == "reuse")
    assert mount == {"name": "reuse", "mountPath": told["SI_REUSE_SERVER_FOLDER"], "readOnly": True}
    secrets = [source["secret"] for source in volume["projected"]["sources"]]
    assert [secret["items"] for secret in secrets] == [
        [{"key": "reuse-password", "path": "password"}],
        [{"key": "reuse-username", "path": "username"}],
        [{"key": "reuse-ca.crt", "path": "ca.crt"}],
    ]
    assert [secret.get("optional", False) for secret in secrets] == [False, True, True]
    assert not any(volume["name"] == "reuse" for volume in pod(reuse={"scope": "All", "server": {"url": "redis://c"}})["volumes"])


@pytest.mark.parametrize(
    ("reuse", "said"),
    [
        ({}, "reuse with scope Client needs gateway.auth"),
        ({"scope": "All", "ttl": "0s"}, "ttl must be between 1s and 168h"),
        ({"scope": "All", "ttl": "169h"}, "ttl must be between 1s and 168h"),
        ({"scope": "All", "memoryMiB": 7}, "greater than or equal to 8"),
        ({"scope": "All", "server": {"url": "redis://user:word@host"}}, "String should match pattern"),
        ({"scope": "All", "server": {"url": "redis://host/0?db=1"}}, "String should match pattern"),
        ({"scope": "All", "semantic": True}, "Extra inputs are not permitted"),
    ],
)
def test_wrong_values_are_refused(reuse: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Spec.model_validate({**a_resource()["spec"], "reuse": reuse})


def test_the_gateway_accepts_every_address_that_the_resource_accepts() -> None:
    from splitinference_gateway.answers.reuse_shared import connection

    for url in ("redis://a", "rediss://a.b.svc:6379", "valkey://10.0.0.1:6379/3", "valkeys://[fd00::1]:6379/0"):
        Spec.model_validate({**a_resource()["spec"], "reuse": {"scope": "All", "server": {"url": url}}})
        connection(url, None, 1)
