"""An echo takes the way of a step, without layers: what it costs is what hops cost."""

from pathlib import Path

from servers import Chains


def test_an_echo_passes_every_stage_and_touches_no_sequence(models: dict[str, Path], chains: Chains) -> None:
    chain = chains.start(models["llama"], [0, 3, 7])
    client = chain.client()
    answer = client.call({"v": 1, "op": "echo", "route": client.hops()}, bytes(1000))
    assert [timing["segment"] for timing in answer["timings"]] == [server.name for server in chain.servers]
    assert all(timing["compute_ms"] == 0 for timing in answer["timings"])
    assert client.stats()["steps"] == 0


def test_an_echo_goes_to_segments_of_the_resource_alone(models: dict[str, Path], chains: Chains) -> None:
    client = chains.start(models["llama"], [0, 7]).client()
    answer = client.call({"v": 1, "op": "echo", "route": [{"segment": "elsewhere-0-7", "model": "seg-abcd1234-0-7"}]})
    assert answer["error"]["code"] == "bad_request"
