"""gRPC knows the client before it takes the message, and the message's size before it makes objects of it."""

import asyncio
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from splitinference_gateway.endpoints.kserve import ModelInferRequest
from splitinference_gateway.endpoints.kserve_grpc import peer_address
from splitinference_gateway.endpoints.kserve_message import read_infer
from splitinference_gateway.errors import ApiError
from tests.gateway.serving import MODEL, Serving
from tests.gateway.test_kserve import BERT, tensors

pytestmark = pytest.mark.anyio
INFER = "/inference.GRPCInferenceService/ModelInfer"


async def code(world: Serving, raw: bytes, key: str | None = None, method: str = INFER) -> tuple[grpc.StatusCode, str]:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{world.kserve_port}") as channel:
        call: Any = channel.unary_unary(method)
        metadata = (("authorization", f"Bearer {key}"),) if key else ()
        try:
            await call(raw, metadata=metadata, timeout=30)
        except grpc.aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


async def test_who_is_unknown_is_refused_whatever_the_message_is(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("sk-one\n")
    async with tensors(tmp_path, BERT, "a", api_keys_file=tmp_path / "keys") as world:
        for raw in (b"", b"\xff" * 100, bytes(3_000_000)):
            assert (await code(world, raw))[0] is grpc.StatusCode.UNAUTHENTICATED
            assert (await code(world, raw, "sk-two"))[0] is grpc.StatusCode.UNAUTHENTICATED
            assert (await code(world, raw, "sk-one"))[0] is not grpc.StatusCode.UNAUTHENTICATED
        assert (await code(world, b"", method="/inference.GRPCInferenceService/ServerLive"))[0] is grpc.StatusCode.OK


async def test_a_message_that_does_not_come_is_not_waited_for_and_holds_no_place(tmp_path: Path) -> None:
    async with tensors(tmp_path, BERT, "a", body_seconds=0.2) as world:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{world.kserve_port}") as channel:
            calls: list[Any] = [channel.stream_stream(INFER)() for _ in range(20)]

            async def ended(call: Any) -> grpc.StatusCode:
                status: grpc.StatusCode = await call.code()
                return status

            assert set(await asyncio.gather(*(ended(call) for call in calls))) == {grpc.StatusCode.DEADLINE_EXCEEDED}
        assert (await code(world, b"\xff"))[0] is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "raw",
    [
        b"\xff" * 50,
        b"\x2a\x00" * 1000,
        b"\x0a\x7fshort",
        b"\x0a\x02\xff\xfe",
        b"\x08" + b"\x80" * 20,
        b"\x0b",
        ModelInferRequest(model_name=MODEL).SerializeToString()[:-1],
    ],
)
async def test_what_is_no_request_is_refused_by_its_bytes(raw: bytes) -> None:
    with pytest.raises(ApiError) as caught:
        read_infer(raw)
    assert caught.value.status == 400


async def test_a_request_is_read_as_it_was_written() -> None:
    request = ModelInferRequest(model_name=MODEL, id="7")
    for name in ("a", "b"):
        request.inputs.add(name=name, datatype="INT64", shape=[1, 2])
        request.raw_input_contents.append(bytes(16))
    assert read_infer(request.SerializeToString()) == request


@pytest.mark.parametrize(
    ("peer", "address"),
    [
        ("ipv4:10.0.0.1:4242", "10.0.0.1"),
        ("ipv6:%5B::1%5D:4242", "::1"),
        ("ipv6:[::ffff:10.0.0.1]:4242", "10.0.0.1"),
        ("ipv6:%5Bfe80::1%25eth0%5D:1", "fe80::1"),
    ],
)
async def test_a_peers_address_has_one_form(peer: str, address: str) -> None:
    assert peer_address(peer) == address
