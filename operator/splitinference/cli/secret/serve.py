"""A party as a server: clients ask for inferences, and party 1 connects to party 0 for each of them."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from splitinference.cli.secret import store
from splitinference.cli.secret.identities import identity
from splitinference.cli.secret.link import Link, LinkError, connect, context
from splitinference.cli.secret.party import Party
from splitinference.cli.secret.ring import WORD

CONNECTIONS = 32
"""Connections at once; more are closed at once."""


@dataclass
class _Waiting:
    """Connections of party 1, by the name of their material, until the client's request comes, and the other way round."""

    change: threading.Condition = field(default_factory=threading.Condition)
    links: dict[str, Link] = field(default_factory=dict)

    def offer(self, name: str, link: Link, seconds: float) -> None:
        """Keep a connection until it is taken, and close it where nobody takes it in time."""
        with self.change:
            old = self.links.pop(name, None)
            self.links[name] = link
            self.change.notify_all()
            if old is not None:
                old.close()
            if not self.change.wait_for(lambda: self.links.get(name) is not link, seconds):
                del self.links[name]
                link.close()

    def get(self, name: str, seconds: float) -> Link:
        with self.change:
            if not self.change.wait_for(lambda: name in self.links, seconds):
                raise LinkError(f"party-1 did not connect within {seconds:g} s")
            self.change.notify_all()
            return self.links.pop(name)


class Server:
    """Party 0 or 1 of a dealing. `other` is party 0's address, for party 1."""

    def __init__(self, folder: Path, number: int, listen: tuple[str, int], other: tuple[str, int] | None, seconds: float = 10.0) -> None:
        """Read the folder and listen. OSError and ValueError where that is not possible."""
        self.folder, self.number, self.seconds = folder, number, seconds
        self.plan, self.weights = store.read_plan(folder), store.read_weights(folder)
        self._other, self._waiting = other, _Waiting()
        self._context = context(folder, True)
        self._socket = socket.create_server(listen, backlog=CONNECTIONS)
        self._free = threading.Semaphore(CONNECTIONS)
        self.address: tuple[str, int] = self._socket.getsockname()[:2]

    def run(self) -> None:
        """Serve until `stop`."""
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            if not self._free.acquire(blocking=False):
                connection.close()
                continue
            threading.Thread(target=self._connection, args=(connection,), daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        with suppress(OSError):  # stopped before
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _connection(self, plain: socket.socket) -> None:
        try:
            plain.settimeout(self.seconds)
            try:
                link = Link(self._context.wrap_socket(plain, server_side=True), self.seconds)
            except OSError:
                plain.close()
                return
            self._greet(link)
        finally:
            self._free.release()

    def _greet(self, link: Link) -> None:
        """Only the client and, at party 0, party 1 have something to say here."""
        roles = {identity(self.plan.deal, "client"): self._client}
        if self.number == 0:
            roles[identity(self.plan.deal, "party-1")] = self._peer
        names = link.peer()
        action: Callable[[Link], None] | None = roles.get(names[0]) if len(names) == 1 else None
        try:
            if action is None:
                link.close()
            else:
                action(link)
        except LinkError:
            link.close()

    def _peer(self, link: Link) -> None:
        name = str(link.hear().get("material"))
        self._waiting.offer(name, link, self.seconds)

    def _client(self, link: Link) -> None:
        try:
            asked = link.hear()
            if asked.get("do") == "list":
                names = store.left(self.folder)
                link.say({"left": len(names), "next": names[:64]})
                return
            plan, name = self.plan, str(asked.get("material"))
            size = plan.rows * int(np.prod(plan.before)) * WORD
            share = np.frombuffer(link.receive(size, size), dtype="<u8").astype(np.uint64).reshape(plan.rows, -1)
            try:
                output, sent = self._infer(name, share)
            except (LinkError, store.NoMaterialError, OSError, ValueError) as error:
                link.say({"error": str(error), "spent": isinstance(error, store.NoMaterialError)})
                return
            link.say({"sent": sent})
            link.send(output)
        finally:
            link.close()

    def _infer(self, name: str, share: "np.ndarray[tuple[int, ...], np.dtype[np.uint64]]") -> tuple[bytes, int]:
        """The output's share, and the bytes sent to the other party. The material is gone before anything that depends on it is sent."""
        material = store.take(self.folder, name)
        if self._other is None:
            link = self._waiting.get(name, self.seconds)
        else:
            link = connect(self._other, self.folder, self.plan.deal, "party-0", self.seconds)
            link.say({"material": name})
        try:
            party = Party(self.number, self.weights, material, lambda data: link.swap(data, self.number == 0))
            return party.run(self.plan.steps, share).astype("<u8").tobytes(), link.sent
        except LinkError as error:
            raise LinkError(f"the other party: {error}") from error
        finally:
            link.close()


def serve_in_thread(server: Server) -> threading.Thread:
    """Serve beside the caller."""
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    return thread
