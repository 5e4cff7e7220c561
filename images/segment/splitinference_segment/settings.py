"""What a segment is told by its environment: which layers, how much KV, where its peers are. Read once, then frozen."""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from splitinference_protocol.wire.request import ENCODINGS, SEGMENT_NAME

SPIFFE_ID = re.compile(r"spiffe://[a-z0-9._-]{1,253}/ns/[a-z0-9-]{1,63}/si/[a-z0-9.-]{1,253}")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
DTYPES = tuple(DTYPE_BYTES)
WEIGHTS = ("stored", "packed")
ENGINES = ("torch", "llamacpp")


class SettingsError(Exception):
    """A variable is missing or wrong; the message names it and says what was expected."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings of one segment. Layers are half-open: the embedding is layer 0, the head the last one."""

    segment: str
    model_name: str
    model_path: Path
    start: int
    end: int
    engine: str = ENGINES[0]  # what computes: torch reads safetensors, llamacpp reads GGUF files
    node: str = ""  # where it runs; links are told of by nodes
    device: str = ""  # class of the device that its pod holds, such as cuda; cpu: the CPU; empty: a GPU where there is one
    dtype: str = "bfloat16"
    max_context_tokens: int = 2048
    max_sequences: int = 8
    kv_bytes: int = 1 << 30
    kv_idle_seconds: float = 300.0
    threads: int = 1
    weights: str = WEIGHTS[0]  # as stored: bit for bit the unsplit model; packed: faster on CPUs
    max_batch: int = 8  # most decode steps run together; 1 runs them one by one
    gather_ms: float = 10.0  # most that decode steps wait for others that are about to come, and never half of a step's time; 0: not at all
    link_encoding: str = ENCODINGS[0]  # of hidden states sent on; int8 halves them, with a loss
    peer_prefix: str = ""
    peer_suffix: str = ""
    grpc_port: int = 8001  # of Triton, on the pod's own loopback
    http_port: int = 8000  # as well
    metrics_port: int = 8002
    wire_port: int = 8003
    tls_folder: Path | None = None  # None: no certificates, which has to be asked for
    identity: str = ""  # of the resource: a SPIFFE ID without the role
    model_digest: str = ""  # what the model's content must be; empty: not known
    digests_file: Path = Path()  # the list of digests that has it as its root
    adapter_bytes: int = 0  # memory for adapters; 0: none can be loaded
    max_step_tokens: int = 8192  # of one request: with the width of hidden states this bounds a frame
    peer_addresses: Mapping[str, str] = field(default_factory=dict)
    backends: Path = Path("/opt/triton/backends")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Settings":
        """Read and check every variable. SettingsError names the first one that is wrong."""
        read = _Reader(environment)
        start, end = read.layers("SI_LAYERS")
        defaults = cls(segment="x", model_name="x", model_path=Path(), start=0, end=1)
        tls_folder, identity = read.identity()
        return cls(
            segment=read.label("SI_SEGMENT"),
            model_name=read.text("SI_MODEL_NAME"),
            model_path=Path(read.text("SI_MODEL_PATH")),
            start=start,
            end=end,
            engine=read.choice("SI_ENGINE", ENGINES, defaults.engine),
            node=read.text("SI_NODE", ""),
            device=read.text("SI_DEVICE", ""),
            dtype=read.choice("SI_DTYPE", DTYPES, defaults.dtype),
            max_context_tokens=read.integer("SI_MAX_CONTEXT_TOKENS", defaults.max_context_tokens, 1),
            max_sequences=read.integer("SI_MAX_SEQUENCES", defaults.max_sequences, 1),
            kv_bytes=read.integer("SI_KV_BYTES", defaults.kv_bytes, 0),
            kv_idle_seconds=read.duration("SI_KV_IDLE_SECONDS", defaults.kv_idle_seconds, "seconds"),
            threads=read.integer("SI_THREADS", defaults.threads, 1),
            weights=read.choice("SI_WEIGHTS", WEIGHTS, defaults.weights),
            max_batch=read.integer("SI_MAX_BATCH", defaults.max_batch, 1),
            gather_ms=read.duration("SI_GATHER_MS", defaults.gather_ms, "milliseconds", may_be_0=True),
            link_encoding=read.choice("SI_LINK_ENCODING", ENCODINGS, defaults.link_encoding),
            peer_prefix=read.text("SI_PEER_PREFIX", ""),
            peer_suffix=read.text("SI_PEER_SUFFIX", ""),
            grpc_port=read.integer("SI_GRPC_PORT", defaults.grpc_port, 1),
            http_port=read.integer("SI_HTTP_PORT", defaults.http_port, 1),
            metrics_port=read.integer("SI_METRICS_PORT", defaults.metrics_port, 1),
            wire_port=read.integer("SI_WIRE_PORT", defaults.wire_port, 1),
            tls_folder=tls_folder,
            identity=identity,
            model_digest=read.text("SI_MODEL_DIGEST", ""),
            digests_file=Path(read.text("SI_DIGESTS_FILE")) if read.text("SI_MODEL_DIGEST", "") else Path(),
            adapter_bytes=read.integer("SI_ADAPTER_BYTES", defaults.adapter_bytes, 0),
            max_step_tokens=read.integer("SI_MAX_STEP_TOKENS", defaults.max_step_tokens, 1),
            peer_addresses=read.addresses("SI_PEER_ADDRESSES"),
            backends=Path(read.text("SI_TRITON_BACKENDS", str(defaults.backends))),
        )


