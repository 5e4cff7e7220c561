"""Links that take time, for benches on one machine whose kernel has no netem: each byte is handed on so much later, in both directions.

It runs inside a container beside the servers, by `python -c '<this file>' '<ports and seconds>'`; standard library only.
"""

import asyncio
import json
import sys
from contextlib import suppress


async def _later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """Hand on what comes, in order, each piece `seconds` after it came: pieces overlap, so that a link has delay and no narrowness."""
    loop, pieces = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def hand_on() -> None:
        while True:
            due, piece = await pieces.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not piece:
                writer.close()
                return
            writer.write(piece)
            await writer.drain()

    handing = asyncio.create_task(hand_on())
    with suppress(OSError):
        while piece := await reader.read(1 << 18):
            pieces.put_nowait((loop.time() + seconds, piece))
    pieces.put_nowait((loop.time() + seconds, b""))
    with suppress(OSError):
        await handing


async def main(asked: str) -> None:
    """Listen on each first port for the second."""
    told = json.loads(asked)

    def relay(port: int) -> object:
        async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(_later(reader, back, told["seconds"]), _later(there, writer, told["seconds"]))

        return each

    servers = [await asyncio.start_server(relay(port), "127.0.0.1", own) for own, port in told["ports"]]  # type: ignore[arg-type]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
