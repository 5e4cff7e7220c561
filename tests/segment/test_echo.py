"""An echo takes the way of a step, without layers: what it costs is what hops cost."""

from servers import Chain


def test_an_echo_passes_every_stage_and_touches_no_sequence(halves: Chain) -> None:
    client = halves.client()
    before = client.stats()
    answer = client.call({"v": 1, "op": "echo", "route": client.hops()}, bytes(1000))
    assert [timing["segment"] for timing in answer["timings"]] == [server.name for server in halves.servers]
    assert all(timing["compute_ms"] == 0 for timing in answer["timings"])
    assert (client.stats()["steps"], client.stats()["sequences"]) == (before["steps"], before["sequences"])


def test_an_echo_goes_to_segments_of_the_resource_alone(halves: Chain) -> None:
    answer = halves.client().call({"v": 1, "op": "echo", "route": [{"segment": "elsewhere-0-7", "model": "seg-abcd1234-0-7"}]})
    assert answer["error"]["code"] == "bad_request"
