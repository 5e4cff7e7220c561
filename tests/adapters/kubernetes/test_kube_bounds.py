"""What the API server answers is read within bounds: its lists hold other tenants' objects, and a log is whatever a pod printed."""

import json
import tracemalloc
from urllib.parse import parse_qs, urlsplit

import pytest
from kubernetes import client

from splitinference.adapters.kubernetes.client import KubeCluster
from splitinference.controller.ports import UnavailableError
from tests.adapters.serving import Request, Response, serving
from tests.inpod.hub import endless

MIB = 2**20


def cluster(url: str) -> KubeCluster:
    configuration = client.Configuration(host=url)
    configuration.retries = False
    return KubeCluster(client.ApiClient(configuration), 5.0)


def test_a_list_of_large_objects_is_read_in_shorter_pages():
    pods = [{"metadata": {"name": f"p{n}", "resourceVersion": str(n)}, "spec": {"env": "x" * 500_000}} for n in range(150)]
    limits: list[int] = []

    def answer(request: Request) -> Response:
        query = parse_qs(urlsplit(request.path).query)
        first, limit = int(query.get("continue", ["0"])[0]), int(query["limit"][0])
        limits.append(limit)
        more = {"continue": str(first + limit)} if first + limit < len(pods) else {}
        body = {"metadata": {"resourceVersion": "9", **more}, "items": pods[first : first + limit]}
        return Response(json.dumps(body).encode(), headers={"Content-Type": "application/json"})

    with serving(answer) as port:
        tracemalloc.start()
        found = [pod["metadata"]["name"] for pod in cluster(f"http://127.0.0.1:{port}").pods()]
        tracemalloc.stop()
    assert found == [f"p{n}" for n in range(150)], "each once, in order"
    assert limits[0] == 100
    assert set(limits[1:]) == {25}


@pytest.mark.parametrize("body", [b'{"items": ["', b"["])
def test_an_answer_without_end_is_given_up(body: bytes):
    with endless(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + body) as url:
        tracemalloc.start()
        with pytest.raises(UnavailableError, match="longer than"):
            cluster(url).get("ConfigMap", "team", "chat-route")
        assert tracemalloc.get_traced_memory()[1] < 100 * MIB
        tracemalloc.stop()


def test_a_log_without_end_is_given_up():
    with endless(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n") as url, pytest.raises(UnavailableError, match="longer than"):
        cluster(url).pod_log("team", "chat-profile-1", "profile")


def test_what_is_not_json_is_unavailable():
    with serving(lambda request: Response(b"<html>a proxy</html>")) as port, pytest.raises(UnavailableError, match="not JSON"):
        cluster(f"http://127.0.0.1:{port}").get("ConfigMap", "team", "x")
