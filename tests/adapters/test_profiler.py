"""Profiles, step by step: nothing waits, what was read is kept, and a failure stands for a while."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import prod
from typing import Any

import pytest

from splitinference.adapters.profiler import Profiler
from splitinference.controller.manifests import profile_pod
from splitinference.controller.ports import NameTakenError, Pending, RefusedError, Unreadable
from splitinference.core.values.profile import Profile
from splitinference.inpod import script
from splitinference.settings import Settings
from tests.controller import kubelet
from tests.controller.manifests.built import HUB, a_resource
from tests.controller.manifests.test_profiling import a_node
from tests.controller.objects import parsed
from tests.inpod.hub import a_hub
from tests.modelfiles import tables

CONFIG = {
    "model_type": "llama",
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 16,
    "tie_word_embeddings": True,
}
TENSORS = {name: ["BF16", list(shape), 2 * prod(shape)] for name, shape in tables.llama(CONFIG).items()}


@dataclass
class FakeCluster:
    """Objects by kind and name, and pods' logs."""

    objects: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, str] = field(default_factory=dict)
    refuses: bool = False
    warning: str = ""

    def pod_warning(self, namespace: str, uid: str) -> str:
        return self.warning

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

    def pods(self) -> list[str]:
        return [name for kind, name in self.objects if kind == "Pod"]


@dataclass
class FakeClock:
    """A clock that tests turn."""

    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time


def printed(config: Any = None, tensors: Any = None) -> str:
    from splitinference.inpod.packed import BEGIN, END

    return f"{BEGIN}\n{profile_pod.pack(config or CONFIG, tensors or TENSORS)}\n{END}\n"


def finish(cluster: FakeCluster, log: str) -> None:
    (name,) = cluster.pods()
    cluster.objects["Pod", name]["status"] = {"phase": "Succeeded"}
    cluster.logs[name] = log


def profiler(cluster: FakeCluster, clock: FakeClock | None = None, **settings: Any) -> Profiler:
    return Profiler(cluster, Settings(**settings), clock or FakeClock())  # type: ignore[arg-type]


def test_a_folder_on_nodes_is_read_by_a_pod_then_kept_then_the_pod_goes():
    cluster = FakeCluster()
    models = profiler(cluster)
    assert isinstance(models.profile(parsed(a_resource())), Pending)
    assert isinstance(models.profile(parsed(a_resource())), Pending)
    assert len(cluster.pods()) == 1
    finish(cluster, printed())
    profile = models.profile(parsed(a_resource()))
    assert isinstance(profile, Profile)
    assert (len(profile.layers), profile.dtype, profile.runtime_bytes) == (4, "bfloat16", 380 * 2**20)
    assert models.profile(parsed(a_resource())) == profile
    assert not cluster.pods()
    restarted = profiler(cluster)
    assert restarted.profile(parsed(a_resource())) == profile, "a restart of the operator reads what is kept"


def test_a_node_that_lacks_the_folder_is_said_while_the_pod_waits():
    """The pod's status says nothing of it, only its events do."""
    cluster, clock = FakeCluster(warning=kubelet.NO_FOLDER), FakeClock()
    models = profiler(cluster, clock)
    models.profile(parsed(a_resource()))
    (pod,) = (found for (kind, _), found in cluster.objects.items() if kind == "Pod")
    pod["metadata"] |= {"uid": "p", "creationTimestamp": clock.time.isoformat().replace("+00:00", "Z")}
    pod["spec"]["nodeName"] = "a"
    pod["status"] = {"phase": "Pending", "startTime": clock.time.isoformat().replace("+00:00", "Z"), "conditions": []}
    clock.time += timedelta(seconds=15)
    waiting = models.profile(parsed(a_resource()))
    assert isinstance(waiting, Pending)
    assert "/models/m is not a directory" in waiting.message


def test_another_dtype_of_the_same_files_needs_no_reading():
    cluster = FakeCluster()
    cluster.apply(a_kept())
    models = profiler(cluster)
    wide = a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/m"}}, "dtype": "float32"})
    first, second = models.profile(parsed(a_resource())), models.profile(parsed(wide))
    assert isinstance(first, Profile)
    assert isinstance(second, Profile)
    assert second.layers[1].weight_bytes == 2 * first.layers[1].weight_bytes


def a_kept() -> dict[str, Any]:
    return profile_pod.cache_object(parsed(a_resource()), profile_pod.pack(CONFIG, TENSORS))


def test_another_source_is_read_while_the_old_one_is_still_known():
    cluster = FakeCluster()
    cluster.apply(a_kept())
    models = profiler(cluster)
    moved = a_resource(model={"id": "m", "source": {"hostPath": {"path": "/models/n"}}})
    assert isinstance(models.profile(parsed(moved)), Pending)
    assert isinstance(models.profile(parsed(a_resource())), Profile)
    finish(cluster, printed())
    assert isinstance(models.profile(parsed(moved)), Profile)
    assert isinstance(models.profile(parsed(a_resource())), Profile), "a plan for the old source still serves"
    assert not cluster.pods()