class _Reader:
    """Typed reading of one environment."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment

    def text(self, name: str, default: str | None = None) -> str:
        value = self._environment.get(name) or default  # empty is as good as not set
        if value is None:
            raise SettingsError(f"{name} is not set")
        return value

    def label(self, name: str) -> str:
        value = self.text(name)
        if not SEGMENT_NAME.fullmatch(value):
            raise SettingsError(f"{name} is {value!r}, expected a DNS label: small letters, digits and dashes, at most 63")
        return value

    def choice(self, name: str, choices: tuple[str, ...], default: str) -> str:
        value = self.text(name, default)
        if value not in choices:
            raise SettingsError(f"{name} is {value!r}, expected one of {', '.join(choices)}")
        return value

    def integer(self, name: str, default: int, least: int) -> int:
        value = self.text(name, str(default))
        try:
            number = int(value)
        except ValueError:
            raise SettingsError(f"{name} is {value!r}, expected a whole number") from None
        if number < least:
            raise SettingsError(f"{name} is {number}, expected at least {least}")
        return number

    def duration(self, name: str, default: float, unit: str, *, may_be_0: bool = False) -> float:
        value = self.text(name, str(default))
        try:
            number = float(value)
        except ValueError:
            raise SettingsError(f"{name} is {value!r}, expected {unit}") from None
        if not 0 <= number < float("inf") or (number == 0 and not may_be_0):
            raise SettingsError(f"{name} is {value}, expected {f'0 {unit} or more' if may_be_0 else f'more than 0 {unit}'}")
        return number

    def layers(self, name: str) -> tuple[int, int]:
        value = self.text(name)
        match = re.fullmatch(r"(\d+):(\d+)", value)
        if match is None or int(match[1]) >= int(match[2]):
            raise SettingsError(f"{name} is {value!r}, expected start:end with start < end")
        return int(match[1]), int(match[2])

    def identity(self) -> tuple[Path | None, str]:
        """Where the certificates are, and whose. No folder only where SI_INSECURE says so."""
        folder = self.text("SI_TLS_FOLDER", "")
        insecure = self.choice("SI_INSECURE", ("true", "false"), "false") == "true"
        if folder and insecure:
            raise SettingsError("SI_INSECURE=true and SI_TLS_FOLDER exclude each other")
        if folder:
            name = self.text("SI_IDENTITY", "")
            if not SPIFFE_ID.fullmatch(name):
                raise SettingsError(f"SI_IDENTITY is {name!r:.300}, expected spiffe://<trust domain>/ns/<namespace>/si/<name>")
            return Path(folder), name
        if not insecure:
            raise SettingsError("SI_TLS_FOLDER is not set; on loopback alone SI_INSECURE=true does without certificates")
        return None, ""

    def addresses(self, name: str) -> Mapping[str, str]:
        value = self.text(name, "{}")
        try:
            addresses = json.loads(value)
        except ValueError:
            raise SettingsError(f"{name} is not JSON") from None
        if not isinstance(addresses, dict) or not all(isinstance(address, str) for address in addresses.values()):
            raise SettingsError(f"{name} should be a JSON object of name to host:port")
        return addresses
