"""A filter on kind, under load: trained on the served model's own answers, it skips rows, moves into the first segment, and opens when the
inputs are no longer those of its training. No request fails.
"""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e2e import stack
from e2e.cluster import Cluster
from e2e.cluster.settings import MODELS_ON_NODE
from splitinference.cli.main import main

pytestmark = [pytest.mark.cluster, pytest.mark.long]

NAME = "detector"
PODS = f"app.kubernetes.io/managed-by=splitinference,app.kubernetes.io/instance={NAME}"
INPUTS = 16
RESOURCE = {
    "apiVersion": "splitinference.dev/v1alpha1",
    "kind": "SplitInference",
    "metadata": {"name": NAME},
    "spec": {
        "model": {
            "id": NAME,
            "source": {"hostPath": {"path": f"{MODELS_ON_NODE}/{NAME}"}},
            "dtype": "float32",
            "maxContextTokens": 16,
        },
        "workload": {"promptTokens": 1, "outputTokens": 1},
        "partition": {"minSegments": 2, "maxSegments": 2},
        "adaptation": {"mode": "Frozen"},
    },
}
_WRITE = f"""
import json, pathlib, torch
from safetensors.torch import save_file
from torch import nn
torch.manual_seed(1)
sizes, relu = [({INPUTS}, 64), (64, 64), (64, 2)], dict(type="ReLU")
first, second, third = (dict(type="Linear", in_features=a, out_features=b) for a, b in sizes)
layers = [first, relu, second, relu, third]
model = nn.Sequential(nn.Linear({INPUTS}, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2)).eval()
with torch.no_grad():
    model[4].weight *= 10
    said = model(torch.randn(4000, {INPUTS}))
    model[4].bias[0] -= (said[:, 0] - said[:, 1]).quantile(0.2)  # four of five random rows are of class 0
folder = pathlib.Path("/out")
config = dict(model_type="sequential", input=dict(name="x", shape=[{INPUTS}]), output=dict(name="scores", shape=[2]), layers=layers)
(folder / "config.json").write_text(json.dumps(config))
save_file(model.state_dict(), str(folder / "model.safetensors"))
for file in folder.iterdir():
    file.chmod(0o644)
"""


def rows(count: int, seed: int, shift: Any = 0.0) -> Any:
    """Random inputs; with a shift, one number or one for each input, they are no longer those of the training."""
    return (np.random.default_rng(seed).normal(size=(count, INPUTS)) + shift).astype(np.float32)


