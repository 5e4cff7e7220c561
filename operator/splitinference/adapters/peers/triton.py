"""Segments, proved by a real inference through them (`op: probe`), over the wire as docs/reference/data-plane.md has it.

Nothing less will do: Triton says "ready" even when the process that computes is dead.
"""

import errno
import os
import time
from collections.abc import Collection, Mapping
from typing import IO

from splitinference.adapters.failures import in_words
from splitinference.adapters.peers.mutual import Connection, Peers, TooMuchError, UnreachableError, UntrustedError
from splitinference.controller.identity import Owner, Role
from splitinference.controller.manifests.segment import WIRE_PORT
from splitinference.controller.ports import Proof
from splitinference_protocol.wire import answers, frames
from splitinference_protocol.wire.errors import DEADLINE_EXCEEDED, INTERNAL, KV_FULL, OVERLOADED

_MOST_BYTES = 1 << 20
"""Of an answer: that of a probe has some hundred bytes."""
_GONE = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN)
_BUSY = (OVERLOADED, DEADLINE_EXCEEDED, KV_FULL)


class NoSegmentError(Exception):
    """It answered unlike a segment."""


class TritonSegments:
    """Implements `Segments`."""

    def __init__(self, peers: Peers, timeout_seconds: float, port: int = WIRE_PORT) -> None:
        self._peers = peers
        self._timeout = timeout_seconds
        self._port = port

    def prove(self, owner: Owner, segment: str, model: str, pod_ip: str) -> Proof:
        """One token through this segment's own layers."""
        name, where = f"{owner.namespace}/{segment}", f"{pod_ip}:{self._port}"
        started = time.perf_counter()
        try:
            meta = self._asked(owner, segment, model, pod_ip, answers.question("probe", deadline_ms=int(self._timeout * 1000)))
        except UnreachableError as error:
            return _unreachable(error, name, where, self._timeout)
        except TimeoutError:
            return Proof(ok=False, why=f"{name} did not answer within {self._timeout:g} s")
        except UntrustedError as error:
            # Not dead: what is wrong may be a clock, or certificates that are on their way. To start all segments anew would mend neither.
            return Proof(ok=False, why=f"{name} at {where} is not trusted: {error}")
        except OSError as error:
            return Proof(ok=False, why=f"{name} cannot be reached at {where}: {in_words(error)}")
        except (NoSegmentError, TooMuchError) as error:
            return Proof(ok=False, why=f"{name} answered unlike a segment: {error}", dead=True)
        return _judge(meta, name, (time.perf_counter() - started) * 1000)

    def adapters(
        self, owner: Owner, segment: str, model: str, pod_ip: str, keep: Collection[str] | None = None
    ) -> Mapping[str, int] | None:
        """What it holds of adapters."""
        told = {} if keep is None else {"keep": sorted(keep)}
        try:
            meta = self._asked(owner, segment, model, pod_ip, answers.question("adapters", deadline_ms=int(self._timeout * 1000), **told))
        except (UnreachableError, UntrustedError, OSError, NoSegmentError, TooMuchError):
            return None
        held = meta.get("adapters")
        if not isinstance(held, dict) or not all(isinstance(size, int) for size in held.values()):
            return None
        return {str(digest): size for digest, size in held.items()}

    def _asked(self, owner: Owner, segment: str, model: str, pod_ip: str, meta: bytes) -> dict[str, object]:
        """META of the answer, over a connection of its own. Raises what `prove` tells apart."""
        deadline = time.monotonic() + self._timeout
        connection: Connection | None = None
        try:
            connection = self._peers.connect(owner, Role.SEGMENT, (pod_ip, self._port), f"{segment}.{owner.namespace}", deadline)
            return self._ask(connection, model, meta, deadline)
        finally:
            if connection is not None:
                connection.close()

    def _ask(self, connection: Connection, model: str, meta: bytes, deadline: float) -> dict[str, object]:
        """META of the answer."""
        received = connection.received(_MOST_BYTES, deadline)
        connection.send(frames.greeting(model), deadline)
        greeted = _exactly(received, frames.ANSWER_BYTES)
        if greeted not in (frames.YES, frames.ANOTHER_MODEL):
            raise NoSegmentError("its greeting is not that of the wire")
        if greeted == frames.ANOTHER_MODEL:
            raise NoSegmentError(f"it has another model than {model}")
        connection.send(frames.frame(1, meta, frames.NOTHING), deadline)
        number, meta_bytes, data_bytes = frames.HEAD.unpack(_exactly(received, frames.HEAD.size))
        if number != 1 or meta_bytes + data_bytes > _MOST_BYTES:
            raise NoSegmentError(f"frame {number} with {meta_bytes} bytes of META and {data_bytes} of DATA is no answer to a question")
        content = _exactly(received, meta_bytes)
        _exactly(received, data_bytes)
        try:
            return answers.described(content)
        except ValueError as error:
            raise NoSegmentError(str(error)) from error


def _exactly(received: IO[bytes], count: int) -> bytes:
    content = received.read(count)
    if len(content) < count:
        raise ConnectionResetError("it closed the connection")
    return content


def _unreachable(error: UnreachableError, name: str, where: str, seconds: float) -> Proof:
    if isinstance(error.__cause__, TimeoutError):
        return Proof(ok=False, why=f"{name} cannot be reached at {where}: no connection within {seconds:g} s", unreachable=True)
    # Refused means that the node is there and the server is not; without a route, neither is; anything else may be the network.
    number = getattr(error.__cause__, "errno", None)
    why = f"{name} cannot be reached at {where}: {os.strerror(number) if number else error}"
    return Proof(ok=False, why=why, dead=number == errno.ECONNREFUSED, unreachable=number in _GONE)


def _judge(meta: dict[str, object], name: str, milliseconds: float) -> Proof:
    if meta.get("ok") is True:
        return Proof(ok=True, milliseconds=milliseconds)
    problem = meta.get("error")
    said = problem if isinstance(problem, dict) else {}
    code = str(said.get("code", INTERNAL))
    return Proof(ok=False, why=f"{name} failed its own test: {code}: {said.get('message', meta)}"[:500], dead=code not in _BUSY)
