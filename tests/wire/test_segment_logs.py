"""A segment's log: each request once, with the gateway's ID; as JSON every line is an object, also Triton's and those of libraries."""

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import Request, TensorMeta
from splitinference_segment import logs

TRACE = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE}-b7ad6b7169203331-00"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger, as it was when the test has ended."""
    logger = logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    yield logger
    logger.handlers[:] = handlers
    logger.setLevel(level)


def written(root: logging.Logger, form: str) -> io.StringIO:
    logs.configure({"SI_LOG_FORMAT": form})
    (handler,) = root.handlers
    stream = io.StringIO()
    handler.setStream(stream)  # type: ignore[attr-defined]
    return stream


def a_step(position: int = 0, **more: Any) -> Request:
    fields = {"op": "step", "sequence": "s1", "position": position, "traceparent": TRACEPARENT, "tensor": TensorMeta("int64", (7,))}
    return Request(**{**fields, **more})


def test_a_sequence_has_one_line_and_a_replay_another(root: logging.Logger):
    stream, log = written(root, "json"), logs.RequestLog("chat-0-4-x")
    for request in (a_step(), a_step(7), a_step(8), a_step(), a_step(op="release", tensor=None), a_step(op="echo")):
        log.came(request)
    lines = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["request_id"] for line in lines] == [TRACE, TRACE]
    assert lines[0]["message"] == "step begins: 7 tokens at position 0"
    assert {(line["segment"], line["sequence"], line["tokens"]) for line in lines} == {("chat-0-4-x", "s1", 7)}


def test_a_failure_is_logged_with_its_code_and_breaks_no_line(root: logging.Logger):
    stream, log = written(root, "json"), logs.RequestLog("a")
    log.failed(a_step(), SegmentError("next_hop_failed", 'b said "no"\nand more'))
    (line,) = stream.getvalue().splitlines()
    assert json.loads(line)["code"] == "next_hop_failed"
    assert json.loads(line)["level"] == "WARNING"
    assert json.loads(line)["request_id"] == TRACE


def test_plain_lines_have_the_id_as_a_word(root: logging.Logger):
    stream, log = written(root, "plain"), logs.RequestLog("a")
    log.came(a_step())
    log.came(a_step(traceparent=""))
    logging.getLogger("other").warning("of no request")
    words = [line.split() for line in stream.getvalue().splitlines()]
    assert [TRACE in each for each in words] == [True, False, False]
    assert all("-" in each for each in words[1:])


def test_another_format_is_refused():
    with pytest.raises(ValueError, match="SI_LOG_FORMAT is 'xml', but should be one of plain, json"):
        logs.configure({"SI_LOG_FORMAT": "xml"})


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("I1201 00:45:37.123456 1 server.cc:12] Started", ("INFO", "triton server.cc:12", "Started")),
        ('E1201 00:45:37.123456 17 pb_stub.cc:9] it "broke"', ("ERROR", "triton pb_stub.cc:9", 'it "broke"')),
        ("Traceback (most recent call last):", ("INFO", "segment-serve", "Traceback (most recent call last):")),
        ('{"not": json', ("INFO", "segment-serve", '{"not": json')),
        ("[1, 2]", ("INFO", "segment-serve", "[1, 2]")),
    ],
)
def test_lines_of_others_become_objects(line: str, found: tuple[str, str, str]):
    made = json.loads(logs.as_json(line + "\r\n", 0.0))
    assert (made["level"], made["logger"], made["message"]) == found
    assert made["time"] == "1970-01-01T00:00:00.000+00:00"


def test_our_own_objects_stay_as_they_are():
    assert logs.as_json('{"level":"INFO"}\n', 0.0) == '{"level":"INFO"}'


def test_all_that_a_process_and_its_child_write_comes_out_as_objects():
    out = io.StringIO()
    code = 'import subprocess, sys; print("one"); print("two", file=sys.stderr); subprocess.run(["printf", "three\\nno end \\\\377"])'
    process = subprocess.Popen([sys.executable, "-u", "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    thread = logs.pumped(process.stdout, logs.JsonStream(out))
    assert process.wait(60) == 0
    thread.join(60)
    assert not thread.is_alive()
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["one", "two", "three", "no end \ufffd"]


def test_a_line_is_kept_until_it_ends():
    out = io.StringIO()
    stream = logs.JsonStream(out)
    stream.write("be")
    assert out.getvalue() == ""
    stream.write("gun\n\nand the next")
    assert [json.loads(line)["message"] for line in out.getvalue().splitlines()] == ["begun"]
