"""segment-load-adapter: reads an adapter in PEFT's format and gives each of the named segments the part for its layers.

Runs in a pod of its own, which has the adapter's folder and a certificate of the role `loader`; segments serve meanwhile. What it read goes
to the termination log as one line of JSON: digest, rank, bytes. What is wrong goes to stderr in one line, exit 1.

Environment: SI_ADAPTER_PATH, the folder; SI_ADAPTER_BLOCKS, how many blocks the model has; SI_ADAPTER_TARGETS, JSON [{"segment", "model"}];
SI_TLS_FOLDER, SI_IDENTITY, SI_PEER_PREFIX, SI_PEER_SUFFIX, SI_WIRE_PORT as for segments.
"""

import hashlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from splitinference_modelfiles.adapters import CONFIG, MOST_CONFIG_BYTES, WEIGHTS, AdapterRefusedError, LoraTensor, read_config, read_names
from splitinference_protocol.addresses import separated
from splitinference_protocol.wire import answers
from splitinference_protocol.wire.errors import SegmentError
from splitinference_protocol.wire.request import ADAPTER_PIECE, Hop
from splitinference_segment.peers.hops import address_of
from splitinference_segment.peers.identity import Identity, IdentityError
from splitinference_segment.peers.wire import WireError
from splitinference_segment.peers.wire_client import Wire
from splitinference_segment.segment import MODEL_NAME
from splitinference_segment.settings import Settings, SettingsError

TERMINATION_LOG = Path("/dev/termination-log")
_FLOATS = (torch.float32, torch.bfloat16, torch.float16)
_SECONDS = 30.0
"""For one piece."""


class LoadError(Exception):
    """A segment did not take its part; the message names it."""


@dataclass(frozen=True)
class Adapter:
    """An adapter that was read: `digest` names its content, whatever its data type on disk."""

    file: Path
    tensors: Mapping[str, LoraTensor]
    scalings: Mapping[str, float]
    digest: str
    rank: int
    bytes: int

    def part(self, first: int, end: int) -> bytes:
        """The tensors of blocks [first, end) as a segment takes them: float32, the scaling in B."""
        told = {f"{t.block}.{t.layer}.{t.half}": tensor for t, tensor in _values(self, first, end)}
        return bytes(save(told))


def _values(adapter: Adapter, first: int, end: int) -> Iterator[tuple[LoraTensor, torch.Tensor]]:
    with safe_open(str(adapter.file), framework="pt") as stored:
        for name, found in sorted(adapter.tensors.items()):
            if first <= found.block < end:
                tensor = stored.get_tensor(name).float()
                yield found, (tensor * adapter.scalings[name] if found.half == "B" else tensor).contiguous()


def read_adapter(folder: Path, blocks: int) -> Adapter:
    """The adapter in the folder, for a model of so many blocks. AdapterRefusedError says what is wrong, or not served."""
    try:
        if (folder / CONFIG).stat().st_size > MOST_CONFIG_BYTES:
            raise AdapterRefusedError(f"{CONFIG} is larger than {MOST_CONFIG_BYTES} bytes")
        config = read_config((folder / CONFIG).read_bytes())
        with safe_open(str(folder / WEIGHTS), framework="pt") as stored:
            tensors = read_names(stored.keys())
            shapes = {name: tuple(stored.get_slice(name).get_shape()) for name in tensors}
    except FileNotFoundError as error:
        there = any((folder / other).exists() for other in ("adapter_model.bin", "adapter_model.pt"))
        why = f"{WEIGHTS} is served alone, not pickled weights" if there else f"PEFT's format has {CONFIG} and {WEIGHTS}"
        raise AdapterRefusedError(f"{Path(error.filename or WEIGHTS).name} is not in the folder: {why}") from error
    except (OSError, SafetensorError) as error:
        raise AdapterRefusedError(f"the adapter cannot be read: {str(error)[:300]}") from error
    if (beyond := max(tensor.block for tensor in tensors.values())) >= blocks:
        raise AdapterRefusedError(
            f"the adapter is for another model: it changes block {beyond}, and this model has blocks 0 to {blocks - 1}"
        )
    for name, found in tensors.items():
        shape, rank = shapes[name], config.rank_of(found.path)
        if len(shape) != 2 or shape[0 if found.half == "A" else 1] != rank:
            raise AdapterRefusedError(f"{name} has shape {list(shape)}, and {CONFIG} says rank {rank}")
    scalings = {name: config.scaling(found.path, config.rank_of(found.path)) for name, found in tensors.items()}
    read = Adapter(folder / WEIGHTS, tensors, scalings, "", max(config.rank_of(t.path) for t in tensors.values()), 0)
    told, size = hashlib.sha256(), 0
    with safe_open(str(read.file), framework="pt") as stored:
        for name in tensors:
            if (kind := stored.get_tensor(name).dtype) not in _FLOATS:
                raise AdapterRefusedError(f"{name} is stored as {kind}; float32, bfloat16 and float16 are served")
    for found, tensor in _values(read, 0, blocks):
        if not bool(tensor.isfinite().all()):
            raise AdapterRefusedError(f"{found.path} has numbers that are not finite")
        told.update(f"{found.block}.{found.layer}.{found.half}{list(tensor.shape)}\n".encode())
        told.update(memoryview(tensor.numpy()).cast("B"))
        size += tensor.nbytes
    return Adapter(read.file, tensors, scalings, told.hexdigest()[:32], read.rank, size)


