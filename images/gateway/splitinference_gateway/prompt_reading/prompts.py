"""Has requests read by processes that may be ended: JSON, chat template and tokenizer run in `prompt_worker`, never in the event loop.

Clients take turns, and one client never has all workers. Large bodies go one at a time, so that their memory is needed once.
"""

import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from splitinference_gateway.access.admission import Admission, Ticket
from splitinference_gateway.errors import ApiError, invalid, overloaded
from splitinference_gateway.prompt_reading.frames import HEAD, lengths, packed
from splitinference_gateway.prompt_reading.prompt_worker import WALL_FACTOR
from splitinference_gateway.prompt_reading.reading import Reading
from splitinference_gateway.prompt_reading.texts import Texts
from splitinference_gateway.settings import Settings
from splitinference_gateway.tensor_io.kserve_body import Asked

_LARGE_BYTES = 128 << 10
_MOST_WAITING = 128
_GRACE_SECONDS = 5.0
_PHASES = {
    "body": "Reading the request's JSON",
    "template": "The model's chat template",
    "tokenizer": "The model's tokenizer",
    "grammar": "The grammar",
}
_log = logging.getLogger(__name__)


@dataclass(eq=False)
class _Worker:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def exchange(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes, str]:
        """The answer's head and bytes, and what ran last. The head is empty where the worker ended."""
        phase = "body"
        try:
            self.writer.write(packed(head, body))
            while True:
                head_bytes, body_bytes = lengths(await self.reader.readexactly(HEAD.size))
                said = json.loads(await self.reader.readexactly(head_bytes))
                content = await self.reader.readexactly(body_bytes)
                if "phase" not in said:
                    return said, content, phase
                phase = said["phase"] if said["phase"] in _PHASES else phase
        except (OSError, EOFError, ValueError):
            return {}, b"", phase

    def close(self) -> None:
        self.writer.close()


