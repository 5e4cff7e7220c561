"""All parts of one gateway, made from its settings, and the background work that keeps them current."""

import asyncio
import hashlib
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from splitinference_gateway.access.admission import Admission, KvBudget
from splitinference_gateway.access.api_keys import ApiKeys
from splitinference_gateway.access.clients import Anybody, Clients
from splitinference_gateway.access.token_review import TokenReviews
from splitinference_gateway.answers.filtering import Filtering, filtering
from splitinference_gateway.answers.generation import Generator
from splitinference_gateway.answers.inference import Inference
from splitinference_gateway.answers.reuse import Identity as Answering
from splitinference_gateway.answers.reuse import Reuse
from splitinference_gateway.answers.reuse_shared import SharedAnswers, connection
from splitinference_gateway.answers.reuse_store import Memory
from splitinference_gateway.metrics import Metrics
from splitinference_gateway.pipeline.chain import Chain, Limits
from splitinference_gateway.pipeline.drafts import Speculation
from splitinference_gateway.pipeline.observed import Observed
from splitinference_gateway.pipeline.prefixes import Prefixes
from splitinference_gateway.pipeline.recovery.failing import Failing
from splitinference_gateway.pipeline.steps import StepClient
from splitinference_gateway.pipeline.transport.wire_tls import Identity, PrefixKey
from splitinference_gateway.prompt_reading.prompts import Prompts
from splitinference_gateway.prompt_reading.reading import check_model
from splitinference_gateway.routing.configmap_watch import ApiServer, own_namespace, watch_configmap
from splitinference_gateway.routing.lanes import Chooser
from splitinference_gateway.routing.route_source import RouteReader, poll_file
from splitinference_gateway.routing.routes import Routes
from splitinference_gateway.server.body_budget import Bodies
from splitinference_gateway.settings import Settings, SettingsError
from splitinference_gateway.tensor_io.signature import Kind, Signature
from splitinference_gateway.tokens.guides import Guides
from splitinference_gateway.tokens.positions import positions
from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from splitinference_gateway.tracing import Tracing
from splitinference_protocol.route import RouteDocument

_TIDY_SECONDS = 5.0
_log = logging.getLogger(__name__)