@dataclass
class Detector:
    """The model on the cluster, and a client that never stops."""

    cluster: Cluster
    folder: Path
    url: str
    shift: Any = 0.0
    sent: int = 0
    failed: int = 0

    def ask(self, x: Any) -> Any:
        """Outputs [rows, 2] of the rows."""
        given = {"name": "x", "datatype": "FP32", "shape": list(x.shape), "data": x.ravel().tolist()}
        body = json.dumps({"inputs": [given]}).encode()
        request = urllib.request.Request(f"{self.url}/v2/models/{NAME}/infer", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=120) as answer:
            return np.array(json.load(answer)["outputs"][0]["data"]).reshape(len(x), 2)

    @contextmanager
    def load(self) -> Iterator[None]:
        """Twenty rows at a time, one request after the other, while the body runs."""
        ends = threading.Event()

        def client() -> None:
            while not ends.is_set():
                self.sent += 1
                try:
                    self.ask(rows(20, self.sent, self.shift))
                except OSError:
                    self.failed += 1
                time.sleep(0.05)

        thread = threading.Thread(target=client, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join(timeout=150)

    def patch(self, **spec: Any) -> None:
        self.cluster.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps({"spec": spec}))

    def until(self, holds: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """The condition Filtered, when it is as wanted."""
        found: list[dict[str, Any]] = []

        def there() -> bool:
            status = stack.resource(self.cluster, NAME).get("status", {})
            found[:] = [each for each in status.get("conditions", []) if each["type"] == "Filtered"]
            return bool(found) and holds(found[0])

        stack.until(there, 300, what, progress=lambda: json.dumps(found))
        return found[0]


@pytest.fixture(scope="module")
def detector(operated: Cluster) -> Iterator[Detector]:
    """Written, served and Ready; deleted afterwards, to the last pod."""
    operated.kubectl("delete", "si", "chat", "--ignore-not-found", "--timeout=600s")
    folder = operated.settings.models / NAME
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    stack.in_segment_image(operated, (folder, "/out"), "/opt/segment/bin/python", "-c", _WRITE)
    operated.apply(json.dumps(RESOURCE))
    try:
        stack.wait_ready(operated, NAME)
        with stack.forwarded(operated, NAME, 80) as address:
            yield Detector(operated, folder, f"http://{address}")
    finally:
        operated.kubectl("delete", "si", NAME, "--ignore-not-found", "--timeout=600s")
        stack.until(lambda: not operated.kubectl("get", "pods", "-l", PODS, "-o", "name").strip(), 300, "the detector's pods are gone")
        shutil.rmtree(folder)


def test_a_filter_over_the_input(detector: Detector, tmp_path: Path) -> None:
    given, labelled, made = tmp_path / "inputs.npz", tmp_path / "labelled.npz", tmp_path / "filter.json"
    np.savez(given, x=rows(4000, 1))
    asked = ["--url", detector.url, "--model", NAME, "--data", str(given), "-o", str(labelled)]
    assert main(["filter", "collect", *asked]) == 0
    trained = ["--data", str(labelled), "--class", "0", "--accuracy", "0.95", "--recall", "0.6", "-o", str(made)]
    assert main(["filter", "train", *trained]) == 0
    (detector.folder / "filter.json").write_bytes(made.read_bytes())
    (detector.folder / "filter.json").chmod(0o644)
    with detector.load():
        detector.patch(filter={"samplePercent": 20, "agreementPercent": 85})
        found = detector.until(lambda each: each["status"] == "True" and "reached the segments" in each["message"], "the filter works")
    assert found["reason"] == "Filtering"
    share = float(found["message"].split("; ")[-1].split(" %")[0])
    assert share < 80, found
    x = rows(1000, 2)
    with np.load(labelled) as kept:
        assert kept["outputs"].shape == (4000, 2)
    unfiltered = np.concatenate([collected(detector, x[at : at + 100], tmp_path) for at in range(0, 1000, 100)])
    assert (detector.ask(x).argmax(axis=1) == unfiltered.argmax(axis=1)).mean() >= 0.9
    assert detector.failed == 0, f"{detector.failed} of {detector.sent} requests failed"


def collected(detector: Detector, x: Any, folder: Path) -> Any:
    """What the model itself says: no filter stands in for it."""
    np.savez(folder / "few.npz", x=x)
    asked = ["--url", detector.url, "--model", NAME, "--data", str(folder / "few.npz"), "-o", str(folder / "said.npz")]
    assert main(["filter", "collect", *asked]) == 0
    with np.load(folder / "said.npz") as found:
        return found["outputs"]


def test_a_filter_over_the_first_layers_moves_the_cut_and_opens_when_inputs_change(detector: Detector, tmp_path: Path) -> None:
    np.savez(detector.folder / "inputs.npz", x=rows(4000, 3))
    (detector.folder / "inputs.npz").chmod(0o644)
    program = ["segment-features", "--model", "/out", "--layers", "2", "--data", "/out/inputs.npz", "-o", "/out/features.npz"]
    stack.in_segment_image(detector.cluster, (detector.folder, "/out"), *program)
    data, made = detector.folder / "features.npz", detector.folder / "layers.json"
    assert main(["filter", "train", "--data", str(data), "--class", "0", "--recall", "0.6", "-o", str(made)]) == 0
    made.chmod(0o644)
    detector.cluster.kubectl("patch", "si", NAME, "--type=merge", "-p", json.dumps({"spec": {"partition": {"allowedSplitPoints": [1, 3]}}}))
    with detector.load():
        detector.patch(filter={"file": "layers.json", "afterLayers": 2, "samplePercent": 50, "agreementPercent": 80})
        detector.until(lambda each: each["status"] == "True" and "layers.json" in each["message"], "the first segment uses the filter")
        found = stack.resource(detector.cluster, NAME)
        assert [each["end"] for each in found["status"]["plan"]["segments"]] == [3, 5], "the first three layers stay together"
        assert len(detector.ask(rows(50, 4))) == 50
        detector.shift = misjudged(detector, tmp_path)
        opened = detector.until(lambda each: each["status"] == "False" and each["reason"] == "AgreementTooLow", "the filter opens")
    assert "every row runs" in opened["message"]
    events = detector.cluster.kubectl("get", "events", "--field-selector", f"involvedObject.name={NAME},type=Warning", "-o", "json")
    assert any("the filter in layers.json opened" in event["message"] for event in json.loads(events)["items"])
    assert detector.failed == 0, f"{detector.failed} of {detector.sent} requests failed"


def misjudged(detector: Detector, folder: Path) -> Any:
    """A shift of inputs where the filter often skips what the model takes for the other class."""
    for seed in range(100, 200):
        shift = np.random.default_rng(seed).normal(size=INPUTS) * 3
        x = rows(100, seed, shift)
        if (detector.ask(x).argmax(axis=1) != collected(detector, x, folder).argmax(axis=1)).mean() >= 0.3:
            return shift
    raise AssertionError("the filter is right wherever it was asked")