@dataclass(eq=False)
class Prompts:
    """The workers. `start` begins to load them; requests that come earlier wait."""

    settings: Settings
    with_tokenizer: bool
    context_tokens: int = 0  # of the longest text; 0: as is set
    adapters: Callable[[], Collection[str]] = tuple  # names of those that may be asked for now
    _process: "subprocess.Popen[bytes] | None" = None
    _control: socket.socket | None = None
    _idle: list[_Worker] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.context_tokens = self.context_tokens or self.settings.max_context_tokens
        workers = self.settings.prompt_workers
        self._places = Admission(workers, _MOST_WAITING, running_per_client=max(1, workers - 1))
        self._large = Admission(1, _MOST_WAITING)

    async def text(self, kind: str, body: bytes, client: str) -> Reading:
        """Read a body for the OpenAI endpoints; `kind` is chat or completion.

        Raises:
            ApiError: the request is wrong, takes too much to read, or there is no worker for it.
        """
        fields, tokens = await self._read({"kind": kind}, body, client)
        return Reading.of_frame(fields, tokens)

    async def answer(self, kind: str, body: bytes, client: str) -> dict[str, Any]:
        """What the tokenizer answers; `kind` is tokenize or detokenize. ApiError as above."""
        fields, _ = await self._read({"kind": kind}, body, client)
        return fields

    async def texts(self, kind: str, body: bytes, client: str) -> Texts:
        """Read a body for an encoder; `kind` is embedding, score or rerank. ApiError as above."""
        fields, content = await self._read({"kind": kind}, body, client)
        return Texts.of_frame(fields, content)

    async def tensors(self, body: bytes, header_length: str | None, client: str) -> Asked:
        """Read a body of KServe's infer. ApiError as above."""
        fields, content = await self._read({"kind": "infer", "header_length": header_length}, body, client)
        return Asked.of_frame(fields, content)

    def start(self) -> None:
        """Start the process that loads the tokenizer; does not wait."""
        settings = self.settings
        told = {
            "tokenizer": str(settings.model_path) if self.with_tokenizer else None,
            "model": settings.served_model,
            "context_tokens": self.context_tokens,
            "cut": settings.long_answers == "cut",
            "refuse_unknown": settings.unknown_fields == "refuse",
            "defaults": settings.generation_config == "model",
            "most_sequences": settings.most_sequences,
            "seconds": settings.prompt_seconds,
            "memory_bytes": settings.prompt_memory_mib << 20,
        }
        self._control, theirs = socket.socketpair()
        self._control.setblocking(False)
        command = [sys.executable, "-m", "splitinference_gateway.prompt_reading.prompt_worker", str(theirs.fileno()), json.dumps(told)]
        environment = {name: value for name in ("PATH", "PYTHONPATH", "LANG", "LC_ALL") if (value := os.environ.get(name))}
        environment |= {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        theirs.close()

    async def close(self) -> None:
        """End the workers."""
        for worker in self._idle:
            worker.close()
        self._idle.clear()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            process, self._process = self._process, None
            process.terminate()  # it may still be loading
            await asyncio.to_thread(process.wait)

    async def _read(self, head: dict[str, Any], body: bytes, client: str) -> tuple[dict[str, Any], bytes]:
        lanes = [self._large, self._places] if len(body) > _LARGE_BYTES else [self._places]
        tickets: list[Ticket] = []
        try:
            async with asyncio.timeout(self.settings.request_seconds):
                for lane in lanes:
                    tickets += lane.enter(client, [0])
                    await tickets[-1].wait()
            answer, content, phase = await self._exchange({**head, "adapters": list(self.adapters())}, body)
        except TimeoutError:
            raise overloaded("Reading requests takes all workers; try again later.") from None
        finally:
            for ticket in tickets:
                ticket.close()
        match answer:
            case {"read": dict() as fields}:
                return fields, content
            case {"error": dict() as error}:
                fields = {name: error.get(name) for name in ("kind", "param", "code", "retry_after")}
                raise ApiError(int(error["status"]), str(error["message"]), **fields)
            case {"unexpected": said}:
                _log.warning("%s failed: %s", _PHASES[phase], said)
                raise invalid(f"{_PHASES[phase]} failed on this request.", code="request_not_readable")
            case _:
                took = f"{self.settings.prompt_seconds:g} s of processor time or {self.settings.prompt_memory_mib} MiB of memory"
                _log.warning("%s took more than %s", _PHASES[phase], took)
                raise invalid(f"{_PHASES[phase]} took more than {took}. Send a shorter request.", code="request_too_complex")

    async def _exchange(self, head: dict[str, Any], body: bytes) -> tuple[dict[str, Any], bytes, str]:
        worker = self._idle.pop() if self._idle else await self._fork()
        keep = False
        try:
            async with asyncio.timeout(WALL_FACTOR * self.settings.prompt_seconds + _GRACE_SECONDS):
                answer, content, phase = await worker.exchange(head, body)
            keep = bool(answer) and answer.get("fresh") is not True
            return answer, content, phase
        except TimeoutError:
            return {}, b"", "body"
        finally:
            if keep:
                self._idle.append(worker)
            else:
                worker.close()

    async def _fork(self) -> _Worker:
        ours, theirs = socket.socketpair()
        try:
            if self._process is None or self._control is None or self._process.poll() is not None:
                if self._process is not None:
                    _log.error("the prompt process ended with status %s; it is started again", self._process.returncode)
                if self._control is not None:
                    self._control.close()
                self.start()
            assert self._control is not None  # noqa: S101 - as it was started
            socket.send_fds(self._control, [b"f"], [theirs.fileno()])
        except OSError as error:
            ours.close()
            raise ApiError(
                503, "The gateway cannot read requests right now.", kind="server_error", code="no_worker", retry_after=2
            ) from error
        finally:
            theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        return _Worker(reader, writer)
