"""Segments with a toy model behind the real protocol: wires whose servers keep state per sequence and forward along the route.

The next token is a function of all tokens so far, which each stage keeps like a KV cache: a stage that lost some, or got them
twice, gives another text or `kv_missing`. Real Triton servers cannot be made to show these faults on demand.
"""

import array
import asyncio
import base64
import json
import ssl
import zlib
from collections import Counter, deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from splitinference_gateway.pipeline.transport.connections import Connections, NoAnswerError
from splitinference_protocol.wire.leb128 import numbers
from splitinference_protocol.wire.meta import described
from splitinference_protocol.wire.request import Hop
from tests.gateway.model_folder import END
from tests.gateway.toy_wire import ToyWire
from tests.segment.host import free_ports

CHARACTERS = [c.encode() for c in " etaoinshrdlu.,éü€𝄞日本"]


class EarlyAnswerError(Exception):
    """An answer that ends a step early."""

    def __init__(self, meta: dict[str, Any]) -> None:
        self.meta = meta


def next_token(tokens: Sequence[int], sampling: dict[str, Any], end_after: int | None = None) -> int:
    """A byte of pseudo text; characters of several bytes come whole. With temperature and seed, another text per seed."""
    if sampling.get("allowed"):
        bits = base64.b64decode(sampling["allowed"])
        may = [token for token in range(8 * len(bits)) if bits[token // 8] >> (token % 8) & 1]
        wanted = end_after is not None and len(tokens) >= end_after and END in may
        others = [token for token in may if token != END]
        return END if wanted or not others else others[zlib.crc32(array.array("q", tokens).tobytes()) % len(others)]
    if end_after is not None and len(tokens) >= end_after and END not in sampling.get("banned", ()):
        return END
    begun = next((tail for n in (3, 2, 1) if _begins_a_character(tail := bytes(t & 0xFF for t in tokens[-n:]))), b"")
    options = sorted({c[len(begun)] for c in CHARACTERS if c.startswith(begun) and len(c) > len(begun)})
    seed = str(sampling["seed"]) if sampling["temperature"] > 0 else ""
    return options[zlib.crc32(array.array("q", tokens).tobytes() + seed.encode()) % len(options)]


def reference(prompt: Sequence[int], count: int, sampling: dict[str, Any] | None = None) -> list[int]:
    """What an unsplit, unbroken model would sample."""
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, sampling or {"temperature": 0, "seed": None}))
    return tokens[len(prompt) :]


def toy_logits(tokens: Sequence[int]) -> list[float]:
    """Three numbers that depend on all tokens."""
    return [float(len(tokens)), float(sum(tokens)), float(zlib.crc32(array.array("q", tokens).tobytes()) % 1000)]


def toy_score(token: int) -> float:
    """The log-probability of any given token."""
    return -0.5 - token % 7


def toy_embedding(tokens: Sequence[int]) -> list[float]:
    """Four numbers that depend on all tokens; of length 1."""
    raw = [float(zlib.crc32(array.array("q", [*tokens, place]).tobytes()) % 1000 - 500) for place in range(4)]
    length = sum(value * value for value in raw) ** 0.5
    return [value / length for value in raw]


def tensors(**made: tuple[Sequence[int], Sequence[float]]) -> dict[str, Any]:
    """`tensors` and `data` of an answer."""
    told = [{"name": name, "dtype": "float32", "shape": list(shape)} for name, (shape, _) in made.items()]
    return {"tensors": told, "data": b"".join(array.array("f", values).tobytes() for _, values in made.values())}


def _hidden(values: Sequence[float]) -> dict[str, Any]:
    told = {"dtype": "float32", "shape": [len(values), 1]}
    return {"v": 1, "ok": True, "tensor": told, "data": array.array("f", values).tobytes()}


