"""Gateway and segments each have the wire's format in code of their own, as their images share none: here the two meet.

The segments' side is taken from its file, as it is; with real segments the images' own tests do it.
"""

import asyncio
import runpy
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from splitinference_gateway import wire as ours
from splitinference_gateway.wire import Wire, WireError

THEIRS: dict[str, Any] = runpy.run_path(
    str(Path(__file__).parents[2] / "images/segment/splitinference_segment/wire.py"), run_name="their_wire"
)
MODEL = "seg-0123abcd-0-3"
LONG = 60.0


def greeted(connected: socket.socket) -> None:
    """As a segment's server does it."""
    with connected.makefile("rb", buffering=0) as plain:
        magic = THEIRS["read_all"](plain, len(THEIRS["MAGIC"]))
        (length,) = struct.unpack("<H", THEIRS["read_all"](plain, 2))
        fits = magic == THEIRS["MAGIC"] and THEIRS["read_all"](plain, length) == MODEL.encode()
    connected.sendall(THEIRS["MAGIC"] + bytes([not fits]))


def echo(listener: socket.socket) -> None:
    """Answer the frames of one connection with what they hold, until it is closed."""
    connected, _ = listener.accept()
    greeted(connected)
    connection = THEIRS["Connection"](connected)
    try:
        while True:
            connection.write(*connection.read())
    except THEIRS["WireError"]:
        connection.close()
        connection.reader.close()


@pytest.fixture
def port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        segment = threading.Thread(target=echo, args=(listener,))
        segment.start()
        yield listener.getsockname()[1]
        segment.join(timeout=LONG)
    assert not segment.is_alive()


def test_both_say_the_same_of_a_frame() -> None:
    for name in ("MAGIC", "MAX_META", "MAX_DATA"):
        assert getattr(ours, name) == THEIRS[name], name
    assert ours.HEAD.format == THEIRS["HEAD"].format


@pytest.mark.anyio
async def test_frames_of_the_gateway_are_read_and_answered_by_a_segments_code(port: int) -> None:
    wire = await Wire.connect("127.0.0.1", port, MODEL)
    contents = [(b'{"x": %d}' % number, bytes([number]) * size) for number, size in enumerate((0, 1, 1152, 16384, 5_000_001))]
    try:
        assert await asyncio.gather(*(wire.exchange(meta, data, LONG) for meta, data in contents)) == contents
    finally:
        wire.close()


@pytest.mark.anyio
async def test_another_model_is_refused_in_the_way_that_the_gateway_reads(port: int) -> None:
    with pytest.raises(WireError, match="does not serve"):
        await Wire.connect("127.0.0.1", port, "seg-0123abcd-3-7")