def test_a_log_that_is_not_whole_is_not_believed():
    cluster = FakeCluster()
    models = profiler(cluster)
    models.profile(parsed(a_resource()))
    finish(cluster, printed()[:60])
    assert isinstance(models.profile(parsed(a_resource())), Pending)
    assert not cluster.pods(), "it reads again"


def test_a_model_of_a_family_that_is_not_known_is_unreadable():
    cluster = FakeCluster()
    models = profiler(cluster)
    models.profile(parsed(a_resource()))
    finish(cluster, printed(config={**CONFIG, "model_type": "mamba"}))
    found = models.profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert "mamba" in found.message
    assert "/models/m" in found.message


def test_a_damaged_cache_says_what_to_do():
    cluster = FakeCluster()
    kept = a_kept()
    kept["data"] = dict.fromkeys(kept["data"], "damaged")
    cluster.apply(kept)
    found = profiler(cluster).profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert "delete it" in found.message


def test_a_refused_pod_is_unreadable_with_the_api_servers_words():
    found = profiler(FakeCluster(refuses=True)).profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert "violates PodSecurity" in found.message


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
    weights = len(header).to_bytes(8, "little") + header + bytes(position)
    return {"config.json": json.dumps(CONFIG).encode(), "tokenizer.json": b"{}", "model.safetensors": weights}


def played(cluster: FakeCluster, secret: str = "") -> subprocess.CompletedProcess[str]:
    """What the kubelet does with the only pod: its command, with the Secret's value where the pod asks for it."""
    (name,) = cluster.pods()
    (container,) = cluster.objects["Pod", name]["spec"]["containers"]
    env = {e["name"]: e.get("value", secret) for e in container["env"]}
    command = [sys.executable, *container["command"][1:]]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **env})
    phase = "Failed" if done.returncode else "Succeeded"
    states = [{"name": "profile", "state": {"terminated": {"exitCode": done.returncode, "message": done.stderr}}}]
    cluster.objects["Pod", name]["status"] = {"phase": phase, "containerStatuses": states}
    cluster.logs[name] = done.stdout
    return done


@pytest.mark.parametrize("token", [True, False])
def test_a_model_of_the_hub_is_read_by_a_pod_with_the_secret_which_the_operator_does_not_see(token):
    cluster = FakeCluster()
    with a_hub(as_files(), token="hf_secret" if token else "") as hub:
        models = profiler(cluster, hugging_face_endpoint=hub.url)
        assert isinstance(models.profile(parsed(of_the_hub(token))), Pending)
        assert isinstance(models.profile(parsed(of_the_hub(token))), Pending)
        (name,) = cluster.pods()
        pod = cluster.objects["Pod", name]
        wanted = [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}}] if token else []
        assert [e for e in pod["spec"]["containers"][0]["env"] if "valueFrom" in e] == wanted
        (term,) = pod["spec"]["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
        assert {asked["key"] for asked in term["matchExpressions"]} == {"kubernetes.io/os", "kubernetes.io/arch"}
        played(cluster, "hf_secret\n")
        profile = models.profile(parsed(of_the_hub(token)))
    assert isinstance(profile, Profile), profile
    assert any(kind == "ConfigMap" and name.startswith("chat-profile-") for kind, name in cluster.objects)
    assert not cluster.pods()


def test_a_refusal_of_the_hub_stands_until_it_is_tried_again():
    clock, cluster = FakeClock(), FakeCluster()
    with a_hub(as_files(), token="hf_secret") as hub:
        models = profiler(cluster, clock, hugging_face_endpoint=hub.url, profile_retry_seconds=120)
        models.profile(parsed(of_the_hub(token=True)))
        (name,) = cluster.pods()
        cluster.objects["Pod", name]["metadata"]["creationTimestamp"] = clock.time.isoformat()
        done = played(cluster, "hf_wrong")
        found = models.profile(parsed(of_the_hub(token=True)))
        assert isinstance(found, Unreadable)
        assert "the hub says 401" in found.message
        assert "hf_wrong" not in found.message + done.stdout + done.stderr
        assert cluster.pods(), "it is not tried again at once"
        clock.time += timedelta(seconds=121)
        models.profile(parsed(of_the_hub(token=True)))
        assert not cluster.pods()
        assert isinstance(models.profile(parsed(of_the_hub(token=True))), Pending)


def test_a_secret_that_is_not_there_is_named():
    clock, cluster = FakeClock(), FakeCluster()
    models = profiler(cluster, clock)
    models.profile(parsed(of_the_hub(token=True)))
    (name,) = cluster.pods()
    waiting = {"reason": "CreateContainerConfigError", "message": 'secret "hub" not found'}
    cluster.objects["Pod", name]["status"] = {"phase": "Pending", "containerStatuses": [{"name": "profile", "state": {"waiting": waiting}}]}
    cluster.objects["Pod", name]["spec"]["nodeName"] = "a"
    cluster.objects["Pod", name]["metadata"]["creationTimestamp"] = clock.time.isoformat()
    cluster.objects["Pod", name]["spec"]["nodeName"] = "a"
    clock.time += timedelta(minutes=10)
    found = models.profile(parsed(of_the_hub(token=True)))
    assert isinstance(found, Unreadable)
    assert 'CreateContainerConfigError: secret "hub" not found' in found.message


def test_a_config_map_of_somebody_else_is_no_profile():
    cluster = FakeCluster()
    kept = a_kept()
    kept["metadata"] = {**kept["metadata"], "ownerReferences": []}
    cluster.apply(kept)
    assert isinstance(profiler(cluster).profile(parsed(a_resource())), Pending)


def test_a_name_that_is_taken_is_said():
    class Taken(FakeCluster):
        def apply(self, manifest: Any) -> None:
            raise NameTakenError("ConfigMap chat-profile-1 exists")

    cluster = Taken()
    models = profiler(cluster)
    models.profile(parsed(a_resource()))
    finish(cluster, printed())
    found = models.profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert (found.reason, found.message) == ("NameTaken", "ConfigMap chat-profile-1 exists")


SCRIPTS = ("fetch_gguf", "fetch_model", "read_hub", "read_model", "write_tokenizer")


@pytest.mark.parametrize("name", SCRIPTS)
def test_no_module_of_a_script_takes_anothers_name(name):
    import ast

    found: list[str] = []
    for node in ast.parse(script(name)).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found += [part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)]
    assert sorted(name for name in set(found) if found.count(name) > 1) == []


