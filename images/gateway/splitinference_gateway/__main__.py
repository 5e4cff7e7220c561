"""Start the gateway: settings from the environment, HTTP server, orderly end."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
from types import FrameType

import uvicorn

from splitinference_gateway.app import build_app
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.settings import Settings, SettingsError
from splitinference_gateway.tokenizer import ModelFilesError

_KEEP_ALIVE_SECONDS = 75  # longer than clients and proxies keep idle connections, so that they close them and not we


class Server(uvicorn.Server):
    """Ends in two steps: unready first, while endpoints are updated; then no new connections, and what runs may finish."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway
        self._leaving: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """First SIGTERM: begin to leave. A second signal, or SIGINT, ends at once."""
        if sig == signal.SIGTERM and not self._gateway.leaving:
            self._gateway.leaving = True
            asyncio.get_running_loop().call_soon_threadsafe(self._leave)
        else:
            super().handle_exit(sig, frame)

    def _leave(self) -> None:
        self._leaving = asyncio.get_running_loop().create_task(self._leave_later())

    async def _leave_later(self) -> None:
        await asyncio.sleep(self._gateway.settings.lameduck_seconds)
        self.should_exit = True


def main() -> int:
    """Run until told to end. Returns the process' exit status."""
    logging.basicConfig(level=os.environ.get("SI_LOG_LEVEL", "INFO"), format="%(asctime)s %(levelname)s %(name)s %(message)s")
    try:
        settings = Settings.from_environment(os.environ)
        gateway = Gateway.build(settings)
    except (SettingsError, ModelFilesError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    config = uvicorn.Config(
        build_app(gateway),
        host=settings.host,
        port=settings.port,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.shutdown_seconds),
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, gateway).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
