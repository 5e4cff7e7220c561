"""The page in a cluster: `python -m splitinference.ui`, which the chart runs. Its settings are those of the operator, and PAGE_*."""

import asyncio
import logging
import sys
from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from splitinference.controller.ports import UnavailableError
from splitinference.settings import Settings

log = logging.getLogger("splitinference.ui")


class PageSettings(BaseSettings):
    """Variables that begin with SPLITINFERENCE_PAGE_."""

    model_config = SettingsConfigDict(env_prefix="SPLITINFERENCE_PAGE_", frozen=True)

    port: int = Field(default=8443, ge=1, le=65535, description="port of the page")
    health_port: int = Field(default=8080, ge=1, le=65535, description="port of /healthz, for the kubelet")
    exposed: bool = Field(default=False, description="listen on all addresses; else on the loopback, for kubectl port-forward")
    tls_folder: str = Field(default="", description="folder with tls.crt and tls.key; needed where it is exposed")
    hosts: str = Field(default="", description="names under which browsers reach it, with commas between them")
    audience: str = Field(
        default="splitinference-page", description="audience of the tokens that people sign in with; empty: that of the API server"
    )
    what_if: bool = Field(default=False, description="offer the what-if form, which uses processor time")
    what_if_seconds: float = Field(default=10.0, gt=0, le=120, description="longest time of one answer, in seconds")


def main() -> int:
    """Entry point; returns the exit status."""
    from splitinference.adapters.kubernetes.client import connect
    from splitinference.catalogue import CatalogueError, extended
    from splitinference.ui.access import ReviewedAccess
    from splitinference.ui.origins.kube import TIMEOUT_SECONDS, LiveCluster, Reviews
    from splitinference.ui.questions.what_if import Bounds
    from splitinference.ui.run import EVERYWHERE, LOCAL, Listen, serve

    try:
        settings, page = Settings(), PageSettings()
        if page.exposed and not page.tls_folder:
            sys.stderr.write("SPLITINFERENCE_PAGE_EXPOSED needs SPLITINFERENCE_PAGE_TLS_FOLDER: people send tokens to the page\n")
            return 2
        extended(settings.catalogue_folder)
        logging.basicConfig(level=settings.log_level, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
        api = connect()
        listen = Listen(
            EVERYWHERE if page.exposed else LOCAL,
            page.port,
            Path(page.tls_folder) if page.tls_folder else None,
            frozenset(host.strip().lower() for host in page.hosts.split(",") if host.strip()),
            page.health_port,
        )
        access = ReviewedAccess(Reviews(api, TIMEOUT_SECONDS), page.audience)
        source = LiveCluster(api, settings, settings.watched_namespaces)
        bounds = Bounds(page.what_if_seconds) if page.what_if else None
        asyncio.run(serve(source, listen, access, what_if=bounds, told=lambda ready: log.info("the page listens on port %s", ready.port)))
    except CatalogueError as error:
        sys.stderr.write(f"SPLITINFERENCE_CATALOGUE_FOLDER: {error}\n")
        return 2
    except (ValidationError, UnavailableError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
