"""Models without sequences: an encoder and a generic chain are read, planned, proven and routed as any model, and keep no KV."""

from typing import Any

import pytest

from splitinference.core.model_files.config import profile_from_model
from splitinference.core.values.profile import Profile
from splitinference_protocol.report import ObservedTraffic, Percentiles
from tests.controller.objects import MIB, a_body
from tests.controller.stories import small
from tests.controller.world import NAMESPACE, Operator, World
from tests.core.model_files.test_profile_tensors import BERT, CHAIN, bert, chain

RUNTIME = 100 * MIB


def encoder() -> Profile:
    return profile_from_model(BERT, bert(), "float32", runtime_bytes=RUNTIME, model="encoder")


def generic() -> Profile:
    return profile_from_model(CHAIN, chain(), "float32", runtime_bytes=RUNTIME, model="chain")


def served(profile: Profile, **spec: Any) -> tuple[World, Operator]:
    world = World(small("a", "b", "c"))
    world.add(a_body(workload={"promptTokens": 16, "outputTokens": 1}, partition={"minSegments": 3}, **spec), profile)
    operator = Operator(world)
    operator.run(6)
    return world, operator


@pytest.mark.parametrize("profile", [encoder(), generic()], ids=lambda profile: profile.model)
def test_it_serves_in_three_segments_that_keep_no_kv(profile: Profile):
    world, _ = served(profile)
    assert world.condition("Ready")["status"] == "True", world.status()
    segments = world.status()["plan"]["segments"]
    assert [s["start"] for s in segments] == [0, *(s["end"] for s in segments[:-1])]
    assert (len(segments), segments[-1]["end"]) == (3, len(profile.layers))
    assert [s["kvBytes"] for s in segments] == [0, 0, 0]
    assert world.routes_seen == [world.status()["plan"]["revision"]]
    pods = (world.objects["Pod", NAMESPACE, name] for name in world.segments())
    assert {v["value"] for pod in pods for v in pod["spec"]["containers"][0]["env"] if v["name"] == "SI_KV_BYTES"} == {"0"}


def test_what_clients_see_is_the_time_of_an_answer_and_no_token_after_it():
    world, operator = served(encoder())
    world.traffic = ObservedTraffic(requests=10, time_to_first_token_ms=Percentiles(p50=20, p95=30))
    operator.run(3)
    status = world.status()
    assert status["observed"]["timeToFirstTokenMs"] == {"p50": 20, "p95": 30}
    assert status["latency"] == "20ms"
    assert world.condition("Ready")["status"] == "True"


def test_a_segment_that_is_lost_is_made_anew_and_the_route_stays():
    world, operator = served(encoder())
    route = list(world.routes_seen)
    victim = world.segments()[1]
    del world.objects["Pod", NAMESPACE, victim]
    operator.run(6)
    assert victim in world.segments()
    assert world.condition("Ready")["status"] == "True"
    assert world.routes_seen == route


@pytest.mark.parametrize(("profile", "encoding"), [(encoder(), 2), (generic(), 0)], ids=["encoder", "chain"])
def test_eight_bits_on_links_are_for_hidden_states_and_nothing_else(profile: Profile, encoding: int):
    world, _ = served(profile, segments={"linkEncoding": "Int8"})
    assert world.condition("Ready")["status"] == "True"
    pods = (world.objects["Pod", NAMESPACE, name] for name in world.segments())
    told = [v["value"] for pod in pods for v in pod["spec"]["containers"][0]["env"] if v["name"] == "SI_LINK_ENCODING"]
    assert told == ["int8"] * encoding
