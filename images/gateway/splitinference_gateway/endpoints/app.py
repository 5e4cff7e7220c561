"""The HTTP endpoints of the clients' port: OpenAI's, KServe's, and health."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from splitinference_gateway.access.clients import client_address
from splitinference_gateway.answers import chat, completions, responses
from splitinference_gateway.answers.generation import Generation, choices
from splitinference_gateway.answers.replies import CLIENT_GONE, Format, Head, Reply, error_response, gone, told, warning
from splitinference_gateway.client_requests.cache_control import CacheControl
from splitinference_gateway.client_requests.tools import FORMS
from splitinference_gateway.endpoints import encoders, kserve_http
from splitinference_gateway.endpoints.inside import listening
from splitinference_gateway.endpoints.kserve_grpc import KServeService
from splitinference_gateway.errors import ApiError, invalid, no_route
from splitinference_gateway.gateway import Gateway
from splitinference_gateway.prompt_reading.reading import Reading
from splitinference_gateway.prompt_reading.texts import Texts
from splitinference_gateway.request_ids import HEADER, RequestIds
from splitinference_gateway.server.listeners import Sockets
from splitinference_gateway.tokens.tokenizer import ModelTokenizer
from splitinference_gateway.tracing import TracedApp

_LAST_CALLS_SECONDS = 5.0  # for gRPC; requests over HTTP have had their time by then, and the pod's is nearly over
_Result = TypeVar("_Result")
_Endpoint = Callable[[Request], Awaitable[ASGIApp]]


def build_app(gateway: Gateway, sockets: Sockets) -> Starlette:
    """The ASGI application around a gateway; its lifespan runs the gateway's background work and its other listeners."""
    endpoints = _Endpoints(gateway)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with gateway.running(), listening(gateway, sockets) as (app.state.internal_port, app.state.metrics_port):
            service = KServeService(gateway) if gateway.settings.kserve_port is not None else None
            if service is not None:
                await service.start()
                app.state.kserve_port = service.port
            try:
                yield
            finally:
                if service is not None:
                    await service.stop(min(_LAST_CALLS_SECONDS, gateway.settings.shutdown_seconds))

    model = "/v2/models/{model:path}"  # names may have slashes: what follows a name is looked for first
    routes = [
        Route("/v2", endpoints.kserve(endpoints.server_metadata)),
        Route("/v2/health/live", endpoints.healthz),
        Route("/v2/health/ready", endpoints.readyz),
        *(
            Route(path + what, endpoints.kserve(endpoint), methods=[method])
            for what, endpoint, method in (
                ("/ready", endpoints.model_ready, "GET"),
                ("/config", endpoints.model_config, "GET"),
                ("/infer", endpoints.infer, "POST"),
                ("", endpoints.model_metadata, "GET"),
            )
            for path in (model + "/versions/{version}", model)
        ),
        Route("/v1/chat/completions", endpoints.counted(endpoints.chat), methods=["POST"]),
        Route("/v1/completions", endpoints.counted(endpoints.completions), methods=["POST"]),
        Route("/v1/responses", endpoints.counted(endpoints.responses), methods=["POST"]),
        *(
            Route(path, endpoints.counted(endpoints.no_response), methods=["GET", "POST", "DELETE"])
            for path in ("/v1/responses/{id}", "/v1/responses/{id}/{what}")
        ),
        Route("/v1/embeddings", endpoints.counted(endpoints.embeddings), methods=["POST"]),
        *(Route(path, endpoints.counted(endpoints.score), methods=["POST"]) for path in ("/v1/score", "/score")),
        *(Route(path, endpoints.counted(endpoints.rerank), methods=["POST"]) for path in ("/v1/rerank", "/rerank", "/v2/rerank")),
        Route("/tokenize", endpoints.counted(endpoints.tokenize), methods=["POST"]),
        Route("/detokenize", endpoints.counted(endpoints.detokenize), methods=["POST"]),
        Route("/v1/models", endpoints.counted(endpoints.models)),
        Route("/v1/models/", endpoints.counted(endpoints.models)),
        Route("/v1/models/{model:path}", endpoints.counted(endpoints.model)),
        Route("/healthz", endpoints.healthz),
        Route("/readyz", endpoints.readyz),
    ]
    traced = [Middleware(TracedApp, tracing=gateway.tracing)] if gateway.tracing else []
    return Starlette(
        routes=routes,
        middleware=[*traced, Middleware(RequestIds, traced=bool(traced)), *_cors(gateway.settings.cors_origins)],
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error},
    )


