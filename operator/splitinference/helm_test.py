"""What `helm test` runs, in a pod with the operator's account and settings: does this installation work?

Each check gives a line. The exit status is 1 where one failed.
"""

import sys
import time
from collections.abc import Callable, Iterator

from kubernetes import client
from pydantic import ValidationError

from splitinference.adapters.kubernetes.client import KubeCluster, connect
from splitinference.adapters.promql.prometheus import PrometheusMetrics
from splitinference.controller.api.crd_gaps import gaps_in_words
from splitinference.controller.api.group import GROUP, PLURAL
from splitinference.controller.ports import Manifest, RefusedError, UnavailableError
from splitinference.settings import Settings

_LOOKS = 3
"""A leader renews its Lease every two seconds, so it has changed by the third look."""
_BETWEEN_SECONDS = 3.0


class CheckFailedError(Exception):
    """In words: what is wrong, and what to do."""


Check = Callable[[], str]


def checks(cluster: KubeCluster, settings: Settings, wait: Callable[[float], None] = time.sleep) -> dict[str, Check]:
    """Each check by its name. One that fails raises CheckFailedError, UnavailableError or RefusedError; else its words are for people."""
    return {
        "SplitInferences": lambda: f"the operator may list them; there are {len(cluster.split_inferences())}",
        "the CRD": lambda: _crd(cluster),
        "a leader": lambda: _leader(cluster, settings, wait),
        "Prometheus": lambda: _prometheus(settings),
    }


def _crd(cluster: KubeCluster) -> str:
    found = cluster.get("CustomResourceDefinition", "", f"{PLURAL}.{GROUP}")
    if found is None:
        raise CheckFailedError("the cluster has none: install the chart with crds.install=true, or apply crds/splitinference.yaml")
    if words := gaps_in_words(found):
        raise CheckFailedError(words)
    return "has all fields of this version"


def _leader(cluster: KubeCluster, settings: Settings, wait: Callable[[float], None]) -> str:
    namespace, name = settings.lease_key
    renewed: set[str] = set()
    for look in range(_LOOKS):
        if look:
            wait(_BETWEEN_SECONDS)
        spec = _spec(cluster.get("Lease", namespace, name))
        if spec.get("holderIdentity"):
            renewed.add(str(spec.get("renewTime")))
        if len(renewed) > 1:
            return f"{spec['holderIdentity']} holds and renews the Lease {settings.lease}"
    verb = "renews" if renewed else "holds"
    raise CheckFailedError(f"nobody {verb} the Lease {settings.lease}: look at the logs of the operator's pods")


def _prometheus(settings: Settings) -> str:
    if not settings.prometheus_url:
        return "prometheus.url is empty, so the operator plans without load"
    found = PrometheusMetrics(settings).node_cpu_cores()
    if found.problem:
        raise CheckFailedError(found.problem)
    return f"answers, with the use of {len(found.by_name)} nodes"


def _spec(lease: Manifest | None) -> Manifest:
    return (lease or {}).get("spec") or {}


def outcomes(found: dict[str, Check]) -> Iterator[tuple[bool, str]]:
    """Whether each check passed, and its line."""
    for name, check in found.items():
        try:
            yield True, f"ok      {name}: {check()}"
        except (CheckFailedError, UnavailableError, RefusedError) as error:
            yield False, f"failed  {name}: {error}"


def main() -> int:
    """Entry point; returns the exit status."""
    try:
        settings = Settings()
        api: client.ApiClient = connect()
    except (ValidationError, UnavailableError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    cluster = KubeCluster(api, settings.kube_timeout_seconds, settings.watched_namespaces)
    passed = True
    for good, line in outcomes(checks(cluster, settings)):
        sys.stdout.write(f"{line}\n")
        passed = passed and good
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
