"""What the gateway is told by its environment, read and checked once at the start."""

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

_PREFIX = "SI_"
_ORIGIN = re.compile(r"https?://[a-z0-9._-]+(:[0-9]{1,5})?")
_IDENTITY = re.compile(r"spiffe://[a-z0-9._-]+/ns/[a-z0-9-]+/si/[a-z0-9.-]+")


class SettingsError(ValueError):
    """A setting is missing or makes no sense; the message names the variable."""


class Settings(BaseModel):
    """Field `x_y` is the variable `SI_X_Y`. Times are in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="", description="the SplitInference; names the route's ConfigMap when that is not given")
    namespace: str = Field(default="", description="where the route's ConfigMap lives; empty: the pod's own")
    route_configmap: str = Field(default="", description="ConfigMap to watch, key route.json; empty: <name>-route")
    route_file: Path | None = Field(default=None, description="outside a cluster: a file polled instead of the ConfigMap")
    model_id: str = Field(default="", description="the model's name towards clients; empty: `name`")
    model_path: Path = Field(description="folder with tokenizer, chat template and generation config")
    max_context_tokens: int = Field(default=2048, ge=1)
    max_concurrent_sequences: int = Field(default=4, ge=1, description="sequences that run at once: what the KV caches are planned for")
    max_running_sequences: int = Field(
        default=0, ge=0, description="short sequences may be so many, within the KV of those that are planned; 0: only those"
    )
    replicas: int = Field(default=1, ge=1, description="gateways that share the segments: each admits its share of the above")
    max_queue: int = Field(
        default=64, ge=0, description="sequences that may wait; more are refused with 429. A client may use as much as it leaves free"
    )
    max_body_bytes: int = Field(default=4 * 2**20, ge=1, description="4 MiB hold any prompt of half a million tokens")
    body_budget_bytes: int = Field(
        default=64 * 2**20, ge=1, description="bodies of all requests that are read at once; one client may use a half"
    )
    max_answer_bytes: int = Field(default=64 * 2**20, ge=1, description="tensors of one KServe answer; more is refused beforehand")
    header_bytes: int = Field(default=64 * 2**10, ge=1024, description="request line and headers; more is refused with 431")
    header_seconds: float = Field(default=10.0, gt=0, description="from the first byte (or the connection) to the end of the headers")
    body_seconds: float = Field(default=30.0, gt=0, description="a client that needs longer to send its request is refused with 408")
    stall_seconds: float = Field(
        default=30.0, gt=0, description="a reader that takes less than 1 KiB/s for so long is cut off, and its sequences end"
    )
    keep_alive_seconds: float = Field(
        default=75.0, gt=0, description="an idle connection is closed then; longer than clients and proxies keep theirs"
    )
    max_connections: int = Field(default=1024, ge=1, description="when reached, the oldest connection without a request is closed")
    max_connections_per_client: int = Field(
        default=256, ge=1, description="connections of one address; those of trusted proxies count in total only"
    )
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = Field(
        default=(), description="addresses or networks, separated by commas, whose X-Forwarded-For is believed; none by default"
    )
    prompt_workers: int = Field(default=2, ge=1, le=64, description="processes that read requests: JSON, chat template, tokenizer")
    prompt_seconds: float = Field(default=5.0, gt=0, description="processor time to read one request; the process ends then")
    prompt_memory_mib: int = Field(default=128, ge=16, description="memory that reading one request may need")
    request_seconds: float = Field(default=600.0, gt=0, description="a whole request, queue included")
    replay_seconds: float = Field(default=60.0, gt=0, description="how long a broken chain is retried before the client sees an error")
    step_seconds: float = Field(default=5.0, gt=0, description="a decode step without answer for so long counts as stalled")
    step_seconds_per_token: float = Field(default=0.1, ge=0, description="added for each further token of a prefill chunk")
    prefill_chunk_tokens: int = Field(default=256, ge=1, description="bounds a hop's bytes, and how long decode steps of others wait")
    speculation: Literal["auto", "off"] = Field(
        default="auto", description="drafts of tokens, looked up in a sequence's own text and checked by the chain: several tokens a trip"
    )
    max_draft_tokens: int = Field(default=7, ge=1, le=32, description="drafts of one step")
    prefix_reuse: Literal["client", "all", "off"] = Field(
        default="client", description="whose earlier prompts a prompt may begin with: KV of the same beginning is used again"
    )
    reuse: Literal["off", "client", "all"] = Field(
        default="off", description="whose earlier answers a deterministic request may get: of the same client, or of any"
    )
    reuse_seconds: float = Field(default=600.0, ge=1, le=7 * 86400, description="how long an answer may be given again")
    reuse_bytes: int = Field(default=64 * 2**20, ge=2**20, le=2**32, description="memory for answers that are kept")
    reuse_identity: str = Field(default="", description="the operator's word on what shapes answers: another value, other answers")
    reuse_by_cuts: bool = Field(default=False, description="answers differ with the split points: the links' encoding loses precision")
    reuse_server: str = Field(
        default="", description="a server that gateways share: redis://, rediss://, valkey:// or valkeys:// with host, port and number"
    )
    reuse_server_folder: Path | None = Field(
        default=None, description="folder with the server's username, password and ca.crt, as far as needed"
    )
    reuse_server_seconds: float = Field(default=0.1, gt=0, le=5, description="how long a request may wait for that server")
    filter_file: str = Field(default="", description="a filter in the model's folder that skips rows of tensors; empty: none")
    filter_mode: Literal["skip", "reuse"] = Field(default="skip", description="of the filter: its file must have the same")
    filter_after_layers: int = Field(default=0, ge=0, description="layers that the filter is over, in the first segment; 0: the input")
    filter_scope: Literal["client", "all"] = Field(default="client", description="whose earlier rows a filter of mode Reuse may use")
    filter_seconds: float = Field(default=600, gt=0, description="for how long a filter of mode Reuse uses an earlier answer")
    filter_sample: float = Field(default=0.01, gt=0, le=1, description="share of skipped rows that run all the same, to compare")
    filter_floor: float = Field(default=0.95, ge=0, le=1, description="the least share of those where the model must agree")
    long_answers: Literal["cut", "refuse"] = Field(
        default="cut", description="max_tokens beyond the context: as many as fit, or a 400; a prompt that does not fit is always a 400"
    )
    unknown_fields: Literal["warn", "refuse"] = Field(
        default="warn", description="fields of requests that are not known: left out and named in a Warning header, or a 400"
    )
    generation_config: Literal["model", "neutral"] = Field(
        default="model", description="whether generation_config.json gives sampling parameters that a request does not name"
    )
    cors_origins: tuple[str, ...] = Field(
        default=(), description="web pages that may ask from a browser: origins, separated by commas, or *; none by default"
    )
    shutdown_seconds: float = Field(default=60.0, ge=0, description="after SIGTERM, how long requests under way may still take")
    lameduck_seconds: float = Field(default=2.0, ge=0, description="after SIGTERM, how long to accept while endpoints are updated")
    api_keys_file: Path | None = Field(
        default=None, description="a file or a folder of files, one key per line, # for comments; read again when it changes"
    )
    token_audience: str = Field(default="", description="instead of keys: tokens of the cluster for this audience, by TokenReview")
    token_seconds: float = Field(default=60.0, gt=0, description="how long the API server's word on a token is remembered")
    peer_suffix: str = Field(default="", description="domain appended to a segment's name")
    peer_addresses: Mapping[str, str] = Field(default_factory=dict, description="tests: JSON, name → host:port instead of DNS")
    wire_port: int = Field(default=8003, ge=1, le=65535, description="port of the segments' wire")
    kserve_port: int | None = Field(default=None, ge=0, le=65535, description="port of the gateway's own gRPC service, KServe v2")
    host: str = Field(default="", description="address to listen on; empty: all of IPv4 and IPv6, whichever there is")
    port: int = Field(default=8080, ge=0, le=65535, description="clients: OpenAI, KServe over HTTP, health")
    internal_port: int = Field(default=8444, ge=0, le=65535, description="the operator, by mutual TLS: GET /internal/routes")
    metrics_port: int = Field(default=9090, ge=0, le=65535, description="Prometheus: GET /metrics")
    tls_folder: Path | None = Field(default=None, description="folder with tls.crt, tls.key and ca.crt; read again when they change")
    tls_look_seconds: float = Field(default=10.0, gt=0, description="how often the certificates are looked at")
    identity: str = Field(default="", description="SPIFFE ID of the resource without a role: spiffe://<trust domain>/ns/<ns>/si/<name>")
    insecure: bool = Field(default=False, description="loopback tests only: no TLS, and anybody may read the internal port")

    @field_validator("peer_addresses", mode="before")
    @classmethod
    def _json(cls, value: object) -> object:
        return json.loads(value) if isinstance(value, str) else value

    @field_validator("trusted_proxies", mode="before")
    @classmethod
    def _networks(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _origins(cls, value: object) -> object:
        return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if wrong := next((origin for origin in value if origin != "*" and not _ORIGIN.fullmatch(origin)), None):
            raise ValueError(f"{wrong!r:.200} is not an origin such as https://chat.example.com (scheme, host and port, no path) nor *")
        return value

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        return str(ip_address(value)) if value else value

    @field_validator("identity")
    @classmethod
    def _is_a_spiffe_id(cls, value: str) -> str:
        if value and not _IDENTITY.fullmatch(value):
            raise ValueError(f"{value!r:.200} is not spiffe://<trust domain>/ns/<namespace>/si/<name>")
        return value

    @field_validator("peer_suffix")
    @classmethod
    def _starts_with_a_dot(cls, value: str) -> str:
        return value if not value or value.startswith(".") else f".{value}"

    @model_validator(mode="after")
    def _says_where_the_route_is(self) -> "Settings":
        if not (self.route_file or self.route_configmap or self.name):
            raise ValueError("one of SI_ROUTE_FILE, SI_ROUTE_CONFIGMAP and SI_NAME must say where the route is")
        if self.api_keys_file is not None and self.token_audience:
            raise ValueError("only one of SI_API_KEYS_FILE and SI_TOKEN_AUDIENCE may be set")
        if not (self.model_id or self.name):
            raise ValueError("one of SI_MODEL_ID and SI_NAME must name the model")
        return self

    @model_validator(mode="after")
    def _says_how_peers_are_known(self) -> "Settings":
        if self.insecure:
            if self.tls_folder is not None:
                raise ValueError("SI_INSECURE=true and SI_TLS_FOLDER exclude each other")
        elif self.tls_folder is None or not self.identity:
            raise ValueError(
                "SI_TLS_FOLDER and SI_IDENTITY must be set: peers are known by certificates (loopback tests: SI_INSECURE=true)"
            )
        return self

    @model_validator(mode="after")
    def _shares_what_it_keeps(self) -> "Settings":
        if self.reuse_server and self.reuse == "off":
            raise ValueError("SI_REUSE_SERVER needs SI_REUSE=client or all")
        if self.reuse == "client" and not (self.api_keys_file or self.token_audience):
            raise ValueError(
                "SI_REUSE=client needs SI_API_KEYS_FILE or SI_TOKEN_AUDIENCE: without them nobody knows whose an answer is; "
                "SI_REUSE=all gives every client every answer"
            )
        return self

    @model_validator(mode="after")
    def _holds_the_largest_body(self) -> "Settings":
        if self.body_budget_bytes < 4 * self.max_body_bytes:
            raise ValueError(f"SI_BODY_BUDGET_BYTES must be at least four times SI_MAX_BODY_BYTES, {4 * self.max_body_bytes}")
        return self

    @model_validator(mode="after")
    def _listens_on_ports_of_their_own(self) -> "Settings":
        ports = {"SI_PORT": self.port, "SI_INTERNAL_PORT": self.internal_port, "SI_METRICS_PORT": self.metrics_port}
        if self.kserve_port is not None:
            ports["SI_KSERVE_PORT"] = self.kserve_port
        by_port: dict[int, str] = {}
        for name, port in ports.items():
            if port and port in by_port:
                raise ValueError(f"{by_port[port]} and {name} are both {port}; each needs a port of its own")
            by_port[port] = name
        return self

    @property
    def most_sequences(self) -> int:
        """Of one request: more never run, nor wait."""
        return self.running_limit + (self.max_queue + 1) // 2

    @property
    def served_model(self) -> str:
        """The model's name towards clients."""
        return self.model_id or self.name

    @property
    def kv_budget_tokens(self) -> int:
        """Tokens of KV that this gateway's sequences may grow to: its share of what the segments are planned for."""
        return self.max_concurrent_sequences * self.max_context_tokens // self.replicas

    @property
    def running_limit(self) -> int:
        """Sequences that run at once through this gateway."""
        return max(1, (self.max_running_sequences or self.max_concurrent_sequences) // self.replicas)

    @property
    def route_object(self) -> str:
        """Name of the ConfigMap that holds the route."""
        return self.route_configmap or f"{self.name}-route"

    def address_of(self, segment: str) -> str:
        """host:port of a segment's wire."""
        return self.peer_addresses.get(segment) or f"{segment}{self.peer_suffix}:{self.wire_port}"

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> "Settings":
        """Read the `SI_*` variables; empty ones count as not set.

        Raises:
            SettingsError: with one line for each wrong variable.
        """
        given = {name: environment[_PREFIX + name.upper()] for name in cls.model_fields if environment.get(_PREFIX + name.upper())}
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            lines = [f"{_PREFIX}{str(e['loc'][0]).upper()}: {e['msg']}" if e["loc"] else e["msg"] for e in error.errors()]
            raise SettingsError("\n".join(lines)) from error
