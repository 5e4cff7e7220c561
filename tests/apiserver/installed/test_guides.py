"""Manifests that the documentation shows: a real API server takes each, but for kinds of other projects, which are named."""

from collections import Counter

import pytest
import yaml

from tests.apiserver.api_server import ApiServer
from tests.apiserver.installed.test_examples_of_values import kubectl
from tests.guides import manifests

OTHERS = {"helm.toolkit.fluxcd.io", "kustomize.toolkit.fluxcd.io", "argoproj.io", "monitoring.coreos.com", "keda.sh", "kind.x-k8s.io"}
SHOWN = [(found, thing) for found, thing in manifests() if thing["apiVersion"].partition("/")[0] not in OTHERS]


@pytest.mark.parametrize(("found", "thing"), SHOWN, ids=[f"{found.page}-{thing['kind']}" for found, thing in SHOWN])
def test_an_api_server_takes_what_a_page_shows(found, thing, server: ApiServer):
    thing["metadata"].pop("namespace", None)
    done = kubectl(server, "apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=yaml.safe_dump(thing))
    assert done.returncode == 0, f"{found.page}: {done.stderr}"


def test_there_are_some():
    kinds = Counter(thing["kind"] for _, thing in SHOWN)
    assert kinds["SplitInference"] >= 3
    assert {"Job", "PersistentVolumeClaim", "HorizontalPodAutoscaler"} <= set(kinds)