def give(adapter: Adapter, hop: Hop, settings: Settings, identity: Identity | None) -> int:
    """Give one segment its part; bytes that it holds of the adapter. LoadError says why not."""
    found = MODEL_NAME.fullmatch(hop.model)
    if found is None:
        raise LoadError(f"{hop.model!r:.100} is not a model's name")
    content = adapter.part(max(int(found["start"]), 1) - 1, int(found["end"]) - 1)
    sha256 = hashlib.sha256(content).hexdigest()
    try:
        host, port = separated(address_of(hop.segment, settings))
        wire = Wire(host, port, hop.model, identity)
    except (WireError, SegmentError, ValueError) as error:
        raise LoadError(f"{hop.segment}: {error}") from error
    try:
        for offset in range(0, len(content), ADAPTER_PIECE):
            piece = {"offset": offset, "total": len(content), "sha256": sha256}
            meta = answers.question("adapter_load", adapter=adapter.digest, piece=piece, deadline_ms=_SECONDS * 1e3)
            told = _asked(wire, hop, meta, content[offset : offset + ADAPTER_PIECE])
            if told.get("loaded") is True:
                return int(str(told.get("bytes", 0)))
        raise LoadError(f"{hop.segment}: it took all pieces and did not load them")
    finally:
        wire.close()


def _asked(wire: Wire, hop: Hop, meta: bytes, data: bytes) -> dict[str, object]:
    came: SimpleQueue[tuple[bytes, bytes] | WireError | TimeoutError] = SimpleQueue()
    try:
        wire.send(meta, data, _SECONDS, came.put)
    except WireError as error:
        raise LoadError(f"{hop.segment}: {error}") from error
    answer = came.get()
    if isinstance(answer, TimeoutError):
        raise LoadError(f"{hop.segment} did not answer within {_SECONDS:g} s")
    if isinstance(answer, WireError):
        raise LoadError(f"{hop.segment}: {answer}")
    told = json.loads(answer[0])
    if isinstance(said := told.get("error"), dict):
        raise LoadError(f"{hop.segment}: {said.get('code')}: {said.get('message')}")
    return dict(told)


def targets_of(text: str) -> Sequence[Hop]:
    """SettingsError where it is not a list of segments with their models."""
    try:
        return [Hop(str(each["segment"]), str(each["model"])) for each in json.loads(text)]
    except (ValueError, TypeError, KeyError):
        raise SettingsError('SI_ADAPTER_TARGETS should be JSON, [{"segment": …, "model": …}]') from None


def main(environment: Mapping[str, str] = os.environ) -> int:
    """Read, give, tell; the exit status."""
    torch.set_num_threads(1)
    own = {"SI_SEGMENT": "loader", "SI_MODEL_NAME": "none", "SI_MODEL_PATH": "/", "SI_LAYERS": "0:1"}
    try:
        settings = Settings.from_environment({**environment, **own})
        targets = targets_of(environment.get("SI_ADAPTER_TARGETS", "[]"))
        identity = Identity(settings.tls_folder, settings.identity) if settings.tls_folder is not None else None
        adapter = read_adapter(Path(environment["SI_ADAPTER_PATH"]), int(environment["SI_ADAPTER_BLOCKS"]))
        for hop in targets:
            give(adapter, hop, settings, identity)
    except (AdapterRefusedError, LoadError, SettingsError, IdentityError, KeyError, ValueError) as error:
        print(" ".join(str(error).split())[:2000], file=sys.stderr)
        return 1
    said = json.dumps({"digest": adapter.digest, "rank": adapter.rank, "bytes": adapter.bytes})
    try:
        TERMINATION_LOG.write_text(said, encoding="utf-8")
    except OSError:  # outside of a pod
        print(said)
    return 0


if __name__ == "__main__":
    sys.exit(main())
