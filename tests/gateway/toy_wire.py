"""The wire's listening side for toy segments, written from the protocol's description and not from either implementation."""

import asyncio
import ssl
import struct
from collections.abc import Awaitable, Callable

Handle = Callable[[bytes, bytes], Awaitable[tuple[bytes, bytes]]]


class ToyWire:
    """Frames in, answers out, each as soon as it is there. `frames` counts what came."""

    def __init__(self, model: Callable[[], str], handle: Handle) -> None:
        self._model, self._handle = model, handle
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.frames = 0

    async def start(self, port: int = 0, context: ssl.SSLContext | None = None) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, ssl=context)
        bound: int = self._server.sockets[0].getsockname()[1]
        return bound

    @property
    def connections(self) -> int:
        """Open ones."""
        return len(self._writers)

    async def die(self) -> None:
        """As a killed process: every connection breaks."""
        self._server.close()
        self.cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break the connections; new ones are welcome."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            magic, length = struct.unpack("<4sH", await reader.readexactly(6))
            if magic != b"SIW1" or await reader.readexactly(length) != self._model().encode():
                writer.write(b"SIW1\x01")
                return
            writer.write(b"SIW1\x00")
            while True:
                number, meta_bytes, data_bytes = struct.unpack("<QII", await reader.readexactly(16))
                meta, data = await reader.readexactly(meta_bytes), await reader.readexactly(data_bytes)
                self.frames += 1
                task = asyncio.create_task(self._answer(writer, number, meta, data))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        except (asyncio.IncompleteReadError, ConnectionError, OSError):
            return
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _answer(self, writer: asyncio.StreamWriter, number: int, meta: bytes, data: bytes) -> None:
        said, content = await self._handle(meta, data)
        if not writer.is_closing():
            writer.write(struct.pack("<QII", number, len(said), len(content)) + said + content)
