"""The chart's page on kind, in a real browser: exposed with a certificate, behind tokens of the cluster, while a segment moves.

`E2E_PICTURES=FOLDER` also writes screenshots. It needs what `make ui-test` installs, and is skipped without that.
"""

import base64
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.supplies import tools
from e2e.scene import NAME, burning
from e2e.traffic import STEADY, Traffic
from tests.ui.browser import Opened, chromium, opened
from tests.ui.pictures import shot

pytestmark = [pytest.mark.cluster, pytest.mark.long]

HOST = "split.example.com"
AUDIENCE = "splitinference-page"
CATALOGUE = {"processors": {"Test-1": {"flops_per_s": 1e14, "memory_bandwidth_bytes_per_s": 5e11, "source": "a test"}}}
VIEWER = """
apiVersion: v1
kind: ServiceAccount
metadata: {name: viewer, namespace: default}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: nobody, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: page-viewer}
rules:
  - {apiGroups: [""], resources: [nodes], verbs: [list]}
  - {apiGroups: [splitinference.dev], resources: [splitinferences], verbs: [list]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: page-viewer}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: page-viewer}
subjects: [{kind: ServiceAccount, name: viewer, namespace: default}]
"""
CHIPS = """() => Object.fromEntries([...document.querySelectorAll('.chip')].map(
  c => [c.querySelector('.chip-layers').textContent, c.closest('.card').dataset.key]))"""


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """Of the page's name and the loopback, by which a forwarded port is reached."""
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "1",
               "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},IP:127.0.0.1",
               "-keyout", str(tmp_path / "tls.key"), "-out", str(tmp_path / "tls.crt")]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True)
    return tmp_path


def applied(cluster: Cluster, certificate: Path) -> None:
    """What the page's values name, and who may look."""
    data = {name: base64.b64encode((certificate / name).read_bytes()).decode() for name in ("tls.crt", "tls.key")}
    about = {"namespace": stack.SYSTEM}
    objects: list[dict[str, Any]] = [
        {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "page", **about}, "data": data},
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "mine", **about}, "data": {"mine.json": json.dumps(CATALOGUE)}},
    ]
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump_all([*objects, *yaml.safe_load_all(VIEWER)]))


def token(cluster: Cluster, account: str, *more: str) -> str:
    return cluster.kubectl("-n", "default", "create", "token", account, *more).strip()


@contextmanager
def forwarded(cluster: Cluster) -> Iterator[str]:
    """The page's Service by kubectl port-forward; its URL."""
    words = [cluster.tool(tools.KUBECTL), "-n", stack.SYSTEM, "port-forward", "service/splitinference-page", ":443"]
    with subprocess.Popen(words, env={**os.environ, **cluster.env()}, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            assert found is not None, "kubectl port-forward gives no port"
            yield f"https://127.0.0.1:{found[1]}/"
        finally:
            process.terminate()


def picture(page: Opened, name: str, selector: str = "") -> None:
    if folder := os.environ.get("E2E_PICTURES"):
        shot(page, Path(folder) / name, selector)


def test_people_sign_in_and_see_a_segment_move(operated: Cluster, certificate: Path) -> None:
    applied(operated, certificate)
    page_on = ("page.enabled=true", "page.exposed=true", "page.tlsSecret=page", f"page.hosts={{{HOST}}}", "page.whatIf.enabled=true",
               "catalogue.configMap=mine", "page.nodeSelector.node-role\\.kubernetes\\.io/control-plane=",
               "page.tolerations[0].operator=Exists")  # fmt: skip
    stack.install_operator(operated, operated.load_images(stack.IMAGES), *(word for value in page_on for word in ("--set", value)))
    stack.apply_sample(operated)
    before = stack.wait_ready(operated, NAME)
    with (
        stack.endpoint(operated, NAME) as base_url,
        Traffic(base_url, stack.MODEL, STEADY) as traffic,
        forwarded(operated) as url,
        chromium() as browser,
    ):
        _refuses_strangers(operated, url, certificate)
        stack.until(lambda: stack.settled(stack.resource(operated, NAME)), 120, "nothing is under way")
        before = stack.resource(operated, NAME)
        with opened(browser, url, ignore_https_errors=True, clean=False) as page:
            page.page.locator("#token").fill(token(operated, "viewer", f"--audience={AUDIENCE}"))
            page.page.get_by_role("button", name="Sign in").click()
            page.waits("() => document.querySelectorAll('.chip').length >= 3")
            assert set(page.page.evaluate(CHIPS).values()) == {node for _, _, node in stack.placement(before)}
            picture(page, "page-kind.png", "#model")
            _asks_what_if(page, stack.placement(before)[1][2])
            with burning(operated, stack.busiest_inner_node(before)):
                _moves(operated, page, before)
        report = traffic.report()
    operated.progress.say(f"the page: {len(report.failed)} of {len(report.requests)} requests failed while a segment moved")
    assert [request.error for request in report.failed] == []


def _refuses_strangers(cluster: Cluster, url: str, certificate: Path) -> None:
    """Without a token, with one for the API server, or without rights, nothing of the cluster is told."""
    session = requests.Session()
    session.trust_env, session.verify = False, str(certificate / "tls.crt")
    history = f"{url}api/history?resource=default/{NAME}"
    cases = {
        "": 401,
        token(cluster, "viewer"): 401,
        token(cluster, "nobody", f"--audience={AUDIENCE}"): 403,
        token(cluster, "viewer", f"--audience={AUDIENCE}"): 200,
    }
    for bearer, status in cases.items():
        assert session.get(history, headers={"Authorization": f"Bearer {bearer}"}, timeout=60).status_code == status
    assert session.get(url, headers={"Host": "other.example.com"}, timeout=60).status_code == 403
    assert session.get(url, headers={"Host": HOST}, timeout=60).status_code == 200


def _asks_what_if(page: Opened, node: str) -> None:
    """The planner answers from the model's profile, which the page's own account reads."""
    page.page.get_by_label("What if a node goes away?").fill(node)
    page.page.get_by_role("button", name="Take it away").click()
    page.page.get_by_role("button", name="Ask the planner").click()
    page.waits("() => document.querySelector('#what-if-answer').textContent.trim().length > 20")
    picture(page, "page-kind-what-if.png", "#what-if")


def _moves(cluster: Cluster, page: Opened, before: dict[str, Any]) -> None:
    """The browser sees the new plan, and the decision, without being loaded again."""
    old = stack.placement(before)
    stack.until(lambda: stack.placement(stack.resource(cluster, NAME)) != old, 300, "another plan")
    page.page.evaluate("() => scrollTo(0, 0)")
    picture(page, "page-kind-move.png", "#picture")

    def arrived() -> bool:
        found = stack.resource(cluster, NAME)
        return stack.settled(found) and stack.placement(found) != old

    stack.until(arrived, 300, "the move is done", progress=lambda: stack.pods_of(cluster, "default"))

    def shows_it() -> bool:
        return set(page.page.evaluate(CHIPS).values()) == {node for _, _, node in stack.placement(stack.resource(cluster, NAME))}

    stack.until(shows_it, 60, "the page shows where segments are now")
    decision = stack.resource(cluster, NAME)["status"]["decisions"][0]["reason"]
    stack.until(lambda: decision in page.text("#decisions"), 60, "the page shows why")
    picture(page, "page-kind-decisions.png", "#time")
