"""Spot checks with real segments: an honest one passes, one with other weights is left. Runs in images/gateway/Dockerfile.test."""

import json
import os
import shutil
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.gateway.real_segments import Inside, Segment, gateway, wait_for
from tests.segment.host import free_ports

pytestmark = pytest.mark.skipif(
    shutil.which("segment-serve") is None or "SI_TEST_MODEL_PATH" not in os.environ,
    reason="needs segment-serve and a converted model (SI_TEST_MODEL_PATH): images/gateway/Dockerfile.test has both",
)

MODEL = "smollm2"
MIDDLE = (12, 22)
TOLERANCE = 0.001
"""Of float32."""
_CHANGED = bytes(value & 0xF0 for value in range(256))


@dataclass
class Named(Segment):
    """Several segments with the same layers."""

    kind: str = ""

    @property
    def name(self) -> str:
        return f"{self.prefix}-{self.start}-{self.end}-{self.kind}"


def with_other_weights(folder: Path, made: Path) -> Path:
    """A copy of the model in which the weights of the middle's blocks have four bits less: a file of the same size."""
    shutil.copytree(folder, made)
    file = made / "model.safetensors"
    content = bytearray(file.read_bytes())
    (length,) = struct.unpack("<Q", content[:8])
    blocks = tuple(f"layers.{layer - 1}." for layer in range(*MIDDLE))
    for name, about in json.loads(content[8 : 8 + length]).items():
        if name != "__metadata__" and any(block in name for block in blocks):
            assert about["dtype"] == "BF16"
            start, end = (8 + length + offset for offset in about["data_offsets"])
            content[start:end:2] = content[start:end:2].translate(_CHANGED)  # the low bytes
    file.write_bytes(content)
    return made


@dataclass
class World:
    """A gateway, segments, a verifier of the middle one, and one with other weights."""

    url: str
    route_file: Path
    inside: Inside
    segments: dict[str, Named]

    def route(self, revision: str, middle: str) -> None:
        first, last = self.segments["first"], self.segments["last"]
        check = {
            "segments": [self.segments[middle].name],
            "before": first.hop,
            "after": last.hop,
            "verifier": self.segments["verifier"].hop,
        }
        pipelines = [[first.hop, self.segments[middle].hop, last.hop]]
        verification = {"samplePercent": 100, "tolerance": TOLERANCE, "checks": [check]}
        document = {"v": 1, "revision": revision, "pipelines": pipelines, "drainSeconds": 1, "verification": verification}
        self.route_file.with_suffix(".new").write_text(json.dumps(document))
        self.route_file.with_suffix(".new").rename(self.route_file)

    def verified(self) -> dict[str, Any]:
        found: dict[str, Any] = self.inside.routes()["verification"]
        return found

    def text(self, tokens: int) -> str:
        with openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=600) as client:
            answer = client.completions.create(model=MODEL, prompt="The rivers of Europe are", max_tokens=tokens, temperature=0)
        return answer.choices[0].text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("verification")
    honest = os.environ["SI_TEST_MODEL_PATH"]
    other = str(with_other_weights(Path(honest), folder / "other-model"))
    kinds = {
        "first": ((0, MIDDLE[0]), honest),
        "honest": (MIDDLE, honest),
        "other": (MIDDLE, other),
        "verifier": (MIDDLE, honest),
        "last": ((MIDDLE[1], 32), honest),
    }
    ports = free_ports(3 * len(kinds) + 1)
    segments: dict[str, Named] = {}
    addresses: dict[str, str] = {}
    for number, (kind, (cut, model)) in enumerate(kinds.items()):
        own = ports[3 * number : 3 * number + 3]
        (folder / kind).mkdir()  # each with its own certificate: one that starts must not meet files that are being written
        segments[kind] = Named(MODEL, *cut, own, addresses, folder / kind / "segment.log", model_path=model, kind=kind)
        addresses[segments[kind].name] = f"127.0.0.1:{own[1]}"
    for segment in segments.values():
        segment.serve()
    settings = {
        "SI_MODEL_ID": MODEL,
        "SI_MODEL_PATH": honest,
        "SI_ROUTE_FILE": str(folder / "route.json"),
        "SI_PEER_ADDRESSES": json.dumps(addresses),
        "SI_PORT": str(ports[-1]),
        "SI_REPLAY_SECONDS": "300",
        **(inside := Inside.of(folder)).settings,
    }
    url = f"http://127.0.0.1:{ports[-1]}"
    made = World(url, folder / "route.json", inside, segments)
    made.route("r1", "honest")
    with gateway(settings, folder, url, list(segments.values())):
        assert made.text(2)  # waits for all servers
        yield made


def test_an_honest_segment_passes_every_check_and_another_is_left_in_mid_sequence(world: World) -> None:
    expected = world.text(48)
    wait_for(lambda: world.verified()["checkedTokens"] >= 48)
    found = world.verified()
    assert found["failed"] == {}, found
    world.route("r2", "other")
    wait_for(lambda: world.inside.routes()["revision"] == "r2")
    wrong = world.text(4)
    wait_for(lambda: bool(world.verified()["failed"]))
    (failed,) = world.verified()["failed"].items()
    assert failed[0] == world.segments["other"].name
    assert failed[1]["error"] > 3 * failed[1]["limit"], (failed, wrong)
    world.route("r3", "honest")
    assert world.text(48) == expected
    wait_for(lambda: world.inside.routes()["revision"] == "r3")
    assert world.verified()["failed"] == {}
