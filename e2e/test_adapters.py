"""LoRA adapters on kind: they come and go under load, no pod is replaced, a killed segment is given them again. No request fails."""

import json
import random
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from e2e import stack
from e2e.cluster import Cluster, faults
from e2e.cluster.settings import MODELS_ON_NODE
from e2e.scene import NAME, OURS, Scene, frozen_sample, played

pytestmark = [pytest.mark.cluster, pytest.mark.long]

FOLDER = "adapters"
HIDDEN, KEYS, BLOCKS, RANK = 576, 192, 30, 4  # of SmolLM2-135M
Play = Callable[[str], AbstractContextManager[Scene]]


def write_adapter(folder: Path, *, seed: int, hidden: int = HIDDEN) -> None:
    """A random adapter of queries and values in PEFT's format, strong enough that each has a next word of its own for the test's question,
    by far: rows of a batch change last bits of the others, which must not decide."""
    random.seed(seed)
    told: dict[str, Any] = {}
    content = bytearray()
    for block in range(BLOCKS):
        for layer, outputs in (("q_proj", hidden), ("v_proj", KEYS)):
            for half, shape in (("A", (RANK, hidden)), ("B", (outputs, RANK))):
                values = [random.uniform(-0.2, 0.2) for _ in range(shape[0] * shape[1])]
                begin = len(content)
                content += struct.pack(f"<{len(values)}f", *values)
                name = f"base_model.model.model.layers.{block}.self_attn.{layer}.lora_{half}.weight"
                told[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, len(content)]}
    head = json.dumps(told).encode()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + bytes(content))
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for each in (folder, *folder.iterdir()):
        each.chmod(0o755)


def adapter(name: str) -> dict[str, Any]:
    return {"name": name, "source": {"hostPath": {"path": f"{MODELS_ON_NODE}/{FOLDER}/{name}"}}}


def the_resource(*names: str) -> dict[str, Any]:
    """The frozen sample with memory for adapters, and these."""
    body = frozen_sample()
    segments = {**body["spec"].get("segments", {}), "adapterMemoryMiB": 32}
    body["spec"] = {**body["spec"], "segments": segments, "adapters": [adapter(name) for name in names]}
    return body


def apply(cluster: Cluster, *names: str) -> None:
    cluster.kubectl("apply", "-f", "-", stdin=json.dumps(the_resource(*names)))


def loaded(cluster: Cluster, *names: str) -> None:
    """Wait until clients may name these and no others."""

    def done() -> bool:
        found = {each["name"]: each for each in stack.resource(cluster, NAME)["status"].get("adapters", [])}
        return {name for name, each in found.items() if each.get("serves") and each["state"] == "Serving"} == set(names)

    stack.until(done, 60, f"adapters {', '.join(names)}", progress=lambda: stack.pods_of(cluster, "default"))


def serving_pods(cluster: Cluster) -> dict[str, Any]:
    """Uid and restarts of each pod that serves."""
    pods = json.loads(cluster.kubectl("get", "pods", "-l", OURS, "-o", "json"))["items"]
    kinds = ("segment", "gateway")
    mine = [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] in kinds]
    return {
        pod["metadata"]["name"]: (pod["metadata"]["uid"], [c["restartCount"] for c in pod["status"]["containerStatuses"]]) for pod in mine
    }


def texts(cluster: Cluster, *names: str) -> list[str]:
    """The word that each says next after the same beginning, greedily."""
    with stack.endpoint(cluster, NAME) as base_url, openai.OpenAI(base_url=base_url, api_key="none", timeout=300) as client:
        made = [client.completions.create(model=name, prompt="The capital of France is", max_tokens=1, temperature=0) for name in names]
    return [answer.choices[0].text for answer in made]


@pytest.fixture(scope="module")
def served(operated: Cluster) -> Iterator[Cluster]:
    for seed, name in enumerate(("french", "legal"), start=1):
        write_adapter(operated.settings.models / FOLDER / name, seed=seed)
    write_adapter(operated.settings.models / FOLDER / "wider", seed=3, hidden=2048)
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
    apply(operated)
    stack.wait_ready(operated, NAME)
    yield operated
    operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")


@pytest.fixture
def play(served: Cluster) -> Play:
    """Clients ask all the time, and none of their requests fails."""
    return partial(played, served)


def test_adapters_come_and_go_and_no_pod_is_replaced(served: Cluster, play: Play) -> None:
    before = serving_pods(served)
    with play("adapters are added and removed") as scene:
        apply(served, "french", "legal")
        loaded(served, "french", "legal")
        french, base, legal, again = texts(served, "french", stack.MODEL, "legal", "french")
        assert french == again
        assert len({french, base, legal}) == 3
        apply(served, "legal")
        loaded(served, "legal")
        with pytest.raises(openai.NotFoundError):
            texts(served, "french")
        assert texts(served, "legal") == [legal]
        scene.answers()
    assert serving_pods(served) == before


def test_a_killed_segment_is_given_its_adapters_again(served: Cluster, play: Play) -> None:
    apply(served, "french", "legal")
    loaded(served, "french", "legal")
    before = texts(served, "french", "legal")
    with play("a segment with adapters is killed") as scene:
        killed = stack.resource(served, NAME)["status"]["plan"]["segments"][1]
        faults.kill_pod(served.engine(), killed["node"], killed["name"])
        scene.answers(8)
        assert texts(served, "french", "legal") == before


def test_an_adapter_for_another_model_is_said_and_the_others_serve(served: Cluster) -> None:
    apply(served, "french", "wider")

    def failed() -> Sequence[str]:
        found = stack.resource(served, NAME)["status"].get("adapters", [])
        return [each.get("message", "") for each in found if each["name"] == "wider" and each["state"] == "Failed"]

    (message,) = stack.until(failed, 60, "the adapter is refused")
    assert "takes A [rank, 576] and B [" in message
    assert texts(served, "french")
    apply(served, "french")
    loaded(served, "french")
