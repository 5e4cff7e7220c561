"""Ports for servers that come up seconds later: nobody else on this machine's network is given the same meanwhile."""

import random

import pytest

from splitinference_segment.server import serve
from tests.segment import host


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody looks through ports in the same order."""
    monkeypatch.setattr(random, "sample", lambda ports, count: list(ports)[-count:])


def test_two_segments_that_start_at_once_get_ports_of_their_own(few: None) -> None:
    one, kept = serve.free_port()
    other, also = serve.free_port()
    try:
        assert one != other
    finally:
        kept.close()
        also.close()
    again, kept = serve.free_port()
    kept.close()
    assert again == one, "what a segment no longer keeps can be had again"


def test_ports_of_tests_are_given_once(few: None) -> None:
    first = host.free_ports(3)
    assert len(set(first)) == 3
    assert not set(first) & set(host.free_ports(3))