def test_the_scripts_of_pods_are_in_the_package():
    for name in SCRIPTS:
        text = script(name)
        assert "from splitinference" not in text, "a pod has the text alone"
        assert len(text.encode()) < 128 * 1024, "the longest argument that Linux takes"
        compile(text, name, "exec")


@pytest.mark.parametrize(
    ("config", "files", "words"),
    [
        ({"model_type": "bloom"}, ("tokenizer.json",), "model_type 'bloom' is not served"),
        ({}, ("tokenizer.model",), "there is no tokenizer.json, the model has only tokenizer.model"),
        ({}, ("tokenizer.json", "quantize_config.json"), "quantized weights (GPTQ) are not served"),
    ],
)
def test_a_model_that_is_not_served_is_refused_when_it_has_been_read(config, files, words):
    from splitinference.inpod.packed import BEGIN, END

    cluster = FakeCluster()
    models = profiler(cluster)
    models.profile(parsed(a_resource()))
    finish(cluster, f"{BEGIN}\n{profile_pod.pack(CONFIG | config, TENSORS, files)}\n{END}\n")
    found = models.profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert found.reason == "ModelNotServed"
    assert words in found.message
    assert models.profile(parsed(a_resource())) == found


def test_a_model_that_an_older_version_has_read_needs_no_reading_though_its_files_are_not_known():
    cluster = FakeCluster()
    cluster.apply(a_kept())
    assert isinstance(profiler(cluster).profile(parsed(a_resource())), Profile)
    assert not cluster.pods()


def gguf(**more: Any) -> str:
    from tests.core.model_files.test_profile_gguf import described, model_of
    from tests.modelfiles.gguf_files import llama

    model = model_of(llama(**more))
    return printed(described(model), {name: [t.dtype, t.shape, t.bytes] for name, t in model.tensors.items()})


def test_where_auto_finds_a_gguf_file_llama_cpp_is_the_engine_with_its_own_memory():
    cluster = FakeCluster()
    models = profiler(cluster, segment_runtime_mib=7, segment_llama_cpp_runtime_mib=5)
    models.profile(parsed(a_resource()))
    finish(cluster, gguf())
    found = models.profile(parsed(a_resource()))
    assert isinstance(found, Profile)
    assert (found.engine, found.files, found.runtime_bytes) == ("llamacpp", ("m.gguf",), 5 * 2**20)
    refused = models.profile(parsed(a_resource(verification={"samplePercent": 1})))
    assert isinstance(refused, Unreadable)
    assert (refused.reason, "spec.verification needs engine Torch" in refused.message) == ("ModelNotServed", True)
    assert models.profile(parsed(a_resource())) == found, "which is asked of each spec anew"


def test_a_gguf_model_that_is_not_served_is_refused_when_it_has_been_read():
    cluster = FakeCluster()
    models = profiler(cluster)
    models.profile(parsed(a_resource()))
    finish(cluster, gguf(arch="falcon"))
    found = models.profile(parsed(a_resource()))
    assert isinstance(found, Unreadable)
    assert found.reason == "ModelNotServed"
    assert "GGUF architecture 'falcon' is not served" in found.message