@dataclass
class Gateway:
    """The parts. `created` is when the model began to be served here (Unix seconds). Only decoders have tokenizer and generator."""

    settings: Settings
    tokenizer: ModelTokenizer | None
    routes: Routes
    steps: StepClient
    failing: Failing
    observed: Observed
    metrics: Metrics
    admission: Admission
    generator: Generator | None
    inference: Inference
    chain: Chain
    clients: Clients
    prompts: Prompts
    bodies: Bodies
    reuse: Reuse
    tracing: Tracing | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    leaving: bool = False
    healthy: bool = True
    _guides: "asyncio.Task[Guides] | None" = None

    @classmethod
    def build(cls, settings: Settings, environment: Mapping[str, str] = os.environ) -> "Gateway":
        """Make all parts; nothing is connected yet. `environment`: where OpenTelemetry's own variables are looked for.

        Raises:
            ModelFilesError: the tokenizer cannot be read.
            OSError: the file of API keys cannot be read.
            IdentityError: the certificates cannot be read.
        """
        signature = Signature.read(settings.model_path)
        tokenizer = ModelTokenizer(settings.model_path) if signature.kind is Kind.DECODER else None
        context_tokens = _context_tokens(settings)
        routes, observed, metrics = Routes(chooser=Chooser(settings.kv_budget_tokens)), Observed(), Metrics()
        identity = None if settings.tls_folder is None else Identity(settings.tls_folder, settings.identity)
        if identity is not None:
            identity.context()
        steps = StepClient(settings.address_of, identity)
        failing = Failing(steps, routes)
        limits = Limits(
            settings.step_seconds, settings.step_seconds_per_token, settings.replay_seconds, settings.prefill_chunk_tokens, context_tokens
        )
        prefixes = Prefixes(settings.prefix_reuse, PrefixKey(settings.tls_folder))
        speculation = Speculation(settings.max_draft_tokens if settings.speculation == "auto" else 0)
        chain = Chain(routes, steps, failing, observed, metrics, limits, prefixes, speculation)

        def admitted(running: int, waiting: int) -> None:
            metrics.running.set(running)
            metrics.queue_depth.set(waiting)

        budget = KvBudget(settings.kv_budget_tokens, settings.max_context_tokens)
        admission = Admission(
            settings.running_limit,
            settings.max_queue,
            admitted,
            budget=budget,
            pipelines=lambda: routes.sound(failing.segments),
            retry_after=lambda: routes.wakes_in,
        )
        metrics.watch_routes(routes.in_flight, lambda: failing.segments, lambda: routes.lanes)
        metrics.watch_adapters(lambda: len(routes.adapters), chain.adapters)
        metrics.kv_usage.set_function(lambda: min(1.0, admission.reserved))
        metrics.longest_gap.set_function(lambda: observed.longest_gap_seconds)
        metrics.wires.set_function(lambda: steps.connections.wires)
        generator = Generator(chain, tokenizer, admission, settings.request_seconds) if tokenizer else None
        reuse = _reuse(settings, routes, metrics)
        inference = Inference(
            signature, chain, admission, context_tokens, settings.request_seconds, settings.max_answer_bytes,
            _filtering(settings, signature, metrics, reuse.forget),
        )  # fmt: skip
        clients = _clients(settings)
        tracing = Tracing(environment, settings.served_model, settings.namespace) if Tracing.wanted(environment) else None
        with_tokenizer = tokenizer is not None or (signature.kind is Kind.ENCODER and (settings.model_path / "tokenizer.json").is_file())
        prompts = Prompts(settings, with_tokenizer, context_tokens, lambda: routes.adapters)
        bodies = Bodies(settings.body_budget_bytes)
        return cls(
            settings, tokenizer, routes, steps, failing, observed, metrics, admission, generator, inference, chain, clients, prompts,
            bodies, reuse, tracing,
        )  # fmt: skip

    @property
    def ready(self) -> bool:
        """There is a route, or one was withdrawn for now and requests must be told so, and the gateway is not about to end."""
        return (self.routes.current is not None or self.routes.stopped) and not self.leaving

    def check_model(self, name: str) -> None:
        """Raise ApiError 404 if clients know the model by another name."""
        check_model(name, self.settings.served_model, self.routes.adapters)

    def adapter(self, name: str) -> str:
        """The digest of the adapter that clients know by this name; empty: it is the model's own. ApiError 404: it is neither."""
        self.check_model(name)
        return self.routes.adapters.get(name, "") if name != self.settings.served_model else ""

    async def guides(self) -> Guides:
        """What guides structured output. The first request of the kind waits until it is made: a second or so."""
        assert self.tokenizer is not None  # noqa: S101 - only decoders are asked for text
        if self._guides is None:
            self._guides = asyncio.create_task(asyncio.to_thread(Guides, self.tokenizer))
        return await asyncio.shield(self._guides)

    def ended(self, status: int) -> None:
        """A request has ended with this HTTP status: it is counted."""
        self.metrics.requests.labels(str(status)).inc()
        self.observed.request(failed=status >= 500)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Follow the route and watch failing stages while the body runs."""
        reader = RouteReader(self._apply, self.metrics.route_errors.inc)
        self.prompts.start()
        tasks = [asyncio.create_task(work) for work in (self._follow(reader), self.failing.watch(), self._tidy())]
        for task in tasks:
            task.add_done_callback(self._ended)
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.prompts.close()
            await self.chain.close()
            await self.reuse.close()
            await self.steps.connections.close()
            if isinstance(self.clients, TokenReviews):
                await self.clients.close()
            if self.tracing is not None:
                await asyncio.to_thread(self.tracing.close)

    def _apply(self, document: RouteDocument) -> bool:
        """Take the route; where it has more pipelines than before, those who wait may have room now."""
        changed = self.routes.apply(document)
        self.admission.grant()
        return changed

    def _ended(self, task: "asyncio.Task[None]") -> None:
        """Background work runs for ever; if it does not, the gateway is not what it seems, and liveness says so."""
        if not task.cancelled():
            _log.critical("background work ended", exc_info=task.exception())
            self.healthy = False

    async def _follow(self, reader: RouteReader) -> None:
        if self.settings.route_file is not None:
            await poll_file(self.settings.route_file, reader)
        else:
            namespace = self.settings.namespace or own_namespace()
            await watch_configmap(ApiServer.in_cluster(os.environ), namespace, self.settings.route_object, reader)

    async def _tidy(self) -> None:
        """Let go of what belongs to routes that are no more."""
        while True:
            await asyncio.sleep(_TIDY_SECONDS)
            known = self.routes.segments
            self.steps.connections.retain(known | self.routes.verifiers)
            self.metrics.keep_revisions({route.revision for route in self.routes.known})
            self.observed.forget(known)
            self.chain.handovers.speeds.forget(known)
            self.chain.verifier.forget(known | self.routes.verifiers)
            self.admission.grant()  # a pipeline that failed may be well again


def _context_tokens(settings: Settings) -> int:
    """The longest text: what is set, and never more than the model has positions for, which would break its segments."""
    own = positions(settings.model_path)
    if own is None or own >= settings.max_context_tokens:
        return settings.max_context_tokens
    _log.warning("the model has %d positions, so longer prompts than that are refused, below the %d set", own, settings.max_context_tokens)
    return own


def _reuse(settings: Settings, routes: Routes, metrics: Metrics) -> Reuse:
    key, shared = PrefixKey(settings.tls_folder), None
    if settings.reuse_server:
        try:
            server = connection(settings.reuse_server, settings.reuse_server_folder, settings.reuse_server_seconds)
        except ValueError as error:
            raise SettingsError(f"SI_REUSE_SERVER: {error}") from error
        prefix = f"splitinference:{settings.namespace}:{settings.name}"
        shared = SharedAnswers(server, prefix, key, metrics, settings.reuse_server_seconds)
    memory = Memory(settings.reuse_bytes)
    metrics.reuse_bytes.set_function(lambda: memory.used)
    metrics.reuse_answers.set_function(lambda: len(memory))
    files = _files_digest(settings.model_path, settings.filter_file) if settings.reuse != "off" else ""
    identity = Answering(routes, settings.reuse_identity, files, settings.reuse_by_cuts)
    return Reuse(settings.reuse, settings.reuse_seconds, memory, identity, key, metrics, shared)


def _filtering(settings: Settings, signature: Signature, metrics: Metrics, opened: Callable[[], None]) -> Filtering | None:
    if not settings.filter_file:
        return None
    made = filtering(settings.filter_file, settings.model_path, signature, metrics, opened)
    return replace(made, sample=settings.filter_sample, floor=settings.filter_floor)


def _files_digest(folder: Path, filter_file: str) -> str:
    """Of the files from which text becomes tokens and tokens become text, and of the filter."""
    told = hashlib.sha256()
    names = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "generation_config.json", "config.json")
    for name in (*names, filter_file):
        file = folder / name  # the folder itself where there is no filter
        told.update(hashlib.sha256(file.read_bytes() if file.is_file() else b"").digest())
    return told.hexdigest()


def _clients(settings: Settings) -> Clients:
    if settings.token_audience:
        return TokenReviews(ApiServer.in_cluster(os.environ), settings.token_audience, settings.token_seconds)
    return ApiKeys(settings.api_keys_file) if settings.api_keys_file is not None else Anybody()
