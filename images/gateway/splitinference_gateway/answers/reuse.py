"""Exact reuse: a request that an earlier one was equal to, in all that shapes its answer, gets that answer again.

Only deterministic requests take part: temperature 0 or a seed, embeddings, scores, ranks, and tensors. Who asks, the model's content, its
tokenizer and the operator's word on everything else that shapes answers are part of an answer's name, which is an HMAC by the resource's
own key. When a check finds that a segment gave wrong answers, all that is kept is forgotten.
"""

import hashlib
import hmac
import json
import logging
import re
import struct
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, Protocol, TypeVar

from splitinference_gateway.answers.generation import Generation, Piece
from splitinference_gateway.answers.reuse_shared import SharedAnswers
from splitinference_gateway.answers.reuse_store import Entry, Memory, of_pieces, of_tensors, to_pieces, to_tensors
from splitinference_gateway.answers.single_flight import Kept, Reader, Run
from splitinference_gateway.client_requests.cache_control import CacheControl
from splitinference_gateway.errors import ApiError
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.prompt_reading.reading import Reading
from splitinference_gateway.prompt_reading.texts import Texts
from splitinference_gateway.routing.routes import Routes
from splitinference_gateway.tensor_io.tensors import Tensor

HIT, JOINED, MISS, BYPASS = "HIT", "JOINED", "MISS", "BYPASS"
_FORM = b"answers for reuse, form 1"
_NO_PART_OF_AN_ANSWER = ("stream", "with_usage", "ignored", "repeated")
_LAYERS = re.compile(r"-\d+-\d+$")
_LENGTH = struct.Struct(">Q")
_T = TypeVar("_T")
_T_co = TypeVar("_T_co", covariant=True)
Scope = Literal["off", "client", "all"]
_log = logging.getLogger(__name__)


class Source(Protocol[_T_co]):
    """Where an answer comes from."""

    def pieces(self) -> AsyncGenerator[_T_co, None]:
        """Its parts."""

    def abandon(self) -> None:
        """Nobody reads any more."""


@dataclass(frozen=True)
class Reused(Generic[_T]):
    """An answer's source, and the headers that say where it comes from (none where reuse is off)."""

    source: Source[_T]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Codec(Generic[_T]):
    write: Callable[[Sequence[_T]], bytes]
    read: Callable[[bytes], list[_T]]


_TEXT: _Codec[Piece] = _Codec(of_pieces, to_pieces)
_TENSORS: _Codec[Tensor] = _Codec(of_tensors, to_tensors)


@dataclass
class Identity:
    """Whose answers they are: the model that the current route serves.

    `told` is the operator's word on the resource, `files` a digest of the tokenizer. `by_cuts`: answers differ with the split points, as
    hidden states lose precision between segments.
    """

    routes: Routes
    told: str = ""
    files: str = ""
    by_cuts: bool = False

    def __call__(self) -> str | None:
        """None: there is no route, so nobody knows what would answer."""
        route = self.routes.current
        if route is None:
            return None
        models = {hop.model if self.by_cuts else _LAYERS.sub("", hop.model) for pipeline in route.pipelines for hop in pipeline}
        return json.dumps([self.told, self.files, sorted(models)])


