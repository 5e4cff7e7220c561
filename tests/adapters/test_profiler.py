"""Profiles, step by step: nothing waits, what was read is kept, and a failure stands for a while."""

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from splitinference.adapters.profiler import Profiler
from splitinference.controller import profiling
from splitinference.controller.ports import Pending, RefusedError, Unreadable
from splitinference.core.profile import Profile
from splitinference.settings import Settings
from tests.controller.test_manifests import HUB, a_resource
from tests.controller.test_profiling import a_node
from tests.inpod.hub import a_hub

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "tie_word_embeddings": True,
}
TENSORS = {
    "model.embed_tokens.weight": ["BF16", [16, 8], 256],
    "model.layers.0.w": ["BF16", [8, 8], 128],
    "model.layers.1.w": ["BF16", [8, 8], 128],
    "model.norm.weight": ["BF16", [8], 16],
}


@dataclass
class FakeCluster:
    """Objects by kind and name, and pods' logs."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    secrets: dict[tuple[str, str], bytes] = field(default_factory=dict)
    refuses: bool = False

    def get(self, kind: str, namespace: str, name: str) -> Any:
        return self.objects.get((kind, name))

    def owned(self, kind: str, namespace: str, instance: str) -> list[Any]:
        return [found for (of, _), found in self.objects.items() if of == kind]

    def nodes(self) -> list[Any]:
        return [a_node("a")]

    def create(self, manifest: Any) -> None:
        if self.refuses:
            raise RefusedError("violates PodSecurity")
        status = {"status": {"phase": "Pending"}}
        self.objects.setdefault((manifest["kind"], manifest["metadata"]["name"]), {**manifest, **status})

    def apply(self, manifest: Any) -> None:
        self.objects[manifest["kind"], manifest["metadata"]["name"]] = manifest

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self.objects.pop((kind, name), None)

    def pod_log(self, namespace: str, name: str, container: str) -> str:
        assert container == "profile"
        return self.logs.get(name, "")

    def secret_value(self, namespace: str, name: str, key: str) -> bytes | None:
        return self.secrets.get((name, key))

    def pods(self) -> list[str]:
        return [name for kind, name in self.objects if kind == "Pod"]


@dataclass
class FakeClock:
    """A clock that tests turn."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


@pytest.fixture
def background() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as executor:
        yield executor


def printed(config: Any = None, tensors: Any = None) -> str:
    from splitinference.inpod.read_model import BEGIN, END

    return f"{BEGIN}\n{profiling.pack(config or CONFIG, tensors or TENSORS)}\n{END}\n"


def finish(cluster: FakeCluster, log: str) -> None:
    (name,) = cluster.pods()
    cluster.objects["Pod", name]["status"] = {"phase": "Succeeded"}
    cluster.logs[name] = log


def profiler(cluster: FakeCluster, background: ThreadPoolExecutor, clock: FakeClock | None = None, **settings: Any) -> Profiler:
    return Profiler(cluster, Settings(**settings), clock or FakeClock(), background)  # type: ignore[arg-type]


def test_a_folder_on_nodes_is_read_by_a_pod_then_kept_then_the_pod_goes(background):
    cluster = FakeCluster()
    models = profiler(cluster, background)
    assert isinstance(models.profile(a_resource()), Pending)
    assert isinstance(models.profile(a_resource()), Pending)
    assert len(cluster.pods()) == 1
    finish(cluster, printed())
    profile = models.profile(a_resource())
    assert isinstance(profile, Profile)
    assert (len(profile.layers), profile.dtype, profile.runtime_bytes) == (4, "bfloat16", 380 * 2**20)
    assert models.profile(a_resource()) == profile
    assert not cluster.pods()
    restarted = profiler(cluster, background)
    assert restarted.profile(a_resource()) == profile, "a restart of the operator reads what is kept"


def test_another_dtype_of_the_same_files_needs_no_reading(background):
    cluster = FakeCluster()
    cluster.apply(a_kept())
    models = profiler(cluster, background)
    wide = a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/m"}}, "dtype": "float32"})
    first, second = models.profile(a_resource()), models.profile(wide)
    assert isinstance(first, Profile)
    assert isinstance(second, Profile)
    assert second.layers[1].weight_bytes == 2 * first.layers[1].weight_bytes


def a_kept() -> dict[str, Any]:
    from splitinference.controller.resource import read_resource

    return profiling.cache_object(read_resource(a_resource()), profiling.pack(CONFIG, TENSORS))  # type: ignore[arg-type]


