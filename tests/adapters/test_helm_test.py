"""What `helm test` says of an installation that works, and of one that does not."""

from collections.abc import Iterator
from typing import Any

import yaml

from splitinference.controller.ports import RefusedError
from splitinference.helm_test import checks, outcomes
from splitinference.settings import Settings
from tests.test_repository import ROOT

CRD = yaml.safe_load((ROOT / "crds/splitinference.yaml").read_text())


class Cluster:
    """As much of a cluster as the checks ask; Leases come one after the other."""

    def __init__(self, crd: dict[str, Any] | None = CRD, leases: tuple[dict[str, Any], ...] = (), refused: str = "") -> None:
        self._crd, self._refused = crd, refused
        self._leases: Iterator[dict[str, Any]] = iter(leases)

    def split_inferences(self) -> list[dict[str, Any]]:
        if self._refused:
            raise RefusedError(self._refused)
        return [{}, {}]

    def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        if kind == "CustomResourceDefinition":
            return self._crd
        assert (kind, namespace, name) == ("Lease", "ops", "operator")
        return {"spec": next(self._leases)}


def lines(cluster: Cluster, **settings: Any) -> dict[str, str]:
    found = checks(cluster, Settings(lease="ops/operator", **settings), wait=lambda seconds: None)  # type: ignore[arg-type]
    return {line.split("  ")[-1].split(":")[0].strip(): line for _, line in outcomes(found)}


def leases(*times: str, holder: str = "pod-a") -> tuple[dict[str, Any], ...]:
    return tuple({"holderIdentity": holder, "renewTime": time} for time in times)


def test_an_installation_that_works_passes():
    found = list(outcomes(checks(Cluster(leases=leases("1", "1", "2")), Settings(lease="ops/operator"), wait=lambda s: None)))  # type: ignore[arg-type]
    assert [good for good, _ in found] == [True] * 4
    assert "there are 2" in found[0][1]
    assert "pod-a holds and renews the Lease ops/operator" in found[2][1]


def test_a_lease_that_nobody_renews_is_no_leader():
    assert "failed  a leader: nobody renews the Lease ops/operator" in lines(Cluster(leases=leases("1", "1", "1")))["a leader"]
    assert "nobody holds the Lease" in lines(Cluster(leases=leases("1", "2", "3", holder="")))["a leader"]


def test_an_older_crd_and_a_missing_right_are_said_and_the_other_checks_go_on():
    older = yaml.safe_load(yaml.safe_dump(CRD))
    del older["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["slo"]
    found = lines(Cluster(older, leases("1", "2"), refused="splitinferences is forbidden"))
    assert "drops spec.slo" in found["the CRD"]
    assert "failed  SplitInferences: splitinferences is forbidden" in found["SplitInferences"]
    assert found["a leader"].startswith("ok")
    assert "the cluster has none" in lines(Cluster(None, leases("1", "2")))["the CRD"]


def test_a_prometheus_that_does_not_answer_is_said():
    found = lines(Cluster(leases=leases("1", "2")), prometheus_url="http://127.0.0.1:9")
    assert found["Prometheus"].startswith("failed  Prometheus: ")
    assert "127.0.0.1:9" in found["Prometheus"]
