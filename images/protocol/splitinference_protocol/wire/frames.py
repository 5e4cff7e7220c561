"""Frames of the wire, little-endian, inside TLS; and the limits that both sides keep.

the connecting side begins: b"SIW1", u16 length, name of the Triton model that it expects
the other side answers:     b"SIW1", u8 0 (yes) or 1 (another model is here)
then, both ways:            u64 number, u32 bytes of META, u32 bytes of DATA, META, DATA; an answer has its request's number
"""

import socket
import struct

MAGIC = b"SIW1"
HEAD = struct.Struct("<QII")
"""Number, bytes of META, bytes of DATA."""
NAME_LENGTH = struct.Struct("<H")
GREETING_HEAD = len(MAGIC) + NAME_LENGTH.size
MAX_NAME = 1024  # bytes of a model's name
ANSWER_BYTES = len(MAGIC) + 1
YES, ANOTHER_MODEL = MAGIC + b"\0", MAGIC + b"\1"
"""The two answers to a greeting."""

NOTHING = b"\0"
"""DATA of what has no tensor. Triton takes no empty one."""
MAX_META = 1 << 20  # bytes of META of an answer
MOST_ANSWER = 1 << 20  # bytes of DATA of an answer, where the one who waits for it does not say
OPEN_SECONDS = 5.0  # to connect, for the handshake of TLS and to be greeted, together
FRAME_SECONDS = 30.0  # a frame that has begun is complete within this time, and the time of its bytes at the slowest useful speed
SLOWEST = 256 << 10  # bytes a second
IDLE_SECONDS = 300.0  # a connection that was not used for so long is closed by the side that opened it, before the other does
UNSENT = 64 << 20  # what a peer may leave unread before it is cut off
SILENT_MS = 5_000  # what a peer that is gone may leave unacknowledged


def greeting(model: str) -> bytes:
    """What the connecting side begins with."""
    name = model.encode()
    return MAGIC + NAME_LENGTH.pack(len(name)) + name


def greeting_left(begun: bytes | bytearray) -> int:
    """Bytes that are missing of a greeting, as far as its beginning tells. ValueError for what is no greeting."""
    if begun[: len(MAGIC)] != MAGIC[: len(begun)]:
        raise ValueError("no greeting")
    if len(begun) < GREETING_HEAD:
        return GREETING_HEAD - len(begun)
    (length,) = NAME_LENGTH.unpack_from(begun, len(MAGIC))
    if length > MAX_NAME:
        raise ValueError(f"a name of {length} bytes")
    return GREETING_HEAD + int(length) - len(begun)


def greeted_model(whole: bytes | bytearray) -> bytes:
    """The model's name in a complete greeting."""
    return bytes(whole[GREETING_HEAD:])


def head(number: int, meta: bytes, data: "bytes | bytearray | memoryview") -> bytes:
    """What goes before META and DATA."""
    return HEAD.pack(number, len(meta), len(data))


def frame(number: int, meta: bytes, data: bytes | bytearray) -> bytes:
    """A whole frame in one piece: for small ones."""
    return b"".join((HEAD.pack(number, len(meta), len(data)), meta, data))


def frame_seconds(announced: int) -> float:
    """How long a frame of so many bytes may take."""
    return FRAME_SECONDS + announced / SLOWEST


def keep(connected: socket.socket) -> None:
    """Frames are sent at once, and a peer that is gone is noticed: a node that is lost sends no word."""
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", SILENT_MS)):
        connected.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
