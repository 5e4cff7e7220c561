"""What is asked again when the API server was away, and what is not."""

import pytest

from e2e.cluster.command import CommandError, persistent, transient

AWAY = [
    "Error: Kubernetes cluster unreachable: read tcp 127.0.0.1:1->127.0.0.1:2: read: connection reset by peer",
    "The connection to the server was refused\ndial tcp 127.0.0.1:33583: connect: connection refused",
    "Unable to connect to the server: net/http: TLS handshake timeout",
    'error: Get "https://127.0.0.1:1/api": EOF',
    "Error from server: etcdserver: request timed out",
    "Error from server (ServiceUnavailable): the server is currently unable to handle the request",
    "error: http2: client connection lost",
]
WRONG = [
    'Error from server (NotFound): pods "x" not found',
    "error: timed out waiting for the condition on pods/x",
    "Error from server (Forbidden): exceeded quota",
    'The SplitInference "chat" is invalid: spec.adaptation.window must be from 1s to 1h',
    "",
]


def failing(*outputs: str):
    """A command that says these one after the other, and then succeeds."""
    left = list(outputs)

    def once() -> str:
        if left:
            raise CommandError(["kubectl"], 1, left.pop(0))
        return "done"

    return once


@pytest.mark.parametrize("output", AWAY)
def test_what_a_restarted_api_server_makes_programs_say_is_transient(output: str):
    assert transient(CommandError(["kubectl"], 1, output))
    assert persistent(failing(output, output), pause=lambda _: None) == "done"


@pytest.mark.parametrize("output", WRONG)
def test_what_stays_wrong_is_said_at_once(output: str):
    with pytest.raises(CommandError):
        persistent(failing(output), pause=lambda _: None)


def test_it_is_not_tried_for_ever():
    paused: list[float] = []
    with pytest.raises(CommandError, match="refused"):
        persistent(failing(AWAY[1]), seconds=-1, pause=paused.append)
    assert paused == []


def test_pauses_grow_and_stay_short():
    paused: list[float] = []
    persistent(failing(*AWAY[:6]), pause=paused.append)
    assert paused == [1, 2, 4, 8, 10, 10]