def test_another_source_is_read_while_the_old_one_is_still_known(background):
    cluster = FakeCluster()
    cluster.apply(a_kept())
    models = profiler(cluster, background)
    moved = a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/n"}}})
    assert isinstance(models.profile(moved), Pending)
    assert isinstance(models.profile(a_resource()), Profile)
    finish(cluster, printed())
    assert isinstance(models.profile(moved), Profile)
    assert isinstance(models.profile(a_resource()), Profile), "a plan for the old source still serves"
    assert not cluster.pods()


def test_a_log_that_is_not_whole_is_not_believed(background):
    cluster = FakeCluster()
    models = profiler(cluster, background)
    models.profile(a_resource())
    finish(cluster, printed()[:60])
    assert isinstance(models.profile(a_resource()), Pending)
    assert not cluster.pods(), "it reads again"


def test_a_model_of_a_family_that_is_not_known_is_unreadable(background):
    cluster = FakeCluster()
    models = profiler(cluster, background)
    models.profile(a_resource())
    finish(cluster, printed(config={**CONFIG, "model_type": "mamba"}))
    found = models.profile(a_resource())
    assert isinstance(found, Unreadable)
    assert "mamba" in found.message
    assert "/models/m" in found.message


def test_a_damaged_cache_says_what_to_do(background):
    cluster = FakeCluster()
    kept = a_kept()
    kept["data"] = dict.fromkeys(kept["data"], "damaged")
    cluster.apply(kept)
    found = profiler(cluster, background).profile(a_resource())
    assert isinstance(found, Unreadable)
    assert "delete it" in found.message


def test_a_refused_pod_is_unreadable_with_the_api_servers_words(background):
    found = profiler(FakeCluster(refuses=True), background).profile(a_resource())
    assert isinstance(found, Unreadable)
    assert "violates PodSecurity" in found.message


def eventually(models: Profiler, resource: dict[str, Any], background: ThreadPoolExecutor) -> Any:
    models.profile(resource)
    background.submit(lambda: None).result()
    return models.profile(resource)


def of_the_hub(token: bool) -> dict[str, Any]:
    source = {key: value for key, value in HUB["source"]["huggingFace"].items() if token or key != "tokenSecretRef"}
    return a_resource(model={**HUB, "source": {"huggingFace": {**source, "revision": "main"}}})


def as_files() -> dict[str, bytes]:
    table: dict[str, Any] = {}
    position = 0
    for name, (dtype, shape, size) in TENSORS.items():
        table[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    header = json.dumps(table).encode()
    return {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": len(header).to_bytes(8, "little") + header + bytes(position)}


def test_a_pass_does_not_wait_for_the_hub(background):
    gate = threading.Event()
    background.submit(gate.wait)
    try:
        assert isinstance(profiler(FakeCluster(), background).profile(of_the_hub(token=False)), Pending)
    finally:
        gate.set()


def test_a_model_of_the_hub_is_read_in_the_background_and_kept(background):
    cluster = FakeCluster(secrets={("hub", "token"): b"aGZfc2VjcmV0"})
    with a_hub(as_files(), token="hf_secret") as hub:
        models = profiler(cluster, background, hugging_face_endpoint=hub.url)
        profile = eventually(models, of_the_hub(token=True), background)
    assert isinstance(profile, Profile), profile
    assert any(kind == "ConfigMap" and name.startswith("chat-profile-") for kind, name in cluster.objects)


def test_a_secret_that_is_not_there_is_named(background):
    found = profiler(FakeCluster(), background).profile(of_the_hub(token=True))
    assert isinstance(found, Unreadable)
    assert "no Secret hub with a key token" in found.message


def test_a_failure_of_the_hub_stands_until_it_is_tried_again(background):
    clock = FakeClock()
    with a_hub({"config.json": b"{}"}) as hub:
        models = profiler(FakeCluster(), background, clock, hugging_face_endpoint=hub.url, profile_retry_seconds=120)
        resource = of_the_hub(token=False)
        assert isinstance(eventually(models, resource, background), Unreadable)
        asked = len(hub.asked)
        assert isinstance(models.profile(resource), Unreadable)
        assert len(hub.asked) == asked
        clock.time += timedelta(seconds=121)
        assert isinstance(eventually(models, resource, background), Unreadable), "what is said does not change while it is tried again"
        assert len(hub.asked) > asked


def test_the_scripts_of_pods_are_in_the_package():
    from splitinference.inpod import script

    assert Path(__file__).parents[2].joinpath("operator/splitinference/inpod/read_model.py").read_text() == script("read_model")
