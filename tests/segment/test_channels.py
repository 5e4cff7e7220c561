"""Channels to peers: a segment that comes back under another address is found there, and nothing under way is cut off."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from splitinference_segment.channels import Channels


class Answering(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Says its name; to a request of the name `slow` only once `go` is set."""

    def __init__(self, name: str) -> None:
        self.name, self.go, self.entered = name, threading.Event(), threading.Event()

    def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802 - the service's name for it
        if request.id == "slow":
            self.entered.set()
            assert self.go.wait(20)
        return service_pb2.ModelInferResponse(model_name=self.name)


@contextmanager
def serving(name: str) -> Iterator[tuple[Answering, str]]:
    server, answering = grpc.server(ThreadPoolExecutor(4)), Answering(name)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(answering, server)
    address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield answering, address
    finally:
        answering.go.set()
        server.stop(None).wait()


class Asking:
    """A caller; the peer's address is what `address` says when a channel is opened."""

    def __init__(self, address: str, **settings: float) -> None:
        self.address, self.looked_up = address, 0
        self.channels = Channels(self._address, **settings)

    def _address(self, name: str) -> str:
        self.looked_up += 1
        return self.address

    def begin(self, request: str = "") -> "tuple[threading.Event, list[Any]]":
        came, calls = threading.Event(), []

        def done(call: Any) -> None:
            calls.append(call)
            came.set()

        self.channels.infer("peer", service_pb2.ModelInferRequest(id=request), 10.0, done)
        return came, calls

    def __call__(self) -> str:
        came, calls = self.begin()
        assert came.wait(15)
        (call,) = calls
        return str(call.code().name if call.exception() else call.result().model_name)


@pytest.fixture
def ended() -> Iterator[list[Asking]]:
    asking: list[Asking] = []
    yield asking
    for each in asking:
        each.channels.close()


def test_one_channel_serves_all_calls(ended: list[Asking]) -> None:
    with serving("a") as (_, address):
        ask = Asking(address)
        ended.append(ask)
        assert [ask() for _ in range(5)] == ["a"] * 5
        assert ask.looked_up == 1


def test_a_peer_that_came_back_elsewhere_is_found_after_one_failure(ended: list[Asking]) -> None:
    with serving("new") as (_, new):
        with serving("old") as (_, old):
            ask = Asking(old, renew_s=0.0)
            ended.append(ask)
            assert ask() == "old"
        ask.address = new
        assert ask() == "UNAVAILABLE"
        assert ask() == "new"


def test_a_fresh_channel_is_not_opened_anew_for_each_failure(ended: list[Asking]) -> None:
    with serving("gone") as (_, address):
        pass
    ask = Asking(address, renew_s=60.0)
    ended.append(ask)
    assert {ask() for _ in range(5)} == {"UNAVAILABLE"}
    assert ask.looked_up == 1


def test_a_channel_that_was_not_used_for_a_while_is_looked_up_again(ended: list[Asking]) -> None:
    with serving("new") as (_, new), serving("old") as (_, old):
        ask = Asking(old, idle_s=0.05)
        ended.append(ask)
        assert ask() == "old"
        ask.address = new
        time.sleep(0.1)
        assert ask() == "new"


def test_what_is_under_way_ends_where_it_began(ended: list[Asking]) -> None:
    with serving("a") as (answering, address):
        ask = Asking(address, idle_s=0.0)
        ended.append(ask)
        came, calls = ask.begin("slow")
        assert answering.entered.wait(10)
        time.sleep(0.05)
        assert ask() == "a"
        assert ask.looked_up == 1, "in use, so not idle"
        answering.go.set()
        assert came.wait(10)
        assert calls[0].result().model_name == "a"
