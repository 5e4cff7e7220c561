"""Peers with real certificates on the loopback: a server that is somebody, and an operator that asks it."""

import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta

from splitinference.adapters.clock import SystemClock
from splitinference.adapters.peers.certificates import CertificateAuthority, Roots
from splitinference.adapters.peers.mutual import Peers, loaded
from splitinference.controller.identity import Owner, Role

CHAT = Owner(namespace="team", name="chat", uid="u-1")
OTHER = Owner(namespace="team", name="other", uid="u-2")


class Root:
    def roots(self) -> Roots:
        return Roots(keys=(b"r" * 32,))


def authority() -> CertificateAuthority:
    return CertificateAuthority(Root(), "cluster.local")


def peers() -> Peers:
    return Peers(authority(), SystemClock(), "cluster.local")


@contextmanager
def listening(answer: Callable[[socket.socket], None], address: str = "127.0.0.1") -> Iterator[int]:
    """Hand every connection to `answer`, each in a thread, until the block ends; gives the port. Connections end with the block."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = socket.create_server((address, 0), family=family, backlog=64)
    open_ones: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(connection: socket.socket, twin: socket.socket) -> None:
        try:
            answer(connection)
        except (OSError, ValueError):  # the other side gave up, or the block ended: what some tests are about
            pass
        finally:
            with suppress(OSError):
                twin.shutdown(socket.SHUT_RDWR)
            connection.close()

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            open_ones.append(connection.dup())  # TLS takes the other one over
            threads.append(threading.Thread(target=one, args=(connection, open_ones[-1]), daemon=True))
            threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield server.getsockname()[1]
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        accepting.join()
        for connection in open_ones:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()
        for thread in threads:
            thread.join()


@contextmanager
def being(
    role: Role,
    answer: Callable[[ssl.SSLSocket], None],
    owner: Owner = CHAT,
    *,
    ago: timedelta = timedelta(),
    address: str = "127.0.0.1",
    shaken: list[str] | None = None,
) -> Iterator[int]:
    """Serve as this role of this resource, with a certificate made so long ago. `shaken`: told whom each handshake was with."""
    context = loaded(ssl.PROTOCOL_TLS_SERVER, authority().credentials(owner, role, datetime.now(UTC) - ago))

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secured:
            if shaken is not None:
                shaken.append(str((secured.getpeercert() or {})["subjectAltName"][0][1]))  # type: ignore[index]
            answer(secured)

    with listening(serve, address) as port:
        yield port