def _cors(origins: Sequence[str]) -> list[Middleware]:
    """Pages of these origins may ask, with any header; cookies mean nothing here."""
    if not origins:
        return []
    exposed = ["Retry-After", "Warning", "X-Cache", "Age", HEADER]
    methods = ["GET", "POST"]
    return [Middleware(CORSMiddleware, allow_origins=origins, allow_methods=methods, allow_headers=["*"], expose_headers=exposed)]


class _Endpoints:
    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def kserve(self, endpoint: Callable[[Request], Awaitable[Response | Reply]]) -> Callable[[Request], Awaitable[ASGIApp]]:
        """As `counted`, with errors in KServe's shape."""
        return self.counted(endpoint, kserve_http.error_response)

    def counted(
        self,
        endpoint: Callable[[Request], Awaitable[Response | Reply]],
        refusal: Callable[[ApiError], Response] = error_response,
    ) -> Callable[[Request], Awaitable[ASGIApp]]:
        """Turn errors into answers, and count the request; a `Reply` counts itself when it has ended."""

        async def answer(request: Request) -> ASGIApp:
            try:
                answer = await endpoint(request)
            except ClientDisconnect:
                self._gateway.ended(CLIENT_GONE)
                return Response(status_code=400)
            except Exception as error:  # noqa: BLE001 - becomes the answer
                problem = told(error)
                self._gateway.ended(problem.status)
                return refusal(problem)
            if isinstance(answer, Response):
                self._gateway.ended(answer.status_code)
            return answer

        return answer

    async def chat(self, request: Request) -> Reply:
        """POST /v1/chat/completions."""
        return await self._text(request, "chat")

    async def completions(self, request: Request) -> Reply:
        """POST /v1/completions."""
        return await self._text(request, "completion")

    async def responses(self, request: Request) -> Reply:
        """POST /v1/responses."""
        return await self._text(request, "response")

    async def no_response(self, request: Request) -> Response:
        """GET /v1/responses/{id}: always 404."""
        await self._client(request)
        raise ApiError(404, "No responses are stored here; 'store' has no effect.", param="response_id", code="response_not_found")

    async def _text(self, request: Request, kind: str) -> Reply:
        async with self._received(request) as (client, body):
            tokenizer = self._tokenizer()  # once it is known who asks
            asked = await _while_there(request, self._gateway.prompts.text(kind, body, client))
        prompt_tokens, number = sum(len(prompt) for prompt in asked.prompts), asked.n * len(asked.prompts)
        form: Format
        if kind == "chat":
            head = Head("chatcmpl", asked.model, asked.with_usage)
            form = chat.ChatFormat(head, tokenizer, prompt_tokens, number, asked.logprobs is not None, FORMS.get(asked.tools), asked.forced)
        elif kind == "response":
            head, logprobs = Head("resp", asked.model), asked.logprobs is not None
            form = responses.ResponsesFormat(head, tokenizer, prompt_tokens, asked.repeated, logprobs, FORMS.get(asked.tools))
        else:
            head = Head("cmpl", asked.model, asked.with_usage)
            form = completions.CompletionFormat(head, tokenizer, prompt_tokens, number, asked.logprobs)
        adapter = self._gateway.adapter(asked.model)
        begin = partial(self._begin, asked, client, adapter)
        reused = await self._gateway.reuse.text(asked, client, cache_control(request), begin, adapter)
        headers = {**warning(asked.ignored), **reused.headers}
        return Reply(reused.source, form, asked.stream, asked.with_usage or kind == "response", self._gateway.ended, headers)

    async def _begin(self, asked: Reading, client: str, adapter: str) -> Generation:
        guides = None if asked.grammar is None else await self._gateway.guides()
        wanted = choices(asked, guides, adapter)
        if not wanted:
            raise invalid("Nothing to generate.")
        if not self._gateway.routes.takes:
            raise no_route()
        generator = self._gateway.generator
        assert generator is not None  # noqa: S101 - as there is a tokenizer
        return generator.start(wanted, client)

    async def embeddings(self, request: Request) -> Response:
        """POST /v1/embeddings."""
        return await self._of_texts(request, "embedding", encoders.check_embeds, encoders.embeddings)

    async def score(self, request: Request) -> Response:
        """POST /v1/score."""
        return await self._of_texts(request, "score", encoders.check_scores, encoders.score)

    async def rerank(self, request: Request) -> Response:
        """POST /v1/rerank."""
        return await self._of_texts(request, "rerank", encoders.check_scores, encoders.rerank)

    async def _of_texts(
        self,
        request: Request,
        kind: str,
        check: Callable[[Gateway], None],
        answer: Callable[[Gateway, Texts, str, CacheControl], Coroutine[Any, Any, Response]],
    ) -> Response:
        """What an encoder says. When the client leaves, so does what runs for it."""
        async with self._received(request) as (client, body):
            check(self._gateway)  # once it is known who asks
            asked = await _while_there(request, self._gateway.prompts.texts(kind, body, client))
        return await _while_there(request, answer(self._gateway, asked, client, cache_control(request)))

    async def tokenize(self, request: Request) -> Response:
        """POST /tokenize."""
        return await self._asked(request, "tokenize")

    async def detokenize(self, request: Request) -> Response:
        """POST /detokenize."""
        return await self._asked(request, "detokenize")

    async def _asked(self, request: Request, kind: str) -> Response:
        """What the tokenizer says, without the chain."""
        async with self._received(request) as (client, body):
            if not self._gateway.prompts.with_tokenizer:
                self._tokenizer()
            told = await _while_there(request, self._gateway.prompts.answer(kind, body, client))
        return JSONResponse(told)

    async def models(self, request: Request) -> Response:
        """GET /v1/models."""
        await self._client(request)
        return JSONResponse({"object": "list", "data": [self._model(), *map(self._model, self._gateway.routes.adapters)]})

    async def model(self, request: Request) -> Response:
        """GET /v1/models/{model}."""
        await self._client(request)
        self._gateway.check_model(name := request.path_params["model"])
        return JSONResponse(self._model(name))

    async def server_metadata(self, request: Request) -> Response:
        """GET /v2."""
        await self._client(request)
        return JSONResponse(kserve_http.server_metadata())

    async def model_metadata(self, request: Request) -> Response:
        """GET /v2/models/{model}."""
        name = await self._kserve_model(request)
        return JSONResponse(kserve_http.model_metadata(name, self._gateway.inference.signature))

    async def model_config(self, request: Request) -> Response:
        """GET /v2/models/{model}/config."""
        name = await self._kserve_model(request)
        return JSONResponse(kserve_http.model_config(name, self._gateway.inference.signature))

    async def model_ready(self, request: Request) -> Response:
        """GET /v2/models/{model}/ready."""
        await self._kserve_model(request)
        if not self._gateway.ready:
            raise no_route()
        return Response()

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/{model}/infer. When the client leaves, so does what runs for it."""
        name = self._check_kserve_model(request)
        header_length = kserve_http.header_length(request)
        async with self._received(request) as (client, body):
            asked = await _while_there(request, self._gateway.prompts.tensors(body, header_length, client))
        return await _while_there(request, kserve_http.infer(self._gateway, name, asked, client, cache_control(request)))

    async def _kserve_model(self, request: Request) -> str:
        await self._client(request)
        return self._check_kserve_model(request)

    def _check_kserve_model(self, request: Request) -> str:
        name: str = request.path_params["model"]
        self._gateway.check_model(name)
        kserve_http.check_version(request.path_params.get("version", ""))
        return name

    def _tokenizer(self) -> ModelTokenizer:
        tokenizer = self._gateway.tokenizer
        if tokenizer is None:
            name = self._gateway.settings.served_model
            embeds = self._gateway.inference.signature.sentence.pooling is not None
            where = "at /v1/embeddings" if embeds else f"by KServe v2 at /v2/models/{name}/infer"
            raise invalid(f"The model '{name}' does not generate text; ask it {where}.", "model")
        return tokenizer

    async def _client(self, request: Request) -> str:
        """The client's name. ApiError 401."""
        peer = client_address(request.client.host) if request.client else ""
        return await self._gateway.clients.identify(request.headers.get("authorization", ""), peer)

    async def healthz(self, request: Request) -> Response:
        """Liveness: the event loop turns, and what runs in the background runs."""
        return PlainTextResponse("ok") if self._gateway.healthy else PlainTextResponse("background work ended, see the log", 500)

    async def readyz(self, request: Request) -> Response:
        """Readiness: there is a route."""
        if self._gateway.ready:
            return PlainTextResponse("ok")
        return PlainTextResponse("leaving" if self._gateway.leaving else "no route", 503)

    @asynccontextmanager
    async def _received(self, request: Request) -> AsyncIterator[tuple[str, bytes]]:
        """The client's name and the body, when the client may ask. The body counts until the block ends."""
        client = await self._client(request)
        settings = self._gateway.settings
        limit = settings.max_body_bytes
        too_large = ApiError(413, f"The request is too large: at most {limit} bytes are accepted.", code="request_too_large")
        length = request.headers.get("content-length", "")
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise too_large
        with self._gateway.bodies.room(client) as held:
            body = bytearray()
            try:
                async with asyncio.timeout(settings.body_seconds):
                    async for piece in request.stream():
                        held.grow(len(piece))
                        body += piece
                        if len(body) > limit:
                            raise too_large
            except TimeoutError:
                raise ApiError(408, f"The request's body did not arrive within {settings.body_seconds:.0f} s.", code="timeout") from None
            held.grow(len(body))  # the copy that is handed on
            whole = bytes(body)
            del body
            yield client, whole

    def _model(self, name: str = "") -> dict[str, object]:
        """The model; with the name of an adapter that one, as vLLM tells it: its parent is the model, its root names the content."""
        gateway, served = self._gateway, self._gateway.settings.served_model
        told = {"id": name or served, "object": "model", "created": gateway.created, "owned_by": "splitinference"}
        of = {"root": gateway.routes.adapters[name], "parent": served} if name not in ("", served) else {}
        return {**told, **of, "max_model_len": gateway.prompts.context_tokens}


def cache_control(request: Request) -> CacheControl:
    """What the client accepts of answers that were kept."""
    return CacheControl.read(request.headers.getlist("cache-control"))


async def _while_there(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """The result. When the client leaves before, the work ends. ClientDisconnect then."""
    running = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait((running, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            raise ClientDisconnect
        return running.result()
    finally:
        for task in (running, leaving):
            task.cancel()
        await asyncio.gather(running, leaving, return_exceptions=True)


async def _http_error(request: Request, error: Exception) -> Response:
    """Unknown paths and methods, in OpenAI's shape."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    messages = {404: f"Invalid URL ({request.method} {request.url.path})", 405: f"Not allowed to {request.method} on {request.url.path}"}
    return error_response(ApiError(status, messages.get(status, str(error)), code="unknown_url" if status == 404 else None))