@dataclass
class ToySegment:
    """One stage. Faults are set by tests: `errors` are answered one per step; `stalled` never answers; `seconds` is a step's time."""

    name: str
    peers: dict[str, str]
    seconds: float = 0.0
    stalled: bool = False
    one_by_one: asyncio.Lock | None = None  # held while a step takes its time, as by a worker
    kv_limit: int | None = None
    end_after: int | None = None
    script: bytes | None = None  # the answer to everything, where it is given
    begun: dict[str, int] = field(default_factory=dict)
    errors: deque[str] = field(default_factory=deque)
    sequences: dict[str, list[int]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    deadlines: list[int] = field(default_factory=list)
    chunks: list[int] = field(default_factory=list)
    prompts: list[list[int]] = field(default_factory=list)  # of tests with one request at a time: bytes, without special tokens
    shapes: list[list[int]] = field(default_factory=list)
    poolings: list[dict[str, Any]] = field(default_factory=list)
    forgets_pooling: bool = False  # as a segment of an older version
    forgets_drafts: bool = False  # the same
    drafted: list[int] = field(default_factory=list)  # how many tokens of each step were drafts
    traces: list[str] = field(default_factory=list)
    samplings: list[dict[str, Any]] = field(default_factory=list)  # of steps that sampled here
    logprob: float = -0.5
    die_at_step: int | None = None
    layers: tuple[int, int] | None = None
    pull_seconds: float = 0.0  # a token, as of a slow link
    pull_errors: deque[str] = field(default_factory=deque)
    pulled: list[int] = field(default_factory=list)
    kept: dict[str, list[int]] = field(default_factory=dict)
    records: dict[tuple[str, str], list[int]] = field(default_factory=dict)  # tokens that passed here, by sequence and side
    wrong: float = 0.0  # relative error that this stage adds to what it sends on, from its token `wrong_from` on
    wrong_from: int = 0
    verified: list[tuple[int, int]] = field(default_factory=list)  # position and tokens of each check made here
    received_wrong: float = 0.0  # relative error of what it received, from its token `wrong_from` on: the stage before it gave that
    asked: list[bytes] = field(default_factory=list)  # DATA of what it was asked to compute
    adapters: set[str] = field(default_factory=set)  # digests that it holds; each gives another text
    ran_with: list[str] = field(default_factory=list)
    context: ssl.SSLContext | None = None  # of its listener
    port: int = 0

    async def start(self) -> "ToySegment":
        """Serve, on the same port as before if there was one; nothing is remembered."""
        self.port = self.port or free_ports(1)[0]
        self.sequences.clear()
        self.kept.clear()
        self.wire = ToyWire(lambda: self.hop["model"], self._answer)
        await self.wire.start(self.port, self.context)
        self._peers = Connections(lambda name: self.peers[name])
        self.peers[self.name] = f"127.0.0.1:{self.port}"
        return self

    async def die(self) -> None:
        """As a killed server: connections break, state is lost."""
        await self.wire.die()
        await self._peers.close()

    @property
    def hop(self) -> dict[str, str]:
        model = f"seg-{self.name}" if self.layers is None else f"seg-0123abcd-{self.layers[0]}-{self.layers[1]}"
        return {"segment": self.name, "model": model}

    async def _answer(self, asked: bytes, data: bytes) -> tuple[bytes, bytes]:
        meta = described(asked)
        self.counts[meta["op"]] += 1
        if "traceparent" in meta:
            self.traces.append(meta["traceparent"])
        try:
            answer = await getattr(self, f"_{meta['op']}")(meta, data)
        except EarlyAnswerError as early:
            answer = early.meta
        content = answer.pop("data", b"\0")
        return json.dumps(answer).encode(), content

    async def _step(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        self.deadlines.append(meta["deadline_ms"])
        if self.counts["step"] == self.die_at_step:
            self._dying = asyncio.create_task(self.die())
            await asyncio.sleep(60)
        await self._hindered()
        tokens = array.array("q", data).tolist()
        assert meta["tensor"] == {"dtype": "int64", "shape": [len(tokens)]}
        self.chunks.append(len(tokens) - len(numbers(meta.get("drafts", ""))))
        if (adapter := meta.get("adapter", "")) and adapter not in self.adapters:
            raise self._error("adapter_missing")
        self.ran_with.append(adapter)
        self._heard(tokens, meta["position"])
        name, position = meta["sequence"], meta["position"]
        if position == 0 or "prefix" in meta:
            if self.kv_limit is not None and len(self.sequences.keys() - {name}) >= self.kv_limit:
                raise self._error("kv_full")
            self.sequences[name] = self._beginning(meta.get("prefix"), position)
        if len(self.sequences.get(name, ())) not in (position, position + meta.get("drop", 0)):
            raise self._error("kv_missing")
        drafts = numbers(meta.get("drafts", ""))
        assert tokens[len(tokens) - len(drafts) :] == drafts, "the drafts are the step's last tokens"
        self.drafted.append(len(drafts))
        self.sequences[name][position:] = tokens
        for key in self.records.keys() & {(name, "input"), (name, "output")}:
            self.records[key][position:] = tokens
        timing = {"segment": self.name, "queue_ms": 0.1, "compute_ms": 1.0 + self.seconds * 1000, "hop_ms": 0.0}
        if meta["route"]:
            answer = await self._forward(meta, data)
            if "error" in answer:
                return answer
            timing["hop_ms"] = 2.0 + sum(t["queue_ms"] + t["compute_ms"] for t in answer["timings"])
            return {**answer, "timings": [timing, *answer["timings"]]}
        answer = {"v": 1, "timings": [timing]}
        if "targets" in meta:
            targets, wanted = numbers(meta["targets"]), meta["sampling"]["logprobs"]
            assert len(targets) <= len(tokens)
            answer["scored"] = [[toy_score(token), [[token, toy_score(token)], [0, -9.0]][:wanted]] for token in targets]
        if meta["sample"]:
            self.samplings.append(meta["sampling"])
            held, sampling = self.sequences[name], meta["sampling"]
            sampling = {**sampling, "temperature": 1, "seed": adapter} if adapter else sampling
            if meta.get("logits"):
                return {**answer, **tensors(logits=([3], toy_logits(held)))}
            answer |= self._chosen(name, drafts, sampling)
        return answer

    def _chosen(self, name: str, drafts: Sequence[int], sampling: dict[str, Any]) -> dict[str, Any]:
        """The token, and one more for each draft that was right."""
        held, chosen = self.sequences[name], list[int]()
        for number in range(len(drafts) + 1):
            seen = held[: len(held) - len(drafts) + number]
            chosen.append(self._scripted(name, seen) if self.script else next_token(seen, sampling, self.end_after))
            if number < len(drafts) and chosen[-1] != drafts[number]:
                break
        top = [[[token, -0.5], *([i, -1.0 - i] for i in range(1, sampling["logprobs"]))][: sampling["logprobs"]] for token in chosen]
        more = [[token, self.logprob, each] for token, each in zip(chosen[1:], top[1:], strict=True)]
        told = {"more": more} if drafts and not self.forgets_drafts else {}
        return {"token": chosen[0], "logprob": self.logprob, "top_logprobs": top[0], **told}

    def _heard(self, tokens: Sequence[int], position: int) -> None:
        if position == 0:
            self.prompts.append([])
        if self.prompts and (position == 0 or len(tokens) > 1):
            self.prompts[-1] += [token for token in tokens if token < END]

    async def _hindered(self) -> None:
        if self.stalled:
            await asyncio.sleep(60)
        async with self.one_by_one or nullcontext():
            if self.errors:
                raise self._error(self.errors.popleft())
            await asyncio.sleep(self.seconds)

    def _scripted(self, name: str, held: Sequence[int]) -> int:
        assert self.script is not None
        said = len(held) - self.begun.setdefault(name, len(held))
        return self.script[said] if said < len(self.script) else END

    async def _infer(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """As an encoder, of ids and types; or as a generic chain that doubles its numbers in each stage."""
        self.deadlines.append(meta["deadline_ms"])
        if self.errors:
            raise self._error(self.errors.popleft())
        await asyncio.sleep(self.seconds)
        self.shapes.append(meta["tensor"]["shape"])
        if meta["tensor"]["dtype"] == "float32":
            data = array.array("f", [2 * value for value in array.array("f", data)]).tobytes()
        timing = {"segment": self.name, "queue_ms": 0.1, "compute_ms": 1.0, "hop_ms": 0.0}
        if meta["route"]:
            answer = await self._forward(meta, data)
            return answer if "error" in answer else {**answer, "timings": [timing, *answer["timings"]]}
        shape = meta["tensor"]["shape"]
        if meta["tensor"]["dtype"] == "float32":
            return {"v": 1, "timings": [timing], **tensors(scores=(shape, array.array("f", data)))}
        values = array.array("q", data)
        _, rows, count = shape
        ids = [values[row * count : (row + 1) * count] for row in range(rows)]
        types = values[rows * count :] or [0] * rows * count
        hidden = [number for row in range(rows) for i, token in enumerate(ids[row]) for number in (token, types[row * count + i])]
        pooled = [number for row in ids for number in (sum(row), len(row))]
        every = {"last_hidden_state": ([rows, count, 2], hidden), "pooler_output": ([rows, 2], pooled), **self._classified(rows, pooled)}
        if meta.get("pooling"):
            self.poolings.append(meta["pooling"])
            every["sentence_embedding"] = ([rows, 4], [number for row in ids for number in toy_embedding(row)])
        if self.forgets_pooling:
            meta, _ = {**meta, "outputs": []}, every.pop("sentence_embedding", None)
        wanted = meta.get("outputs") or [name for name in every if name != "logits"]
        return {"v": 1, "timings": [timing], **tensors(**{name: every[name] for name in wanted})}

    def _classified(self, rows: int, pooled: Sequence[int]) -> dict[str, Any]:
        """As a classifier of pairs: the row's sum, scaled."""
        return {"logits": ([rows, 1], [pooled[2 * row] / 1000 for row in range(rows)])}

    async def _release(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        tokens, prefix = self.sequences.pop(meta["sequence"], []), meta.get("prefix")
        block = prefix["block"] if prefix else 0
        for number, name in enumerate(prefix["hashes"] if prefix else (), start=1):
            if number * block <= len(tokens):
                self.kept[name] = tokens[: number * block]
        return await self._forward(meta, data) if meta["route"] else {"v": 1, "ok": True}

    def _beginning(self, prefix: dict[str, Any] | None, position: int) -> list[int]:
        """What another sequence left of the same first tokens."""
        if position == 0 or prefix is None:
            return []
        name = prefix["hashes"][position // prefix["block"] - 1]
        if name not in self.kept:
            raise self._error("kv_missing")
        return list(self.kept[name])

    async def _record(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        self.records[meta["sequence"], meta["side"]] = []
        return {"v": 1, "ok": True}

    async def _recorded(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """A float32 for each token: its id."""
        key = meta["sequence"], meta["side"]
        if key not in self.records:
            raise self._error("not_recorded")
        if meta.get("last"):
            del self.records[key]
            return {"v": 1, "ok": True, "tensor": {"dtype": "float32", "shape": [0]}}
        found = self.records[key][meta["position"] : meta["position"] + meta["tokens"]]
        if len(found) != meta["tokens"]:
            raise self._error("not_recorded")
        off = self.received_wrong if meta["side"] == "input" else 0.0
        return _hidden(self._distorted(found, meta["position"], off))

    async def _compute(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """A float32 for each token, its id: what the checked stages send on."""
        if self.errors:
            raise self._error(self.errors.popleft())
        position, count = meta["position"], meta["tensor"]["shape"][0]
        if position == 0:
            self.sequences[meta["sequence"]] = []
        if len(self.sequences.get(meta["sequence"], ())) != position:
            raise self._error("kv_missing")
        self.asked.append(data)
        self.sequences[meta["sequence"]] += [0] * count
        self.verified.append((position, count))
        values = array.array("q" if meta["tensor"]["dtype"] == "int64" else "f", data)
        assert len(values) == count, "the input alone"
        return _hidden(self._distorted(values, position, self.wrong))

    async def _compare(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        values = array.array("f", data)
        half = meta["tensor"]["shape"][0]
        assert len(values) == 2 * half
        off = [abs(a - b) / (abs(a) or 1.0) for a, b in zip(values[:half], values[half:], strict=True)]
        worst = off.index(max(off))
        return {"v": 1, "ok": True, "tokens": half, "mean": sum(off) / half, "worst": off[worst], "worst_at": meta["position"] + worst}

    def _distorted(self, values: Sequence[float], position: int, off: float) -> list[float]:
        return [value * (1 + off if position + place >= self.wrong_from else 1) for place, value in enumerate(values)]

    async def _verify(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """The checked stages send their input on, so both halves are equal; `wrong` of a peer is looked up by the test's own hand."""
        position, count = meta["position"], meta["tensor"]["shape"][0]
        if position == 0:
            self.sequences[meta["sequence"]] = []
        if len(self.sequences.get(meta["sequence"], ())) != position:
            raise self._error("kv_missing")
        if meta["tensor"]["dtype"] == "float32":
            half = len(data) // 2
            assert data[:half] == data[half:], "the input and what came of it are of the same tokens"
        self.sequences[meta["sequence"]] += [0] * count
        self.verified.append((position, count))
        worst = self.wrong if position + count > self.wrong_from else 0.0
        return {"v": 1, "ok": True, "tokens": count, "mean": worst, "worst": worst, "worst_at": position}

    async def _probe(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        if self.stalled:
            await asyncio.sleep(60)
        return {"v": 1, "ok": True, "ms": 1.0}

    async def _kv_pull(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        """Every toy stage keeps all tokens, so any source gives them."""
        await asyncio.sleep(self.pull_seconds * meta["tokens"])
        if self.pull_errors:
            raise self._error(self.pull_errors.popleft())
        name, position, tokens = meta["sequence"], meta["position"], meta["tokens"]
        route = {"route": [meta["sources"][0]], "deadline_ms": meta["deadline_ms"]}
        answer = await self._forward({"v": 1, "op": "kv_export", "sequence": name, "position": position, "tokens": tokens, **route}, b"\0")
        if "error" in answer:
            return answer
        if position == 0:
            self.sequences[name] = []
        if len(self.sequences.get(name, ())) != position:
            raise self._error("kv_missing")
        self.sequences[name] += answer["toy"]
        self.pulled.append(tokens)
        return {"v": 1, "held": position + tokens, "bytes": 1000 * tokens, "ms": 1.0}

    async def _kv_export(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        held = self.sequences.get(meta["sequence"], [])[meta["position"] :][: meta["tokens"]]
        if len(held) != meta["tokens"]:
            raise self._error("kv_missing")
        return {"v": 1, "toy": held}

    async def _forward(self, meta: dict[str, Any], data: bytes) -> dict[str, Any]:
        hop, *rest = meta["route"]
        asked = json.dumps({**meta, "route": rest}).encode()
        try:
            told, content = await self._peers.send(Hop(**hop), asked, data, meta["deadline_ms"] / 1000)
        except NoAnswerError as error:
            raise self._error("next_hop_failed" if error.in_time else "deadline_exceeded") from error
        answer: dict[str, Any] = json.loads(told)
        return {**answer, "data": content}

    def _error(self, code: str) -> EarlyAnswerError:
        return EarlyAnswerError({"v": 1, "error": {"code": code, "message": f"told to: {code}", "segment": self.name}})


async def toy_segments(*names: str) -> list[ToySegment]:
    """Started segments that know each other."""
    peers: dict[str, str] = {}
    return [await ToySegment(name, peers).start() for name in names]


def _begins_a_character(tail: bytes) -> bool:
    return any(c.startswith(tail) and len(c) > len(tail) for c in CHARACTERS)


async def at_rest(segment: ToySegment) -> int:
    """The steps of a segment, once none has come for a while."""
    before = -1
    async with asyncio.timeout(60):
        while before != segment.counts["step"]:
            before = segment.counts["step"]
            await asyncio.sleep(0.1)
    return before