@dataclass
class Reuse:
    """Answers of one gateway, and, where `shared` is given, of all that share a server.

    `ttl`: seconds for which an answer is valid. `clock` gives Unix seconds.
    """

    scope: Scope
    ttl: float
    memory: Memory
    identity: Identity
    key: Callable[[], bytes]
    metrics: Metrics
    shared: SharedAnswers | None = None
    clock: Callable[[], float] = time.time
    _runs: dict[bytes, Run[Any]] = field(default_factory=dict)
    _distrusted: frozenset[str] = frozenset()
    _forgotten: int = 0  # how often all was forgotten

    async def text(
        self, asked: Reading, client: str, control: CacheControl, begin: Callable[[], Awaitable[Generation]], adapter: str = ""
    ) -> Reused[Piece]:
        """An answer to a request for text; `begin` starts the generation where there is none yet. `adapter`: its digest.

        Raises:
            ApiError: 504, the client wants only a kept answer, and there is none; what `begin` raises.
        """
        if self.scope == "off":
            return Reused(await begin())
        fields, tokens = asked.as_frame()
        shaping = {name: value for name, value in fields.items() if name not in _NO_PART_OF_AN_ANSWER}
        shaping |= {"adapter": adapter} if adapter else {}  # another content under the same name is another answer
        name = self._name("text", client, shaping, tokens) if deterministic(asked) and not control.no_store else None
        if name is None:
            _refuse_unless_new(control)
            self.metrics.reuse.labels("bypass").inc()
            return Reused(await begin(), {"X-Cache": BYPASS})

        async def pieces() -> AsyncGenerator[Piece, None]:
            generation = await begin()
            try:
                async for piece in generation.pieces():
                    yield piece
            finally:
                generation.abandon()

        return await self._found(name, control, pieces, _TEXT)

    async def embedded(
        self, asked: Texts, client: str, control: CacheControl, run: Callable[[], Awaitable[Tensor]]
    ) -> tuple[Tensor, Mapping[str, str]]:
        """What an encoder makes of rows of tokens, and headers. ApiError as above."""
        fields, content = asked.as_frame()
        shaping = {"model": asked.model, "rows": fields["rows"], "types": fields["types"]}

        async def made() -> Sequence[Tensor]:
            return [await run()]

        name = self._name("embedded", client, shaping, content)
        (tensor,), headers = await self._tensors(name, control, made)
        return tensor, headers

    async def inferred(
        self,
        given: Sequence[Tensor],
        wanted: Sequence[str],
        client: str,
        control: CacheControl,
        run: Callable[[], Awaitable[Sequence[Tensor]]],
        *,
        adapter: str = "",
    ) -> tuple[Sequence[Tensor], Mapping[str, str]]:
        """The outputs of a KServe inference, and headers. ApiError as above."""
        shaping: dict[str, Any] = {"inputs": [[t.name, t.datatype, list(t.shape)] for t in given], "wanted": list(wanted)}
        shaping |= {"adapter": adapter} if adapter else {}
        return await self._tensors(self._name("inferred", client, shaping, b"".join(t.data for t in given)), control, run)

    def forget(self) -> None:
        """Drop all answers, here and for all gateways that share them; those of runs under way are not kept."""
        self._forgotten += 1
        self._runs.clear()
        self.memory.clear()
        if self.shared is not None:
            self.shared.forget()

    async def close(self) -> None:
        """Close the connection to the server."""
        if self.shared is not None:
            await self.shared.close()

    async def _tensors(
        self, name: bytes | None, control: CacheControl, run: Callable[[], Awaitable[Sequence[Tensor]]]
    ) -> tuple[Sequence[Tensor], Mapping[str, str]]:
        if self.scope == "off":
            return await run(), {}
        if name is None or control.no_store:
            _refuse_unless_new(control)
            self.metrics.reuse.labels("bypass").inc()
            return await run(), {"X-Cache": BYPASS}

        async def tensors() -> AsyncGenerator[Tensor, None]:
            for tensor in await run():
                yield tensor

        reused = await self._found(name, control, tensors, _TENSORS)
        try:
            return [tensor async for tensor in reused.source.pieces()], reused.headers
        finally:
            reused.source.abandon()

    async def _found(
        self, name: bytes, control: CacheControl, make: Callable[[], AsyncGenerator[_T, None]], codec: _Codec[_T]
    ) -> Reused[_T]:
        if (kept := self._kept(name, control, codec)) is not None:
            self.metrics.reuse.labels("hit").inc()
            return kept
        may_join = not control.no_cache and control.max_age != 0
        if self.shared is not None and may_join and name not in self._runs:
            entry = await self.shared.get(name, self.memory.largest)
            if entry is not None and self.memory.put(name, entry) and (kept := self._kept(name, control, codec)) is not None:
                self.metrics.reuse.labels("server_hit").inc()
                return kept
        _refuse_unless_new(control)
        if may_join and (run := self._runs.get(name)) is not None:
            self.metrics.reuse.labels("joined").inc()
            return Reused(run.join(), {"X-Cache": JOINED})
        self.metrics.reuse.labels("miss").inc()
        return Reused(self._begun(name, make, codec), {"X-Cache": MISS})

    def _kept(self, name: bytes, control: CacheControl, codec: _Codec[_T]) -> Reused[_T] | None:
        entry, now = self.memory.get(name), self.clock()
        if entry is None or not control.accepts(entry.age(now), entry.left(now)):
            return None
        try:
            parts = codec.read(entry.content)
        except (ValueError, TypeError, KeyError, struct.error) as error:
            _log.error("an answer that was kept cannot be read, and is dropped: %r", error)
            self.memory.drop(name)
            return None
        return Reused(Kept(parts), {"X-Cache": HIT, "Age": str(int(entry.age(now)))})

    def _begun(self, name: bytes, make: Callable[[], AsyncGenerator[_T, None]], codec: _Codec[_T]) -> Reader[_T]:
        before = (self.identity(), self._forgotten)

        def done(run: Run[_T]) -> None:
            if self._runs.get(name) is run:
                del self._runs[name]
            self._notice_distrust()
            if run.whole and run.parts and (self.identity(), self._forgotten) == before:
                self._keep(name, codec.write(run.parts))

        run = self._runs[name] = Run(make, done)
        return run.join()

    def _keep(self, name: bytes, content: bytes) -> None:
        now = self.clock()
        entry = Entry(content, now, now + self.ttl)
        if self.memory.put(name, entry) and self.shared is not None:
            self.shared.put(name, entry)

    def _name(self, kind: str, client: str, shaping: Mapping[str, Any], content: bytes) -> bytes | None:
        """HMAC-SHA256 of all that shapes the answer and of who asks; None where it is not known what would answer."""
        self._notice_distrust()
        identity = self.identity()
        if identity is None or self.scope == "off":
            return None
        tenant = json.dumps([self.scope, client if self.scope == "client" else ""])
        head = json.dumps(shaping, sort_keys=True)
        told = hmac.new(self.key(), _FORM, hashlib.sha256)
        for part in (kind.encode(), tenant.encode(), identity.encode(), head.encode(), content):
            told.update(_LENGTH.pack(len(part)))
            told.update(part)
        return told.digest()

    def _notice_distrust(self) -> None:
        """After a check that failed nobody knows which answers of that segment were wrong before: all are forgotten."""
        distrusted = self.identity.routes.distrusted
        if distrusted - self._distrusted:
            _log.warning("a segment gave wrong answers: all answers that were kept for reuse are dropped")
            self.forget()
        self._distrusted = distrusted


def deterministic(asked: Reading) -> bool:
    """The same request has the same answer: the likeliest token is taken each time, or the client gave the seed."""
    return asked.sampling["temperature"] == 0 or asked.seed is not None


def _refuse_unless_new(control: CacheControl) -> None:
    if control.only_if_cached:
        raise ApiError(504, "No answer to this request is kept, and Cache-Control says only-if-cached.", code="not_cached")
