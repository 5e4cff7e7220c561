"""Real servers with JSON logs: every line is an object, and one request has one ID in all segments."""

import json
from pathlib import Path

from servers import Chains

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-00"


def test_one_request_has_one_id_in_the_logs_of_all_segments(chains: Chains, models: dict[str, Path], prompt: list[int]) -> None:
    chain = chains.start(models["llama"], [0, 2, 4, 7], SI_LOG_FORMAT="json")
    client = chain.client()
    assert "token" in client.step("logged", 0, prompt, traceparent=TRACEPARENT)
    assert client.step("logged", 999, [1], traceparent=TRACEPARENT)["error"]["code"]
    chain.close()
    for server in chain.servers:
        lines = [json.loads(line) for line in server.log.read_text().splitlines()]
        assert all({"time", "level", "logger", "message"} <= set(line) for line in lines)
        assert any(line["logger"].startswith("triton") for line in lines), "Triton's own lines are objects, too"
        ours = [line for line in lines if line.get("request_id") == TRACE]
        assert ours[0]["message"] == f"step begins: {len(prompt)} tokens at position 0"
        assert {line["sequence"] for line in ours} == {"logged"}
    first = [json.loads(line) for line in chain.servers[0].log.read_text().splitlines()]
    assert [line["level"] for line in first if line.get("code")] == ["WARNING"]
