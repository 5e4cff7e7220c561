"""A real server: what Triton could be told to do cannot be asked for, and only the wire and the metrics are reachable from other pods."""

import contextlib
import http.client
import json
import socket
from pathlib import Path

import pytest
from servers import Chain


def asked(halves: Chain, method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, str]:
    port = int(halves.servers[0].environment["SI_HTTP_PORT"])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
        connection.request(method, path, None if body is None else json.dumps(body))
        answer = connection.getresponse()
        return answer.status, answer.read().decode()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v2/repository/index"),
        ("POST", "/v2/repository/models/evil/load"),
        ("POST", "/v2/repository/models/{model}/unload"),
        ("GET", "/v2/systemsharedmemory/status"),
        ("POST", "/v2/systemsharedmemory/region/evil/register"),
        ("POST", "/v2/systemsharedmemory/unregister"),
        ("POST", "/v2/cudasharedmemory/unregister"),
        ("GET", "/v2/trace/setting"),
        ("POST", "/v2/trace/setting"),
        ("GET", "/v2/logging"),
        ("POST", "/v2/logging"),
        ("GET", "/v2/models/{model}/stats"),
    ],
)
def test_what_could_change_or_watch_the_server_is_refused(method: str, path: str, halves: Chain) -> None:
    body: dict[str, object] = {
        "parameters": {"config": '{"backend": "python"}', "file:1/model.py": "cHJpbnQoKQ=="},
        "log_file": "/tmp/evil",
    }
    status, said = asked(halves, method, path.format(model=halves.servers[0].model_name), body if method == "POST" else None)
    assert status in {403, 404, 400}
    assert "restricted" in said or status == 404, said
    assert not Path("/tmp/evil").exists()
    assert halves.servers[0].command("segment-probe", "20").returncode == 0


def test_a_request_cannot_use_shared_memory_of_the_server(halves: Chain) -> None:
    shared = {"shared_memory_region": "evil", "shared_memory_byte_size": 1}
    inputs = [{"name": name, "shape": [1], "datatype": "UINT8", "parameters": shared} for name in ("META", "DATA")]
    status, said = asked(halves, "POST", f"/v2/models/{halves.servers[0].model_name}/infer", {"inputs": inputs})
    assert status in {400, 404}, said


def test_steps_are_not_taken_from_the_loopback(halves: Chain) -> None:
    meta = json.dumps({"v": 1, "op": "release", "sequence": "s"}).encode()
    inputs = [
        {"name": name, "shape": [len(data)], "datatype": "UINT8", "data": list(data)} for name, data in (("META", meta), ("DATA", b"\0"))
    ]
    status, said = asked(halves, "POST", f"/v2/models/{halves.servers[0].model_name}/infer", {"inputs": inputs})
    assert status == 200
    (answer,) = [output["data"] for output in json.loads(said)["outputs"] if output["name"] == "META"]
    assert json.loads(bytes(answer))["error"]["code"] == "forbidden"


def listeners(port: int) -> set[str]:
    """Addresses, in the kernel's hexadecimal, on which the port is listened to."""
    found = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                address, number = line.split()[1].split(":")
                if line.split()[3] == "0A" and int(number, 16) == port:
                    found.add(address)
    return found


def test_triton_listens_on_the_loopback_alone_and_the_wire_and_metrics_everywhere(halves: Chain) -> None:
    everywhere = {"00000000", "0" * 32}
    loopback = {"0100007F", "0000000000000000FFFF00000100007F"}  # the second one is the first one, written as IPv6
    for server in halves.servers:
        for name in ("SI_HTTP_PORT", "SI_GRPC_PORT"):
            assert listeners(int(server.environment[name])) <= loopback
            assert listeners(int(server.environment[name]))
        for name in ("SI_WIRE_PORT", "SI_METRICS_PORT"):
            assert listeners(int(server.environment[name])) <= everywhere
            assert len(listeners(int(server.environment[name]))) == 1


def test_the_port_for_metrics_gives_metrics_alone(halves: Chain) -> None:
    port = int(halves.servers[0].environment["SI_METRICS_PORT"])
    for path, status in (("/metrics", 200), ("/v2/health/ready", 404), ("/v2/models", 404)):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=30)) as connection:
            connection.request("GET", path)
            answer = connection.getresponse()
            assert answer.status == status
            if status == 200:
                assert b"nv_inference_count" in answer.read()


def has_ipv6_loopback() -> bool:
    """Containers without a network often have none, though the kernel knows IPv6."""
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.parametrize("address", ["::1", "127.0.0.1"])
def test_the_wire_listens_for_both_families(address: str, halves: Chain) -> None:
    if ":" in address and not has_ipv6_loopback():
        pytest.skip("this container's loopback has no IPv6 address")
    socket.create_connection((address, halves.servers[0].port), timeout=30).close()


def test_grpc_on_the_loopback_is_restricted_as_well(halves: Chain) -> None:
    grpc = pytest.importorskip("grpc")
    service = pytest.importorskip("tritonclient.grpc")
    channel = grpc.insecure_channel(f"127.0.0.1:{halves.servers[0].environment['SI_GRPC_PORT']}")
    stub = service.service_pb2_grpc.GRPCInferenceServiceStub(channel)
    messages = service.service_pb2
    for call, message in (
        (stub.RepositoryIndex, messages.RepositoryIndexRequest()),
        (stub.RepositoryModelLoad, messages.RepositoryModelLoadRequest(model_name="evil")),
        (stub.ModelStatistics, messages.ModelStatisticsRequest()),
        (stub.SystemSharedMemoryStatus, messages.SystemSharedMemoryStatusRequest()),
        (stub.SystemSharedMemoryRegister, messages.SystemSharedMemoryRegisterRequest(name="evil", key="/x", byte_size=1)),
        (stub.TraceSetting, messages.TraceSettingRequest()),
        (stub.LogSettings, messages.LogSettingsRequest()),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(message, timeout=20)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert "restricted" in refused.value.details()
    channel.close()
